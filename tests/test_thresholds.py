"""Threshold curves against scikit-learn, closed forms and resampling by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from mmcd.errors import DataError
from mmcd.thresholds import GRID, LABEL_FREE, METRICS, PairedWins, ThresholdCurve, label_free_threshold


def samples(seed: int, count: int = 200, ties: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return scores with ties, the higher ones likelier positive."""
    random = np.random.default_rng(seed)
    score = random.integers(0, ties, count) / ties * 2
    positive = random.random(count) < 0.2 + 0.3 * score
    positive[:2] = (True, False)
    return score.astype(np.float32), positive


@given(seed=st.integers(0, 1000), ties=st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_curves_and_areas_are_scikit_learns(seed: int, ties: int) -> None:
    score, positive = samples(seed, ties=ties)
    curve = ThresholdCurve.of(score, positive)
    fpr, tpr, cuts = metrics.roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(curve.threshold, cuts[1:])
    np.testing.assert_allclose(curve.metric("fpr"), fpr[1:])
    np.testing.assert_allclose(curve.metric("tpr"), tpr[1:])
    precision, recall, _ = metrics.precision_recall_curve(positive, score)
    np.testing.assert_allclose(curve.metric("precision")[::-1], precision[:-1])
    np.testing.assert_allclose(curve.metric("recall")[::-1], recall[:-1])
    assert curve.roc_auc() == pytest.approx(metrics.roc_auc_score(positive, score))
    assert curve.average_precision() == pytest.approx(metrics.average_precision_score(positive, score))


def test_metrics_and_the_best_of_them_are_those_of_the_cut_labels() -> None:
    score, positive = samples(3)
    curve = ThresholdCurve.of(score, positive)
    by_hand = {"accuracy": [], "balanced_accuracy": [], "precision": [], "recall": [], "f1": [], "specificity": []}
    for cut in curve.threshold:
        found = score >= cut
        by_hand["accuracy"].append(metrics.accuracy_score(positive, found))
        by_hand["balanced_accuracy"].append(metrics.balanced_accuracy_score(positive, found))
        by_hand["precision"].append(metrics.precision_score(positive, found))
        by_hand["recall"].append(metrics.recall_score(positive, found))
        by_hand["f1"].append(metrics.f1_score(positive, found))
        by_hand["specificity"].append(metrics.recall_score(~positive, ~found))
    for name, values in by_hand.items():
        np.testing.assert_allclose(curve.metric(name), values, err_msg=name)
        cut, value = curve.best(name)
        assert value == pytest.approx(max(values))
        assert cut == curve.threshold[int(np.argmax(values))]


def test_rare_damage_that_scores_low_is_best_left_out_by_accuracy() -> None:
    score = np.linspace(0.5, 1.5, 10, dtype=np.float32)
    positive = np.arange(10) == 0
    curve = ThresholdCurve.of(score, positive)
    cut, value = curve.best("accuracy")
    assert value == pytest.approx(0.9) and not (score >= cut).any() and cut == pytest.approx(1.5)
    assert value >= max(row["accuracy"] for row in ThresholdCurve.of(score, positive, GRID).rows())
    assert curve.best("f1")[0] == 0.5


def test_the_grid_is_the_references_and_its_area_is_coarser() -> None:
    assert GRID.tolist() == pytest.approx([n / 10 for n in range(21)])
    score, positive = samples(5, count=2000, ties=1999)
    grid = ThresholdCurve.of(score, positive, GRID)
    rows = grid.rows()
    assert [row["threshold"] for row in rows] == GRID.tolist() and set(rows[0]) == {"threshold", *METRICS}
    assert rows[0]["tpr"] == rows[0]["fpr"] == 1
    points = sorted((row["fpr"], row["tpr"]) for row in rows)
    by_hand = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip([(0, 0), *points], points, strict=False))
    assert grid.roc_auc() == pytest.approx(by_hand)
    assert grid.roc_auc() != pytest.approx(ThresholdCurve.of(score, positive).roc_auc(), abs=1e-6)


def test_an_auc_of_weighted_groups_is_that_of_repeated_samples() -> None:
    score, positive = samples(7)
    group = np.random.default_rng(7).integers(0, 4, len(score))
    pairs = PairedWins.of(score, positive, group)
    for weight in ([1, 1, 1, 1], [3, 0, 1, 0], [0, 2, 0, 2]):
        drawn = np.concatenate([np.tile(np.flatnonzero(group == g), n) for g, n in enumerate(weight)]).astype(int)
        expected = metrics.roc_auc_score(positive[drawn], score[drawn])
        assert pairs.auc(np.array(weight, float)) == pytest.approx(expected)


def test_the_interval_holds_the_area_and_widens_with_the_difference_of_groups() -> None:
    score, positive = samples(9, count=1000)
    group = np.arange(len(score)) % 5
    whole = ThresholdCurve.of(score, positive).roc_auc()
    alike = PairedWins.of(score, positive, group).interval()
    assert alike is not None and alike["low"] < whole < alike["high"] and alike["resamples"] == 1000
    apart = np.where(group == 0, 2 - score, score)  # one event in which the model is wrong
    found = PairedWins.of(apart, positive, group).interval()
    assert found is not None and found["high"] - found["low"] > 2 * (alike["high"] - alike["low"])
    assert found == PairedWins.of(apart, positive, group).interval()


def test_without_groups_or_classes_there_is_no_interval() -> None:
    score, positive = samples(11)
    assert PairedWins.of(score, positive, np.zeros(len(score), int)).interval() is None
    lonely = PairedWins.of(np.array([0.1, 0.9]), np.array([False, True]), np.array([0, 1])).interval(200)
    assert lonely is not None and lonely["resamples"] < 200  # draws of one group alone hold one class


@pytest.mark.parametrize(("value", "word"), [(True, "damaged"), (False, "unchanged")])
def test_one_class_is_refused(value: bool, word: str) -> None:
    with pytest.raises(DataError, match=f"All 3 patches are {word}: no threshold can be searched"):
        ThresholdCurve.of(np.zeros(3), np.full(3, value))


def heaps(low: tuple[float, float, int], high: tuple[float, float, int]) -> np.ndarray:
    """Counts of a stored map with two normal heaps: mean, spread and pixels of each."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(mean, spread, count) for mean, spread, count in (low, high)])
    return np.bincount(np.rint(values.clip(0, 1) * 254).astype(int) + 1, minlength=256)


@pytest.mark.parametrize("method", LABEL_FREE)
def test_every_label_free_threshold_falls_between_two_equal_heaps(method: str) -> None:
    counts = heaps((0.2, 0.05, 20_000), (0.8, 0.05, 20_000))
    assert label_free_threshold(counts, method) == pytest.approx(0.5, abs=0.03)
    counts[0] += 10**6  # what was not assessed says nothing
    assert label_free_threshold(counts, method) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("method", ["kittler_illingworth", "mixture"])
def test_the_least_error_is_nearer_to_the_narrow_heap(method: str) -> None:
    """The two densities 0.7 N(0.2, 0.03) and 0.3 N(0.7, 0.12) are equal at 0.314."""
    counts = heaps((0.2, 0.03, 70_000), (0.7, 0.12, 30_000))
    assert label_free_threshold(counts, method) == pytest.approx(0.314, abs=0.02)
    assert label_free_threshold(counts, "otsu") > 0.4


def test_otsu_equals_scikit_image_s_definition() -> None:
    counts = np.random.default_rng(3).integers(0, 500, 256)
    values, best = np.linspace(0, 1, 255), (0.0, 0)
    for cut in range(1, 255):
        low, high = counts[1 : cut + 1], counts[cut + 1 :]
        shares = low.sum() / counts[1:].sum(), high.sum() / counts[1:].sum()
        means = np.average(values[:cut], weights=low), np.average(values[cut:], weights=high)
        best = max(best, (shares[0] * shares[1] * (means[1] - means[0]) ** 2, cut))
    assert label_free_threshold(counts, "otsu") == pytest.approx(best[1] / 254)


@pytest.mark.parametrize("method", LABEL_FREE)
def test_a_map_of_one_value_has_no_label_free_threshold(method: str) -> None:
    assert label_free_threshold(np.eye(256)[7] * 100, method) is None
    assert label_free_threshold(np.zeros(256), method) is None
