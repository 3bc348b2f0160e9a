"""How a town grows: two optical images of one place, years apart, and the buildings that came and went between them.

No disaster. The ground, the streets and most buildings are the same at both dates; buildings are raised in clusters,
some are torn down. Everything else that differs between two such images (season, sun, haze, shadows, vehicles, crops,
renewed roofs) is no change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from mmcd.simulate.city import Buildings, City, build_city, park_vehicles
from mmcd.simulate.events import choose_hit, pass_time
from mmcd.simulate.layouts import Layout
from mmcd.simulate.optical import Sun, view_optical
from mmcd.simulate.palettes import PALETTE_TABLE, Material, PaletteName
from mmcd.simulate.scene import SceneSpec
from mmcd.simulate.shapes import Array, smooth_noise
from mmcd.simulate.surface import Surface, draw_buildings, draw_surface, draw_vehicles, raise_heaps

_STREAM = 4
"""Keeps towns that grow apart from the disaster scenes of the same seed."""

_DEMOLISHED = 0.2
"""Share of the changed buildings that were torn down; the others were raised."""

_SITES: tuple[tuple[Material, float], ...] = (
    (Material.SOIL, 0.35),
    (Material.GRASS, 0.4),
    (Material.BUILDING_SITE, 0.25),
)
"""What lies on a plot before its building is raised, or after it is torn down, with the share of the plots."""

_PLOT_MARGIN = 3.0
"""Metres of open ground around a building that belong to its plot."""

_OPEN = (Material.GRASS, Material.SOIL, Material.CROP)

RAISED, TORN_DOWN = 1, 2


@dataclass(frozen=True)
class GrowthSpec:
    """Everything that decides a pair: equal specifications give equal arrays.

    Attributes:
        size: Height and width in pixels, at least 128.
        gsd: Metres a pixel, 0.2 to 2.
        seed: Seed of all randomness.
        layout: Family of street pattern and buildings.
        palette: Family of colours and vegetation.
    """

    size: int = 1024
    gsd: float = 0.5
    seed: int = 0
    layout: Layout = "grid"
    palette: PaletteName = "temperate"

    def check(self) -> None:
        """Raise ConfigError for a value that is outside its range."""
        SceneSpec(**asdict(self)).resolved()


@dataclass(frozen=True)
class SimulatedGrowth:
    """Two images of a place and what changed.

    Attributes:
        spec: The specification.
        pre: Optical image before, shape (3, size, size), uint8.
        post: Optical image after, shape (3, size, size), uint8.
        label: 1 where a building was raised, 2 where one was torn down, 0 elsewhere, shape (size, size), uint8.
        suns: Light and season of the two dates.
    """

    spec: GrowthSpec
    pre: Array
    post: Array
    label: Array
    suns: tuple[Sun, Sun]


def simulate_growth(spec: GrowthSpec) -> SimulatedGrowth:
    """Simulate one pair.

    Raises:
        ConfigError: A value of the specification is outside its range.
    """
    spec.check()
    plan, change, light, *views = (np.random.default_rng([spec.seed, _STREAM, part]) for part in range(5))
    palette = PALETTE_TABLE[spec.palette]
    city = build_city(plan, spec.layout, palette, (spec.size, spec.size), spec.gsd)
    fate = _fates(change, city)
    raised = city.buildings.take(fate == RAISED).joined(city.new_buildings)
    torn_down = city.buildings.take(fate == TORN_DOWN)
    city = replace(city, buildings=city.buildings.take(fate == 0))
    before = draw_surface(plan, city)
    after = before.copy()
    _clear(change, before, raised, spec.gsd)
    _clear(change, after, torn_down, spec.gsd)
    pass_time(change, city, after)
    for surface, buildings in ((before, torn_down), (after, raised)):
        draw_buildings(change, surface, buildings, spec.gsd, len(city.buildings))
    suns = _suns(light)
    images = []
    for rng, surface, sun in zip(views, (before, after), suns, strict=True):
        draw_vehicles(surface, park_vehicles(rng, city), spec.gsd)
        images.append(view_optical(rng, surface, palette, sun, spec.gsd))
    label = np.zeros(city.shape, np.uint8)
    label.ravel()[torn_down.pixels(city.shape, spec.gsd).flat] = TORN_DOWN
    label.ravel()[raised.pixels(city.shape, spec.gsd).flat] = RAISED
    return SimulatedGrowth(spec, images[0], images[1], label, suns)


def _fates(rng: np.random.Generator, city: City) -> Array:
    """Return 0, RAISED or TORN_DOWN for each building; changed ones stand together, as new quarters do."""
    pixels = city.buildings.pixels(city.shape, city.gsd)
    count = len(city.buildings)
    area = np.bincount(pixels.owner, minlength=count)
    quarters = smooth_noise(rng, city.shape, 110 / city.gsd).ravel()[pixels.flat]
    felt = np.bincount(pixels.owner, quarters, count) / np.maximum(area, 1)
    changed = choose_hit(rng, felt, area, city.water.size, chance=0.6)
    fate: Array = np.where(rng.random(count) < _DEMOLISHED, TORN_DOWN, RAISED) * changed
    return fate


def _clear(rng: np.random.Generator, surface: Surface, buildings: Buildings, gsd: float) -> None:
    """Turn the plots of buildings that do not stand into soil, grass or building sites."""
    cover = rng.choice([material for material, _ in _SITES], len(buildings), p=[share for _, share in _SITES])
    relief = rng.uniform(0.2, 0.9, len(buildings))
    shape = (surface.height.shape[0], surface.height.shape[1])
    plots = buildings.bodies.grown(_PLOT_MARGIN).pixels(shape, gsd)
    free = np.isin(surface.material.ravel()[plots.flat], _OPEN) & (surface.building.ravel()[plots.flat] < 0)
    bodies = buildings.pixels(shape, gsd)
    flat = np.concatenate([plots.flat[free], bodies.flat])
    owner = np.concatenate([plots.owner[free], bodies.owner])
    for material, _ in _SITES:
        surface.cover(flat[cover[owner] == material], material)
    site = cover[owner] == Material.BUILDING_SITE
    raise_heaps(rng, surface, flat[site], relief[owner[site]])


def _suns(rng: np.random.Generator) -> tuple[Sun, Sun]:
    """Return light and season of two dates: morning and afternoon, green and dry, either of them first."""
    azimuth = rng.permutation([rng.uniform(110, 165), rng.uniform(195, 250)])
    dryness = rng.permutation([rng.uniform(0, 0.3), rng.uniform(0.45, 0.8)])
    elevation, haze = rng.uniform(30, 62, 2), rng.uniform(0.03, 0.16, 2)
    first, second = (Sun(*map(float, values)) for values in zip(azimuth, elevation, haze, dryness, strict=True))
    return first, second
