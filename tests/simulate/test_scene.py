import dataclasses

import numpy as np
import pytest

from mmcd.errors import ConfigError
from mmcd.simulate import SceneSpec, simulate_scene
from mmcd.simulate.city import build_city
from mmcd.simulate.events import EVENTS, choose_hit
from mmcd.simulate.layouts import LAYOUTS
from mmcd.simulate.palettes import PALETTE_TABLE, PALETTES
from mmcd.simulate.scene import clip_polygon
from mmcd.simulate.shapes import fill_convex

CASES = [(event, layout) for event in EVENTS for layout in LAYOUTS]


def test_equal_specification_gives_equal_arrays_and_another_seed_does_not():
    first, second = (simulate_scene(SceneSpec(size=256, seed=5)) for _ in range(2))
    other = simulate_scene(SceneSpec(size=256, seed=6))
    for name in ("pre", "post", "label"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert (getattr(first, name) != getattr(other, name)).mean() > 0.05


def test_resolved_specification_reproduces_the_scene():
    scene = simulate_scene(SceneSpec(size=192, seed=9, event="flood"))
    assert None not in dataclasses.asdict(scene.spec).values()
    np.testing.assert_array_equal(simulate_scene(scene.spec).post, scene.post)


def test_arrays_are_what_the_specification_says():
    scene = simulate_scene(SceneSpec(size=200, gsd=0.7, seed=1))
    assert scene.pre.shape == (3, 200, 200)
    assert scene.post.shape == (1, 200, 200)
    assert scene.label.shape == (200, 200)
    assert {scene.pre.dtype, scene.post.dtype, scene.label.dtype} == {np.dtype(np.uint8)}


def test_optical_image_does_not_know_the_event():
    scenes = [simulate_scene(SceneSpec(size=256, seed=3, event=event)) for event in EVENTS]
    for scene in scenes[1:]:
        np.testing.assert_array_equal(scene.pre, scenes[0].pre)
        assert (scene.post != scenes[0].post).any()


@pytest.mark.parametrize(("event", "layout"), CASES)
def test_damage_is_one_to_five_per_cent_of_the_scene(event, layout):
    number = CASES.index((event, layout))
    palette = PALETTES[number % len(PALETTES)]
    for seed in (number, number + 100):
        label = simulate_scene(SceneSpec(size=512, seed=seed, event=event, layout=layout, palette=palette)).label
        assert 0.01 <= (label >= 2).mean() <= 0.05
        assert {0, 1} <= set(np.unique(label)) <= {0, 1, 2, 3}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_footprints_are_the_label(layout):
    scene = simulate_scene(SceneSpec(size=384, seed=2, layout=layout))
    drawn = np.zeros_like(scene.label)
    for building in scene.buildings:
        assert building.polygon.min() >= 0
        assert building.polygon.max() <= 384
        drawn[_inside(building.polygon, 384)] = building.grade
    assert (drawn != scene.label).mean() < 1e-3  # a disc is drawn and outlined by the same twelve corners
    assert [building.id for building in scene.buildings] == list(range(1, len(scene.buildings) + 1))


def _inside(polygon: np.ndarray, size: int) -> np.ndarray:
    """Even-odd rule at pixel centres; an algorithm of its own, unlike the one under test."""
    y, x = np.mgrid[:size, :size] + 0.5
    inside = np.zeros((size, size), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside


@pytest.mark.parametrize("layout", LAYOUTS)
def test_buildings_stand_clear_of_each_other_of_streets_and_of_water(layout):
    city = build_city(np.random.default_rng(4), layout, PALETTE_TABLE["temperate"], (512, 512), 0.5)
    pixels = city.buildings.pixels(city.shape, city.gsd)
    assert len(city.buildings) > 20
    assert len(np.unique(pixels.flat)) == len(pixels.flat)
    carriageway, _ = fill_convex(city.streets.corners() / city.gsd, city.shape)
    assert not np.isin(pixels.flat, carriageway).any()
    assert not city.water.ravel()[pixels.flat].any()


def test_layouts_and_palettes_differ():
    def mean_colour(palette):
        return simulate_scene(SceneSpec(size=256, seed=1, palette=palette)).pre.mean(axis=(1, 2))

    colours = np.array([mean_colour(palette) for palette in PALETTES])
    distance = np.abs(colours[:, None] - colours[None]).max(axis=-1) + 99 * np.eye(len(PALETTES))
    assert distance.min() > 4
    built = [(simulate_scene(SceneSpec(size=512, seed=1, layout=layout)).label > 0).mean() for layout in LAYOUTS]
    assert min(built) > 0.06


def test_chance_spreads_the_hits_and_hazard_gathers_them():
    rng = np.random.default_rng(0)
    felt, area = np.linspace(0, 1, 400), np.full(400, 100)
    strict = choose_hit(rng, felt, area, 400_000, 0.0)
    loose = choose_hit(rng, felt, area, 400_000, 1.0)
    assert strict[-int(strict.sum()) :].all()
    assert not loose[-int(loose.sum()) :].all()
    assert felt[loose].mean() > 0.55


def test_time_passes_outside_the_damage_too():
    spec = SceneSpec(size=512, seed=8, layout="organic")
    city = build_city(np.random.default_rng([8, 2, 0]), "organic", PALETTE_TABLE["temperate"], (512, 512), 0.5)
    assert len(city.new_buildings) > 0
    centre = (city.new_buildings.bodies.y / 0.5).astype(int), (city.new_buildings.bodies.x / 0.5).astype(int)
    keep = np.all([(axis >= 0) & (axis < 512) for axis in centre], axis=0)
    assert (simulate_scene(spec).label[centre[0][keep], centre[1][keep]] == 0).all()


def test_clipping_cuts_at_the_border():
    square = np.array([[-2.0, -2.0], [4.0, -2.0], [4.0, 4.0], [-2.0, 4.0]])
    clipped = clip_polygon(square, 10)
    assert sorted(map(tuple, clipped)) == [(0, 0), (0, 4), (4, 0), (4, 4)]


@pytest.mark.parametrize(
    "change", [{"size": 64}, {"gsd": 0.0}, {"event": "meteor"}, {"layout": "star"}, {"palette": "lunar"}, {"looks": 0}]
)
def test_impossible_specification_is_refused_with_a_way_out(change):
    with pytest.raises(ConfigError) as caught:
        simulate_scene(dataclasses.replace(SceneSpec(), **change))
    assert caught.value.hint
