"""Squares mirrored and turned by quarters, each sample in a way of its own, images and labels alike."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def turn_samples(
    batch: Mapping[str, Tensor], names: Sequence[str], generator: torch.Generator, quarters: bool = True
) -> dict[str, Tensor]:
    """Return a batch whose samples were mirrored and turned at random.

    Args:
        batch: Tensors with a leading batch axis.
        names: Those that are images or maps, shape (N, ..., H, W); the others stay.
        generator: Source of all randomness, on the CPU.
        quarters: Turn by quarters too where the samples are square; else they are only mirrored, along both axes.
    """
    first = batch[names[0]]
    square = quarters and first.shape[-1] == first.shape[-2]
    ways = torch.randint(0, 2, (len(first), 3), generator=generator).tolist()
    return dict(batch) | {
        name: torch.stack([_turned(each, way, square) for each, way in zip(batch[name], ways, strict=True)])
        for name in names
    }


def _turned(sample: Tensor, way: Sequence[int], square: bool) -> Tensor:
    """Mirror along each axis that ``way`` names, then exchange the axes: together all eight ways a square can lie."""
    axes = [axis for axis, chosen in zip((-1, -2), way[:2], strict=True) if chosen]
    turned = sample.flip(axes) if axes else sample
    return turned.mT if square and way[2] else turned
