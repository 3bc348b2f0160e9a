"""One simulated scene: a settlement, an optical image before, a radar image after, and the truth between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from mmcd.errors import ConfigError
from mmcd.simulate.city import Buildings, build_city, park_vehicles
from mmcd.simulate.events import EVENTS, Event, strike
from mmcd.simulate.layouts import LAYOUTS, Layout
from mmcd.simulate.optical import Sun, view_optical
from mmcd.simulate.palettes import PALETTE_TABLE, PALETTES, PaletteName
from mmcd.simulate.sar import Radar, view_radar
from mmcd.simulate.shapes import Array
from mmcd.simulate.surface import draw_surface, draw_vehicles

Value = TypeVar("Value")


@dataclass(frozen=True)
class SceneSpec:
    """Everything that decides a scene: equal specifications give equal arrays.

    What is left ``None`` is drawn from the seed and reported in the scene's own ``spec``. Two specifications that
    differ only in the event show the same settlement and the same optical image.

    Attributes:
        size: Height and width in pixels, at least 128.
        gsd: Metres a pixel, 0.2 to 2.
        seed: Seed of all randomness.
        event: What happens between the two images.
        layout: Family of street pattern and buildings.
        palette: Family of colours and vegetation.
        sun_azimuth: Where the sun stands in the optical image, degrees clockwise from north.
        sun_elevation: Degrees above the horizon.
        look_azimuth: Where the radar stands, degrees clockwise from north.
        incidence: Degrees between the radar's line of sight and the vertical, 15 to 70.
        looks: Looks of the radar image; more looks, less speckle.
        offset: Displacement (x, y) in pixels of the radar image against the optical one.
    """

    size: int = 1024
    gsd: float = 0.5
    seed: int = 0
    event: Event = "earthquake"
    layout: Layout = "grid"
    palette: PaletteName = "temperate"
    sun_azimuth: float | None = None
    sun_elevation: float | None = None
    look_azimuth: float | None = None
    incidence: float | None = None
    looks: int | None = None
    offset: tuple[float, float] | None = None

    def resolved(self) -> SceneSpec:
        """Return the specification with nothing left open.

        Raises:
            ConfigError: A value is outside its range.
        """
        _check(self)
        rng = np.random.default_rng([self.seed, 1])
        drawn: dict[str, Any] = {
            "sun_azimuth": round(float(rng.uniform(110, 250)), 1),
            "sun_elevation": round(float(rng.uniform(30, 62)), 1),
            "look_azimuth": round(float(rng.uniform(0, 360)), 1),
            "incidence": round(float(rng.uniform(28, 50)), 1),
            "looks": int(rng.integers(2, 5)),
            "offset": (round(float(rng.uniform(-1.8, 1.8)), 2), round(float(rng.uniform(-1.8, 1.8)), 2)),
        }
        return replace(self, **{name: value for name, value in drawn.items() if getattr(self, name) is None})


@dataclass(frozen=True)
class Building:
    """One building of the truth.

    Attributes:
        id: Number within the scene, from 1.
        polygon: Footprint cut at the scene's edge, corners (x, y) in pixels, not closed, shape (k, 2).
        height: Height of the eaves before the event, metres.
        grade: 1 intact, 2 damaged, 3 destroyed.
    """

    id: int
    polygon: Array
    height: float
    grade: int


@dataclass(frozen=True)
class SimulatedScene:
    """A pair of images and its truth, all on the grid of the optical image.

    Attributes:
        spec: The specification with nothing left open.
        pre: Optical image before, shape (3, size, size), uint8.
        post: Radar amplitude after, shape (1, size, size), uint8.
        label: 0 background, 1 intact, 2 damaged, 3 destroyed, shape (size, size), uint8.
        buildings: All buildings that stood before the event and can be seen.
    """

    spec: SceneSpec
    pre: Array
    post: Array
    label: Array
    buildings: tuple[Building, ...]


def simulate_scene(spec: SceneSpec) -> SimulatedScene:
    """Simulate one scene.

    Raises:
        ConfigError: A value of the specification is outside its range.
    """
    spec = spec.resolved()
    city_rng, optical_rng, event_rng, radar_rng = (np.random.default_rng([spec.seed, 2, part]) for part in range(4))
    palette, shape = PALETTE_TABLE[spec.palette], (spec.size, spec.size)
    city = build_city(city_rng, spec.layout, palette, shape, spec.gsd)
    bare = draw_surface(city_rng, city)
    before = bare.copy()
    draw_vehicles(before, park_vehicles(optical_rng, city), spec.gsd)
    pre = view_optical(optical_rng, before, palette, _sun(spec, optical_rng), spec.gsd)
    after = strike(event_rng, spec.event, city, bare)
    draw_vehicles(after.surface, park_vehicles(radar_rng, city), spec.gsd)
    post = view_radar(radar_rng, after.surface, city.buildings, after.upright, _radar(spec, radar_rng), spec.gsd)
    label = np.append(after.grade, 0).astype(np.uint8)[bare.building]
    return SimulatedScene(spec, pre, post, label, _truth(city.buildings, after.grade, bare.building, spec))


def _check(spec: SceneSpec) -> None:
    """Raise ConfigError for the first value that is out of range."""
    ranges = {"size": (128, 8192), "gsd": (0.2, 2.0), "incidence": (15, 70), "looks": (1, 64), "sun_elevation": (5, 90)}
    for name, (low, high) in ranges.items():
        value = getattr(spec, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"A simulated scene cannot have {name} = {value}.", f"Give a value from {low} to {high}.")
    choices = {"event": EVENTS, "layout": LAYOUTS, "palette": PALETTES}
    for name, known in choices.items():
        if getattr(spec, name) not in known:
            raise ConfigError(f"There is no {name} {getattr(spec, name)!r}.", f"Choose from {', '.join(known)}.")


def _known(value: Value | None) -> Value:
    if value is None:
        raise ConfigError("The specification of a simulated scene leaves a value open.", "Use SceneSpec.resolved().")
    return value


def _sun(spec: SceneSpec, rng: np.random.Generator) -> Sun:
    haze, dryness = float(rng.uniform(0.03, 0.16)), float(rng.uniform(0, 0.8))
    return Sun(_known(spec.sun_azimuth), _known(spec.sun_elevation), haze, dryness)


def _radar(spec: SceneSpec, rng: np.random.Generator) -> Radar:
    wetness = float(rng.uniform(0.7, 1.4))
    return Radar(_known(spec.look_azimuth), _known(spec.incidence), _known(spec.looks), _known(spec.offset), wetness)


def _truth(buildings: Buildings, grade: Array, numbers: Array, spec: SceneSpec) -> tuple[Building, ...]:
    seen = np.flatnonzero(np.bincount(numbers.ravel() + 1, minlength=len(buildings) + 1)[1:])
    return tuple(
        Building(
            place + 1,
            clip_polygon(buildings.outline(int(number)) / spec.gsd, spec.size),
            round(float(buildings.height[number]), 1),
            int(grade[number]),
        )
        for place, number in enumerate(seen)
    )


def clip_polygon(polygon: Array, size: float) -> Array:
    """Return the part of a polygon inside the square from 0 to ``size`` (Sutherland and Hodgman, CACM 17(1), 1974).

    Args:
        polygon: Corners (x, y), not closed, shape (k, 2).
        size: Side of the square.
    """
    for axis in (0, 1):
        for limit, sign in ((0.0, 1.0), (size, -1.0)):
            room = sign * (polygon[:, axis] - limit)
            if (room >= 0).all():
                continue
            kept = []
            for here, there, room_here, room_there in zip(
                polygon, np.roll(polygon, -1, axis=0), room, np.roll(room, -1), strict=True
            ):
                if room_here >= 0:
                    kept.append(here)
                if room_here * room_there < 0:
                    kept.append(here + (there - here) * (room_here / (room_here - room_there)))
            polygon = np.array(kept).reshape(-1, 2)
    return polygon.clip(0.0, size)  # rounding may leave a corner a hair outside
