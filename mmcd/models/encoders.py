"""ResNet trunks for any number of bands, the feature pyramid of one branch, and how far a pixel's answer reaches.

Trunks are torchvision's, so public weights fit after the first convolution is adapted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34

TrunkName = Literal["resnet18", "resnet34"]
Deep = Literal["halving", "kept", "dilated"]

_TRUNKS = {"resnet18": resnet18, "resnet34": resnet34}
STAGE_CHANNELS = (64, 64, 128, 256, 512)


class Encoder(nn.Module):
    """A ResNet trunk whose first convolution takes ``channels`` bands and whose last stages can keep stride 8.

    Args:
        channels: Number of input bands.
        trunk: ResNet-18 or ResNet-34.
        levels: Number of residual stages that are kept, 3 or 4.
        deep: What ``layer3`` and ``layer4`` do to the resolution: ``halving`` as in a stock ResNet; ``kept`` sets
            their stride to 1 and changes nothing else (reference system 0); ``dilated`` sets it to 1 and dilates, so
            weights of the ``halving`` form give their own values at every stride-8 position (à trous).
    """

    def __init__(self, channels: int, trunk: TrunkName = "resnet18", levels: int = 3, deep: Deep = "halving") -> None:
        super().__init__()
        body = _TRUNKS[trunk](weights=None)
        self.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1, self.relu, self.maxpool = body.bn1, body.relu, body.maxpool
        self.stages = [f"layer{level}" for level in range(1, levels + 1)]
        for depth, name in enumerate(self.stages, start=1):
            stage = getattr(body, name)
            if depth >= 3 and deep != "halving":
                _keep_resolution(stage, 2 ** (depth - 2) if deep == "dilated" else 1)
            self.add_module(name, stage)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features of the stem (stride 2) and of every stage (stride 4, 8, ...).

        Args:
            image: Normalised image, shape (B, C, H, W), float32.
        """
        features = [self.relu(self.bn1(self.conv1(image)))]  # (B, 64, H/2, W/2)
        deeper = self.maxpool(features[0])
        for name in self.stages:
            deeper = getattr(self, name)(deeper)
            features.append(deeper)
        return features

    def span(self, level: int, cells: "Span") -> "Span":
        """Return the input pixels that an interval of cells of one level depends on.

        Args:
            level: Index into what `forward` returns.
            cells: Interval of cells at that level, along one axis.
        """
        for layer in reversed(list(self._layers(level))):
            cells = cells.before(layer)
        return cells

    def _layers(self, level: int) -> Iterator["nn.Conv2d | nn.MaxPool2d"]:
        yield self.conv1
        if level > 0:
            yield self.maxpool
        for name in self.stages[:level]:
            for block in getattr(self, name):
                yield from (block.conv1, block.conv2)


def _keep_resolution(stage: nn.Module, dilation: int) -> None:
    """Set a stage's stride to 1; the convolutions behind the former stride are dilated by ``dilation``.

    A strided 3x3 convolution samples its input densely, so it keeps the dilation of the stage before.
    """
    before = max(dilation // 2, 1)
    for layer in stage.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        spacing = before if layer.stride == (2, 2) else dilation
        layer.stride = (1, 1)
        if layer.kernel_size == (3, 3):
            layer.dilation = layer.padding = (spacing, spacing)


@dataclass(frozen=True)
class Span:
    """An inclusive interval of positions along one axis, followed from an output back to the input.

    Attributes:
        low: First position.
        high: Last position.
    """

    low: int
    high: int

    def before(self, layer: "nn.Conv2d | nn.MaxPool2d") -> "Span":
        """Return the input positions of a convolution or pooling whose outputs are this interval."""
        kernel, stride, padding, dilation = (_first(getattr(layer, name)) for name in _GEOMETRY)
        return Span(self.low * stride - padding, self.high * stride - padding + dilation * (kernel - 1))

    def coarse(self, factor: int = 2) -> "Span":
        """Return the positions on a grid ``factor`` times coarser, before a nearest upsampling."""
        return Span(self.low // factor, self.high // factor)

    def bilinear(self) -> "Span":
        """Return the positions before a twofold bilinear upsampling (``align_corners=False``)."""
        return Span((self.low - 1) // 2, (self.high + 1) // 2)

    def grown(self, by: int) -> "Span":
        """Return the interval widened on both sides."""
        return Span(self.low - by, self.high + by)

    def join(self, other: "Span") -> "Span":
        """Return the smallest interval that holds both."""
        return Span(min(self.low, other.low), max(self.high, other.high))


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


class BranchFeatures(NamedTuple):
    """What one branch hands to the comparison.

    Attributes:
        pyramid: Features at stride 8, shape (B, width, H/8, W/8).
        skip4: Reduced features of ``layer1``, shape (B, 32, H/4, W/4).
        skip2: Reduced features of the stem, shape (B, 16, H/2, W/2).
    """

    pyramid: Tensor
    skip4: Tensor
    skip2: Tensor


SKIP4_CHANNELS = 32
SKIP2_CHANNELS = 16


class Branch(nn.Module):
    """One encoder with its feature pyramid at stride 8 and narrow skips for the decoder.

    Lateral convolutions are 1x1 and upsampling is nearest, so the pyramid sees no further than the trunk.
    The skips are reduced here, right after the trunk, so that no 64-channel map at stride 2 outlives it.

    Args:
        channels: Number of input bands.
        trunk: ResNet-18 or ResNet-34, cut after ``layer3``.
        width: Channels of the pyramid.
        dilated: Keep ``layer3`` at stride 8 by dilation: equal to a crop at every 8 px, at a higher cost.
    """

    def __init__(self, channels: int, trunk: TrunkName, width: int, dilated: bool) -> None:
        super().__init__()
        self.encoder = Encoder(channels, trunk, levels=3, deep="dilated" if dilated else "halving")
        self.dilated = dilated
        self.lateral8 = nn.Conv2d(STAGE_CHANNELS[2], width, kernel_size=1)
        self.lateral16 = nn.Conv2d(STAGE_CHANNELS[3], width, kernel_size=1)
        self.reduce4 = conv_block(STAGE_CHANNELS[1], SKIP4_CHANNELS, kernel_size=1)
        self.reduce2 = conv_block(STAGE_CHANNELS[0], SKIP2_CHANNELS, kernel_size=1)

    def forward(self, image: Tensor) -> BranchFeatures:
        """Encode a normalised image of shape (B, C, H, W), H and W multiples of 16."""
        stem, layer1, layer2, layer3 = self.encoder(image)
        deep = self.lateral16(layer3)
        if not self.dilated:
            deep = nearest(deep)  # (B, width, H/16, W/16) -> (B, width, H/8, W/8)
        return BranchFeatures(self.lateral8(layer2) + deep, self.reduce4(layer1), self.reduce2(stem))

    def span(self, cells: Span) -> Span:
        """Return the input pixels that an interval of pyramid cells depends on."""
        deep = cells if self.dilated else cells.coarse()
        return self.encoder.span(2, cells).join(self.encoder.span(3, deep))


def conv_block(inputs: int, outputs: int, kernel_size: int) -> nn.Sequential:
    """Return convolution, batch norm and ReLU that keep the size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def nearest(features: Tensor) -> Tensor:
    """Return features repeated twice along both axes; unlike a smoother it widens no receptive field."""
    return torch.nn.functional.interpolate(features, scale_factor=2, mode="nearest")
