"""Start a change network from pretrained trunks: for one branch or both, brought to the branch's bands."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator
from torch import Tensor, nn

from mmcd.cards import Branch
from mmcd.config import Config
from mmcd.errors import ConfigError, ModelError
from mmcd.geo.sensors import standard_name
from mmcd.models.encoders import Encoder
from mmcd.models.fusion_unet import FusionUNet
from mmcd.models.siamese import ContextSiamese, PseudoSiamese
from mmcd.models.trunk_weights import adapt_bands, load_trunk
from mmcd.trunk_cards import TrunkCard, find_trunk

Side = Literal["pre", "post"]

RECORD = "init.json"
"""File of a run's folder that says what it started from; a resumed run reads it, whatever became of the trunk."""

_SHARED = "The two images share one trunk: give one name for both (model.init=NAME), or model.settings.post_trunk."


class TrunkInit(Config):
    """Which trunks a network starts from, by name or path (`mmcd.trunk_cards.find_trunk`).

    A single name stands for both.

    Attributes:
        pre: Trunk of the image before; none leaves it as the network makes it.
        post: Trunk of the image after.
    """

    pre: str | None = None
    post: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_name_for_both(cls, value: Any) -> Any:
        return {"pre": value, "post": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_a_trunk(self) -> Self:
        if not (self.pre or self.post):
            raise ValueError("init names no trunk: write a name or path, or one for pre, post or both")
        return self

    @property
    def both(self) -> bool:
        """Whether no branch is left random."""
        return bool(self.pre and self.post)


def start_from_trunks(model: nn.Module, init: TrunkInit, pre: Branch, post: Branch, folder: Path) -> None:
    """Fill the trunks of a network and note in the run's folder what they were filled with.

    Args:
        model: A pseudo-siamese network, whole or on contexts, or a fusion UNet.
        init: Which trunks.
        pre: Input before; its bands choose the kernels of the first convolution.
        post: Input after.
        folder: Folder of the run.

    Raises:
        ConfigError: Both images share a trunk, and only one is to be started or each from another.
        ModelError: A trunk is missing, damaged or of another kind than the network's.
    """
    if isinstance(model, FusionUNet) and len(model.trunks) == 1 and init.pre != init.post:
        raise ConfigError("model.init names different trunks for the two images.", _SHARED)
    sides: tuple[tuple[Side, str | None, Branch], ...] = (("pre", init.pre, pre), ("post", init.post, post))
    record: dict[Side, dict[str, Any]] = {}
    for side, name, branch in sides:
        if name is None:
            continue
        card, weights = load_trunk(find_trunk(name))
        had, wanted = ([standard_name(band) or band for band in bands] for bands in (card.bands, branch.bands))
        _fill(model, side, card, adapt_bands(weights, had, wanted))
        record[side] = {
            "trunk": card.name,
            "version": card.version,
            "method": card.method,
            "sha256": card.sha256,
            "bands": list(card.bands),
        }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def init_record(folder: Path, init: TrunkInit | None) -> dict[str, Any]:
    """Return what a run started from as ``{"init": ...}`` for its card; empty for one that started from no trunk."""
    return {} if init is None else {"init": json.loads((folder / RECORD).read_text())}


def _fill(model: nn.Module, side: Side, card: TrunkCard, weights: Mapping[str, Tensor]) -> None:
    """Fill the trunk of one branch."""
    if isinstance(model, FusionUNet):
        model.load_trunk(weights, side)
    elif isinstance(model, PseudoSiamese):
        _fill_encoder((model.pre if side == "pre" else model.post).encoder, side, card, weights)
    elif isinstance(model, ContextSiamese):
        _fill_encoder(model.optical_encoder if side == "pre" else model.sar_encoder, side, card, weights)
    else:
        raise ModelError(f"A {type(model).__name__} has no trunk that could be started.", "Leave out model.init.")


def _fill_encoder(encoder: Encoder, side: Side, card: TrunkCard, weights: Mapping[str, Tensor]) -> None:
    """Fill an encoder, which may be cut before the trunk's last stages; all that it has must be there.

    Raises:
        ModelError: The trunk is of another depth or kind.
    """
    wanted = encoder.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] in _parts(wanted)}
    fitting = [name for name in wanted if name in kept and kept[name].shape == wanted[name].shape]
    if len(fitting) != len(wanted) or len(kept) != len(wanted):
        raise ModelError(
            f"The trunk {card.name} ({card.trunk}) fits {len(fitting)} of {len(wanted)} tensors of the branch {side}, "
            f"{len(kept) - len(fitting)} are left over.",
            "Let model.init name a trunk of the network's own depth, or set its trunk (resnet18 or resnet34) to match.",
        )
    encoder.load_state_dict(kept)


def _parts(names: Mapping[str, Tensor]) -> set[str]:
    return {name.partition(".")[0] for name in names}
