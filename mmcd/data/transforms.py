"""Augmentation of batches of pairs: joint geometry, and radiometry of each branch on its own.

Works on whole batches on their device. All randomness comes from one generator, so a step of a resumed run is
augmented as in the run that was not interrupted. Radiometry is varied strongly on purpose: another event brings
another season, another haze and, where images were stretched tile by tile, another stretch.
"""

import math

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mmcd.cards import Level
from mmcd.config import Config
from mmcd.data.base import Sample


class AugmentConfig(Config):
    """How strongly batches are augmented; 0 switches a part off.

    Attributes:
        crop: Side of the square that is cut from each tile; none keeps the tile's size.
        affine: Probability of a random scale, rotation and shift of the pair.
        scale: Largest zoom in or out, as a factor.
        empty: Probability that ground from beyond the tile is marked as no data instead of mirrored, as at the edge
            of a scene.
        optical_gain: Standard deviation of the log gain common to all optical bands.
        band_gain: Standard deviation of the log gain of each optical band.
        optical_offset: Largest haze that is added, in stretched units.
        gamma: Standard deviation of the log exponent, both branches.
        restretch: Probability that a branch is clipped at random percentiles of its own tile and stretched again.
        relevel: Probability that a tile of SAR is moved to the common level as a scene of its own: the small scene of a
            user may be mostly water.
        sar_gain: Standard deviation of the log contrast of SAR.
        sar_offset: Standard deviation of the shift of SAR, in stretched units.
        speckle: Largest standard deviation of the added speckle, in stretched (logarithmic) units.
        drop_band: Probability that one optical band is replaced by its mean.
        cloud: Probability of synthetic clouds over the optical image.
    """

    crop: int | None = Field(default=None, ge=32)
    affine: float = Field(default=0.5, ge=0, le=1)
    scale: float = Field(default=1.4, ge=1)
    empty: float = Field(default=0.5, ge=0, le=1)
    optical_gain: float = Field(default=0.2, ge=0)
    band_gain: float = Field(default=0.1, ge=0)
    optical_offset: float = Field(default=0.05, ge=0)
    gamma: float = Field(default=0.15, ge=0)
    restretch: float = Field(default=0.3, ge=0, le=1)
    relevel: float = Field(default=0.0, ge=0, le=1)
    sar_gain: float = Field(default=0.15, ge=0)
    sar_offset: float = Field(default=0.08, ge=0)
    speckle: float = Field(default=0.05, ge=0)
    drop_band: float = Field(default=0.1, ge=0, le=1)
    cloud: float = Field(default=0.1, ge=0, le=1)


def augment(batch: Sample, config: AugmentConfig, generator: torch.Generator, level: Level | None = None) -> Sample:
    """Return an augmented batch; ground from beyond a tile is its mirrored context or, by chance, no data.

    Args:
        batch: Samples with a leading batch axis, images in [0, 1], square.
        config: Strengths.
        generator: Source of all randomness, on the CPU.
        level: Level that the SAR images of whole scenes were moved to.
    """
    if level is not None and config.relevel:
        batch = batch | {"post": _relevel(batch["post"], level, config, generator)}  # type: ignore[assignment]
    pre, post, target, valid = _geometry(batch, config, generator)
    return Sample(
        pre=_optical(pre, config, generator),
        post=_sar(post, config, generator),
        target=target,
        valid=valid,
        index=batch["index"],
    )


def mirrored(batch: Sample, margin: int) -> Sample:
    """Return a batch whose tiles are continued by their mirror image on all sides.

    Args:
        batch: Samples with a leading batch axis.
        margin: Pixels added on each side; may exceed the tile, then the mirror image repeats.
    """
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(side), margin, mode="symmetric")) for side in batch["target"].shape[1:]
    )
    return Sample(
        pre=batch["pre"][..., rows[:, None], columns],
        post=batch["post"][..., rows[:, None], columns],
        target=batch["target"][..., rows[:, None], columns],
        valid=batch["valid"][..., rows[:, None], columns],
        index=batch["index"],
    )


def _geometry(batch: Sample, config: AugmentConfig, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Turn, mirror and, by chance, scale, rotate and shift every pair as one."""
    images = torch.cat([batch["pre"], batch["post"]], dim=1)
    labels = torch.stack([batch["target"], batch["valid"].long()], dim=1).float()
    side = images.shape[-1]
    crop = min(config.crop or side, side)
    transforms = _transforms(len(images), (side - crop) // 2, side, config, generator)
    grid = F.affine_grid(transforms, [*images.shape[:2], crop, crop], align_corners=False).to(images.device)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    labels = F.grid_sample(labels, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    bands = batch["pre"].shape[1]
    mirrored = (_uniform(len(images), generator) >= config.empty).to(images.device)
    inside = (grid.abs() <= 1).all(dim=3) | mirrored[:, None, None]
    return images[:, :bands], images[:, bands:], labels[:, 0].long(), (labels[:, 1] > 0.5) & inside


def _transforms(count: int, margin: int, side: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return random transforms of normalised coordinates, shape (count, 2, 3).

    Where the affine part is off they are exact: quarter turns, mirrors and crops at whole pixels.

    Args:
        count: Number of transforms.
        margin: Pixels that the crop leaves on each side when it is centred.
        side: Side of the tile in pixels.
        config: Strengths.
        generator: Source of randomness.
    """
    quarter = torch.randint(0, 4, (count,), generator=generator) * (math.pi / 2)
    free = (_uniform(count, generator) < config.affine).float()
    angle = quarter + free * (_uniform(count, generator) - 0.5) * (math.pi / 2)
    zoom = torch.exp(free * (2 * _uniform(count, generator) - 1) * math.log(config.scale))
    mirror = torch.where(_uniform(count, generator) < 0.5, -1.0, 1.0)
    zoom = zoom * (1 - 2 * margin / side)
    cos, sin = zoom * angle.cos().round(decimals=6), zoom * angle.sin().round(decimals=6)
    place = torch.randint(-margin, margin + 1, (count, 2), generator=generator) * (2 / side)
    shift = place + free[:, None] * (torch.rand((count, 2), generator=generator) - 0.5) * 0.5
    rows = torch.stack([torch.stack([mirror * cos, -sin], dim=1), torch.stack([mirror * sin, cos], dim=1)], dim=1)
    return torch.cat([rows, shift[:, :, None]], dim=2)


def _optical(image: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    count, bands = image.shape[:2]
    image = _restretch(image, config, generator)
    image = _clouds(image, config, generator)
    gain = _normal((count, 1), generator) * config.optical_gain + _normal((count, bands), generator) * config.band_gain
    haze = _uniform(count, generator)[:, None] * config.optical_offset
    image = image * _spread(gain.exp(), image) + _spread(haze, image)
    image = _gamma(image.clamp(0, 1), config, generator)
    dropped = (_uniform(count, generator) < config.drop_band)[:, None]
    dropped = dropped & (torch.randint(0, bands, (count, 1), generator=generator) == torch.arange(bands))
    return torch.where(_spread(dropped, image), image.mean(dim=(2, 3), keepdim=True), image)


def _sar(image: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    count = len(image)
    image = _restretch(image, config, generator)
    level = _uniform(count, generator)[:, None] * config.speckle
    image = image + torch.randn(image.shape, generator=generator).to(image) * _spread(level, image)
    gain = (_normal((count, 1), generator) * config.sar_gain).exp()
    offset = _normal((count, 1), generator) * config.sar_offset
    image = (image - 0.5) * _spread(gain, image) + 0.5 + _spread(offset, image)
    return _gamma(image.clamp(0, 1), config, generator)


def _relevel(image: Tensor, level: Level, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Move whole tiles to the level of a scene, by chance."""
    chosen = _uniform(len(image), generator) < config.relevel
    own = torch.quantile(image[..., ::2, ::2].flatten(2), level.percentile / 100, dim=2)
    shift = torch.where(chosen[:, None].to(image.device), level.value - own, 0.0)
    return (image + _spread(shift, image)).clamp(0, 1)


def _restretch(image: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Clip at random percentiles of the tile (up to 3 % at either end) and stretch to [0, 1], by chance."""
    chosen = (_uniform(len(image), generator) < config.restretch).nonzero().squeeze(1)
    cuts = torch.rand((len(image), 2), generator=generator) * 0.03
    image = image.clone()
    for sample in chosen.tolist():
        pixels = image[sample, :, ::4, ::4].flatten(1)
        low, high = (torch.quantile(pixels, cut, dim=1) for cut in (float(cuts[sample, 0]), 1 - float(cuts[sample, 1])))
        span = (high - low).clamp(min=0.02)
        image[sample] = ((image[sample] - low[:, None, None]) / span[:, None, None]).clamp(0, 1)
    return image


def _clouds(image: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Cover a random part with bright, smooth patches, by chance."""
    count = len(image)
    chosen = (_uniform(count, generator) < config.cloud)[:, None]
    coarse = torch.randn((count, 1, 6, 6), generator=generator).to(image)
    cover = F.interpolate(coarse, size=image.shape[2:], mode="bicubic", align_corners=False)
    cover = torch.sigmoid(6 * (cover - 0.7)) * _spread(chosen, image)
    brightness = _spread(0.5 + 0.4 * _uniform(count, generator)[:, None], image)
    return image * (1 - cover) + brightness * cover


def _gamma(image: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Raise values in [0, 1] to a random power near 1."""
    exponent = (_normal((len(image), 1), generator) * config.gamma).exp()
    return image.clamp(min=1e-4) ** _spread(exponent, image)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _spread(values: Tensor, image: Tensor) -> Tensor:
    """Return values of shape (B, 1 or C) ready to broadcast over an image, on its device."""
    return values[:, :, None, None].to(image.device)
