"""Trunks of two-image networks: torchvision's bodies as features at four or five scales, for any number of bands.

Levels are numbered by what they show, 2 to 5 from fine to coarse; level 1 is the stem of a ResNet. The max-pool of the
ResNets is left out, so that levels 1 and 2 keep half of the resolution (reference system 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torchvision.models import convnext_tiny, resnet18, resnet34, resnet50, swin_t
from torchvision.ops import Permute

from mmcd import trunk_cards
from mmcd.errors import ModelError

FeatureTrunk = trunk_cards.FeatureTrunk
FEATURE_TRUNKS: tuple[FeatureTrunk, ...] = get_args(FeatureTrunk)

_BODIES = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "swin_t": swin_t,
    "convnext_tiny": convnext_tiny,
}
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class Scales:
    """What a trunk's levels look like.

    Attributes:
        strides: Input pixels a cell, by level.
        channels: Channels, by level.
        places: Where torchvision keeps the layers, as prefixes of its state-dict names to level and place in it.
    """

    strides: Mapping[int, int]
    channels: Mapping[int, int]
    places: Mapping[str, str]

    @property
    def multiple(self) -> int:
        """Pixels that height and width of an input must be a multiple of."""
        return max(self.strides.values())


def _residual(*channels: int) -> Scales:
    stages = {f"layer{level - 1}.": f"{level}." for level in range(2, 6)}
    return Scales(
        dict(zip(range(1, 6), (2, 2, 4, 8, 16), strict=True)),
        dict(zip(range(1, 6), channels, strict=True)),
        {"conv1.": "1.0.", "bn1.": "1.1.", **stages},
    )


def _windowed(first: int) -> Scales:
    """Return the scales of bodies of eight ``features``; ``first`` is the place of a merging layer in its level."""
    places = {"features.0.": "2.0.", "features.1.": "2.1."}
    for level in range(3, 6):
        places |= {
            f"features.{2 * level - 4}.": f"{level}.{first}.",
            f"features.{2 * level - 3}.": f"{level}.{first + 1}.",
        }
    levels = range(2, 6)
    return Scales({level: 2**level for level in levels}, dict(zip(levels, (96, 192, 384, 768), strict=True)), places)


SCALES: dict[FeatureTrunk, Scales] = {
    "resnet18": _residual(64, 64, 128, 256, 512),
    "resnet34": _residual(64, 64, 128, 256, 512),
    "resnet50": _residual(64, 256, 512, 1024, 2048),
    "swin_t": _windowed(first=1),
    "convnext_tiny": _windowed(first=0),
}


def scales_of(trunk: FeatureTrunk) -> Scales:
    """Return the scales of a trunk.

    Raises:
        ModelError: There is no such trunk.
    """
    if trunk not in SCALES:
        raise ModelError(f"There is no trunk {trunk!r}.", f"Choose from {', '.join(SCALES)}.")
    return SCALES[trunk]


def build_stages(trunk: FeatureTrunk, channels: int) -> dict[int, nn.Module]:
    """Return the untrained layers of every level, each to be fed with the features of the one before.

    Args:
        trunk: Which body.
        channels: Bands of the image; the first convolution is made for them.
    """
    body: Any = build_body(trunk, channels)
    if trunk.startswith("resnet"):
        stem = nn.Sequential(body.conv1, body.bn1, nn.ReLU(inplace=True))
        return {1: stem, 2: body.layer1, 3: body.layer2, 4: body.layer3, 5: body.layer4}
    layers = body.features
    pairs = {level: (layers[2 * level - 4], layers[2 * level - 3]) for level in range(2, 6)}
    if trunk == "convnext_tiny":
        return {level: nn.Sequential(*pair) for level, pair in pairs.items()}
    # Swin works with channels last; its first layer takes an image as it is.
    deeper = {level: nn.Sequential(Permute(_TO_LAST), *pairs[level], Permute(_TO_FIRST)) for level in range(3, 6)}
    return {2: nn.Sequential(*pairs[2], Permute(_TO_FIRST)), **deeper}


def build_body(trunk: FeatureTrunk, channels: int) -> nn.Module:
    """Return torchvision's untrained network, classifier and all, with a first convolution for other bands."""
    body: Any = _BODIES[trunk](weights=None)
    if trunk.startswith("resnet"):
        body.conv1 = _for_bands(body.conv1, channels)
    else:
        body.features[0][0] = _for_bands(body.features[0][0], channels)
    return body  # type: ignore[no-any-return]


def _for_bands(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return an untrained convolution like ``layer`` for another number of bands, or the layer itself."""
    if channels == layer.in_channels:
        return layer
    outputs, with_bias = layer.out_channels, layer.bias is not None
    size: dict[str, Any] = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
    other = nn.Conv2d(channels, outputs, bias=with_bias, **size)
    nn.init.kaiming_normal_(other.weight, mode="fan_out", nonlinearity="relu")
    return other


def stage_weights(trunk: FeatureTrunk, public: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return public weights of a whole body under the names of the stages: ``1.0.weight`` is the stem's convolution.

    Weights of the first convolution for red, green and blue are averaged for other numbers of bands and scaled, so that
    an image of equal bands gives the answer that it gave in colour. The classifier is left out, and so are the levels
    of which nothing is wanted: those that a shorter trunk was cut before.

    Args:
        trunk: Whose weights they are said to be.
        public: State dict as torchvision names it.
        wanted: State dict of the stages.

    Raises:
        ModelError: They are not that trunk's, or not complete.
    """
    found = {}
    levels = {name[0] for name in wanted}
    places = {prefix: place for prefix, place in SCALES[trunk].places.items() if place[0] in levels}
    for name, tensor in public.items():
        prefix = next((prefix for prefix in places if name.startswith(prefix)), None)
        if prefix is not None:
            found[places[prefix] + name.removeprefix(prefix)] = tensor
    first = "1.0.weight" if "1.0.weight" in wanted else "2.0.0.weight"
    if first in found and first in wanted and found[first].shape != wanted[first].shape:
        bands = wanted[first].shape[1]
        found[first] = found[first].mean(dim=1, keepdim=True).repeat(1, bands, 1, 1) * (found[first].shape[1] / bands)
    fitting = [name for name in wanted if name in found and found[name].shape == wanted[name].shape]
    if len(fitting) != len(wanted) or len(found) != len(wanted):
        raise ModelError(
            f"The weights match {len(fitting)} of {len(wanted)} tensors of a {trunk}, {len(found) - len(fitting)} are "
            "left over.",
            f"Give torchvision's weights of {trunk}, or set `trunk` to what they belong to.",
        )
    return found


def trunk_of(shapes: Mapping[str, torch.Size]) -> FeatureTrunk | None:
    """Return whose stages these are by the shapes of their tensors; None if nobody's.

    The number of bands does not matter, nor does a trunk that was cut behind one of its levels.

    Args:
        shapes: Shape of each tensor under the names of the stages: ``5.0.conv1.weight``.
    """
    deep = {name: shape for name, shape in shapes.items() if not name.startswith(("1.0.", "2.0.0."))}
    levels = {int(name[0]) for name in shapes if name[0].isdigit()}
    for trunk in FEATURE_TRUNKS:
        with torch.device("meta"):
            stages = build_stages(trunk, 3)
        known = {
            f"{level}.{name}": tensor.shape
            for level, stage in stages.items()
            for name, tensor in stage.state_dict().items()
            if level in levels
        }
        if deep and deep == {name: shape for name, shape in known.items() if not name.startswith(("1.0.", "2.0.0."))}:
            return trunk
    return None
