"""OSCD as samples: squares of two Sentinel-2 images and what was built between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmcd.data.base import UNKNOWN, Sample, to_sample
from mmcd.data.bigearthnet import STATISTICS
from mmcd.data.oscd_files import City, OscdIndex, read_city
from mmcd.data.patch_grid import Corner, corners, cut, inside
from mmcd.errors import ConfigError, DataError

SIDE = 96
"""Side of a square in pixels."""

RGB = ("B4", "B3", "B2")

Scaling = Literal["auto", "published", "measured", "bigearthnet"]

PUBLISHED_RANGES = {"B2": (885.0, 2620.0), "B3": (667.0, 2969.0), "B4": (426.0, 3698.0)}
"""Stored values of OSCD that become 0 and 1 in the protocol of SeCo."""

_BIGEARTHNET = {
    **STATISTICS,
    "B10": (2256.06, 1202.06),  # No level-2A product has this band: the protocol of SACo gives it these.
}
"""Mean and standard deviation of each band over BigEarthNet."""

_PERCENTILES = (2.0, 98.0)


@dataclass(frozen=True)
class Ranges:
    """Stored values that become 0 and 1.

    Attributes:
        lower: Value of each band that becomes 0.
        upper: Value of each band that becomes 1.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def apply(self, image: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return an image in 256 steps, as the published protocols store it, shape (C, H, W)."""
        lower, upper = (np.array(values, np.float32)[:, None, None] for values in (self.lower, self.upper))
        scaled = np.clip((image.astype(np.float32) - lower) / (upper - lower), 0, 1)
        # Cut, not rounded, as the published protocol turns it into bytes.
        return np.asarray(scaled * 255).astype(np.uint8)


@dataclass(frozen=True)
class CityArrays:
    """Pixels of one city.

    Attributes:
        before: Shape (C, H, W), uint16 as stored.
        after: Same shape.
        changed: Shape (H, W).
    """

    before: NDArray[np.uint16]
    after: NDArray[np.uint16]
    changed: NDArray[np.bool_]


def read_cities(cities: Sequence[City]) -> dict[str, CityArrays]:
    """Read whole cities by name.

    Raises:
        DataError: A file is damaged, of another size, or a label holds other values.
    """
    return {city.id: CityArrays(*read_city(city)) for city in cities}


def band_ranges(bands: Sequence[str], scaling: Scaling, training: Mapping[str, CityArrays]) -> Ranges:
    """Return which stored values become 0 and 1.

    Args:
        bands: Standard names of the bands.
        scaling: ``published``: SeCo's quantiles, for red, green and blue; ``measured``: percentiles 2 and 98 of both
            images of the training cities; ``bigearthnet``: mean ± 2 standard deviations there, the protocol of SACo;
            ``auto``: the published ones, else measured ones.
        training: Cities that are trained on.

    Raises:
        ConfigError: There are no published quantiles of these bands.
    """
    if scaling == "bigearthnet":
        pairs = [(mean - 2 * spread, mean + 2 * spread) for mean, spread in (_BIGEARTHNET[band] for band in bands)]
        return Ranges(tuple(low for low, _ in pairs), tuple(high for _, high in pairs))
    known = all(band in PUBLISHED_RANGES for band in bands)
    if scaling == "published" and not known:
        raise ConfigError(
            f"Quantiles are published for B2, B3 and B4 alone, not for {', '.join(bands)}.",
            "Set data.scaling to measured or bigearthnet.",
        )
    if known and scaling != "measured":
        return Ranges(*(tuple(PUBLISHED_RANGES[band][end] for band in bands) for end in (0, 1)))
    values = [image[:, ::2, ::2] for city in training.values() for image in (city.before, city.after)]
    pixels = np.concatenate([image.reshape(len(bands), -1) for image in values], axis=1)
    low, high = np.percentile(pixels, _PERCENTILES, axis=1)
    return Ranges(tuple(low.tolist()), tuple(np.maximum(high, low + 1).tolist()))


def hold_out_cities(index: OscdIndex, count: int, seed: int) -> tuple[list[City], list[City]]:
    """Divide the training cities into those to learn from and those that choose the epoch; no test city is among them.

    Args:
        index: The data set.
        count: How many are held out; 0 chooses nothing and learns from all.
        seed: Which ones.

    Returns:
        Cities to learn from, held-out cities, each by name.

    Raises:
        DataError: Too few training cities are left.
    """
    cities = index.cities["train"]
    if len(cities) <= count or not cities:
        raise DataError(
            f"{len(cities)} training cities are here, of which {count} are held out to choose the epoch.",
            "Unpack all training cities, or hold out fewer (--set data.held_out=1).",
        )
    drawn = set(np.random.default_rng(seed).permutation(len(cities))[:count].tolist())
    held = [city for number, city in enumerate(cities) if number in drawn]
    return [city for number, city in enumerate(cities) if number not in drawn], held


class OscdPatches:
    """Squares of some cities, on a grid without overlap.

    Where a square reaches beyond its city it is filled with 0, as published; but these pixels are no data here, so
    they enter no loss and no figure, while the published protocol counts them as unchanged.

    Args:
        cities: Their pixels by name.
        ranges: Values that become 0 and 1.
        side: Side of a square in pixels.

    Attributes:
        ids: City, row and column of each square.
        groups: City of each square.
    """

    def __init__(self, cities: Mapping[str, CityArrays], ranges: Ranges, side: int = SIDE) -> None:
        self.side = side
        self._images = {
            name: (ranges.apply(city.before), ranges.apply(city.after), city.changed) for name, city in cities.items()
        }
        self._places: list[tuple[str, Corner]] = []
        for name, (_, _, changed) in self._images.items():
            height, width = changed.shape
            self._places += [(name, corner) for corner in corners(height, width, side)]
        self.groups = [name for name, _ in self._places]
        self.ids = [f"{name}/{corner.top}_{corner.left}" for name, corner in self._places]

    @cached_property
    def changed_share(self) -> NDArray[np.float64]:
        """Share of changed pixels among those on the image, shape (N,)."""
        shares = []
        for name, corner in self._places:
            changed = self._images[name][2]
            shares.append(changed[corner.top : corner.top + self.side, corner.left : corner.left + self.side].mean())
        return np.array(shares)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        name, corner = self._places[index]
        before, after, changed = self._images[name]
        pre, post = (cut(image, corner, self.side).astype(np.float32) / np.float32(255) for image in (before, after))
        valid = inside((changed.shape[0], changed.shape[1]), corner, self.side)
        target = np.where(valid, cut(changed, corner, self.side), UNKNOWN)
        return to_sample(pre, post, target, valid, index)
