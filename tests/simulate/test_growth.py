import numpy as np
import pytest

from mmcd.errors import ConfigError
from mmcd.simulate import GrowthSpec, SimulatedGrowth, simulate_growth
from mmcd.simulate.growth import RAISED, TORN_DOWN
from mmcd.simulate.layouts import LAYOUTS
from mmcd.simulate.palettes import PALETTES


@pytest.fixture(scope="module")
def towns() -> list[SimulatedGrowth]:
    specs = [
        GrowthSpec(size=384, seed=number, layout=layout, palette=PALETTES[number])
        for number, layout in enumerate(LAYOUTS)
    ]
    return [simulate_growth(spec) for spec in specs]


def test_two_optical_images_and_a_label(towns):
    for town in towns:
        assert town.pre.shape == town.post.shape == (3, 384, 384) and town.label.shape == (384, 384)
        assert {town.pre.dtype, town.post.dtype, town.label.dtype} == {np.dtype(np.uint8)}
        assert set(np.unique(town.label)) <= {0, RAISED, TORN_DOWN}
        assert 0.01 <= (town.label > 0).mean() <= 0.08
    raised = sum((town.label == RAISED).sum() for town in towns)
    torn_down = sum((town.label == TORN_DOWN).sum() for town in towns)
    assert 0 < torn_down < raised


def test_equal_specification_gives_equal_arrays(towns):
    again = simulate_growth(towns[1].spec)
    for name in ("pre", "post", "label"):
        np.testing.assert_array_equal(getattr(again, name), getattr(towns[1], name))
    assert again.suns == towns[1].suns


def test_dates_differ_in_season_sun_and_shadows(towns):
    for first, second in (town.suns for town in towns):
        assert abs(first.azimuth - second.azimuth) >= 30 and abs(first.dryness - second.dryness) >= 0.15
        assert first.haze != second.haze and first.elevation != second.elevation
    for town in towns:
        unchanged = town.label == 0
        difference = np.abs(town.pre.astype(int) - town.post)[:, unchanged].mean()
        assert difference > 5


def test_either_season_comes_first():
    from mmcd.simulate.growth import _suns

    dates = [_suns(np.random.default_rng(seed)) for seed in range(20)]
    assert 2 < sum(first.dryness < second.dryness for first, second in dates) < 18
    assert 2 < sum(first.azimuth < second.azimuth for first, second in dates) < 18


def edges(image: np.ndarray) -> np.ndarray:
    """Return the strength of edges, shape (H - 1, W - 1); light and season change it less than they change colours."""
    grey = image.mean(axis=0)
    return np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]


def test_changed_places_look_more_different_than_others(towns):
    """Roofs where there was ground: the rank of the local difference of colour tells changed from unchanged pixels."""
    ranks = []
    for town in towns:
        difference = np.abs(town.pre.astype(int) - town.post)
        difference = np.abs(difference - np.median(difference, axis=(1, 2), keepdims=True)).sum(axis=0).ravel()
        rank = difference.argsort().argsort() / difference.size
        ranks.append(rank[town.label.ravel() > 0].mean())
    assert np.mean(ranks) > 0.55


def test_label_is_where_roofs_came_or_went():
    """A raised roof has its edges after, a torn-down one has them before."""
    town = simulate_growth(GrowthSpec(size=512, seed=3, layout="industrial", palette="arid"))
    rims = {}
    for fate in (RAISED, TORN_DOWN):
        mask = town.label == fate
        rims[fate] = (mask[1:, :-1] != mask[:-1, :-1]) | (mask[:-1, 1:] != mask[:-1, :-1])
        assert rims[fate].sum() > 50
    before, after = edges(town.pre), edges(town.post)
    assert after[rims[RAISED]].mean() > 1.3 * before[rims[RAISED]].mean()
    assert before[rims[TORN_DOWN]].mean() > 1.3 * after[rims[TORN_DOWN]].mean()


def test_impossible_town_is_refused():
    with pytest.raises(ConfigError, match="size = 16"):
        simulate_growth(GrowthSpec(size=16))
    with pytest.raises(ConfigError, match="no layout 'moon'"):
        simulate_growth(GrowthSpec(layout="moon"))  # type: ignore[arg-type]
