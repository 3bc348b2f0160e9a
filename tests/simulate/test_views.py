"""Both sensors look at one building on a lawn: everything about it can be computed by hand."""

import numpy as np
import pytest

from mmcd.simulate.city import Buildings
from mmcd.simulate.optical import Sun, view_optical
from mmcd.simulate.palettes import PALETTE_TABLE, Material
from mmcd.simulate.sar import Radar, speckle, view_radar
from mmcd.simulate.shapes import Boxes
from mmcd.simulate.surface import Surface, draw_buildings

SIDE, GSD, HEIGHT = 240, 0.5, 12.0


def lawn() -> Surface:
    shape = (SIDE, SIDE)
    cover = np.full(shape, Material.GRASS, np.uint8)
    return Surface(
        np.zeros(shape, np.float32), cover, cover.copy(), np.ones(shape, np.float32), np.full(shape, -1, np.int32)
    )


def house(angle: float = 0.0) -> Buildings:
    one = np.ones(1)
    body = Boxes(60 * one, 60 * one, 20 * one, 14 * one, np.radians(angle) * one)
    material = np.full(1, Material.FLAT, np.uint8)
    return Buildings(body, np.zeros((1, 2)), one < 0, HEIGHT * one, 0 * one, material, material, one < 0)


def scene(angle: float = 0.0) -> tuple[Surface, Buildings]:
    surface, buildings = lawn(), house(angle)
    draw_buildings(np.random.default_rng(0), surface, buildings, GSD, 0)
    return surface, buildings


def radar_image(surface, buildings, upright=1.0, shift=(0.0, 0.0), looks=16, azimuth=270.0):
    radar = Radar(azimuth, 45.0, looks, shift, 1.0)
    rng = np.random.default_rng(0)
    return view_radar(rng, surface, buildings, np.full(1, upright), radar, GSD)[0].astype(float)


# The house covers columns 100..140 and rows 106..134; the radar stands in the west at 45 degrees, so layover and
# shadow are both as long as the house is high: 12 m, 24 pixels (a parapet adds 1.2).
BESIDE = slice(110, 130)


def test_corner_lies_at_the_foot_of_the_wall_that_faces_the_radar():
    profile = radar_image(*scene())[BESIDE].mean(axis=0)
    assert abs(int(profile.argmax()) - 99) <= 1


def test_wall_is_laid_over_towards_the_radar_and_no_further():
    profile = radar_image(*scene())[BESIDE].mean(axis=0)
    grass = profile[20:60].mean()
    assert profile[77:97].mean() > 1.25 * grass
    assert profile[40:73].mean() == pytest.approx(grass, rel=0.1)


def test_radar_shadow_is_as_long_as_incidence_says():
    profile = radar_image(*scene())[BESIDE].mean(axis=0)
    grass = profile[200:230].mean()
    assert profile[143:160].mean() < 0.5 * grass
    assert profile[170:].mean() == pytest.approx(grass, rel=0.1)


def test_shadow_and_corner_follow_the_look_direction():
    east = radar_image(*scene(), azimuth=90.0)[BESIDE].mean(axis=0)
    assert abs(int(east.argmax()) - 140) <= 1
    assert east[80:97].mean() < 0.5 * east[20:60].mean()


def test_oblique_and_fallen_walls_show_no_corner():
    straight = radar_image(*scene())[BESIDE].max()
    oblique = radar_image(*scene(angle=40))[BESIDE]
    fallen = radar_image(*scene(), upright=0.0)[BESIDE]
    assert oblique.mean(axis=0).max() < 0.5 * straight
    assert fallen.mean(axis=0).max() < 0.5 * straight


def test_image_is_displaced_by_the_shift():
    still = radar_image(*scene(), looks=64)
    moved = radar_image(*scene(), shift=(3.0, -2.0), looks=64)
    product = np.fft.ifft2(np.fft.fft2(moved) * np.conj(np.fft.fft2(still))).real
    row, col = np.unravel_index(product.argmax(), product.shape)
    assert ((col + 120) % SIDE - 120, (row + 120) % SIDE - 120) == (3, -2)


@pytest.mark.parametrize("looks", [1, 3, 8])
def test_speckle_has_mean_one_and_variance_one_over_looks(looks):
    noise = speckle(np.random.default_rng(0), (400, 400), looks)
    assert noise.mean() == pytest.approx(1, abs=0.02)
    assert noise.var() == pytest.approx(1 / looks, rel=0.05)


@pytest.mark.parametrize(("azimuth", "row", "col"), [(90, 120, 90), (180, 96, 120), (270, 120, 149), (0, 143, 120)])
def test_sun_casts_the_shadow_on_the_far_side(azimuth, row, col):
    surface, _ = scene()
    image = view_optical(
        np.random.default_rng(0), surface, PALETTE_TABLE["temperate"], Sun(azimuth, 45.0, 0.05, 0.0), GSD
    )
    assert image.shape == (3, SIDE, SIDE)
    green = image[1].astype(float)
    shadow, opposite = (
        green[row - 3 : row + 4, col - 3 : col + 4],
        green[::-1, ::-1][row - 3 : row + 4, col - 3 : col + 4],
    )
    assert shadow.mean() < 0.65 * opposite.mean()


def test_haze_lifts_the_dark_and_dry_season_turns_grass_to_straw():
    palette = PALETTE_TABLE["temperate"]
    clear, hazy, dry = (
        view_optical(np.random.default_rng(0), lawn(), palette, Sun(150, 45, haze, dryness), GSD).mean(axis=(1, 2))
        for haze, dryness in ((0.0, 0.0), (0.3, 0.0), (0.0, 1.0))
    )
    assert (hazy > clear + 15).all()
    assert clear[1] > clear[0]
    assert dry[0] > dry[1]
