"""The look-ups behind the slider equal what is computed at one threshold, and presets follow their stated rule."""

import numpy as np
import pytest

from mmcd.evaluation import ScoreCounts
from mmcd.score import threshold_value
from mmcd.services.scores import PRESET_COST, ScoreTable


@pytest.fixture
def table() -> ScoreTable:
    random = np.random.default_rng(0)
    changed, unchanged = random.integers(0, 90, 256), random.integers(0, 900, 256) * np.arange(256, 0, -1)
    return ScoreTable(changed + unchanged, 25.0, ScoreCounts(changed.astype(float), unchanged.astype(float)))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.999, 1.0])
def test_each_table_holds_what_is_computed_at_that_threshold(table, threshold):
    value, expected, quality = threshold_value(threshold), table.at(threshold), table.quality()
    assert table.changed()[value] == expected["changed_px"]
    for name, curve in quality.items():
        assert curve.shape == (256,)
        assert curve[value] == pytest.approx(expected[name])


def test_what_was_not_assessed_is_never_changed(table):
    assert table.changed()[0] == table.changed()[1] == table.counts[1:].sum()


def test_presets_change_the_cost_of_one_error_by_the_stated_factor(table):
    presets = table.presets(0.4)
    odds = {name: (value - 1) / (255 - value) for name, value in presets.items()}
    assert presets["balanced"] == threshold_value(0.4)
    assert odds["strict"] / odds["balanced"] == pytest.approx(PRESET_COST, rel=0.05)
    assert odds["balanced"] / odds["sensitive"] == pytest.approx(PRESET_COST, rel=0.05)
    assert table.quality()["f1"][presets["best F1"]] == table.quality()["f1"].max()


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_presets_stay_in_range_at_the_ends(table, threshold):
    assert all(1 <= value <= 255 for value in table.presets(threshold).values())


def test_without_labels_there_is_no_quality_and_no_best_f1(table):
    bare = ScoreTable(table.counts, None, None)
    assert bare.quality() is None
    assert "best F1" not in bare.presets(0.5)
