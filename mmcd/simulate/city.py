"""The plan of a settlement: streets, water, plots, buildings, trees and vehicles as geometry, before any pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmcd.simulate.layouts import KINDS, STYLES, Kind, Layout, Style
from mmcd.simulate.palettes import FLAT_ROOFS, METAL_ROOFS, TILE_ROOFS, TREES, VEHICLES, Material, Palette
from mmcd.simulate.shapes import Array, Boxes, Pixels, expand, fill_convex, join, smooth_noise, splined

SIDEWALK = 2.0
"""Width of the pavement on each side of a street, metres."""

DEBRIS, SITE, PARKING, GARDEN = range(4)
"""Uses of a plot without a building. Debris and building sites look like rubble to a radar and are no damage."""

_LOT_SHARES = (0.5, 0.2, 0.15, 0.15)


@dataclass(frozen=True)
class Buildings:
    """Buildings as columns of equal length n.

    Attributes:
        bodies: Main rectangles; u runs along the street, v away from it.
        wing: Length and depth in metres of a wing at the back, shape (n, 2); zeros without one.
        mirrored: Whether the wing stands at the -u end, shape (n,).
        height: Height of the eaves, metres, shape (n,).
        pitch: Rise of the roof over run; 0 for a flat roof, shape (n,).
        roof: Material of the roof, shape (n,), uint8.
        tint: Row of the colour table, shape (n,), uint8.
        round: Whether the footprint is the disc inscribed in the body, shape (n,).
    """

    bodies: Boxes
    wing: Array
    mirrored: Array
    height: Array
    pitch: Array
    roof: Array
    tint: Array
    round: Array

    def __len__(self) -> int:
        return len(self.bodies)

    def take(self, chosen: Array) -> Buildings:
        """Return the buildings named by an index or mask array."""
        columns = (self.wing, self.mirrored, self.height, self.pitch, self.roof, self.tint, self.round)
        return Buildings(self.bodies.take(chosen), *(column[chosen] for column in columns))

    def joined(self, other: Buildings) -> Buildings:
        """Return these buildings followed by others."""
        names = ("wing", "mirrored", "height", "pitch", "roof", "tint", "round")
        columns = (np.concatenate([getattr(self, name), getattr(other, name)]) for name in names)
        return Buildings(join(self.bodies, other.bodies), *columns)

    def parts(self) -> tuple[Boxes, Array]:
        """Return the rectangles that make up the buildings and the building of each; tanks are left out."""
        wings = np.flatnonzero(self.wing[:, 0] > 0)
        bodies = self.bodies.take(wings)
        length, depth = self.wing[wings].T
        side = np.where(self.mirrored[wings], -1.0, 1.0)
        x, y = bodies.at(side * (bodies.length - length) / 2, (bodies.width + depth) / 2)
        solid = np.flatnonzero(~self.round)
        boxes = join(self.bodies.take(solid), Boxes(x, y, depth, length, bodies.angle + np.pi / 2))
        return boxes, np.concatenate([solid, wings])

    def pixels(self, shape: tuple[int, int], gsd: float, margin: float = 0.0) -> Pixels:
        """Return the buildings' pixels with u and v in the rectangle that each pixel belongs to."""
        boxes, owner = self.parts()
        square = boxes.grown(margin).pixels(shape, gsd)
        tanks = np.flatnonzero(self.round)
        disc = self.bodies.take(tanks).grown(margin).pixels(shape, gsd, discs=True)
        owners = (owner[square.owner], tanks[disc.owner])
        return Pixels(*(np.concatenate(pair) for pair in zip(square, disc, strict=True)))._replace(
            owner=np.concatenate(owners)
        )

    def outline(self, number: int) -> Array:
        """Return the footprint of one building, corners (x, y) in metres, shape (k, 2)."""
        body = self.bodies.take(np.array([number]))
        if self.round[number]:
            disc: Array = body.discs()[0]
            return disc
        half_length, half_width = body.length[0] / 2, body.width[0] / 2
        length, depth = self.wing[number]
        u = np.array([-half_length, half_length, half_length, -half_length])
        v = np.array([-half_width, -half_width, half_width, half_width])
        if length:
            u = np.array(
                [-half_length, half_length, half_length, half_length - length, half_length - length, -half_length]
            )
            v = np.array([-half_width, -half_width, *[half_width + depth] * 2, half_width, half_width])
        u = -u if length and self.mirrored[number] else u
        corners: Array = np.stack(body.at(u[None], v[None]), axis=-1)[0]
        return corners


@dataclass(frozen=True)
class City:
    """Everything that stands or grows in a scene.

    Attributes:
        shape: Height and width of the scene, pixels.
        gsd: Metres a pixel.
        style: What the layout builds.
        palette: Colours and green.
        streets: Carriageways, one box a straight piece.
        street_pixels: Pixels of the streets with their pavements.
        water: Where rivers and the sea are, shape (height, width), bool.
        buildings: Buildings that stand at the date of the optical image.
        new_buildings: Buildings raised between the two dates.
        yards: Ground that belongs to a building, one box each.
        yard_green: Whether a yard is grass, shape (len(yards),).
        lots: Plots without a building.
        lot_use: Their use, shape (len(lots),).
        trees: Tree crowns as discs in boxes.
        tree_height: Metres, shape (len(trees),).
        tree_tint: Row of the colour table, shape (len(trees),), uint8.
    """

    shape: tuple[int, int]
    gsd: float
    style: Style
    palette: Palette
    streets: Boxes
    street_pixels: Pixels
    water: Array
    buildings: Buildings
    new_buildings: Buildings
    yards: Boxes
    yard_green: Array
    lots: Boxes
    lot_use: Array
    trees: Boxes
    tree_height: Array
    tree_tint: Array


@dataclass(frozen=True)
class Vehicles:
    """Cars and lorries at one date: boxes, heights in metres and rows of the colour table."""

    boxes: Boxes
    height: Array
    tint: Array


def build_city(rng: np.random.Generator, layout: Layout, palette: Palette, shape: tuple[int, int], gsd: float) -> City:
    """Plan a settlement.

    Args:
        rng: Source of randomness.
        layout: Family of the street pattern and building mix.
        palette: Climate: roofs, green and trees.
        shape: Height and width in pixels.
        gsd: Metres a pixel.
    """
    style = STYLES[layout]
    streets = style.streets(rng, shape[1] * gsd, shape[0] * gsd)
    water = _water(rng, style, shape, gsd)
    street_pixels = streets.grown(SIDEWALK).pixels(shape, gsd)
    blocked = water.copy()
    blocked.ravel()[street_pixels.flat] = True
    buildings, yards = _settle(rng, streets, style.kinds, style, palette, gsd, blocked)
    for _ in range(2):
        infill, more_yards = _settle(rng, streets, style.infill, style, palette, gsd, blocked)
        buildings, yards = buildings.joined(infill), join(yards, more_yards)
    vacant = rng.random(len(buildings)) < style.vacant
    lots, buildings = buildings.take(vacant), buildings.take(~vacant)
    lot_use = rng.choice(4, len(lots), p=_LOT_SHARES)
    raised = (lot_use == SITE) & (rng.random(len(lots)) < 0.7)
    lot_boxes = lots.bodies.grown(1.0)
    blocked.ravel()[lot_boxes.take(lot_use != GARDEN).pixels(shape, gsd).flat] = True
    trees, tree_height, tree_tint = _trees(rng, streets, yards, style, palette, blocked, gsd)
    return City(
        shape,
        gsd,
        style,
        palette,
        streets,
        street_pixels,
        water,
        buildings,
        lots.take(raised),
        yards,
        rng.random(len(yards)) < palette.green,
        lot_boxes,
        lot_use,
        trees,
        tree_height,
        tree_tint,
    )


def _water(rng: np.random.Generator, style: Style, shape: tuple[int, int], gsd: float) -> Array:
    """Return the mask of a river, of the sea or of nothing; the water line is a spline through a coarse lattice."""
    kind = rng.random()
    angle, bends = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 2)
    place, breadth = rng.uniform(-0.35, 0.35), rng.uniform(9, 26)
    if kind >= style.river + style.coast:
        return np.zeros(shape, bool)
    cell = 6.0 / gsd
    rows, cols = (int(length / cell) + 4 for length in shape)
    y, x = (np.mgrid[:rows, :cols] - 1) * cell * gsd - np.reshape(shape, (2, 1, 1)) * gsd / 2
    size = np.hypot(*shape) * gsd / 2
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if kind < style.river:
        course = place * size + 0.12 * size * np.sin(u / 160 + bends[0]) + 12 * np.sin(u / 55 + bends[1])
        depth = breadth * (1 + 0.25 * np.sin(u / 90)) - np.abs(v - course)
    else:
        depth = v - (0.45 + 0.3 * place) * size - 4 * np.sin(u / 70 + bends[0])
    return splined(depth.astype(np.float32), shape, cell) > 0


def _settle(
    rng: np.random.Generator,
    streets: Boxes,
    kinds: dict[str, float],
    style: Style,
    palette: Palette,
    gsd: float,
    blocked: Array,
) -> tuple[Buildings, Boxes]:
    """Build where there is room; marks the new buildings in ``blocked``. Returns buildings and their yards."""
    plots, kind, yards = _plots(rng, streets, kinds, style)
    buildings = _buildings(rng, plots, kind, palette)
    chosen = _place(buildings, blocked, gsd)
    return buildings.take(chosen), yards.take(chosen)


def _plots(
    rng: np.random.Generator, streets: Boxes, shares: dict[str, float], style: Style
) -> tuple[Boxes, Array, Boxes]:
    """Return building plots along both sides of all streets: bodies, kinds and yards, least wanted first."""
    names = list(shares)
    sides = 2 * len(streets)
    choice = rng.choice(len(names), sides, p=list(shares.values()))
    bodies, kinds, yards = [], [], []
    for number, name in enumerate(names):
        side = np.flatnonzero(choice == number)
        for row in reversed(range(style.rows)):
            body, yard = _frontage(rng, streets.take(side // 2), np.where(side % 2, np.pi, 0.0), KINDS[name], row)
            used = rng.random(len(body)) < style.occupied * (1.0 if row == 0 else 0.8)
            bodies.append(body.take(used))
            yards.append(yard.take(used))
            kinds.append(np.full(int(used.sum()), list(KINDS).index(name)))
    return join(*bodies), np.concatenate(kinds), join(*yards)


def _frontage(rng: np.random.Generator, streets: Boxes, turn: Array, kind: Kind, row: int) -> tuple[Boxes, Boxes]:
    """Return bodies and yards of one kind of building in one row behind one side of each street."""
    usual = np.mean(kind.length) + np.mean(kind.gap)
    count = np.where(streets.length > kind.length[0] + 4, np.maximum(np.floor(streets.length / usual), 1), 0)
    place, owner = expand(np.zeros(len(streets), np.int64), count.astype(np.int64))
    space = (streets.length / np.maximum(count, 1))[owner]
    n = len(owner)
    length = np.maximum(np.minimum(rng.uniform(*kind.length, n), space - kind.gap[0]), 0.7 * kind.length[0])
    depth = length if kind.round else rng.uniform(*kind.depth, n)
    front = streets.width[owner] / 2 + SIDEWALK + row * (kind.depth[1] + 2 * kind.setback[1] + 3)
    setback = rng.uniform(*kind.setback, n)
    along = streets.take(owner)
    base = Boxes(along.x, along.y, along.length, along.width, along.angle + turn[owner])
    u = (place + 0.5) * space - along.length / 2 + rng.uniform(-0.25, 0.25, n) * (space - length).clip(0)
    x, y = base.at(u, front + setback + depth / 2)
    askew = rng.normal(0, 0.015 if row == 0 else 0.06, n)
    yard_depth = setback + depth + np.minimum(kind.setback[1] + 3, 10)
    yard_x, yard_y = base.at(u, front + yard_depth / 2)
    return Boxes(x, y, length, depth, base.angle + askew), Boxes(yard_x, yard_y, space, yard_depth, base.angle)


def _buildings(rng: np.random.Generator, bodies: Boxes, kind: Array, palette: Palette) -> Buildings:
    """Give every plot the building of its kind."""
    n, table = len(bodies), list(KINDS.values())
    low, high = np.array([k.height for k in table])[kind].T
    pitched = rng.random(n) < np.array([k.pitched for k in table])[kind]
    metal = rng.random(n) < np.array([k.metal for k in table])[kind]
    winged = rng.random(n) < np.array([k.wing for k in table])[kind]
    wide = np.array([k.length[0] for k in table])[kind] > 30  # halls: the wider the span, the flatter the roof
    roof = np.select([metal, pitched], [Material.METAL, Material.TILE], Material.FLAT).astype(np.uint8)
    first = np.select([metal, pitched], [METAL_ROOFS, TILE_ROOFS], FLAT_ROOFS)
    variety = np.select([metal, pitched], [len(palette.metals), len(palette.tiles)], len(palette.flats))
    wing = np.stack([rng.uniform(0.35, 0.5, n) * bodies.length, rng.uniform(0.4, 0.8, n) * bodies.width], axis=1)
    return Buildings(
        bodies,
        wing * winged[:, None],
        rng.random(n) < 0.5,
        low + (high - low) * rng.random(n) ** 1.5,
        np.where(pitched, np.where(wide, 0.18, rng.uniform(0.35, 0.75, n)), 0.0),
        roof,
        (first + rng.integers(0, variety)).astype(np.uint8),
        np.array([k.round for k in table])[kind],
    )


def _place(buildings: Buildings, blocked: Array, gsd: float) -> Array:
    """Return the numbers of buildings that stand clear of blocked ground and of each other, and block their ground.

    All candidates are painted at once, later over earlier; whoever stays whole is accepted, whoever touches an
    accepted one is dropped, the rest tries again.
    """
    flat, owner = _covered(buildings, blocked, gsd)
    n, taken = len(buildings), blocked.ravel()
    size = np.bincount(owner, minlength=n)
    accepted = np.zeros(n, bool)
    top = np.empty(taken.size, np.int32)
    for _ in range(6):
        clear = (np.bincount(owner[taken[flat]], minlength=n) == 0) & ~accepted
        keep = clear[owner]
        flat, owner = flat[keep], owner[keep]
        top[flat] = owner
        whole = clear & (np.bincount(owner[top[flat] == owner], minlength=n) == size) & (size > 0)
        accepted |= whole
        taken[flat[whole[owner]]] = True
    return np.flatnonzero(accepted)


def _covered(buildings: Buildings, blocked: Array, gsd: float) -> tuple[Array, Array]:
    """Return pixels and building of each for all buildings with a margin whose centre and corners are free."""
    height, width = blocked.shape
    boxes, owner = buildings.parts()
    tanks = np.flatnonzero(buildings.round)
    pieces = []
    for group, of, polygons in (
        (boxes, owner, boxes.grown(0.4).corners()),
        (buildings.bodies.take(tanks), tanks, buildings.bodies.take(tanks).grown(0.4).discs()),
    ):
        probes = np.concatenate([polygons, np.stack([group.x, group.y], axis=-1)[:, None]], axis=1) / gsd
        x, y = np.floor(probes).astype(np.int64).transpose(2, 0, 1)
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        hindered = (inside & blocked[y.clip(0, height - 1), x.clip(0, width - 1)]).any(axis=1)
        kept = np.flatnonzero(inside.any(axis=1) & ~np.isin(of, of[hindered]))
        flat, part = fill_convex(polygons[kept] / gsd, (height, width))
        pieces.append((flat, of[kept][part]))
    return np.concatenate([flat for flat, _ in pieces]), np.concatenate([of for _, of in pieces])


def _trees(
    rng: np.random.Generator, streets: Boxes, yards: Boxes, style: Style, palette: Palette, blocked: Array, gsd: float
) -> tuple[Boxes, Array, Array]:
    """Return crowns, heights and tints of street trees, garden trees and groves that stand clear of ``blocked``."""
    height, width = blocked.shape
    share = min(palette.canopy * style.trees / 60, 1.0)
    slots, street = expand(np.zeros(len(streets), np.int64), (streets.length // 11).astype(np.int64))
    side = np.where(rng.random(len(street)) < 0.5, 1.0, -1.0)
    lined = rng.random(len(streets)) < 0.5 * share
    keep = lined[street] & (rng.random(len(street)) < 0.8)
    edge = streets.take(street)
    by_street = edge.at((slots + 0.5) * 11 - edge.length / 2, side * (edge.width / 2 + SIDEWALK + 0.8))
    garden = yards.take(np.repeat(np.arange(len(yards)), 2))
    in_garden = garden.at(*(rng.uniform(-0.48, 0.48, (2, len(garden))) * (garden.length, garden.width)))
    kept_garden = rng.random(len(garden)) < 0.8 * share
    count = int(style.trees * palette.canopy * height * width * gsd * gsd / 1e4 * 3)
    wild = rng.random((2, count)) * [[width * gsd], [height * gsd]]
    grove = smooth_noise(rng, (height // 8 + 1, width // 8 + 1), 70 / gsd / 8)
    kept_wild = rng.random(count) < grove[(wild[1] / gsd / 8).astype(int), (wild[0] / gsd / 8).astype(int)] - 0.35
    x = np.concatenate([by_street[0][keep], in_garden[0][kept_garden], wild[0][kept_wild]])
    y = np.concatenate([by_street[1][keep], in_garden[1][kept_garden], wild[1][kept_wild]])
    inside = (x > 0) & (y > 0) & (x < width * gsd) & (y < height * gsd)
    x, y = x[inside], y[inside]
    free = ~blocked[(y / gsd).astype(int), (x / gsd).astype(int)]
    x, y = x[free], y[free]
    crown = rng.uniform(2.5, 8.0, len(x))
    tint = TREES + rng.integers(0, len(palette.trees), len(x))
    return Boxes(x, y, crown, crown, rng.uniform(0, np.pi, len(x))), 3 + crown * rng.uniform(0.5, 1.2, len(x)), tint


def park_vehicles(rng: np.random.Generator, city: City) -> Vehicles:
    """Return the vehicles of one date: parked along streets, driving, and in car parks."""
    streets, busy = city.streets, 0.1 if city.style.rural else 0.22
    slots, street = expand(np.zeros(len(streets), np.int64), (streets.length // 6.5).astype(np.int64))
    keep = rng.random(len(street)) < busy
    slots, street = slots[keep], street[keep]
    lane = streets.take(street)
    parked = np.where(rng.random(len(street)) < 0.8, lane.width / 2 - 1.2, lane.width / 4)
    side = np.where(rng.random(len(street)) < 0.5, 1.0, -1.0)
    x, y = lane.at((slots + 0.5) * 6.5 - lane.length / 2 + rng.uniform(-0.6, 0.6, len(street)), side * parked)
    lots = city.lots.take(city.lot_use == PARKING)
    rows, columns = (lots.width // 8).astype(np.int64), (lots.length // 2.8).astype(np.int64)
    bay, lot = expand(np.zeros(len(lots), np.int64), rows * columns)
    keep = rng.random(len(bay)) < 0.6
    bay, lot = bay[keep], lot[keep]
    within = lots.take(lot)
    row, column = np.divmod(bay, np.maximum(columns[lot], 1))
    bay_x, bay_y = within.at((column + 0.5) * 2.8 - within.length / 2, (row + 0.5) * 8 - within.width / 2)
    n, lorry = len(x) + len(bay_x), rng.random(len(x) + len(bay_x)) < 0.06
    boxes = Boxes(
        np.concatenate([x, bay_x]),
        np.concatenate([y, bay_y]),
        np.where(lorry, 8.5, 4.5),
        np.where(lorry, 2.5, 1.9),
        np.concatenate([lane.angle, within.angle + np.pi / 2]),
    )
    return Vehicles(boxes, np.where(lorry, 3.2, 1.5), (VEHICLES + rng.integers(0, 8, n)).astype(np.uint8))
