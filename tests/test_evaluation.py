import numpy as np
import pytest
from sklearn import metrics as reference

from mmcd.errors import DataError
from mmcd.evaluation import (
    ScoreCounts,
    average_precision,
    expected_calibration_error,
    metrics_at,
    precision_recall_f1,
    roc_auc,
    summary,
)


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.random(20_000) < 0.1
    probability = 1 / (1 + np.exp(-rng.normal(np.where(target, 0.5, -2.0), 1.5)))
    return np.rint(probability * 254).astype(np.uint8) + np.uint8(1), target


@pytest.mark.parametrize("background", [0.0, 0.99, 1.0])
@pytest.mark.parametrize("size", [0, 1, 7, 2**20, 2**21 + 13])
def test_every_pixel_is_counted_once(size: int, background: float) -> None:
    rng = np.random.default_rng(size)
    score, target = rng.integers(0, 256, size, dtype=np.uint8), rng.random(size) < 0.1
    score[rng.random(size) < background] = 1
    counts = ScoreCounts.of(score, target)
    assert np.array_equal(counts.changed, np.bincount(score[target], minlength=256))
    assert np.array_equal(counts.unchanged, np.bincount(score[~target], minlength=256))
    apart = ScoreCounts.of(score[::2], target[::2]).changed
    assert np.array_equal(apart, np.bincount(score[::2][target[::2]], minlength=256))


def test_curves_equal_scikit_learn(sample: tuple[np.ndarray, np.ndarray]) -> None:
    score, target = sample
    counts = ScoreCounts.of(score, target)
    assert roc_auc(counts) == pytest.approx(reference.roc_auc_score(target, score), abs=1e-12)
    assert average_precision(counts) == pytest.approx(reference.average_precision_score(target, score), abs=1e-12)


def test_metrics_at_equal_scikit_learn_at_every_threshold(sample: tuple[np.ndarray, np.ndarray]) -> None:
    score, target = sample
    counts = ScoreCounts.of(score, target)
    for value in (1, 30, 128, 200, 255):
        found = metrics_at(counts, (value - 1) / 254)
        predicted = score >= value
        assert found["f1"] == pytest.approx(reference.f1_score(target, predicted))
        assert found["iou"] == pytest.approx(reference.jaccard_score(target, predicted))
        assert found["accuracy"] == pytest.approx(reference.accuracy_score(target, predicted))
        assert precision_recall_f1(counts)[2][value - 1] == pytest.approx(found["f1"])


def test_counts_of_tiles_add_up_to_the_counts_of_the_set(sample: tuple[np.ndarray, np.ndarray]) -> None:
    score, target = sample
    parts = ScoreCounts.of(score[:700], target[:700]) + ScoreCounts.of(score[700:], target[700:])
    assert summary(parts, 0.5) == summary(ScoreCounts.of(score, target), 0.5)


def test_calibration_error_of_a_calibrated_and_of_a_doubled_score() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random(400_000)
    target = rng.random(400_000) < probability
    stored = np.rint(probability * 254).astype(np.uint8) + np.uint8(1)
    assert expected_calibration_error(ScoreCounts.of(stored, target)) < 0.005
    halved = np.rint(probability / 2 * 254).astype(np.uint8) + np.uint8(1)
    assert expected_calibration_error(ScoreCounts.of(halved, target)) == pytest.approx(0.25, abs=0.01)


def test_pixels_not_assessed_do_not_count_but_are_reported() -> None:
    score = np.array([0, 0, 1, 255], np.uint8)
    target = np.array([True, False, False, True])
    counts = ScoreCounts.of(score, target)
    assert roc_auc(counts) == 1.0
    assert counts.assessed_share == 0.5
    assert metrics_at(counts, 0.5)["recall"] == 1.0


def test_an_absent_class_gives_nan_not_an_error() -> None:
    counts = ScoreCounts.of(np.array([1, 2], np.uint8), np.array([False, False]))
    assert np.isnan(roc_auc(counts))
    assert np.isnan(average_precision(counts))
    assert metrics_at(counts, 0.5)["f1"] == 0.0


def test_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="differ in size"):
        ScoreCounts.of(np.zeros((2, 2), np.uint8), np.zeros((2, 3), bool))
