"""The optical view: sunlight, cast shadows, textures, haze and the noise of the sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmcd.simulate.palettes import CROPS, TREES, Material, Palette
from mmcd.simulate.shapes import Array, Sweep, blurred, in_shadow, smooth_noise
from mmcd.simulate.surface import Surface

_TEXTURE: dict[Material, float] = {
    Material.GRASS: 0.07,
    Material.SOIL: 0.06,
    Material.WATER: 0.015,
    Material.TREE: 0.16,
    Material.DEBRIS_LOT: 0.2,
    Material.BUILDING_SITE: 0.12,
    Material.TILE: 0.07,
    Material.VEHICLE: 0.03,
}
"""Standard deviation of the fine texture of a material, as a share of its brightness; 0.05 for all others."""


@dataclass(frozen=True)
class Sun:
    """Light of one acquisition.

    Attributes:
        azimuth: Where the sun stands, degrees clockwise from north.
        elevation: Degrees above the horizon.
        haze: Share of the light that comes from the air, in [0, 1).
        dryness: How far green has turned to straw, in [0, 1]: the season.
    """

    azimuth: float
    elevation: float
    haze: float
    dryness: float


def view_optical(rng: np.random.Generator, surface: Surface, palette: Palette, sun: Sun, gsd: float) -> Array:
    """Return the optical image of a surface.

    Args:
        rng: Source of randomness for textures and noise.
        surface: What is seen.
        palette: Its colours.
        sun: Light and season.
        gsd: Metres a pixel.

    Returns:
        Red, green and blue, shape (3, height, width), uint8.
    """
    shape = surface.height.shape
    light = _light(surface.height, sun, gsd)
    light *= surface.shade
    light *= _texture(rng, surface, gsd)
    table = _seasonal(palette.table(), sun.dryness) * np.float32(rng.uniform(0.92, 1.08))
    sky = np.asarray(palette.haze, np.float32) * np.float32(sun.haze)
    blue_shift = np.array([-0.012, 0.0, 0.02], np.float32)
    snow = _snow(rng, surface, palette, gsd)
    image = np.empty((3, *shape), np.uint8)
    noise = rng.random((shape[0] + 3, shape[1]), dtype=np.float32) + rng.random(
        (shape[0] + 3, shape[1]), dtype=np.float32
    )
    noise = (noise - np.float32(1)) * np.float32(5.0)
    for band in range(3):
        plane = table[:, band][surface.tint]
        if snow is not None:
            plane += snow * (np.float32((224, 229, 236)[band]) - plane)
        plane *= light + blue_shift[band]
        plane *= np.float32(1 - sun.haze)
        plane += sky[band]
        plane = blurred(plane, 0.66)
        plane += noise[band : band + shape[0]]
        np.clip(plane, 0, 255, out=plane)
        image[band] = plane
    return image


def _light(height: Array, sun: Sun, gsd: float) -> Array:
    """Return sunlight and skylight on the surface; 1 on flat sunlit ground. Shape (height, width), float32."""
    azimuth, elevation = np.radians(sun.azimuth), np.radians(sun.elevation)
    to_x, to_y = np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation)
    slope_x = np.zeros_like(height)
    slope_y = np.zeros_like(height)
    scale = np.float32(0.5 / gsd)
    slope_x[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * scale
    slope_y[1:-1] = (height[2:] - height[:-2]) * scale
    # walls are steeper than any roof: they keep the slope of a steep roof and draw the buildings' edges
    np.clip(slope_x, -1.2, 1.2, out=slope_x)
    np.clip(slope_y, -1.2, 1.2, out=slope_y)
    facing = np.float32(np.sin(elevation)) - slope_x * np.float32(to_x) - slope_y * np.float32(to_y)
    facing /= np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    np.clip(facing, 0, None, out=facing)
    sweep = Sweep((height.shape[0], height.shape[1]), sun.azimuth)
    dark = in_shadow(sweep.along(height), sweep.step * gsd * np.tan(elevation))
    lit = 1 - blurred(sweep.back(dark).astype(np.float32), 0.6)
    ambient = np.float32(0.34)
    light: Array = ambient + facing * lit * ((1 - ambient) / np.float32(np.sin(elevation)))
    return light


def _texture(rng: np.random.Generator, surface: Surface, gsd: float) -> Array:
    """Return the factor of fine and broad texture, shape (height, width), float32."""
    shape = (surface.height.shape[0], surface.height.shape[1])
    strength = np.array([_TEXTURE.get(material, 0.05) for material in Material], np.float32)
    fine = rng.random(shape, dtype=np.float32)
    fine -= np.float32(0.5)
    fine += np.float32(0.35) * smooth_noise(rng, shape, 1.6 / gsd)
    fine *= (np.float32(2.6) * strength)[surface.material]
    fine += 1
    fine += np.float32(0.05) * smooth_noise(rng, shape, 22 / gsd)
    return fine


def _seasonal(table: Array, dryness: float) -> Array:
    """Return the colour table with grass, crops and crowns on their way from green to straw."""
    rows = [Material.GRASS, *range(CROPS, CROPS + 8), *range(TREES, TREES + 8)]
    straw = table[rows].mean(axis=1, keepdims=True) * np.array([1.22, 1.06, 0.72], np.float32)
    share = np.full((len(rows), 1), dryness, np.float32)
    share[9:] *= 0.4
    table[rows] += share * (straw - table[rows])
    return table


def _snow(rng: np.random.Generator, surface: Surface, palette: Palette, gsd: float) -> Array | None:
    """Return the share of snow on open ground and roofs, or None where the climate has none."""
    if not palette.snow:
        return None
    cover = smooth_noise(rng, (surface.height.shape[0], surface.height.shape[1]), 14 / gsd)
    cover = np.clip(np.float32(palette.snow) + np.float32(0.35) * cover, 0, 0.9)
    holds = np.zeros(len(Material), np.float32)
    holds[[Material.GRASS, Material.SOIL, Material.CROP, Material.DEBRIS_LOT, Material.BUILDING_SITE]] = 1.0
    holds[[Material.TILE, Material.FLAT, Material.METAL]] = 0.6
    holds[[Material.PAVED, Material.TREE]] = 0.35
    snow: Array = cover * holds[surface.material]
    return snow
