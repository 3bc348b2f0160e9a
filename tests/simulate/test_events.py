import numpy as np
import pytest

from mmcd.simulate.city import build_city
from mmcd.simulate.events import DAMAGED, DESTROYED, EVENTS, INTACT, strike
from mmcd.simulate.palettes import PALETTE_TABLE, Material
from mmcd.simulate.surface import draw_surface

GSD = 0.5


def struck(event, layout="grid", seed=0, size=512):
    rng = np.random.default_rng(seed)
    city = build_city(rng, layout, PALETTE_TABLE["temperate"], (size, size), GSD)
    before = draw_surface(rng, city)
    return city, before, strike(np.random.default_rng(seed), event, city, before)


def grades(before, aftermath):
    return np.append(aftermath.grade, 0)[before.building]


@pytest.mark.parametrize("event", EVENTS)
def test_destroyed_buildings_lose_their_height_and_intact_ones_keep_it(event):
    _, before, after = struck(event)
    grade = grades(before, after)
    destroyed = grade == DESTROYED
    assert after.surface.height[destroyed].mean() < 0.5 * before.height[destroyed].mean()
    np.testing.assert_array_equal(after.surface.height[grade == INTACT], before.height[grade == INTACT])


@pytest.mark.parametrize("event", EVENTS)
def test_walls_stand_as_the_grade_says(event):
    _, _, after = struck(event, seed=1)
    assert (after.upright[after.grade == DESTROYED] == 0).all()
    assert (after.upright[after.grade == INTACT] >= 1).all()
    assert (after.upright[after.grade == DAMAGED] < 1).all()


@pytest.mark.parametrize("event", ["earthquake", "explosion", "flood", "volcano", "wildfire"])
def test_damaged_buildings_stand_in_part(event):
    city, before, after = struck(event, seed=2, size=768)
    assert (after.grade == DAMAGED).any()
    for number in np.flatnonzero(after.grade == DAMAGED):
        own = before.building == number
        if own.sum() < 0.9 * city.buildings.bodies.length[number] * city.buildings.bodies.width[number] / GSD**2:
            continue  # cut by the scene's edge: the part in view may be the part that fell
        kept = (after.surface.height[own] == before.height[own]).mean()
        assert 0.05 < kept < 0.9


def test_surface_before_is_left_as_it_was():
    rng = np.random.default_rng(5)
    city = build_city(rng, "organic", PALETTE_TABLE["temperate"], (256, 256), GSD)
    before = draw_surface(rng, city)
    copy = before.copy()
    strike(np.random.default_rng(0), "volcano", city, before)
    for layer, kept in zip(vars(before).values(), vars(copy).values(), strict=True):
        np.testing.assert_array_equal(layer, kept)


def test_blast_falls_off_with_distance():
    city, _, after = struck("explosion", seed=3, size=1024)
    x, y = city.buildings.bodies.x, city.buildings.bodies.y
    hit = after.grade >= DAMAGED
    inside = (x > 0) & (y > 0) & (x < 512) & (y < 512)
    away = np.hypot(x - np.median(x[hit]), y - np.median(y[hit]))
    near, far = inside & (away < 100), inside & (away > 250)
    assert hit[near].mean() > 4 * hit[far].mean()


def test_flood_brings_water_and_stronger_corners_above_it():
    _, before, after = struck("flood", seed=4)
    water = (after.surface.material == Material.WATER).mean()
    assert water > (before.material == Material.WATER).mean() + 0.03
    assert (after.upright[after.grade == INTACT] > 1).any()


def test_lava_buries_low_ground_under_a_smooth_cover():
    _, _, after = struck("volcano", seed=4)
    lava = after.surface.material == Material.LAVA
    assert lava.mean() > 0.03
    assert (after.surface.height[lava] > 0.5).all()
    assert np.abs(np.diff(after.surface.height, axis=1))[lava[:, 1:] & lava[:, :-1]].mean() < 0.2


def test_fire_takes_leaves_and_grass():
    _, before, after = struck("wildfire", layout="village", seed=4)
    trees = before.material == Material.TREE
    assert after.surface.height[trees].mean() < 0.95 * before.height[trees].mean()
    assert ((before.material == Material.GRASS) & (after.surface.material == Material.SOIL)).mean() > 0.03


def test_years_pass_without_damage_too():
    city, before, after = struck("explosion", layout="village", seed=6, size=768)
    crop = (before.material == Material.CROP) & (after.surface.material == Material.CROP)
    assert (before.tint[crop] != after.surface.tint[crop]).mean() > 0.5
    intact = grades(before, after) == INTACT
    renewed = (before.material != after.surface.material) & intact
    assert 0 < renewed.sum() < 0.2 * intact.sum()
    lots = after.surface.height > before.height + 2
    assert (lots & (before.building < 0)).any() == (len(city.new_buildings) > 0)
