"""Where on Earth to take images: near cities, anywhere on land, or a mixture of both.

SeCo chooses one of the most populous cities and goes a normally distributed way from it. CACo's own way was never
published; by its description it mixes cities with broader land, which `Mixture` does with any parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pyproj import Geod
from shapely.geometry.base import BaseGeometry

from mmcd.errors import InputError
from mmcd.geo.vector import WGS84, parse_region

Positions = NDArray[np.float64]
"""Longitude and latitude in degrees, shape (N, 2)."""

CITY_SPREAD_KM = 50.0
"""Standard deviation of the way from a city in SeCo, to the east and to the north."""

MOST_POPULOUS = 10_000
"""Cities that SeCo chooses from."""

_EARTH = Geod(ellps="WGS84")
_TRIES = 200
_AT_ONCE = 4096
_NAMES = {"lon": ("lon", "longitude", "lng", "x"), "lat": ("lat", "latitude", "y")}
_POPULATION = ("population", "pop", "pop_max")


class PositionSampler(Protocol):
    """A way to draw positions."""

    def draw(self, count: int, random: np.random.Generator) -> Positions:
        """Return positions, independent of each other.

        Args:
            count: How many.
            random: Source of randomness.
        """
        ...


@dataclass(frozen=True)
class NearPoints:
    """Normally distributed around points, each as likely as the others: SeCo's way with cities.

    Attributes:
        points: Longitude and latitude, degrees, shape (P, 2).
        spread_km: Standard deviation to the east and to the north, kilometres on the ground.

    Raises:
        InputError: There is no point, one is not in degrees, or the spread is negative.
    """

    points: Positions
    spread_km: float = CITY_SPREAD_KM

    def __post_init__(self) -> None:
        if not len(self.points):
            raise InputError("There is no point to draw positions around.", "Give at least one.")
        outside = ~(np.abs(self.points) <= (180, 90)).all(axis=1)
        if outside.any():
            first = int(np.argmax(outside))
            raise InputError(
                f"Point {first + 1} of {len(self.points):,}, {tuple(self.points[first].tolist())}, is not a longitude "
                "and a latitude.",
                "Give degrees, longitude first: -180 to 180 and -90 to 90.",
            )
        if not self.spread_km >= 0:
            raise InputError(f"A spread of {self.spread_km:g} km is none.", "Choose 0 or more.")

    def draw(self, count: int, random: np.random.Generator) -> Positions:
        """See `PositionSampler`."""
        start = self.points[random.integers(len(self.points), size=count)]
        east, north = random.normal(0.0, self.spread_km * 1000, (2, count))
        bearing, metres = np.degrees(np.arctan2(east, north)), np.hypot(east, north)
        lon, lat, _ = _EARTH.fwd(start[:, 0], start[:, 1], bearing, metres)
        return np.stack([lon, lat], axis=1)


@dataclass(frozen=True)
class OverLand:
    """Uniform by area over polygons.

    Attributes:
        land: Polygons in degrees; a part that crosses the antimeridian is given as two.

    Raises:
        InputError: The polygons have no area, or leave the range of degrees.
    """

    land: BaseGeometry
    _parts: tuple[BaseGeometry, ...] = field(init=False, repr=False)
    _share: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = tuple(part for part in shapely.get_parts(self.land) if part.area > 0)
        if not parts:
            raise InputError("The land to draw positions on has no area.", "Give polygons, not points or lines.")
        west, south, east, north = self.land.bounds
        if west < -180 or east > 180 or south < -90 or north > 90:
            raise InputError(
                f"The land reaches from {west:g}, {south:g} to {east:g}, {north:g}, which is not in degrees.",
                "Give polygons in longitude and latitude (EPSG:4326).",
            )
        area = shapely.area([shapely.transform(shapely.segmentize(part, 1.0), _equal_area) for part in parts])
        object.__setattr__(self, "_parts", parts)
        object.__setattr__(self, "_share", area / area.sum())

    def draw(self, count: int, random: np.random.Generator) -> Positions:
        """See `PositionSampler`.

        Raises:
            InputError: A polygon is so thin that no position falls into it.
        """
        counts = random.multinomial(count, self._share)
        drawn = [_within(self._parts[number], int(counts[number]), random) for number in np.flatnonzero(counts)]
        return random.permutation(np.concatenate([np.empty((0, 2)), *drawn]))


@dataclass(frozen=True)
class Mixture:
    """Each position by one of several samplers, chosen by its share.

    Attributes:
        parts: Samplers.
        shares: How often each is chosen; they need not add up to 1.

    Raises:
        InputError: There is not one share, 0 or more, for each part, or all are 0.
    """

    parts: Sequence[PositionSampler]
    shares: Sequence[float]

    def __post_init__(self) -> None:
        shares = np.asarray(self.shares, dtype=np.float64)
        if len(shares) != len(self.parts) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
            raise InputError(
                f"Shares {tuple(self.shares)} do not say how often each of {len(self.parts)} samplers is chosen.",
                "Give one number for each, 0 or more, and not all 0.",
            )

    def draw(self, count: int, random: np.random.Generator) -> Positions:
        """See `PositionSampler`."""
        share = np.asarray(self.shares, dtype=np.float64)
        counts = random.multinomial(count, share / share.sum())
        drawn = [part.draw(int(own), random) for part, own in zip(self.parts, counts, strict=True)]
        return random.permutation(np.concatenate(drawn))


def _equal_area(degrees: Positions) -> Positions:
    """Return longitude and the sine of the latitude: equal areas here are equal on the sphere."""
    return np.stack([degrees[:, 0], np.sin(np.radians(degrees[:, 1]))], axis=1)


def _within(part: BaseGeometry, count: int, random: np.random.Generator) -> Positions:
    """Return positions in one polygon: uniform in longitude and in the sine of the latitude, others thrown away."""
    west, south, east, north = part.bounds
    low, high = np.sin(np.radians([south, north]))
    shapely.prepare(part)
    found = np.empty((0, 2))
    for _ in range(_TRIES):
        lon = random.uniform(west, east, _AT_ONCE + 2 * count)
        lat = np.degrees(np.arcsin(random.uniform(low, high, len(lon))))
        inside = shapely.contains_xy(part, lon, lat)
        found = np.concatenate([found, np.stack([lon, lat], axis=1)[inside]])
        if len(found) >= count:
            return found[:count]
    raise InputError(
        f"The polygon from {west:g}, {south:g} to {east:g}, {north:g} is too thin to draw positions in.",
        "Leave it out, or give it a width.",
    )


def read_points(path: Path, most: int | None = None) -> Positions:
    """Read points from a table.

    Args:
        path: CSV with columns for longitude and latitude (``lon``, ``longitude``, ``x``; ``lat``, ``latitude``, ``y``)
            and, to choose by it, ``population``.
        most: Only this many of the most populous ones, as SeCo takes `MOST_POPULOUS`; None takes all.

    Raises:
        InputError: The file cannot be read, lacks a column or has a cell that is no number.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {_first_line(error)}.", "Give a CSV file with lon and lat."
        ) from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    if most is not None:
        table = table.nlargest(most, _column(table, _POPULATION, path), keep="first")
    columns = [_column(table, names, path) for names in _NAMES.values()]
    positions: Positions = table[columns].to_numpy(dtype=np.float64)
    return positions


def _column(table: pd.DataFrame, names: Sequence[str], path: Path) -> str:
    """Return the column of one of several names, once it is made of numbers."""
    found = [name for name in names if name in table.columns]
    if not found:
        raise InputError(
            f"{path} has no column {names[0]}, only {', '.join(table.columns)}.", f"Name one of them {names[0]}."
        )
    numbers = pd.to_numeric(table[found[0]], errors="coerce")
    if numbers.isna().any():
        line = int(np.argmax(numbers.isna().to_numpy())) + 2
        raise InputError(f"{path}: line {line} has no number in {found[0]}.", "Correct it, or take the line out.")
    table[found[0]] = numbers
    return found[0]


def read_land(path: Path) -> BaseGeometry:
    """Read polygons of a GeoJSON, GeoPackage or other vector file as one geometry in degrees.

    Raises:
        RegionError: The file cannot be read, has no polygon or no CRS.
    """
    return parse_region(str(path)).polygon_in(WGS84)


def _first_line(error: Exception) -> str:
    plain = error.strerror if isinstance(error, OSError) else None
    return (plain or str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
