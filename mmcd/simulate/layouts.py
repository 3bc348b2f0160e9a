"""How settlements are laid out: street networks, what is built along them, how much of it is green.

A layout is a family: its street pattern and building mix appear in no other layout, so that whole families can be
held out from training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.spatial import Voronoi

from mmcd.simulate.shapes import Array, Boxes

Layout = Literal["grid", "organic", "radial", "village", "industrial"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

MARGIN = 60.0
"""Metres of town planned beyond the scene's edge, more than half of the longest building."""


@dataclass(frozen=True)
class Kind:
    """A kind of building.

    Attributes:
        length: Range of the front along the street, metres.
        depth: Range of the extent away from the street, metres.
        height: Range of the eaves' height, metres.
        gap: Range of the free space to the neighbour, metres.
        setback: Range of the free space to the street, metres.
        pitched: Share with a pitched roof.
        metal: Share with a metal roof.
        wing: Share with a wing, which makes the footprint an L.
        round: Whether the footprint is a disc (a tank).
    """

    length: tuple[float, float]
    depth: tuple[float, float]
    height: tuple[float, float]
    gap: tuple[float, float]
    setback: tuple[float, float]
    pitched: float
    metal: float
    wing: float
    round: bool = False


KINDS: dict[str, Kind] = {
    "house": Kind((9, 15), (7.5, 11), (3, 6.5), (4, 10), (3, 7), 0.85, 0.15, 0.3),
    "cottage": Kind((6, 10), (5, 7), (2.5, 3.5), (4, 16), (2, 10), 0.6, 0.4, 0.1),
    "row": Kind((8, 14), (9, 13), (6, 13), (0.6, 1.6), (0, 1.5), 0.5, 0.1, 0.25),
    "apartment": Kind((24, 52), (11, 16), (12, 27), (8, 18), (4, 9), 0.15, 0.05, 0.3),
    "tower": Kind((18, 26), (17, 24), (32, 55), (16, 30), (6, 10), 0.0, 0.0, 0.0),
    "shop": Kind((18, 38), (15, 28), (5, 11), (4, 12), (2, 8), 0.1, 0.35, 0.25),
    "hall": Kind((35, 80), (22, 42), (7, 13), (10, 22), (8, 16), 0.35, 0.75, 0.1),
    "shed": Kind((10, 22), (8, 14), (3, 5), (4, 14), (4, 12), 0.5, 0.8, 0.0),
    "tank": Kind((14, 30), (14, 30), (7, 15), (6, 10), (6, 12), 0.0, 1.0, 0.0, round=True),
}


@dataclass(frozen=True)
class Style:
    """What a layout builds.

    Attributes:
        streets: Draws the streets: (generator, width and height of the scene in metres) to boxes along streets.
        kinds: Share of street sides given to each kind of building.
        infill: The same for the room that these leave.
        rows: Rows of buildings on each side of a street.
        occupied: Share of building plots that are used at all.
        vacant: Share of used plots that hold no building: debris, building sites, car parks, gardens.
        rural: Share of the land given to fields.
        river: Chance of a river.
        coast: Chance of a coast.
        trees: Trees a hectare, before the palette's share.
    """

    streets: Callable[[np.random.Generator, float, float], Boxes]
    kinds: dict[str, float]
    infill: dict[str, float]
    rows: int
    occupied: float
    vacant: float
    rural: float
    river: float
    coast: float
    trees: float


def segments(start: Array, end: Array, width: Array) -> Boxes:
    """Return one box for each straight piece of street, a little longer than the piece so that bends close.

    Args:
        start: First ends (x, y), metres, shape (n, 2).
        end: Second ends (x, y), metres, shape (n, 2).
        width: Width of the carriageway, metres, shape (n,).
    """
    middle, along = (start + end) / 2, end - start
    length = np.hypot(along[:, 0], along[:, 1])
    return Boxes(middle[:, 0], middle[:, 1], length + width * 0.4, width, np.arctan2(along[:, 1], along[:, 0]))


def _turned(points: Array, angle: float, centre: tuple[float, float]) -> Array:
    cos, sin = np.cos(angle), np.sin(angle)
    turned: Array = points @ np.array([[cos, sin], [-sin, cos]]) + centre
    return turned


def _lattice(
    rng: np.random.Generator,
    size: tuple[float, float],
    block: tuple[tuple[float, float], tuple[float, float]],
    widths: tuple[float, float],
    missing: float,
) -> Boxes:
    """Return a turned grid of streets; ``missing`` is the share of its pieces that were never built."""
    reach = np.hypot(*size) / 2 + MARGIN
    lines = []
    for low, high in block:
        steps = rng.uniform(low, high, int(2 * reach / low) + 2)
        line = np.cumsum(steps) - reach - rng.uniform(0, low)
        lines.append(line[line < reach])
    across, along = lines
    wide = [np.where(rng.random(len(line)) < 0.22, widths[1], widths[0]) for line in lines]
    a, b = np.meshgrid(across, along, indexing="ij")
    points = np.stack([a, b], axis=-1)
    start = np.concatenate([points[:-1].reshape(-1, 2), points[:, :-1].reshape(-1, 2)])
    end = np.concatenate([points[1:].reshape(-1, 2), points[:, 1:].reshape(-1, 2)])
    width = np.concatenate(
        [
            np.broadcast_to(wide[1], (len(across) - 1, len(along))).ravel(),
            np.broadcast_to(wide[0][:, None], (len(across), len(along) - 1)).ravel(),
        ]
    )
    built = (rng.random(len(width)) > missing) | (width == widths[1])
    angle, centre = rng.uniform(0, np.pi), (size[0] / 2, size[1] / 2)
    return segments(_turned(start[built], angle, centre), _turned(end[built], angle, centre), width[built])


def _grid(rng: np.random.Generator, width: float, height: float) -> Boxes:
    return _lattice(rng, (width, height), ((85, 130), (52, 72)), (8.0, 14.0), 0.1)


def _industrial(rng: np.random.Generator, width: float, height: float) -> Boxes:
    return _lattice(rng, (width, height), ((150, 230), (110, 150)), (10.0, 16.0), 0.08)


def _organic(rng: np.random.Generator, width: float, height: float) -> Boxes:
    """Return streets along the borders of irregular cells."""
    cell = 68.0
    x, y = np.meshgrid(np.arange(-2 * cell, width + 2 * cell, cell), np.arange(-2 * cell, height + 2 * cell, cell))
    sites = np.stack([x.ravel(), y.ravel()], axis=1) + rng.uniform(-0.48, 0.48, (x.size, 2)) * cell
    cells = Voronoi(sites)
    ridges = np.array([ridge for ridge in cells.ridge_vertices if ridge[0] >= 0])
    start, end = cells.vertices[ridges[:, 0]], cells.vertices[ridges[:, 1]]
    size = np.hypot(*(end - start).T)
    built = (size < 4 * cell) & ((rng.random(len(size)) > 0.08) | (size < 30))
    lanes = np.where(rng.random(built.sum()) < 0.15, 11.0, rng.uniform(5.0, 8.0, built.sum()))
    return segments(start[built], end[built], lanes)


def _radial(rng: np.random.Generator, width: float, height: float) -> Boxes:
    """Return rings about a centre and spokes whose number doubles with each doubling of the radius."""
    centre = np.array([width, height]) * rng.uniform(0.3, 0.7, 2)
    reach = np.hypot(width, height) + MARGIN
    radii = np.cumsum(rng.uniform(48, 70, int(reach / 48) + 1)) - 18
    base, phase = int(rng.integers(5, 9)), rng.uniform(0, 2 * np.pi)
    starts, ends, widths = [], [], []
    for ring, radius in enumerate(radii):
        turn = phase + np.linspace(0, 2 * np.pi, max(24, int(radius * 2 * np.pi / 22)) + 1)
        points = centre + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        spokes = base * 2 ** max(0, int(np.log2(max(radius, 1) / radii[0] / 0.9)))
        turn = phase + np.arange(spokes) * (2 * np.pi / spokes)
        rays = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        outer = radii[ring + 1] if ring + 1 < len(radii) else reach
        starts += [points[:-1], centre + radius * rays]
        ends += [points[1:], centre + outer * rays]
        widths += [np.full(len(points) - 1, 12.0 if ring % 3 == 0 else 7.5), np.full(spokes, 9.0)]
    return segments(np.concatenate(starts), np.concatenate(ends), np.concatenate(widths))


def _village(rng: np.random.Generator, width: float, height: float) -> Boxes:
    """Return winding country roads that meet near the middle, with lanes that leave them."""
    centre = np.array([width, height]) * rng.uniform(0.4, 0.6, 2)
    starts, ends, widths = [], [], []
    reach, step = np.hypot(width, height) / 2 + 2 * MARGIN, 20.0
    heading, roads = rng.uniform(0, 2 * np.pi), int(rng.integers(3, 6))
    for road in range(roads):
        first = heading + road * 2 * np.pi / roads + rng.uniform(-0.3, 0.3)
        main = _walk(rng, centre, first, int(reach / step), step, 0.12)
        starts.append(main[:-1])
        ends.append(main[1:])
        widths.append(np.full(len(main) - 1, 7.0))
        for _ in range(max(2, int(reach / 90))):
            at = int(rng.integers(1, len(main) - 1))
            side = first + rng.choice([-1.0, 1.0]) * rng.uniform(1.1, 1.8)
            lane = _walk(rng, main[at], side, int(rng.integers(4, 11)), step, 0.1)
            starts.append(lane[:-1])
            ends.append(lane[1:])
            widths.append(np.full(len(lane) - 1, 4.5))
    return segments(np.concatenate(starts), np.concatenate(ends), np.concatenate(widths))


def _walk(rng: np.random.Generator, start: Array, heading: float, steps: int, step: float, bend: float) -> Array:
    """Return a winding line, shape (steps + 1, 2)."""
    turn = heading + np.cumsum(rng.normal(0, bend, steps))
    moves = step * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return np.concatenate([start[None], start + np.cumsum(moves, axis=0)])


STYLES: dict[Layout, Style] = {
    "grid": Style(
        _grid,
        {"house": 0.4, "row": 0.15, "shop": 0.2, "apartment": 0.2, "tower": 0.05},
        {"house": 0.6, "row": 0.2, "shop": 0.2},
        2,
        0.95,
        0.14,
        0.0,
        0.2,
        0.0,
        55,
    ),
    "organic": Style(
        _organic,
        {"row": 0.7, "house": 0.1, "shop": 0.2},
        {"row": 0.7, "cottage": 0.3},
        3,
        0.97,
        0.12,
        0.0,
        0.4,
        0.0,
        30,
    ),
    "radial": Style(
        _radial,
        {"row": 0.4, "apartment": 0.35, "shop": 0.25},
        {"row": 0.7, "house": 0.3},
        2,
        0.95,
        0.14,
        0.0,
        0.25,
        0.0,
        50,
    ),
    "village": Style(
        _village,
        {"house": 0.6, "cottage": 0.2, "shed": 0.2},
        {"house": 0.4, "cottage": 0.4, "shed": 0.2},
        3,
        0.8,
        0.14,
        0.75,
        0.35,
        0.0,
        60,
    ),
    "industrial": Style(
        _industrial,
        {"hall": 0.5, "shed": 0.15, "shop": 0.15, "tank": 0.2},
        {"shed": 0.5, "shop": 0.4, "tank": 0.1},
        3,
        0.95,
        0.16,
        0.0,
        0.0,
        0.75,
        15,
    ),
}
