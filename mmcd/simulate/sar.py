"""The radar view: layover, shadow, double bounce, material backscatter, point targets and speckle.

Everything happens along lines of range. A surface element at ground range x and height h answers at the same time as
ground at ``x - h / tan(incidence)``: that displacement is layover. The wave falls by ``1 / tan(incidence)`` metres a
metre of ground range: what it passes over lies in radar shadow. A wall that faces the sensor and the ground before it
form a corner that sends the wave straight back: a bright line at the wall's foot, as long as the wall stands upright
and is nearly parallel to the flight path. Moreira et al., A tutorial on synthetic aperture radar, IEEE GRSM 1(1), 2013;
Brunner et al., Earthquake damage assessment of buildings using VHR optical and SAR imagery, IEEE TGRS 48(5), 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmcd.simulate.city import Buildings
from mmcd.simulate.palettes import Material
from mmcd.simulate.shapes import Array, Sweep, expand, in_shadow
from mmcd.simulate.surface import Surface

_BACKSCATTER: dict[Material, tuple[float, float]] = {
    Material.GRASS: (0.045, 0.3),
    Material.SOIL: (0.05, 0.3),
    Material.CROP: (0.07, 0.25),
    Material.PAVED: (0.03, 0.5),
    Material.ASPHALT: (0.012, 0.4),
    Material.WATER: (0.0025, 0.1),
    Material.DEBRIS_LOT: (0.2, 0.9),
    Material.BUILDING_SITE: (0.12, 0.9),
    Material.MARKING: (0.012, 0.3),
    Material.TILE: (0.11, 0.5),
    Material.FLAT: (0.06, 0.6),
    Material.METAL: (0.05, 0.4),
    Material.TREE: (0.2, 0.6),
    Material.VEHICLE: (0.5, 0.7),
    Material.RUBBLE: (0.2, 0.9),
    Material.ASHES: (0.1, 0.8),
    Material.LAVA: (0.07, 0.35),
    Material.TORN: (0.16, 0.9),
    Material.SAND: (0.02, 0.2),
    Material.MUD: (0.02, 0.25),
}
"""Mean intensity of each material and the share of it that varies from pixel to pixel."""

_GAIN = 190.0
"""Grey levels at an amplitude of 1: puts a town's mean near the 57 of the BRIGHT data set."""

_FLOOR = 0.003
"""Intensity of the receiver's own noise."""

_CORNER = 1.6
"""Intensity of the double bounce for each metre of wall."""

_SIDELOBES = ((1, 0.30), (2, 0.05), (3, 0.025), (5, 0.012), (7, 0.006))
"""Distance in pixels and relative intensity of the response around a point target."""


@dataclass(frozen=True)
class Radar:
    """Geometry and processing of one acquisition.

    Attributes:
        azimuth: Where the sensor stands, degrees clockwise from north.
        incidence: Degrees between the line of sight and the vertical.
        looks: Number of looks averaged; speckle has a relative standard deviation of ``1 / sqrt(looks)``.
        shift: Displacement (x, y) in pixels of the image against the optical grid.
        wetness: Factor on the backscatter of vegetation and soil: season and rain.
    """

    azimuth: float
    incidence: float
    looks: int
    shift: tuple[float, float]
    wetness: float


def view_radar(
    rng: np.random.Generator, surface: Surface, buildings: Buildings, upright: Array, radar: Radar, gsd: float
) -> Array:
    """Return the radar image of a surface.

    Args:
        rng: Source of randomness for texture and speckle.
        surface: What is seen.
        buildings: The buildings that ``surface.building`` counts.
        upright: Share of each building's walls that still stand, shape (len(buildings),).
        radar: Geometry and processing.
        gsd: Metres a pixel.

    Returns:
        Amplitude, shape (1, height, width), uint8.
    """
    shape = (surface.height.shape[0], surface.height.shape[1])
    sweep = Sweep(shape, radar.azimuth)
    step = sweep.step * gsd
    fall = 1 / np.tan(np.radians(radar.incidence))
    # the wave enters crowns: they answer from inside and cast a shorter shadow
    height = sweep.along(np.where(surface.material == Material.TREE, np.float32(0.6) * surface.height, surface.height))
    hidden = in_shadow(height, step * fall) | ~sweep.inside
    diffuse = _diffuse(sweep.along(_reflectivity(rng, surface, radar.wetness)), height, hidden, radar, step)
    corner = sweep.along(_corner_strength(surface, buildings, upright, radar.azimuth))
    bright = np.zeros_like(diffuse)
    run = step * np.tan(np.radians(radar.incidence))
    _add_walls(diffuse, bright, height, hidden, corner, run)
    _add_points(bright, sweep.along(_points(rng, surface)), height, hidden, run)
    diffuse, bright = (_shifted(sweep.back(layer), radar.shift) for layer in (diffuse, bright))
    diffuse = (diffuse + np.float32(_FLOOR)) * speckle(rng, shape, radar.looks)
    bright = _with_sidelobes(bright * speckle(rng, shape, radar.looks + 2))
    amplitude = np.sqrt(diffuse + bright) * np.float32(_GAIN)
    image: Array = np.clip(amplitude + np.float32(0.5), 0, 255).astype(np.uint8)[None]
    return image


def speckle(rng: np.random.Generator, shape: tuple[int, int], looks: int) -> Array:
    """Return multiplicative speckle: gamma distributed with mean 1 and variance ``1 / looks``, float32."""
    total = rng.standard_exponential(shape, dtype=np.float32)
    for _ in range(looks - 1):
        total += rng.standard_exponential(shape, dtype=np.float32)
    total /= np.float32(looks)
    return total


def _reflectivity(rng: np.random.Generator, surface: Surface, wetness: float) -> Array:
    """Return the intensity of each surface element seen at a right angle, with its natural texture."""
    mean, rough = np.array([_BACKSCATTER[material] for material in Material], np.float32).T
    mean = mean.copy()
    mean[[Material.GRASS, Material.SOIL, Material.CROP, Material.TREE]] *= np.float32(wetness)
    texture = rng.standard_exponential(surface.height.shape, dtype=np.float32)
    texture *= texture
    texture *= np.float32(0.5)  # the square of an exponential variate has mean 2: rare, strong scatterers
    texture -= 1
    texture *= rough[surface.material]
    texture += 1
    texture *= mean[surface.material]
    colour = np.float32(0.75) + np.float32(0.5 / 7) * (surface.tint & 7)  # fields and roofs differ among themselves
    vegetation = np.isin(np.arange(len(Material)), (Material.CROP, Material.TILE, Material.FLAT, Material.METAL))
    texture *= np.where(vegetation[surface.material], colour, np.float32(1))
    return texture


def _diffuse(reflectivity: Array, height: Array, hidden: Array, radar: Radar, step: float) -> Array:
    """Return the intensity at each range cell of all lit surface elements, each moved by its layover."""
    slope = np.zeros_like(height)
    slope[:, 1:] = np.clip((height[:, 1:] - height[:, :-1]) / np.float32(step), -0.6, 0.6)
    incidence = np.radians(radar.incidence)
    facing = np.float32(np.cos(incidence)) + slope * np.float32(np.sin(incidence))
    facing /= np.sqrt(1 + slope * slope)
    np.clip(facing, 0.1, None, out=facing)
    answer = reflectivity * facing * facing * np.float32(2)
    answer[hidden] = 0
    raised = height > 0.25
    line, column = np.nonzero(raised & ~hidden)
    moved = column - np.rint(height[line, column] / np.float32(step * np.tan(incidence))).astype(np.int64)
    kept = moved >= 0
    steps = height.shape[1]
    moved_answer = np.bincount(line[kept] * steps + moved[kept], answer[line[kept], column[kept]], height.size).reshape(
        height.shape
    )
    return np.where(raised, np.float32(0), answer) + moved_answer.astype(np.float32)


def _corner_strength(surface: Surface, buildings: Buildings, upright: Array, azimuth: float) -> Array:
    """Return how strongly a wall at each pixel would form a corner with the ground, shape (height, width), float32.

    The answer of a wall falls off within some ten degrees from the flight path's direction; vehicles are small
    corners whatever their direction.
    """
    direction = np.degrees(buildings.bodies.angle) - azimuth
    away = np.abs((direction + 45.0) % 90.0 - 45.0)
    strength = (0.05 + np.maximum(1 - (away / 15.0) ** 2, 0.0) ** 2) * upright
    strength = np.where(buildings.round, 0.15, strength)
    by_building = np.append(strength, 0.0).astype(np.float32)
    corner: Array = by_building[surface.building]
    corner[surface.material == Material.VEHICLE] = 0.35
    return corner


def _add_walls(diffuse: Array, bright: Array, height: Array, hidden: Array, corner: Array, run: float) -> None:
    """Add the walls that face the sensor: their own answer in the layover, their corner at the foot.

    Args:
        diffuse: Changed in place: intensity that carries full speckle, shape (lines, steps).
        bright: Changed in place: intensity of corners.
        height: Metres, shape (lines, steps).
        hidden: Radar shadow, shape (lines, steps).
        corner: Strength of the corner for each pixel, shape (lines, steps).
        run: Metres of height that lay over by one step.
    """
    wall = (height[:, 1:] - height[:, :-1] > 1.2) & (corner[:, 1:] > 0) & ~hidden[:, :-1]
    line, column = np.nonzero(wall)
    foot, top = height[line, column], height[line, column + 1]
    strength, steps = corner[line, column + 1], height.shape[1]
    wet = np.float32(_CORNER) * (top - foot) * strength
    np.add.at(bright, (line, column), wet)
    near = np.maximum(column - np.floor(top / run).astype(np.int64), 0)
    far = np.maximum(column - np.floor(foot / run).astype(np.int64), 0)
    column_of, owner = expand(near, far - near)
    storey = (column[owner] - column_of) * np.float32(run)
    balcony = storey - np.floor(storey / 3.0) * 3.0 < 0.9
    answer = (0.05 + 0.25 * strength[owner]) * np.where(balcony, 2.0, 0.5)
    diffuse += (
        np.bincount(line[owner] * steps + column_of, answer, diffuse.size).reshape(diffuse.shape).astype(np.float32)
    )


def _points(rng: np.random.Generator, surface: Surface) -> Array:
    """Return lone strong scatterers: lamp posts, fences, machines; more of them on rough ground. Shape (H, W)."""
    chance = np.full(len(Material), 0.0003, np.float32)
    chance[[Material.WATER, Material.ASPHALT, Material.SAND, Material.MUD, Material.LAVA]] = 0.00004
    chance[[Material.DEBRIS_LOT, Material.BUILDING_SITE, Material.RUBBLE, Material.ASHES, Material.TORN]] = 0.006
    chance[[Material.FLAT, Material.METAL]] = 0.003
    points = np.zeros(surface.height.size, np.float32)
    found = np.flatnonzero((rng.random(surface.height.shape, dtype=np.float32) < chance[surface.material]).ravel())
    points[found] = 1.5 * rng.standard_exponential(len(found), dtype=np.float32)
    return points.reshape(surface.height.shape)


def _add_points(bright: Array, points: Array, height: Array, hidden: Array, run: float) -> None:
    """Add points that are not in shadow where their layover puts them; ``bright`` is changed in place."""
    line, column = np.nonzero((points > 0) & ~hidden)
    moved = np.maximum(column - np.rint(height[line, column] / np.float32(run)).astype(np.int64), 0)
    np.add.at(bright, (line, moved), points[line, column])


def _shifted(image: Array, shift: tuple[float, float]) -> Array:
    """Return the image moved by (x, y) pixels with linear interpolation; the edge repeats."""
    result = image
    for axis, amount in ((1, shift[0]), (0, shift[1])):
        whole = int(np.floor(amount))
        part = np.float32(amount - whole)
        places = np.arange(image.shape[axis])
        first = result.take(np.clip(places - whole, 0, image.shape[axis] - 1), axis=axis)
        second = result.take(np.clip(places - whole - 1, 0, image.shape[axis] - 1), axis=axis)
        result = first * (1 - part) + second * part
    return result


def _with_sidelobes(bright: Array) -> Array:
    """Return bright points with the cross of sidelobes that the processor leaves around them."""
    result = bright.copy()
    for away, share in _SIDELOBES:
        part = bright * np.float32(share)
        result[:, away:] += part[:, :-away]
        result[:, :-away] += part[:, away:]
        result[away:] += part[:-away]
        result[:-away] += part[away:]
    return result
