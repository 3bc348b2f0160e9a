"""Colours and vegetation of a climate, as an analyst sees them from above.

A palette is a family, like a layout: whole palettes can be held out from training.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

import numpy as np

from mmcd.simulate.shapes import Array

PaletteName = Literal["temperate", "arid", "tropical", "mediterranean", "winter"]
PALETTES: tuple[PaletteName, ...] = get_args(PaletteName)

Colour = tuple[int, int, int]


class Material(IntEnum):
    """What covers a pixel; the first rows of the colour table and of the backscatter table."""

    GRASS = 0
    SOIL = 1
    CROP = 2
    PAVED = 3
    ASPHALT = 4
    WATER = 5
    DEBRIS_LOT = 6
    BUILDING_SITE = 7
    MARKING = 8
    TILE = 9
    FLAT = 10
    METAL = 11
    TREE = 12
    VEHICLE = 13
    RUBBLE = 14
    ASHES = 15
    LAVA = 16
    TORN = 17
    SAND = 18
    MUD = 19


TILE_ROOFS, FLAT_ROOFS, METAL_ROOFS, CROPS, TREES, VEHICLES = range(24, 72, 8)
"""First row of eight in the colour table for each thing that comes in several colours."""


@dataclass(frozen=True)
class Palette:
    """Colours as 8-bit RGB and the share of green.

    Attributes:
        ground: Colours of grass, soil, pavement, asphalt, water and sand.
        tiles: Colours of tiled roofs.
        flats: Colours of flat roofs.
        metals: Colours of metal roofs.
        crops: Colours of fields.
        trees: Colours of tree crowns.
        green: Share of open land and yards that is grass; the rest is soil.
        canopy: Factor on the layout's number of trees.
        haze: Colour of the air.
        snow: Share of open ground under snow.
    """

    ground: tuple[Colour, Colour, Colour, Colour, Colour, Colour]
    tiles: tuple[Colour, ...]
    flats: tuple[Colour, ...]
    metals: tuple[Colour, ...]
    crops: tuple[Colour, ...]
    trees: tuple[Colour, ...]
    green: float
    canopy: float
    haze: Colour = (190, 205, 220)
    snow: float = 0.0

    def table(self) -> Array:
        """Return the colour table, shape (72, 3), float32, 0 to 255: a row a material, then eights of variants."""
        table = np.full((72, 3), 128, np.float32)
        grass, soil, paved, asphalt, water, sand = self.ground
        rows: dict[Material, Colour] = {
            Material.GRASS: grass,
            Material.SOIL: soil,
            Material.CROP: grass,
            Material.PAVED: paved,
            Material.ASPHALT: asphalt,
            Material.WATER: water,
            Material.DEBRIS_LOT: _mixed(soil, paved),
            Material.BUILDING_SITE: _mixed(soil, sand),
            Material.MARKING: (225, 225, 215),
            Material.SAND: sand,
        }
        for material, colour in rows.items():
            table[material] = colour
        variants = {
            TILE_ROOFS: self.tiles,
            FLAT_ROOFS: self.flats,
            METAL_ROOFS: self.metals,
            CROPS: self.crops,
            TREES: self.trees,
            VEHICLES: _VEHICLE_COLOURS,
        }
        for first, colours in variants.items():
            table[first : first + 8] = np.resize(np.array(colours, np.float32), (8, 3))
        return table


_VEHICLE_COLOURS: tuple[Colour, ...] = (
    (235, 235, 235),
    (200, 202, 205),
    (60, 62, 66),
    (35, 36, 40),
    (130, 132, 136),
    (150, 40, 38),
    (45, 70, 120),
    (225, 225, 220),
)


def _mixed(first: Colour, second: Colour) -> Colour:
    return ((first[0] + second[0]) // 2, (first[1] + second[1]) // 2, (first[2] + second[2]) // 2)


_METALS: tuple[Colour, ...] = ((176, 182, 188), (150, 158, 166), (205, 208, 210), (120, 146, 170), (150, 96, 80))

PALETTE_TABLE: dict[PaletteName, Palette] = {
    "temperate": Palette(
        ((92, 112, 66), (132, 116, 92), (150, 147, 140), (98, 99, 101), (48, 66, 66), (196, 184, 154)),
        ((142, 82, 62), (118, 70, 56), (96, 84, 78), (156, 98, 74), (84, 78, 80)),
        ((138, 138, 136), (112, 112, 112), (168, 166, 160), (90, 92, 94)),
        _METALS,
        ((108, 124, 64), (150, 146, 88), (126, 104, 78), (92, 116, 58), (174, 164, 104), (82, 100, 54)),
        ((52, 76, 40), (62, 86, 46), (46, 66, 38), (74, 92, 50)),
        0.85,
        1.0,
    ),
    "arid": Palette(
        ((150, 140, 98), (188, 164, 126), (184, 172, 150), (122, 118, 112), (62, 84, 84), (212, 190, 150)),
        ((176, 120, 88), (160, 104, 78), (190, 150, 116)),
        ((196, 180, 154), (178, 162, 136), (210, 200, 182), (164, 150, 130), (220, 214, 202)),
        _METALS,
        ((186, 166, 126), (150, 142, 90), (172, 148, 108), (116, 124, 72)),
        ((82, 96, 56), (96, 104, 64), (72, 86, 52)),
        0.15,
        0.35,
        (215, 205, 190),
    ),
    "tropical": Palette(
        ((84, 120, 56), (150, 104, 72), (158, 150, 138), (108, 106, 104), (74, 88, 70), (206, 192, 158)),
        ((150, 74, 56), (132, 66, 50)),
        ((150, 146, 138), (128, 126, 122), (176, 172, 164)),
        ((168, 170, 172), (140, 120, 104), (128, 72, 54), (70, 110, 140), (90, 132, 110), (196, 198, 198)),
        ((96, 132, 56), (120, 146, 66), (140, 112, 76), (76, 116, 60)),
        ((40, 84, 36), (52, 98, 42), (34, 72, 34), (70, 110, 48), (58, 104, 58)),
        0.8,
        1.5,
    ),
    "mediterranean": Palette(
        ((122, 122, 76), (172, 146, 110), (176, 166, 150), (116, 114, 112), (38, 78, 92), (214, 200, 164)),
        ((186, 112, 78), (172, 100, 70), (196, 130, 94), (160, 92, 66)),
        ((190, 182, 168), (210, 204, 192), (168, 162, 150)),
        _METALS,
        ((150, 140, 88), (120, 126, 72), (176, 152, 112), (134, 118, 80)),
        ((70, 88, 50), (84, 98, 60), (60, 76, 46)),
        0.45,
        0.7,
    ),
    "winter": Palette(
        ((176, 180, 182), (138, 128, 116), (168, 168, 166), (106, 108, 112), (44, 54, 62), (190, 186, 176)),
        ((126, 88, 76), (104, 84, 80), (206, 208, 212), (180, 184, 190)),
        ((198, 202, 208), (160, 162, 166), (214, 218, 222), (126, 128, 132)),
        ((196, 202, 208), (150, 158, 166), (212, 216, 220)),
        ((204, 208, 212), (186, 186, 182), (150, 140, 128), (212, 216, 222)),
        ((70, 76, 66), (92, 86, 76), (58, 68, 58), (104, 98, 90)),
        0.8,
        0.9,
        (205, 212, 222),
        0.6,
    ),
}
