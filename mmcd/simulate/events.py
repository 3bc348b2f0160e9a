"""What disasters do to a surface: who is hit, how hard, and what is left.

An event chooses buildings by a hazard of its own shape (an epicentre's patches, a blast's rings, a front, a river's
reach) mixed with chance, until the share of damaged pixels is reached. It then changes heights and materials; the radar
sees the consequences because its view follows from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.ndimage import distance_transform_edt

from mmcd.simulate.city import City
from mmcd.simulate.palettes import CROPS, Material
from mmcd.simulate.shapes import Array, Pixels, smooth_noise, splined
from mmcd.simulate.surface import Surface, draw_buildings, raise_heaps

Event = Literal["earthquake", "explosion", "wildfire", "hurricane", "flood", "volcano"]
EVENTS: tuple[Event, ...] = get_args(Event)

INTACT, DAMAGED, DESTROYED = 1, 2, 3

DAMAGED_SHARE = (0.012, 0.045)
"""Range from which the share of damaged pixels of a scene is drawn; never outside 1 to 5 per cent."""


@dataclass(frozen=True)
class Aftermath:
    """The scene after the event.

    Attributes:
        surface: What is left.
        grade: 1 intact, 2 damaged or 3 destroyed, for each building, shape (n,), uint8.
        upright: Share of each building's walls that still stand, shape (n,).
    """

    surface: Surface
    grade: Array
    upright: Array


@dataclass(frozen=True)
class _Nature:
    """How an event strikes.

    Attributes:
        hazard: (generator, city) to a map of danger, any unit, higher is worse.
        chance: Weight of pure chance against the hazard, both with standard deviation 1.
        destroyed: Share of hit buildings that are destroyed; the rest is damaged.
        strike: Changes the surface in place.
    """

    hazard: Callable[[np.random.Generator, City], Array]
    chance: float
    destroyed: float
    strike: Callable[[_Strike], None]


@dataclass(frozen=True)
class _Strike:
    """All that an event's effect works on.

    Attributes:
        rng: Source of randomness.
        city: The plan.
        surface: Changed in place.
        hazard: Map of danger, shape (height, width).
        reach: Hazard from which the event is felt on open ground.
        pixels: All pixels of hit buildings.
        grade: Grade of every building.
        upright: Changed in place: share of walls that stand.
    """

    rng: np.random.Generator
    city: City
    surface: Surface
    hazard: Array
    reach: float
    pixels: Pixels
    grade: Array
    upright: Array

    def of(self, grade: int) -> Pixels:
        """Return the pixels of buildings with a grade."""
        keep = self.grade[self.pixels.owner] == grade
        return Pixels(*(column[keep] for column in self.pixels))


def strike(rng: np.random.Generator, event: Event, city: City, before: Surface) -> Aftermath:
    """Let an event happen.

    Args:
        rng: Source of randomness.
        event: What happens.
        city: The plan.
        before: The surface at the date of the optical image; left as it is.
    """
    nature = _NATURES[event]
    surface = before.copy()
    pass_time(rng, city, surface)
    draw_buildings(rng, surface, city.new_buildings, city.gsd, -1)
    hazard = nature.hazard(rng, city)
    index = np.flatnonzero(before.building >= 0)
    owner = before.building.ravel()[index]
    area = np.bincount(owner, minlength=len(city.buildings))
    felt = np.bincount(owner, hazard.ravel()[index], len(city.buildings)) / np.maximum(area, 1)
    hit = choose_hit(rng, felt, area, before.building.size, nature.chance)
    fallen = rng.random(len(hit)) < nature.destroyed
    grade = np.select([~hit, fallen], [INTACT, DESTROYED], DAMAGED).astype(np.uint8)
    upright = np.ones(len(hit))
    reach = float(np.quantile(felt[hit], 0.3)) if hit.any() else float(hazard.max())
    pixels = _in_bodies(city, index[hit[owner]], owner[hit[owner]])
    nature.strike(_Strike(rng, city, surface, hazard, reach, pixels, grade, upright))
    return Aftermath(surface, grade, upright)


def _in_bodies(city: City, flat: Array, owner: Array) -> Pixels:
    """Return pixels with u and v in the main rectangle of the building that each belongs to."""
    row, column = np.divmod(flat, city.shape[1])
    bodies = city.buildings.bodies
    x, y = (column + 0.5) * city.gsd - bodies.x[owner], (row + 0.5) * city.gsd - bodies.y[owner]
    cos, sin = np.cos(bodies.angle)[owner], np.sin(bodies.angle)[owner]
    return Pixels(flat, owner, x * cos + y * sin, y * cos - x * sin)


def choose_hit(rng: np.random.Generator, felt: Array, area: Array, total: int, chance: float) -> Array:
    """Choose the buildings that are hit so that their pixels make 1 to 5 per cent of the scene.

    Args:
        rng: Source of randomness.
        felt: Hazard at each building, shape (n,).
        area: Visible pixels of each building, shape (n,).
        total: Pixels of the scene.
        chance: Weight of chance against the hazard.

    Returns:
        Mask, shape (n,). The share can only miss the range when the scene has too few buildings for it.
    """
    spread = felt.std() or 1.0
    rank = (felt - felt.mean()) / spread + chance * rng.standard_normal(len(felt))
    order = np.argsort(-rank, kind="stable")
    goal = rng.uniform(*DAMAGED_SHARE) * total
    hit, sum_area = np.zeros(len(felt), bool), 0
    for number in order:
        if area[number] and sum_area < goal and sum_area + area[number] <= 0.049 * total:
            hit[number] = True
            sum_area += int(area[number])
    return hit


def pass_time(rng: np.random.Generator, city: City, surface: Surface) -> None:
    """Change what changes between two dates though nothing is built and nothing happens: crops and roofs.

    Args:
        rng: Source of randomness.
        city: The plan.
        surface: Changed in place; its buildings are those of the plan.
    """
    crop = np.flatnonzero(surface.material == Material.CROP)
    turned = rng.permutation(8).astype(np.uint8)
    surface.tint.ravel()[crop] = CROPS + turned[surface.tint.ravel()[crop] - CROPS]
    renewed = rng.random(len(city.buildings)) < 0.06
    index = np.flatnonzero(surface.building >= 0)
    index = index[renewed[surface.building.ravel()[index]]]
    other = rng.choice(np.array([Material.TILE, Material.FLAT, Material.METAL], np.uint8), len(city.buildings))
    surface.material.ravel()[index] = other[surface.building.ravel()[index]]


def _patches(rng: np.random.Generator, city: City) -> Array:
    """Return a hazard in patches of about a block."""
    return smooth_noise(rng, city.shape, 90 / city.gsd)


def _rings(rng: np.random.Generator, city: City) -> Array:
    """Return a hazard that falls with the distance from one point, as blast pressure does."""
    height, width = city.shape
    centre = rng.uniform(0.15, 0.85, 2) * city.shape
    y, x = np.ogrid[:height, :width]
    away = np.sqrt((y - centre[0]) ** 2 + (x - centre[1]) ** 2) * city.gsd
    hazard: Array = (1.0 / (1.0 + away / 40.0) + 0.06 * smooth_noise(rng, city.shape, 60 / city.gsd)).astype(np.float32)
    return hazard


def _front(rng: np.random.Generator, city: City) -> Array:
    """Return a hazard that comes from one side with a ragged front: fire, lava."""
    height, width = city.shape
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[:height, :width]
    across = ((x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)) / max(height, width)
    hazard: Array = (2.2 * across + 0.6 * smooth_noise(rng, city.shape, 110 / city.gsd)).astype(np.float32)
    return hazard


def _low_ground(rng: np.random.Generator, city: City) -> Array:
    """Return a hazard that is highest beside water and in hollows."""
    hollows = smooth_noise(rng, city.shape, 110 / city.gsd)
    if not city.water.any():
        return hollows
    away = distance_transform_edt(~city.water[::8, ::8]) * (8 * city.gsd)
    pad = [(1, length // 8 + 3 - rows) for length, rows in zip(city.shape, away.shape, strict=True)]
    near = splined(np.pad(1.0 / (1.0 + away / 50.0), pad, mode="edge").astype(np.float32), city.shape, 8)
    hazard: Array = 2.5 * near + np.float32(0.7) * hollows
    return hazard


def _collapse(job: _Strike, pixels: Pixels, material: Material, left: tuple[float, float]) -> None:
    """Turn building pixels to heaps whose mean height is a share ``left`` of the building's."""
    share = job.rng.uniform(*left, len(job.grade))
    height = np.minimum(share * job.city.buildings.height, 4.5)
    job.surface.cover(pixels.flat, material)
    raise_heaps(job.rng, job.surface, pixels.flat, height[pixels.owner])


def _part(job: _Strike, pixels: Pixels, low: float, high: float) -> Pixels:
    """Return the pixels at one end of each building, a share between ``low`` and ``high`` of its length."""
    share = job.rng.uniform(low, high, len(job.grade))
    side = np.where(job.rng.random(len(job.grade)) < 0.5, 1.0, -1.0)
    length = job.city.buildings.bodies.length[pixels.owner]
    gone = pixels.u * side[pixels.owner] > (0.5 - share[pixels.owner]) * length
    return Pixels(*(column[gone] for column in pixels))


def _set_upright(job: _Strike, damaged: float) -> None:
    job.upright[job.grade == DESTROYED] = 0.0
    job.upright[job.grade == DAMAGED] = damaged


def _shake(job: _Strike) -> None:
    """Earthquake and blast: rubble heaps; damaged buildings lose an end, their walls their straightness."""
    _collapse(job, job.of(DESTROYED), Material.RUBBLE, (0.08, 0.3))
    _collapse(job, _part(job, job.of(DAMAGED), 0.35, 0.65), Material.RUBBLE, (0.15, 0.4))
    _set_upright(job, 0.35)


def _burn(job: _Strike) -> None:
    """Wildfire: houses burn to the foundations, vegetation loses leaves and answers less."""
    burnt = job.hazard > job.reach
    for material, factor in ((Material.TREE, 0.6), (Material.GRASS, 1.0), (Material.CROP, 1.0)):
        index = np.flatnonzero(burnt & (job.surface.material == material))
        job.surface.material.ravel()[index] = Material.TREE if material == Material.TREE else Material.SOIL
        job.surface.height.ravel()[index] *= factor
    _collapse(job, job.of(DESTROYED), Material.ASHES, (0.03, 0.12))
    _collapse(job, _part(job, job.of(DAMAGED), 0.4, 0.7), Material.ASHES, (0.1, 0.25))
    _set_upright(job, 0.5)


def _blow(job: _Strike) -> None:
    """Hurricane: roofs torn off, light buildings flattened, trees felled."""
    trees = np.flatnonzero(job.surface.material == Material.TREE)
    felled = trees[job.hazard.ravel()[trees] > job.reach]
    job.surface.height.ravel()[felled] *= 0.3
    _collapse(job, job.of(DESTROYED), Material.RUBBLE, (0.05, 0.2))
    torn = job.of(DAMAGED)
    lost = job.rng.random(len(torn.flat), dtype=np.float32)
    job.surface.material.ravel()[torn.flat] = Material.TORN
    job.surface.height.ravel()[torn.flat] *= 0.45 + 0.35 * lost
    _set_upright(job, 0.4)


def _drown(job: _Strike) -> None:
    """Flood: dark water on low open ground, brighter corners above it, houses swept away or half gone."""
    surface = job.surface
    low = (job.hazard > job.reach) & (surface.height < 0.6) & (surface.building < 0)
    edge = (job.hazard > job.reach - 0.25) & ~low & (surface.height < 0.3) & (surface.building < 0)
    surface.material[edge & (surface.material != Material.WATER)] = Material.MUD
    surface.cover(np.flatnonzero(low), Material.WATER)
    swept = job.of(DESTROYED)
    _collapse(job, swept, Material.RUBBLE, (0.02, 0.12))
    _collapse(job, _part(job, job.of(DAMAGED), 0.4, 0.65), Material.MUD, (0.02, 0.1))
    _set_upright(job, 0.5)
    bodies, gsd = job.city.buildings.bodies, job.city.gsd
    row = np.clip(bodies.y / gsd, 0, job.city.shape[0] - 1).astype(int)
    column = np.clip(bodies.x / gsd, 0, job.city.shape[1] - 1).astype(int)
    # water is the better mirror: a standing wall in it answers more strongly
    job.upright[job.hazard[row, column] > job.reach] *= 1.8


def _bury(job: _Strike) -> None:
    """Lava and ash: the ground rises and turns smooth; what is lower disappears."""
    surface = job.surface
    depth = 1.5 + 2.0 * np.clip(job.hazard - job.reach, 0, 1.2)
    swell = np.float32(0.25) * smooth_noise(job.rng, job.city.shape, 4 / job.city.gsd)
    flow = (job.hazard > job.reach) & (surface.building < 0) & (surface.height < depth)
    index = np.flatnonzero(flow)
    surface.cover(index, Material.LAVA, (depth + swell).ravel()[index])
    buried = job.of(DESTROYED).flat
    surface.cover(buried, Material.LAVA, (depth + swell).ravel()[buried])
    half = _part(job, job.of(DAMAGED), 0.4, 0.7).flat
    surface.cover(half, Material.LAVA, (depth + swell).ravel()[half])
    _set_upright(job, 0.4)


_NATURES: dict[Event, _Nature] = {
    "earthquake": _Nature(_patches, 1.0, 0.6, _shake),
    "explosion": _Nature(_rings, 0.6, 0.55, _shake),
    "wildfire": _Nature(_front, 0.8, 0.8, _burn),
    "hurricane": _Nature(_patches, 1.2, 0.4, _blow),
    "flood": _Nature(_low_ground, 0.8, 0.55, _drown),
    "volcano": _Nature(_front, 0.5, 0.8, _bury),
}
