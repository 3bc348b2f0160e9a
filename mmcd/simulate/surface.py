"""The plan drawn on the pixel grid: one height map, one material map, and who stands where.

Both sensors look at this one surface, which is why shadow, layover and damage agree between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmcd.simulate.city import DEBRIS, GARDEN, PARKING, SITE, Buildings, City, Vehicles
from mmcd.simulate.palettes import CROPS, Material
from mmcd.simulate.shapes import Array, Pixels, smooth_noise


@dataclass
class Surface:
    """What the sensors see, all maps of shape (height, width).

    Attributes:
        height: Metres above the ground, float32.
        material: Cover, a ``Material``, uint8.
        tint: Row of the colour table, uint8.
        shade: Factor on the colour: furrows, joints, markings; float32.
        building: Number of the building, -1 where there is none, int32.
    """

    height: Array
    material: Array
    tint: Array
    shade: Array
    building: Array

    def copy(self) -> Surface:
        """Return a surface that can be changed without changing this one."""
        return Surface(*(layer.copy() for layer in vars(self).values()))

    def cover(self, index: Array, material: Material, height: Array | float = 0.0) -> None:
        """Put a material at a height on the pixels of a flat index."""
        self.material.ravel()[index] = material
        self.tint.ravel()[index] = material
        self.height.ravel()[index] = height
        self.shade.ravel()[index] = 1.0


def draw_surface(rng: np.random.Generator, city: City) -> Surface:
    """Draw everything of a city but its vehicles."""
    surface = _open_land(rng, city)
    _draw_yards(rng, surface, city)
    water = np.flatnonzero(city.water)
    surface.cover(water, Material.WATER)
    _draw_streets(surface, city)
    if city.style.coast:  # streets end at the sea, and cross a river
        surface.cover(water, Material.WATER)
    _draw_lots(rng, surface, city)
    draw_buildings(rng, surface, city.buildings, city.gsd, 0)
    _draw_trees(surface, city)
    return surface


def _open_land(rng: np.random.Generator, city: City) -> Surface:
    """Return grass, soil and snow by smooth noise, and fields where the land is rural."""
    shape, gsd, palette = city.shape, city.gsd, city.palette
    patches = smooth_noise(rng, shape, 40 / gsd) + 0.5 * smooth_noise(rng, shape, 9 / gsd)
    bare = patches > 2.4 * (palette.green - 0.5) + 0.4
    material = np.where(bare, np.uint8(Material.SOIL), np.uint8(Material.GRASS))
    surface = Surface(
        np.zeros(shape, np.float32), material, material.copy(), np.ones(shape, np.float32), np.full(shape, -1, np.int32)
    )
    if city.style.rural:
        _draw_fields(rng, surface, city)
    return surface


def _draw_fields(rng: np.random.Generator, surface: Surface, city: City) -> None:
    """Draw fields as cells of a turned, uneven lattice, each with a crop and furrows."""
    shape, gsd = city.shape, city.gsd
    rural = smooth_noise(rng, shape, 120 / gsd) < 2.4 * (city.style.rural - 0.5)
    index = np.flatnonzero(rural)
    row, col = np.divmod(index, shape[1])
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(gsd * np.cos(angle)), np.float32(gsd * np.sin(angle))
    u, v = col * cos + row * sin, row * cos - col * sin
    strip = np.floor_divide(v, np.float32(rng.uniform(60, 95))).astype(np.int64)
    lengths, offsets = rng.uniform(70, 160, 64), rng.uniform(0, 100, 64)
    cell = ((u + offsets[strip % 64]) / lengths[strip % 64]).astype(np.int64)
    crop = rng.integers(0, 8, 4096)[(strip * 61 + cell) % 4096]
    across = np.where(crop % 2 == 0, u, v)
    furrow = np.abs(across - np.floor(across / 2.5) * 2.5 - 1.25) / 1.25
    surface.material.ravel()[index] = Material.CROP
    surface.tint.ravel()[index] = CROPS + crop
    surface.shade.ravel()[index] = 0.93 + 0.12 * furrow


def _draw_yards(rng: np.random.Generator, surface: Surface, city: City) -> None:
    pixels = city.yards.pixels(city.shape, city.gsd)
    paved = rng.random(len(city.yards)) < 0.35
    cover = np.where(city.yard_green, Material.GRASS, np.where(paved, Material.PAVED, Material.SOIL)).astype(np.uint8)
    surface.material.ravel()[pixels.flat] = cover[pixels.owner]
    surface.tint.ravel()[pixels.flat] = cover[pixels.owner]
    tone = rng.uniform(0.88, 1.12, len(city.yards)).astype(np.float32)
    edge = _rim(pixels, city.yards.length, city.yards.width, city.gsd)
    surface.shade.ravel()[pixels.flat] = tone[pixels.owner] * np.where(edge, 0.75, 1.0)


def _rim(pixels: Pixels, length: Array, width: Array, margin: float) -> Array:
    """Return which pixels lie within ``margin`` metres of their box's edge."""
    inner_u, inner_v = length[pixels.owner] / 2 - margin, width[pixels.owner] / 2 - margin
    rim: Array = (np.abs(pixels.u) > inner_u) | (np.abs(pixels.v) > inner_v)
    return rim


def _draw_streets(surface: Surface, city: City) -> None:
    """Draw pavements, then carriageways over them, then lane markings on wide streets."""
    pixels, width = city.street_pixels, city.streets.width
    away = np.abs(pixels.v) - width[pixels.owner] / 2
    ends = np.abs(pixels.u) - city.streets.length[pixels.owner] / 2
    unpaved = (width[pixels.owner] < 5) & (ends < 0)
    surface.cover(pixels.flat[(width[pixels.owner] >= 5)], Material.PAVED)
    road = (away < 0) & (ends < 0)
    dry = ~city.water.ravel()[pixels.flat]  # a lane has no bridge
    surface.cover(pixels.flat[road & unpaved & dry], Material.SOIL)
    surface.cover(pixels.flat[road & ~unpaved], Material.ASPHALT)
    dash = np.abs(pixels.u - np.floor(pixels.u / 9) * 9 - 4.5) < 2
    line = road & (width[pixels.owner] >= 8) & (np.abs(pixels.v) < 0.3) & dash & (ends < -8)
    surface.tint.ravel()[pixels.flat[line]] = Material.MARKING


def _draw_lots(rng: np.random.Generator, surface: Surface, city: City) -> None:
    """Draw plots without a building; heaps on some of them scatter like collapsed buildings."""
    pixels = city.lots.pixels(city.shape, city.gsd)
    use = city.lot_use[pixels.owner]
    for kind, material in ((DEBRIS, Material.DEBRIS_LOT), (SITE, Material.BUILDING_SITE), (PARKING, Material.ASPHALT)):
        surface.cover(pixels.flat[use == kind], material)
    heap = pixels.flat[(use == DEBRIS) | (use == SITE)]
    raise_heaps(
        rng, surface, heap, rng.uniform(0.3, 1.6, len(city.lots))[pixels.owner][(use == DEBRIS) | (use == SITE)]
    )
    surface.cover(pixels.flat[use == GARDEN], Material.GRASS)
    bay = np.abs(pixels.u - np.floor(pixels.u / 2.8) * 2.8) < 0.4
    surface.tint.ravel()[pixels.flat[(use == PARKING) & bay]] = Material.MARKING


def raise_heaps(rng: np.random.Generator, surface: Surface, index: Array, height: Array) -> None:
    """Give pixels the rough relief of rubble: half a mean height, half heaps, some of it from beam to beam.

    Args:
        rng: Source of randomness.
        surface: Changed in place.
        index: Flat pixel index, shape (m,).
        height: Mean height of the rubble, metres, shape (m,).
    """
    heaps = smooth_noise(rng, surface.height.shape, 5.0).ravel()[index]
    blocks = rng.random(len(index), dtype=np.float32)
    surface.height.ravel()[index] = height * np.clip(0.7 + 0.5 * heaps, 0.05, None) + 0.7 * blocks
    surface.shade.ravel()[index] = 0.75 + 0.5 * blocks


def draw_buildings(rng: np.random.Generator, surface: Surface, buildings: Buildings, gsd: float, number: int) -> None:
    """Draw roofs with their slopes, rims and roof-top machines.

    Args:
        rng: Source of randomness.
        surface: Changed in place.
        buildings: What to draw.
        gsd: Metres a pixel.
        number: Number of the first building; negative to leave the map of buildings as it is.
    """
    shape = surface.height.shape
    boxes, owner = buildings.parts()
    boxes_width, boxes_length = boxes.width, boxes.length
    part = boxes.pixels((shape[0], shape[1]), gsd)
    of = owner[part.owner]
    pitch = buildings.pitch[of]
    rise = pitch * np.minimum(boxes_width, boxes_length)[part.owner] / 2
    ridge = np.where(boxes_width[part.owner] <= boxes_length[part.owner], np.abs(part.v), np.abs(part.u))
    rim = _rim(part, boxes_length, boxes_width, max(gsd, 0.5))
    parapet = np.where((pitch == 0) & rim, 0.6, 0.0)
    height = buildings.height[of] + np.maximum(rise - pitch * ridge, 0) + parapet
    seams = np.abs(part.u - np.floor(part.u / 2.0) * 2.0 - 1.0)
    ribbed = buildings.roof[of] == Material.METAL
    tone = rng.uniform(0.82, 1.15, len(buildings))[of]
    shade = tone * np.where(ribbed, 0.94 + 0.1 * seams, 1.0) * np.where(rim, 0.9, 1.0)
    _paint_roof(surface, buildings, part.flat, of, height, shade, number)
    tanks = np.flatnonzero(buildings.round)
    disc = buildings.bodies.take(tanks).pixels((shape[0], shape[1]), gsd, discs=True)
    of = tanks[disc.owner]
    away = np.sqrt(disc.u * disc.u + disc.v * disc.v) / buildings.bodies.length[of] * 2
    _paint_roof(
        surface, buildings, disc.flat, of, buildings.height[of] + 1.2 * (1 - away * away), 1.05 - 0.1 * away, number
    )
    _draw_machines(rng, surface, buildings, gsd)


def _paint_roof(
    surface: Surface, buildings: Buildings, index: Array, of: Array, height: Array, shade: Array, number: int
) -> None:
    surface.height.ravel()[index] = height
    surface.material.ravel()[index] = buildings.roof[of]
    surface.tint.ravel()[index] = buildings.tint[of]
    surface.shade.ravel()[index] = shade
    if number >= 0:
        surface.building.ravel()[index] = of + number


def _draw_machines(rng: np.random.Generator, surface: Surface, buildings: Buildings, gsd: float) -> None:
    """Put air conditioners, stair heads and skylights on flat roofs: one for about 60 square metres."""
    bodies = buildings.bodies
    flat = (buildings.pitch == 0) & ~buildings.round
    count = np.where(flat, rng.poisson(np.clip(bodies.length * bodies.width / 60, 0, 40)), 0)
    owner = np.repeat(np.arange(len(buildings)), count)
    roof = bodies.take(owner)
    x, y = roof.at(*(rng.uniform(-0.4, 0.4, (2, len(owner))) * (roof.length, roof.width)))
    size = rng.uniform(1.0, 3.5, (2, len(owner)))
    machines = type(roof)(x, y, size[0], size[1], roof.angle)
    pixels = machines.pixels((surface.height.shape[0], surface.height.shape[1]), gsd)
    tall = rng.uniform(0.6, 2.4, len(owner))[pixels.owner]
    inside = surface.building.ravel()[pixels.flat] >= 0
    index = pixels.flat[inside]
    surface.height.ravel()[index] = buildings.height[owner][pixels.owner][inside] + tall[inside]
    surface.shade.ravel()[index] = rng.uniform(0.6, 1.35, len(owner))[pixels.owner][inside]


def _draw_trees(surface: Surface, city: City) -> None:
    """Draw crowns as half ellipsoids, the taller over the lower."""
    order = np.argsort(city.tree_height, kind="stable")
    crowns = city.trees.take(order)
    pixels = crowns.pixels(city.shape, city.gsd, discs=True)
    radius = crowns.length[pixels.owner] / 2
    hollow = np.clip(1 - (pixels.u * pixels.u + pixels.v * pixels.v) / (radius * radius), 0, 1)
    height = city.tree_height[order][pixels.owner] * (0.55 + 0.45 * np.sqrt(hollow))
    clear = (surface.building.ravel()[pixels.flat] < 0) & (height > surface.height.ravel()[pixels.flat])
    index = pixels.flat[clear]
    surface.height.ravel()[index] = height[clear]
    surface.material.ravel()[index] = Material.TREE
    surface.tint.ravel()[index] = city.tree_tint[order][pixels.owner][clear]
    surface.shade.ravel()[index] = 0.7 + 0.4 * hollow[clear]


def draw_vehicles(surface: Surface, vehicles: Vehicles, gsd: float) -> None:
    """Draw the vehicles of one date; wind screens are darker."""
    pixels = vehicles.boxes.pixels((surface.height.shape[0], surface.height.shape[1]), gsd)
    low = surface.height.ravel()[pixels.flat] < 0.5
    dry = ~np.isin(surface.material.ravel()[pixels.flat], (Material.WATER, Material.LAVA))
    keep = low & dry
    index, of = pixels.flat[keep], pixels.owner[keep]
    surface.height.ravel()[index] = vehicles.height[of]
    surface.material.ravel()[index] = Material.VEHICLE
    surface.tint.ravel()[index] = vehicles.tint[of]
    surface.shade.ravel()[index] = np.where(np.abs(pixels.u[keep] - 0.8) < 0.5, 0.55, 1.0)
