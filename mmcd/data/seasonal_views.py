"""Views of seasonal series: what the query and each key of a method of pretraining see.

Works on whole batches on their device; every image has a crop and a colour of its own. All randomness comes from one
generator, so a step of a resumed run sees what it would have seen in the run that was not interrupted.

Source: reference systems 2 (SACo) and 3 (SeCo, CACo), after the descriptions in `mmcd.losses.pretraining`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mmcd.config import Config
from mmcd.data import batch_ops as ops
from mmcd.data.seasonal import DRAWS, reflectance
from mmcd.data.seasonal_files import RGB
from mmcd.errors import ConfigError, DataError
from mmcd.models.moco import Method

QUANTILES: dict[str, tuple[float, float]] = {"B2": (3, 88), "B3": (2, 103), "B4": (0, 129)}
"""Percentiles 2 and 98 of reflectance times 255 that SeCo and CACo stretch each band by."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RATIO = (3 / 4, 4 / 3)
_REACH = 3  # Standard deviations that a blur reaches.


class SeasonViewConfig(Config):
    """How views of RGB images are made; the defaults are those of SeCo and CACo.

    Attributes:
        crop: Side that every view is resized to.
        smallest: Least share of the area that a crop covers.
        jitter: Probability that colours are changed.
        brightness: Brightness is multiplied by a factor within this of 1.
        contrast: Contrast is multiplied by a factor within this of 1.
        saturation: Saturation is multiplied by a factor within this of 1.
        hue: Largest turn of the hue, as a part of the full circle.
        grey: Probability that colour is taken away.
        blur: Probability of a Gaussian blur.
        sigma: Least and greatest standard deviation of the blur, pixels.
        flip: Probability that an image is mirrored.
        order: Whether colours change before the crop, as in the reference, or after it, which on small crops of large
            images costs a fraction.
    """

    crop: int = Field(default=224, ge=16)
    smallest: float = Field(default=0.2, gt=0, le=1)
    jitter: float = Field(default=0.8, ge=0, le=1)
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.4, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    grey: float = Field(default=0.2, ge=0, le=1)
    blur: float = Field(default=0.5, ge=0, le=1)
    sigma: tuple[float, float] = (0.1, 2.0)
    flip: float = Field(default=0.5, ge=0, le=1)
    order: Literal["colours_first", "crop_first"] = "colours_first"


class BandViewConfig(Config):
    """How views of all bands are made; the defaults are SACo's.

    Attributes:
        crop: Side that every view is resized to.
        chance: Probability of each of turning, mirroring, cutting and changing the colours.
        middle: Share of a side that cutting and turning leave, 128 of 264 pixels.
        jitter: Brightness and contrast of each band are multiplied by factors within this of 1. Saturation and hue,
            which the reference names too, do nothing to single bands.
        mode: ``seco``: the query is the image as it is, the keys are it augmented and another time; ``moco``: the
            query is augmented, the only key is another time.
        augment_other: Whether the other time is augmented too, as in the reference.
    """

    crop: int = Field(default=64, ge=16)
    chance: float = Field(default=0.5, ge=0, le=1)
    middle: float = Field(default=128 / 264, gt=0, le=0.7)
    jitter: float = Field(default=0.1, ge=0, le=1)
    mode: Literal["seco", "moco"] = "seco"
    augment_other: bool = True


@dataclass(frozen=True)
class Views:
    """What a step embeds.

    Attributes:
        query: Images of the queries, shape (N, C, S, S), float32.
        keys: Images of each key, of the same shape.
    """

    query: Tensor
    keys: tuple[Tensor, ...]


def quantile_normalised(
    images: Tensor, bands: Sequence[str] = RGB, quantiles: Mapping[str, tuple[float, float]] = QUANTILES
) -> Tensor:
    """Return stored images stretched by the quantiles of SeCo and CACo, or by others.

    Args:
        images: As stored, see `mmcd.data.seasonal.reflectance`, shape (..., C, H, W).
        bands: Names of the bands.
        quantiles: Reflectance times 255 that becomes 0 and 1, by band.

    Returns:
        Values in [0, 1], of the same shape, float32.

    Raises:
        DataError: A band has no quantiles.
    """
    if len(bands) != images.shape[-3] or any(band not in quantiles for band in bands):
        raise DataError(
            f"Images of {images.shape[-3]} bands, {', '.join(bands)}, cannot be stretched: there are quantiles for "
            f"{', '.join(quantiles)} only.",
            "Index the series with bands B4, B3, B2, or train saco, which takes all bands.",
        )
    limits = torch.tensor([quantiles[band] for band in bands], device=images.device).float() / 255
    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    return reflectance(images).sub_(low).div_(high - low).clamp_(0, 1)


def season_views(
    images: Tensor,
    method: Method,
    generator: torch.Generator,
    config: SeasonViewConfig | None = None,
    bands: Sequence[str] = RGB,
    quantiles: Mapping[str, tuple[float, float]] = QUANTILES,
) -> Views:
    """Return the views of MoCo, MoCo+TP, SeCo, TeCo or CACo.

    Args:
        images: Acquisitions of a batch as `mmcd.data.seasonal.SeasonalSeries` gives them, shape (N, T, 3, H, W).
        method: Which views: MoCo ``aug(t0)`` twice; MoCo+TP ``t0`` and ``aug(t1)``; the others ``t0`` and the keys
            ``aug(t1)``, ``t2``, ``aug(t0)``. Every view is cropped and normalised.
        generator: Source of all randomness, on the CPU.
        config: Strengths; those of the reference if left out.
        bands: Names of the bands in order.
        quantiles: As in `quantile_normalised`.

    Raises:
        ConfigError: The method makes its views otherwise.
        DataError: There are too few acquisitions, or the bands have no quantiles.
    """
    config = config or SeasonViewConfig()
    if method in ("saco", "saco_plus"):
        raise ConfigError(f"{method} sees all bands.", "Make its views with band_views.")
    _check_times(images, method)
    times = quantile_normalised(images[:, : DRAWS[method].count], bands, quantiles).unbind(dim=1)

    def plain(time: int) -> Tensor:
        return _normalised(_cropped(times[time], config, generator))

    def varied(time: int) -> Tensor:
        if config.order == "crop_first":
            return _normalised(_augmented(_cropped(times[time], config, generator), config, generator))
        return _normalised(_cropped(_augmented(times[time].clone(), config, generator), config, generator))

    if method == "moco":
        return Views(varied(0), (varied(0),))
    if method == "moco_tp":
        return Views(plain(0), (varied(1),))
    return Views(plain(0), (varied(1), plain(2), varied(0)))


def band_views(images: Tensor, generator: torch.Generator, config: BandViewConfig | None = None) -> Views:
    """Return the views of SACo: all bands as reflectance in [0, 1], to be grouped by `mmcd.data.band_groups`.

    All bands of an image are turned, mirrored and cut alike; brightness and contrast are drawn for each.

    Args:
        images: Acquisitions of a batch, shape (N, 2, C, H, W).
        generator: Source of all randomness, on the CPU.
        config: Strengths; those of the reference if left out.

    Raises:
        DataError: There are too few acquisitions.
    """
    config = config or BandViewConfig()
    _check_times(images, "saco")
    first, other = reflectance(images[:, 0]), reflectance(images[:, 1])

    def plain(values: Tensor) -> Tensor:
        return _middle(values, torch.zeros(len(values), dtype=torch.bool), config)

    later = _varied_bands(other, config, generator) if config.augment_other else plain(other)
    varied = _varied_bands(first, config, generator)
    return Views(varied, (later,)) if config.mode == "moco" else Views(plain(first), (varied, later))


def _check_times(images: Tensor, method: Method) -> None:
    if images.ndim != 5 or images.shape[1] < DRAWS[method].count:
        raise DataError(
            f"A batch of shape {tuple(images.shape)} has not the {DRAWS[method].count} acquisitions of {method}.",
            f"Draw it from SeasonalSeries(index, {method!r}).",
        )


def _cropped(images: Tensor, config: SeasonViewConfig, generator: torch.Generator) -> Tensor:
    """Return random crops, resized."""
    boxes = ops.crop_boxes(len(images), _shape(images), (config.smallest, 1.0), _RATIO, generator)
    return ops.resized_crop(images, boxes, config.crop)


def _normalised(images: Tensor) -> Tensor:
    """Normalise images of three bands by ImageNet's statistics, in place."""
    normalised: Tensor = TF.normalize(images, list(IMAGENET_MEAN), list(IMAGENET_STD), inplace=True)
    return normalised


def _augmented(images: Tensor, config: SeasonViewConfig, generator: torch.Generator) -> Tensor:
    """Change colours, take them away, blur and mirror, each by chance and image by image, in place."""
    count = len(images)
    images = _coloured(images, config, generator)
    images = _where(images, _chosen(count, config.grey, generator), _without_colour)
    low, high = config.sigma
    sigmas = low + (high - low) * torch.rand(count, generator=generator)
    blurred = _chosen(count, config.blur, generator)
    images = _where(images, blurred, lambda part, at: ops.gaussian_blur(part, sigmas[at], math.ceil(_REACH * high)))
    return _where(images, _chosen(count, config.flip, generator), lambda part, _: part.flip(-1))


def _without_colour(images: Tensor, _: Tensor) -> Tensor:
    return ops.grayscale(images, torch.ones(len(images), dtype=torch.bool))


def _coloured(images: Tensor, config: SeasonViewConfig, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue in an order that each image draws for itself, by chance."""
    steps: tuple[tuple[Callable[[Tensor, Tensor], Tensor], float, float], ...] = (
        (ops.adjust_brightness, 1.0, config.brightness),
        (ops.adjust_contrast, 1.0, config.contrast),
        (ops.adjust_saturation, 1.0, config.saturation),
        (ops.adjust_hue, 0.0, config.hue),
    )
    count = len(images)
    order = torch.rand(count, len(steps), generator=generator).argsort(dim=1)
    amounts = 2 * torch.rand(count, len(steps), generator=generator) - 1
    changed = _chosen(count, config.jitter, generator)
    for turn in range(len(steps)):
        for number, (change, usual, spread) in enumerate(steps):
            if not spread:
                continue  # a change by nothing, which for the hue costs as much as any other
            now = changed & (order[:, turn] == number)
            amount = usual + spread * amounts[:, number]
            images = _where(images, now, lambda part, at, do=change, by=amount: do(part, by[at]))  # type: ignore[misc]
    return images


def _varied_bands(images: Tensor, config: BandViewConfig, generator: torch.Generator) -> Tensor:
    """Turn, cut, mirror and change the colours of all bands, each by chance and image by image."""
    count, bands = images.shape[:2]
    turned, mirrored, cut, coloured = (_chosen(count, config.chance, generator) for _ in range(4))
    contrast_first = _chosen(count, 0.5, generator)
    angles = 2 * math.pi * torch.rand(count, generator=generator)
    factors = 1 + config.jitter * (2 * torch.rand(2, count, bands, generator=generator) - 1)
    images = _where(images.clone(), turned, lambda part, at: ops.rotate(part, angles[at]))
    images = _middle(images, turned | cut, config, mirrored)
    for first in (contrast_first, ~contrast_first):
        images = _where(images, coloured & first, lambda part, at: ops.adjust_band_contrast(part, factors[0, at]))
        images = _where(images, coloured & ~first, lambda part, at: ops.adjust_brightness(part, factors[1, at]))
    return images


def _middle(images: Tensor, cut: Tensor, config: BandViewConfig, mirrored: Tensor | None = None) -> Tensor:
    """Return images, or the middle of those that are cut, at the size of a view."""
    full = torch.tensor(_shape(images))
    kept = torch.where(cut[:, None], (full * config.middle).round().long().clamp(min=1), full)
    return ops.resized_crop(images, torch.cat([(full - kept) // 2, kept], dim=1), config.crop, mirrored)


def _chosen(count: int, chance: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < chance


def _where(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Let the chosen images, and only them, go through a change, which is told their places; in place."""
    places = chosen.nonzero().squeeze(1)
    if not len(places):
        return images
    there = places.to(images.device)
    return images.index_copy_(0, there, change(images[there], places))


def _shape(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
