"""Augmentation of optical pairs: geometry that images and label share, colour that each image draws for itself.

All randomness comes from one generator, so a step of a resumed run is augmented as in the run that was not interrupted.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mmcd.config import Config
from mmcd.data.base import Sample

_GEOMETRY = ("pre", "post", "target", "valid")


class PairAugmentConfig(Config):
    """How pairs are varied; the strengths of colour are those of reference system 1.

    Attributes:
        aug: ``joint``: mirrored, turned and cut together, and colour; ``reference``: colour only, as reference system
            1; ``none``.
        crop: Side of the square that is cut from each pair, at a place of its own; none keeps the size.
        brightness: Brightness is multiplied by a factor within this of 1.
        contrast: Contrast is multiplied by a factor within this of 1.
        saturation: Saturation is multiplied by a factor within this of 1.
        hue: Largest turn of the hue, as a part of the full circle.
    """

    aug: Literal["joint", "reference", "none"] = "joint"
    crop: int | None = Field(default=None, ge=32)
    brightness: float = Field(default=0.35, ge=0, le=1)
    contrast: float = Field(default=0.25, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)


def augment_pairs(batch: Sample, config: PairAugmentConfig, generator: torch.Generator) -> Sample:
    """Return an augmented batch; with ``joint`` the samples of a rectangular batch are turned by 180 degrees only.

    Args:
        batch: Samples with a leading batch axis; images of one or three bands in [0, 1].
        config: What is varied and how much.
        generator: Source of all randomness, on the CPU.
    """
    if config.aug == "none":
        return batch
    varied = dict(batch)
    if config.aug == "joint":
        varied |= _turned(batch, config.crop, generator)
    for name in ("pre", "post"):
        images = [_coloured(image, config, generator) for image in varied[name]]  # type: ignore[attr-defined]
        varied[name] = torch.stack(images)
    return Sample(**varied)  # type: ignore[typeddict-item,no-any-return]


def _turned(batch: Sample, crop: int | None, generator: torch.Generator) -> dict[str, Tensor]:
    """Cut, mirror and turn every sample as one."""
    height, width = batch["target"].shape[-2:]
    size = (min(crop or height, height), min(crop or width, width))
    samples: dict[str, list[Tensor]] = {name: [] for name in _GEOMETRY}
    for number in range(len(batch["target"])):
        top, left = (_whole(length - kept + 1, generator) for length, kept in zip((height, width), size, strict=True))
        quarters = _whole(4, generator) if size[0] == size[1] else 2 * _whole(2, generator)
        mirror = _whole(2, generator)
        for name in _GEOMETRY:
            values: Tensor = batch[name][number]  # type: ignore[literal-required]
            values = values[..., top : top + size[0], left : left + size[1]]
            values = values.flip(-1) if mirror else values
            samples[name].append(torch.rot90(values, quarters, (-2, -1)))
    return {name: torch.stack(values) for name, values in samples.items()}


def _coloured(image: Tensor, config: PairAugmentConfig, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of one image, in random order."""
    steps: list[tuple[Callable[[Tensor, float], Tensor], float, float]] = [
        (TF.adjust_brightness, 1.0, config.brightness),
        (TF.adjust_contrast, 1.0, config.contrast),
        (TF.adjust_saturation, 1.0, config.saturation),
        (TF.adjust_hue, 0.0, config.hue),
    ]
    for place in torch.randperm(len(steps), generator=generator).tolist():
        change, usual, spread = steps[place]
        amount = usual + spread * (2 * float(torch.rand((), generator=generator)) - 1)
        if spread:
            image = change(image, amount)
    return image


def _whole(choices: int, generator: torch.Generator) -> int:
    """Return a whole number from 0 to one less than ``choices``."""
    return int(torch.randint(choices, (), generator=generator))
