"""Weights of pretrained trunks: saved beside a card, read back whole, brought to other bands.

They are stored under torchvision's names (``conv1.weight``, ``bn1.*``, ``layer1.0.conv1.weight`` ...) without the
classifier, whatever names they came with.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmcd.cards import file_sha256, verify_weights
from mmcd.errors import ModelError, StorageError
from mmcd.models.trunks import SCALES, FeatureTrunk, build_body
from mmcd.trunk_cards import TrunkCard, read_trunk_card, write_trunk_card

Stored = Literal["float32", "float16", "int8"]

_SHOWN = 4
_SCALE = "/scale"
_LEVELS = 127
_FIRST = {"swin_t": "features.0.0.weight", "convnext_tiny": "features.0.0.weight"}
_NUMBERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_COUNTER = "num_batches_tracked"


def first_convolution(trunk: FeatureTrunk) -> str:
    """Return the name of the weight that the bands of an image meet."""
    return _FIRST.get(trunk, "conv1.weight")


def trunk_shapes(trunk: FeatureTrunk, bands: int) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a trunk under torchvision's names, without its classifier."""
    return dict(_shapes(trunk, bands))


def require_match(weights: Mapping[str, Tensor], trunk: FeatureTrunk, bands: int, source: str) -> None:
    """Refuse weights that are not exactly those of a trunk.

    Args:
        weights: Tensors under torchvision's names.
        trunk: Whose they are said to be.
        bands: Bands of its first convolution.
        source: Where they come from, for the message.

    Raises:
        ModelError: Tensors are missing, of another shape or left over; they are counted and listed.
    """
    wanted = trunk_shapes(trunk, bands)
    shared = wanted.keys() & weights.keys()
    faults = {
        "missing": wanted.keys() - shared,
        "not expected": weights.keys() - shared,
        "of another shape": {name for name in shared if weights[name].shape != wanted[name]},
    }
    if not any(faults.values()):
        return
    matched = len(shared) - len(faults["of another shape"])
    listed = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names)
    raise ModelError(
        f"{source} matches {matched} of {len(wanted)} tensors of {trunk}: {listed}.",
        "The file was cut or belongs to another network: nothing was taken from it.",
    )


def load_trunk(card_path: Path) -> tuple[TrunkCard, dict[str, Tensor]]:
    """Return a card and the weights of its trunk, float32 (counters int64), after the file's hash was checked.

    Args:
        card_path: The card, as `mmcd.trunk_cards.find_trunk` returns it.

    Raises:
        ModelError: Card or weights are missing, damaged or do not match.
    """
    card = read_trunk_card(card_path)
    path = verify_weights(card_path, card)
    try:
        stored = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"The weights {path} cannot be read: {error}.", "Restore the file.") from error
    weights = {name: _restored(name, stored) for name in stored if not name.endswith(_SCALE)}
    require_match(weights, card.trunk, len(card.bands), str(path))
    return card, weights


def save_trunk(weights: Mapping[str, Tensor], card: TrunkCard, path: Path, stored: Stored = "float32") -> TrunkCard:
    """Write weights as safetensors and their card as TOML beside them, and return the card with file name and hash.

    Args:
        weights: All tensors of the trunk under torchvision's names; see `numbered_to_torchvision`.
        card: The card; its ``weights`` and ``sha256`` are set here.
        path: The file of weights; ``.safetensors`` is added where it has no such ending.
        stored: How convolutions and linear maps are kept; the rest is single precision. A ResNet-18 takes 45 MB in
            ``float32``, 22 MB in ``float16`` and 11 MB in ``int8`` with a scale for each output channel; the features
            of an untrained one differ by 0.1 and 4 per cent then.

    Raises:
        ModelError: The weights are not those of the card's trunk.
        StorageError: The files cannot be written.
    """
    require_match(weights, card.trunk, len(card.bands), card.name)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".toml") else path
    file, toml = (stem.with_name(stem.name + ending) for ending in (".safetensors", ".toml"))
    partial = file.with_name(f".{file.name}.partial")
    values: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        values |= _packed(name, tensor.detach().cpu(), stored)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(values, partial)
        saved = card.model_copy(update={"weights": file.name, "sha256": file_sha256(partial)})
        partial.replace(file)
        write_trunk_card(saved, toml)
    except (OSError, safetensors.SafetensorError) as error:
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"{file} cannot be written: {reason}.", "Choose a folder with space.") from error
    return saved


def numbered_to_torchvision(state: Mapping[str, Tensor], trunk: FeatureTrunk = "resnet50") -> dict[str, Tensor]:
    """Return the tensors of a trunk that is a ``Sequential`` under torchvision's names.

    A ResNet is numbered as ``Sequential(*children)`` numbers it: 0 is ``conv1``, 1 ``bn1``, 4 to 7 the four layers
    (reference systems 2 and 3, and `mmcd.models.moco.pooled_trunk`). Other trunks are a ``Sequential`` of their levels.

    Args:
        state: State dict of the ``Sequential``.
        trunk: Which body; all ResNets are numbered alike.

    Raises:
        ModelError: A name belongs to none of these layers.
    """
    if trunk in _FIRST:
        places = {f"{int(place[0]) - 2}{place[1:]}": name for name, place in SCALES[trunk].places.items()}
    else:
        places = {f"{number}.": f"{layer}." for number, layer in _NUMBERS.items()}
    found = {}
    for name, tensor in state.items():
        place = next((place for place in places if name.startswith(place)), None)
        if place is None:
            raise ModelError(
                f"{name} is no layer of a numbered trunk.", f"Its names begin with {', '.join(sorted(places))}"
            )
        found[places[place] + name.removeprefix(place)] = tensor
    return found


def with_counters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the counters of their batch norms, 0 where a file of an old version of torch has none.

    No network in use reads them; torch's own models are complete with them only.
    """
    norms = [name.removesuffix("running_mean") for name in weights if name.endswith("running_mean")]
    return {norm + _COUNTER: torch.zeros((), dtype=torch.int64) for norm in norms} | dict(weights)


def adapt_bands(weights: Mapping[str, Tensor], had: Sequence[str], wanted: Sequence[str]) -> dict[str, Tensor]:
    """Return weights whose first convolution takes other bands.

    Bands of the same name keep their kernels; others, radar among them, get the mean of all. Then all are scaled by
    the ratio of the numbers of bands, and what a left-out band still lacks is spread evenly, so that an image whose
    bands are equal gives the answer that it gave before. The same bands in another order keep their kernels exactly.

    Args:
        weights: Tensors under torchvision's names.
        had: Bands of the first convolution, standard names (`mmcd.geo.sensors.standard_name`).
        wanted: Bands of the images to come.

    Raises:
        ModelError: The weights do not have that many bands, or none is wanted.
    """
    name = next((name for name in ("conv1.weight", "features.0.0.weight") if name in weights), None)
    kernels = weights[name] if name is not None else torch.empty(0, 0)
    if name is None or kernels.shape[1] != len(had) or not wanted:
        raise ModelError(
            f"A first convolution for {kernels.shape[1]} bands cannot go from {', '.join(had)} to {', '.join(wanted)}.",
            "Give the card's bands, and at least one band of the images.",
        )
    mean = kernels.mean(dim=1)
    chosen = [kernels[:, had.index(band)] if band in had else mean for band in wanted]
    adapted = torch.stack(chosen, dim=1) * (len(had) / len(wanted))  # (outputs, wanted, height, width)
    if Counter(band for band in wanted if band in had) != Counter(had):
        adapted = adapted + (kernels.sum(dim=1) - adapted.sum(dim=1)).unsqueeze(1) / len(wanted)
    return {**weights, name: adapted.contiguous()}


@cache
def _shapes(trunk: FeatureTrunk, bands: int) -> tuple[tuple[str, torch.Size], ...]:
    with torch.device("meta"):
        body = build_body(trunk, bands).state_dict()
    places = tuple(SCALES[trunk].places)
    return tuple((name, tensor.shape) for name, tensor in body.items() if name.startswith(places))


def _packed(name: str, tensor: Tensor, stored: Stored) -> dict[str, Tensor]:
    """Return what is written for one tensor."""
    if not tensor.is_floating_point():
        return {name: tensor.contiguous()}
    if tensor.ndim < 2 or stored == "float32":
        return {name: tensor.float().contiguous()}
    if stored == "float16":
        return {name: tensor.half().contiguous()}
    across = tuple(range(1, tensor.ndim))
    scale = (tensor.float().abs().amax(dim=across, keepdim=True) / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    return {name: (tensor.float() / scale).round().to(torch.int8).contiguous(), name + _SCALE: scale.contiguous()}


def _restored(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    tensor = stored[name]
    if name + _SCALE in stored:
        return tensor.float() * stored[name + _SCALE]
    return tensor.float() if tensor.is_floating_point() else tensor


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
