"""Checkpoints of pretraining as others publish them: which layout, which trunk, and its tensors by torchvision's names.

Layouts: ``caco``, the bare ``Sequential`` of reference system 3; ``seco``, Lightning's dictionary of SeCo and of system
3, whose trunk of the queries is taken; ``saco``, the encoders and networks of reference system 2; ``torchgeo`` and
``torchvision``, a ResNet's own names. A trunk is taken whole or not at all.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from mmcd.errors import ModelError
from mmcd.models.checkpoints import read_plain
from mmcd.models.trunk_weights import (
    first_convolution,
    numbered_to_torchvision,
    require_match,
    trunk_shapes,
    with_counters,
)
from mmcd.models.trunks import FEATURE_TRUNKS, FeatureTrunk

Layout = Literal["caco", "seco", "saco", "torchgeo", "torchvision"]
Names = Literal["numbers", "names"]

_KINDS: dict[Names, re.Pattern[str]] = {
    "numbers": re.compile(r"((?:[^.]+\.)*?)[4-7]\.\d+\.(?:conv|bn)\d\."),
    "names": re.compile(r"((?:[^.]+\.)*?)(?:layer[1-4]\.\d+\.(?:conv|bn)\d\.|features\.\d+\.\d+\.)"),
}
"""What only a trunk's tensors are called, behind a prefix."""

_TRUNKS: dict[Names, re.Pattern[str]] = {
    "numbers": re.compile(r"[014567]\."),
    "names": re.compile(r"(conv1|bn1|layer[1-4]|features)\."),
}
_PLACES: tuple[tuple[str, Names, tuple[Layout, ...]], ...] = (
    ("encoder_q.", "numbers", ("seco", "caco")),
    ("", "numbers", ("caco", "seco")),
    ("resnet.model.model.", "numbers", ("saco",)),
    ("model.model.", "numbers", ("saco",)),
    ("encoder.model.model.", "numbers", ("saco",)),
    ("encoder.", "numbers", ("saco",)),
    ("encoder.", "names", ("saco",)),
    ("", "names", ("torchvision", "torchgeo")),
    ("backbone.", "names", ("torchgeo",)),
    ("model.", "names", ("torchgeo",)),
)
"""Where each layout keeps its trunk, and which it is taken for first."""

_WRAPPERS = ("state_dict", "model_state_dict")
_CLASSIFIERS = ("fc", "classifier", "head")
_SHOWN = 6


@dataclass(frozen=True)
class PublishedTrunk:
    """A trunk out of somebody's checkpoint.

    Attributes:
        layout: How the file is laid out.
        trunk: Whose tensors they are, by their shapes.
        bands: Bands of its first convolution.
        weights: All tensors under torchvision's names, float32.
        left_out: Tensors that are none of the trunk's, by the part they belong to.
        facts: Numbers and words that the file says of its training.
    """

    layout: Layout
    trunk: FeatureTrunk
    bands: int
    weights: dict[str, Tensor]
    left_out: dict[str, int]
    facts: dict[str, Any]


def read_published(path: Path, layout: Layout | None = None) -> PublishedTrunk:
    """Read the trunk of a checkpoint.

    Args:
        path: ``.pth``, ``.pt``, ``.ckpt``, ``.bin`` or ``.safetensors``.
        layout: How it is laid out; found out if left out.

    Raises:
        ModelError: The file is damaged, asks for code, holds no trunk in that layout, or not a whole one.
    """
    values = _safetensors(path) if path.suffix == ".safetensors" else read_plain(path)
    tensors = _tensors(values, path)
    prefix, kind, found = _place(tensors, layout, path)
    inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    taken = {name: value for name, value in inner.items() if _TRUNKS[kind].match(name)}
    weights = with_counters(numbered_to_torchvision(taken) if kind == "numbers" else taken)
    trunk = _likeliest(weights)
    kernels = weights.get(first_convolution(trunk))
    bands = kernels.shape[1] if kernels is not None and kernels.ndim == 4 else 3
    require_match(weights, trunk, bands, str(path))
    left_out = Counter(_part(name) for name in tensors if name.removeprefix(prefix) not in taken)
    if layout is None and found == "torchvision" and not left_out.keys() & set(_CLASSIFIERS):
        found = "torchgeo"  # it publishes trunks, torchvision whole classifiers
    floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    return PublishedTrunk(layout or found, trunk, bands, floats, dict(left_out), _facts(values))


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Fetch the file again.") from error


def _tensors(values: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without its wrappers."""
    for key in _WRAPPERS:
        if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
            values = values[key]
    named = values.items() if isinstance(values, Mapping) else ()
    tensors = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no weights by name.", "Give a state dict or a checkpoint of Lightning.")
    parallel = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if parallel else name: value for name, value in tensors.items()}


def _place(tensors: Mapping[str, Tensor], layout: Layout | None, path: Path) -> tuple[str, Names, Layout]:
    """Return the prefix of the trunk, how it is named and the layout.

    Raises:
        ModelError: There is no trunk, or none where the layout keeps it.
    """
    there = {(match[1], kind) for kind, names in _KINDS.items() for name in tensors if (match := names.match(name))}
    for prefix, kind, layouts in _PLACES:
        if (prefix, kind) in there and (layout is None or layout in layouts):
            return prefix, kind, layout or layouts[0]
    parts = sorted({_part(name) for name in tensors})
    listed = ", ".join(parts[:_SHOWN]) + (", ..." if len(parts) > _SHOWN else "")
    if not there:
        raise ModelError(f"{path} holds no trunk that is known here: it has {listed}.", "Give the whole checkpoint.")
    where = " and ".join(sorted(f"{prefix or 'the top'} by {kind}" for prefix, kind in there))
    wanted = f"the layout {layout}" if layout else "any published layout"
    raise ModelError(
        f"{path} does not have {wanted}: its trunk lies under {where}.", "Leave out --format to have it found out."
    )


def _likeliest(weights: Mapping[str, Tensor]) -> FeatureTrunk:
    """Return the trunk that most of the tensors fit, the smaller one of two."""
    windowed = any(name.startswith("features.") for name in weights)
    candidates = [trunk for trunk in FEATURE_TRUNKS if trunk.startswith("resnet") != windowed]
    shapes = {name: tensor.shape for name, tensor in weights.items()}

    def fitting(trunk: FeatureTrunk) -> int:
        wanted = trunk_shapes(trunk, 3)
        fits = sum(shapes.get(name) == shape for name, shape in wanted.items())
        return 2 * fits - len(wanted)  # a trunk that is not filled is less likely than one that is

    return max(candidates, key=fitting)


def _part(name: str) -> str:
    """Return what a tensor belongs to: ``heads_q`` of ``heads_q.0.2.weight``."""
    return re.sub(r"(\.\d+\..*|\.[^.]*)$", "", name)


def _facts(values: Any) -> dict[str, Any]:
    """Return the plain numbers and words beside the weights."""
    if not isinstance(values, Mapping):
        return {}
    found = {key: values[key] for key in ("epoch", "global_step") if _is_plain(values.get(key))}
    settings = values.get("hyper_parameters")
    if isinstance(settings, Mapping):
        found |= {str(key): value for key, value in settings.items() if _is_plain(value)}
    return found


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str)
