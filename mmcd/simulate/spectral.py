"""Seasonal series of one place in the 12 bands of Sentinel-2: fields that green and dry, and what the years changed.

A place is a patchwork of parcels at 10 m. Crops rotate from year to year, vegetation follows its season, soil is wet or
dry, the air is hazy: all that is no change. In a changed place some fields have become buildings, bare soil or water
between the older and the recent half of the series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import IntEnum
from typing import Literal, get_args

import numpy as np
from scipy.spatial import cKDTree

from mmcd.errors import ConfigError
from mmcd.geo.sensors import SENTINEL2_L2A
from mmcd.simulate.shapes import Array, smooth_noise

ChangeKind = Literal["buildings", "bare soil", "water"]
CHANGE_KINDS: tuple[ChangeKind, ...] = get_args(ChangeKind)

BAND_METRES = {
    name: 60 if name in ("B1", "B9") else 10 if name in ("B2", "B3", "B4", "B8") else 20 for name in SENTINEL2_L2A
}
"""Side of a pixel of each band on the ground; the finest is `GSD`."""

GSD = 10
REFLECTANCE_SCALE = 10_000
"""Stored numbers are reflectance times this, as in level-2A products."""

_MULTIPLE = max(BAND_METRES.values()) // GSD
_STREAM = 5
"""Keeps these places apart from other simulations of the same seed."""

_FIRST_YEAR, _GAP_YEARS = 2016, 4
_STEP_DAYS, _SPREAD_DAYS = 91, 15  # SeCo: about three months apart, give or take two weeks
_NANOMETRES = np.array([443, 492, 560, 665, 704, 740, 783, 833, 865, 945, 1614, 2202], np.float32)


class Cover(IntEnum):
    """What lies on the ground."""

    WATER = 0
    FOREST = 1
    CEREAL = 2
    MAIZE = 3
    MEADOW = 4
    SOIL = 5
    BUILT = 6
    ROAD = 7


_FIELDS = (Cover.CEREAL, Cover.MAIZE, Cover.MEADOW)
_BECOMES: dict[ChangeKind, Cover] = {"buildings": Cover.BUILT, "bare soil": Cover.SOIL, "water": Cover.WATER}

# Reflectance in per mille by band, in full leaf and without green leaves; what does not grow has one spectrum.
_ACTIVE = (
    (35, 40, 45, 30, 25, 20, 20, 18, 17, 15, 8, 6),
    (20, 25, 45, 25, 70, 220, 280, 300, 320, 320, 140, 60),
    (30, 35, 70, 35, 110, 330, 420, 450, 470, 470, 200, 90),
    (28, 34, 66, 32, 100, 310, 400, 430, 450, 450, 210, 95),
    (30, 40, 75, 50, 110, 250, 300, 330, 350, 350, 220, 120),
    (70, 90, 130, 170, 200, 220, 240, 260, 280, 290, 360, 320),
    (100, 120, 140, 155, 165, 175, 185, 200, 205, 210, 230, 210),
    (70, 80, 90, 100, 105, 110, 115, 120, 125, 125, 140, 130),
)
_DORMANT = (
    _ACTIVE[0],
    (30, 40, 55, 60, 90, 130, 150, 170, 190, 190, 190, 120),
    (50, 70, 100, 130, 160, 180, 200, 220, 240, 250, 310, 250),
    (55, 75, 105, 140, 165, 185, 205, 225, 245, 255, 320, 260),
    (50, 65, 100, 120, 160, 200, 220, 250, 270, 270, 320, 220),
    *_ACTIVE[5:],
)
_SEASON = (
    # Day of the year when it is greenest, days until it is half green, least greenness.
    (196, 90, 0.0),
    (196, 75, 0.25),
    (135, 45, 0.1),
    (215, 45, 0.0),
    (160, 80, 0.4),
    (196, 90, 0.0),
    (196, 90, 0.0),
    (196, 90, 0.0),
)
_ROUGHNESS = np.array([0.02, 0.12, 0.05, 0.05, 0.06, 0.07, 0.28, 0.08], np.float32)
"""Standard deviation of brightness from pixel to pixel within a cover, the same at all dates."""


@dataclass(frozen=True)
class SeriesSpec:
    """Everything that decides a series: equal specifications give equal arrays.

    Attributes:
        size: Height and width in pixels of 10 m, a multiple of 6 so that bands of 60 m fit, at least 30.
        seed: Seed of all randomness.
        change: What some fields became between the halves; None for a place that did not change.
        acquisitions: Acquisitions of each half, at least 3.
        south: Whether summer is in January.
    """

    size: int = 264
    seed: int = 0
    change: ChangeKind | None = None
    acquisitions: int = 5
    south: bool = False

    def check(self) -> None:
        """Raise ConfigError for a value that is outside its range."""
        if self.size < 5 * _MULTIPLE or self.size % _MULTIPLE:
            near = max(5, round(self.size / _MULTIPLE)) * _MULTIPLE
            raise ConfigError(
                f"Bands of 60 m do not fit a place of {self.size} px of 10 m.",
                f"Choose a size that is a multiple of {_MULTIPLE}, such as {near}; SeCo's is 264.",
            )
        if self.acquisitions < 3:
            raise ConfigError(
                f"{self.acquisitions} acquisitions are too few for a half of a series.", "Choose three or more."
            )


@dataclass(frozen=True)
class SimulatedSeries:
    """Images of one place and what changed.

    Attributes:
        spec: The specification.
        dates: Day of each acquisition, older half first.
        images: Reflectance times 10000 in the order of `SENTINEL2_L2A`, all at 10 m, shape (T, 12, size, size),
            uint16.
        changed: True where the ground of the recent half is another, shape (size, size), bool.
    """

    spec: SeriesSpec
    dates: tuple[date, ...]
    images: Array
    changed: Array


def simulate_series(spec: SeriesSpec) -> SimulatedSeries:
    """Simulate one place.

    Raises:
        ConfigError: A value of the specification is outside its range.
    """
    spec.check()
    plan, growth, time, views = (np.random.default_rng([spec.seed, _STREAM, part]) for part in range(4))
    place = _Place.drawn(plan, spec.size)
    after, changed = place.changed_to(growth, spec.change)
    older = _dates(time, spec.acquisitions, _FIRST_YEAR)
    recent = _dates(time, spec.acquisitions, older[-1].year + _GAP_YEARS)
    crops = {day.year: time.choice(_FIELDS, len(place.kinds)) for day in (*older, *recent)}
    images = []
    for ground, days in ((place, older), (after, recent)):
        for day in days:
            cover = ground.cover(crops[day.year])
            images.append(_acquired(views, cover, ground.texture, day, spec.south))
    return SimulatedSeries(spec, (*older, *recent), np.stack(images), changed)


@dataclass(frozen=True)
class _Place:
    """The ground: parcels, what each is used for, and what was built on it.

    Attributes:
        parcels: Number of the parcel of each pixel, shape (H, W).
        seeds: Middle of each parcel, row and column, shape (P, 2).
        kinds: Cover of each parcel; fields are `Cover.CEREAL` here and change their crop each year.
        built: Cover that lies over the parcels, -1 where none does, shape (H, W).
        texture: Standard normal deviate of each pixel, shape (H, W), float32.
    """

    parcels: Array
    seeds: Array
    kinds: Array
    built: Array
    texture: Array

    @classmethod
    def drawn(cls, rng: np.random.Generator, size: int) -> _Place:
        """Draw parcels of about two hectares upwards, woods, water, a village and a road."""
        across = max(4, size // 18)
        lattice = np.stack(np.meshgrid(*[np.arange(across)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
        seeds = (lattice + rng.uniform(0.1, 0.9, lattice.shape)) * (size / across)
        pixels = np.indices((size, size)).reshape(2, -1).T + 0.5
        parcels = cKDTree(seeds).query(pixels)[1].reshape(size, size)
        lie = smooth_noise(rng, (across, across), max(2.0, across / 3)).ravel()
        rank = np.argsort(np.argsort(lie + 0.2 * rng.standard_normal(len(lie)))) / len(lie)
        kinds = np.select(
            [rank < 0.06, rank < 0.25, rank > 0.92], [Cover.WATER, Cover.FOREST, Cover.BUILT], Cover.CEREAL
        )
        built = np.full((size, size), -1)
        _draw_streets(built, kinds[parcels] == Cover.BUILT, rng)
        offset = rng.uniform(0.2, 0.8) * size + rng.uniform(-0.4, 0.4) * np.arange(size)
        columns = np.clip(offset.astype(int), 0, size - 1)
        built[np.arange(size), columns] = Cover.ROAD
        return cls(parcels, seeds, kinds, built, rng.standard_normal((size, size), dtype=np.float32))

    def changed_to(self, rng: np.random.Generator, change: ChangeKind | None) -> tuple[_Place, Array]:
        """Return the ground of the recent half, and where it is another; neighbouring fields change together."""
        none = np.zeros(self.parcels.shape, bool)
        wanted, start = rng.uniform(0.12, 0.35), rng.random()
        if change is None:
            return self, none
        fields = np.flatnonzero(self.kinds == Cover.CEREAL)
        middle = self.seeds[fields[int(start * len(fields))]]
        near = fields[np.argsort(np.linalg.norm(self.seeds[fields] - middle, axis=1), kind="stable")]
        area = np.cumsum(np.bincount(self.parcels.ravel(), minlength=len(self.kinds))[near]) / self.parcels.size
        chosen = near[: int(np.searchsorted(area, wanted)) + 1]
        kinds, built = self.kinds.copy(), self.built.copy()
        kinds[chosen] = _BECOMES[change]
        changed = np.isin(self.parcels, chosen) & (built < 0)
        if change == "buildings":
            _draw_streets(built, changed, rng)
        return _Place(self.parcels, self.seeds, kinds, built, self.texture), changed

    def cover(self, crops: Array) -> Array:
        """Return the cover of every pixel in a year, given the crop of every parcel."""
        kinds = np.where(self.kinds == Cover.CEREAL, crops, self.kinds)
        cover: Array = np.where(self.built >= 0, self.built, kinds[self.parcels])
        return cover


def _draw_streets(built: Array, where: Array, rng: np.random.Generator) -> None:
    """Draw streets every 60 to 90 m, and gardens between the houses."""
    rows, columns = np.indices(built.shape)
    step, first = rng.integers(6, 10, 2), rng.integers(0, 6, 2)
    street = ((rows + first[0]) % step[0] == 0) | ((columns + first[1]) % step[1] == 0)
    garden = rng.random(built.shape) < 0.15
    built[where & garden] = Cover.MEADOW
    built[where & street] = Cover.ROAD


def _dates(rng: np.random.Generator, count: int, year: int) -> tuple[date, ...]:
    """Return days about three months apart from a random day of a year on."""
    start = date(year, 1, 1) + timedelta(days=int(rng.integers(0, 365)))
    steps = _STEP_DAYS * np.arange(count) + rng.integers(-_SPREAD_DAYS, _SPREAD_DAYS + 1, count)
    return tuple(start + timedelta(days=int(days)) for days in steps)


def greenness(cover: Cover, day: date, south: bool = False) -> float:
    """Return how far a cover is in leaf on a day, in [0, 1]."""
    peak, half, least = _SEASON[cover]
    off = (day.timetuple().tm_yday + (182 if south else 0) - peak + 182) % 365 - 182
    return float(least + (1 - least) * np.exp(-np.log(2) * (off / half) ** 2))


def _acquired(rng: np.random.Generator, cover: Array, texture: Array, day: date, south: bool) -> Array:
    """Return what the sensor measures on a day, shape (12, H, W), uint16."""
    green = np.array([greenness(each, day, south) for each in Cover], np.float32)[:, None]
    wet = np.float32(rng.uniform(0.8, 1.1))  # wet soil is darker
    active, dormant = (np.array(table, np.float32) / 1000 for table in (_ACTIVE, _DORMANT))
    spectra = green * active + (1 - green) * dormant * wet
    ground = spectra[cover].transpose(2, 0, 1) * (1 + _ROUGHNESS[cover] * texture)
    light = 1 + 0.04 * rng.standard_normal() + 0.015 * rng.standard_normal(len(SENTINEL2_L2A))
    thickness = abs(0.012 * rng.standard_normal()) * (1 + 0.3 * smooth_noise(rng, cover.shape, 40))
    haze = thickness * (_NANOMETRES[:, None, None] / 492) ** -2  # what correction leaves of Rayleigh and dust
    measured = ground * light[:, None, None] + haze
    measured += (0.0015 + 0.01 * measured) * rng.standard_normal(measured.shape, dtype=np.float32)
    stored: Array = np.clip(np.rint(measured * REFLECTANCE_SCALE), 1, 65535).astype(np.uint16)
    return stored


def at_own_resolution(image: Array, bands: Sequence[str] = SENTINEL2_L2A) -> dict[str, Array]:
    """Return each band on its own grid, the mean over the pixels of 10 m.

    Args:
        image: Bands at 10 m, shape (C, H, W), integers, sides a multiple of 6.
        bands: Their names.
    """
    own = {}
    for name, band in zip(bands, image, strict=True):
        step = BAND_METRES[name] // GSD
        height, width = (length // step for length in band.shape)
        mean = band.reshape(height, step, width, step).mean(axis=(1, 3))
        own[name] = np.rint(mean).astype(band.dtype)
    return own
