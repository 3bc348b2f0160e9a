"""Decoders from the feature maps of a trunk to logits of every pixel, for one image or for the difference of two."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.models.trunk_features import TrunkFeatures

DecoderName = Literal["unet", "double_conv", "joined_conv"]

_STAGES = (0, 4, 5, 6, 7)
"""Layers of a numbered ResNet that hand over their answer: its first convolution, then its four stages."""


def stage_maps(trunk: TrunkFeatures, images: Tensor) -> list[Tensor]:
    """Return the maps that the protocols of reference systems 2 and 3 decode, from fine to coarse.

    Of a ResNet these are the first convolution's before batch norm and ReLU, (N, 64, H/2, W/2), and the four stages',
    (N, C, H/4, W/4) to (N, C, H/32, W/32); of other trunks their four levels.

    Args:
        trunk: The trunk.
        images: Shape (N, C, H, W).
    """
    if not trunk.trunk.startswith("resnet"):
        return list(trunk.maps(images).values())
    found, features = [], images
    for number, layer in enumerate(list(trunk.body)[: _STAGES[-1] + 1]):
        features = layer(features)
        if number in _STAGES:
            found.append(features)
    return found


class UpBlock(nn.Module):
    """One level up: nearest upsampling and a convolution, the finer maps beside it, convolution and dropout.

    Args:
        inputs: Channels from below.
        skip: Channels of the finer maps, and of the result.
    """

    def __init__(self, inputs: int, skip: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(inputs, skip, kernel_size=3, padding=1)
        self.join = nn.Sequential(
            nn.Conv2d(2 * skip, skip, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(skip),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.3),
        )

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """Return features of the shape of ``skip``."""
        raised = self.up(_resized(below, skip.shape[-2:]))
        return self.join(torch.cat([raised, skip], dim=1))  # type: ignore[no-any-return]


class UNetDecoder(nn.Module):
    """The decoder of SeCo's change detection (reference system 3).

    Args:
        channels: Channels of the maps, from fine to coarse.
        classes: Logits of a pixel.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        below = list(channels[:0:-1])
        self.blocks = nn.ModuleList(UpBlock(*pair) for pair in zip(below, channels[-2::-1], strict=True))
        self.logit = nn.Conv2d(channels[0], classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return logits, shape (N, classes, *size).

        Args:
            maps: From fine to coarse, each of shape (N, C, h, w).
            size: Height and width of the images.
        """
        *finer, features = maps
        for block in self.blocks:
            features = block(features, finer.pop())
        return self.logit(_resized(features, size))  # type: ignore[no-any-return]


def _convolved(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DoubleConv(nn.Module):
    """Twice convolution, batch norm and ReLU, then dropout; named as in SACo's weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        twice = *_convolved(inputs, outputs), *_convolved(outputs, outputs)
        self.double_conv = nn.Sequential(*twice, nn.Dropout2d(0.5))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same height and width."""
        return self.double_conv(features)  # type: ignore[no-any-return]


class JoinedConv(nn.Module):
    """Twice convolution, batch norm and ReLU, the second one with the input beside what it is given; then dropout."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_1 = _convolved(inputs, outputs)
        self.conv_2 = nn.Sequential(*_convolved(outputs + inputs, outputs), nn.Dropout2d(0.5))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same height and width."""
        return self.conv_2(torch.cat([self.conv_1(features), features], dim=1))  # type: ignore[no-any-return]


class DoubleConvDecoder(nn.ModuleList):
    """The decoder of SACo (reference system 2), over a ResNet's four stages without its stem.

    Numbered as its weights are: ``0.double_conv.*`` to ``3.double_conv.*`` and ``4.*``, the last convolution. The
    coarsest maps are put beside themselves, as published.

    Args:
        channels: Channels of the maps, from fine to coarse; of five the first, the stem's, is left out.
        classes: Logits of a pixel.
        block: Convolutions of a level: `DoubleConv` is that of its change detection, `JoinedConv` that of PASTIS.
    """

    def __init__(
        self, channels: Sequence[int], classes: int, block: Callable[[int, int], nn.Module] = DoubleConv
    ) -> None:
        used = list(channels)[-4:]
        blocks: list[nn.Module] = []
        for level in range(3, -1, -1):
            outputs = used[level - 1] if level else used[0] // 2
            blocks.append(block(2 * used[level], outputs))
        super().__init__([*blocks, nn.Conv2d(used[0] // 2, classes, kernel_size=1)])

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return logits, shape (N, classes, *size), as `UNetDecoder.forward`."""
        used = list(maps)[-4:]
        *blocks, logit = self
        features = used[-1]
        for number, (block, skip) in enumerate(zip(blocks, used[::-1], strict=True)):
            finer = used[-2 - number].shape[-2:] if number < 3 else [2 * side for side in skip.shape[-2:]]
            features = block(_resized(torch.cat([features, skip], dim=1), finer))
        return logit(_resized(features, size))  # type: ignore[no-any-return]


_DECODERS: dict[DecoderName, Callable[[Sequence[int], int], nn.Module]] = {
    "unet": UNetDecoder,
    "double_conv": DoubleConvDecoder,
    "joined_conv": partial(DoubleConvDecoder, block=JoinedConv),
}


class DecodedTrunk(nn.Module):
    """A trunk and what turns its maps into logits: of one image, or of the absolute difference of two.

    A frozen trunk is no part of the state, but moves along.

    Args:
        trunk: The trunk, for the bands of the images; frozen or not, see `TrunkFeatures.freeze`.
        classes: Logits of a pixel.
        decoder: Which decoder.
        mean: Mean of each band that is taken off the images; none if left out.
        std: Standard deviation that they are divided by.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        trunk: TrunkFeatures,
        classes: int,
        decoder: DecoderName = "unet",
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.decoder = _DECODERS[decoder]([trunk.channels[level] for level in sorted(trunk.channels)], classes)
        self._fixed = (trunk,) if trunk.frozen else ()
        if not trunk.frozen:
            self.trunk = trunk
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for trunk in self._fixed:
            trunk._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, *images: Tensor) -> Tensor:
        """Return logits, shape (N, classes, H, W), float32.

        Args:
            images: One image, or the two whose difference is looked at, each of shape (N, C, H, W).
        """
        maps = self._maps(torch.cat(images))
        if len(images) == 2:
            maps = [(before - after).abs() for before, after in (each.chunk(2) for each in maps)]
        return self.decoder(maps, images[0].shape[-2:]).float()  # type: ignore[no-any-return]

    def _maps(self, images: Tensor) -> list[Tensor]:
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        if not self._fixed:
            return stage_maps(self.trunk, images)
        with torch.no_grad():
            return stage_maps(self._fixed[0], images)


def _resized(features: Tensor, size: Sequence[int]) -> Tensor:
    """Return features repeated up to a height and width: twice each where that fits."""
    return F.interpolate(features, size=list(size), mode="nearest")
