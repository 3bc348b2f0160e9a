import numpy as np
import pytest

from mmcd.calibration import (
    METHODS,
    best_f1_threshold,
    fit_logistic,
    fit_scores,
    log_loss,
    tilt_to_share,
    weighted_counts,
)
from mmcd.errors import DataError
from mmcd.evaluation import ScoreCounts, expected_calibration_error, metrics_at


def test_fit_recovers_the_weights_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    logit, distance = rng.normal(0, 2, 200_000), rng.random(200_000) * 2
    truth = 0.8 * logit + 1.5 * distance - 1.0
    target = rng.random(200_000) < 1 / (1 + np.exp(-truth))
    fitted = fit_logistic(logit, distance, target, np.ones(200_000))
    assert (fitted.head_weight, fitted.cosine_weight, fitted.intercept) == pytest.approx((0.8, 1.5, -1.0), abs=0.05)
    assert fitted(logit, distance).mean() == pytest.approx(target.mean(), abs=0.005)


def test_a_distance_that_speaks_against_change_is_left_out() -> None:
    rng = np.random.default_rng(0)
    logit, distance = rng.normal(0, 2, 50_000), rng.random(50_000)
    target = rng.random(50_000) < 1 / (1 + np.exp(-(logit - distance)))
    fitted = fit_logistic(logit, distance, target, np.ones(50_000))
    assert fitted.cosine_weight == 0
    assert fitted.head_weight == pytest.approx(1, abs=0.05)


def test_fit_refuses_one_class() -> None:
    with pytest.raises(DataError, match="changed and unchanged"):
        fit_logistic(np.zeros(3), np.zeros(3), np.zeros(3, bool), np.ones(3))


def test_tilting_reaches_the_share_and_keeps_the_number_of_tiles() -> None:
    share = np.random.default_rng(0).beta(0.5, 1.0, 300)
    weight = tilt_to_share(share, 0.1)
    assert (weight * share).mean() == pytest.approx(0.1, abs=1e-9)
    assert weight.sum() == pytest.approx(300)
    assert np.all(np.diff(weight[np.argsort(share)]) <= 0)


def test_tilting_to_an_impossible_share_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be weighted"):
        tilt_to_share(np.array([0.2, 0.4]), 0.1)


def test_threshold_for_rarer_change_is_higher() -> None:
    rng = np.random.default_rng(0)
    tiles = []
    for share in rng.beta(0.5, 1.0, 60):
        target = rng.random(4000) < share
        probability = 1 / (1 + np.exp(-rng.normal(np.where(target, 1.0, -1.0), 1.2)))
        tiles.append(ScoreCounts.of(np.rint(probability * 254).astype(np.uint8) + np.uint8(1), target))
    share = np.array([counts.prevalence for counts in tiles])
    common = weighted_counts(tiles, np.ones(60))
    rare = weighted_counts(tiles, tilt_to_share(share, share.mean() / 5))
    assert best_f1_threshold([rare]) > best_f1_threshold([common])
    assert metrics_at(rare, best_f1_threshold([rare]))["f1"] > metrics_at(rare, best_f1_threshold([common]))["f1"]


def stored(probability: np.ndarray, target: np.ndarray) -> ScoreCounts:
    return ScoreCounts.of(np.rint(probability * 254).astype(np.uint8) + np.uint8(1), target)


def labelled(distort) -> ScoreCounts:
    """Counts of labels that were drawn from honest probabilities, scored by what became of these."""
    rng = np.random.default_rng(2)
    honest = 1 / (1 + np.exp(-rng.normal(-1, 2, 400_000)))
    return stored(distort(honest), rng.random(len(honest)) < honest)


def test_the_temperature_that_sharpened_a_score_is_found() -> None:
    counts = labelled(lambda p: p**1.6 / (p**1.6 + (1 - p) ** 1.6))
    fitted = fit_scores(counts, "temperature")
    assert fitted.temperature == pytest.approx(1.6, rel=0.03)
    assert expected_calibration_error(fitted.applied(counts)) < 0.01 < expected_calibration_error(counts)


def test_a_beta_calibration_mends_what_a_temperature_cannot() -> None:
    counts = labelled(lambda p: 1 / (1 + np.exp(-(1.8 * np.log(p) - 0.7 * np.log1p(-p) + 2.0))))
    beta, temperature = fit_scores(counts, "beta"), fit_scores(counts, "temperature")
    assert expected_calibration_error(beta.applied(counts)) < 0.012 < expected_calibration_error(counts)
    assert log_loss(beta.applied(counts)) < log_loss(temperature.applied(counts)) - 0.01


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_keeps_order_pixels_and_what_was_not_assessed(method: str) -> None:
    counts = labelled(lambda p: p**2) + ScoreCounts(np.eye(256)[0] * 5, np.eye(256)[0] * 7)
    fitted = fit_scores(counts, method)
    assert (np.diff(fitted(np.arange(255) / 254)) > 0).all()
    after = fitted.applied(counts)
    assert (after.changed[0], after.unchanged[0]) == (5, 7)
    assert (after.changed.sum(), after.unchanged.sum()) == (counts.changed.sum(), counts.unchanged.sum())
    assert log_loss(after) < log_loss(counts)


def test_scores_are_not_calibrated_on_one_class_or_against_change() -> None:
    with pytest.raises(DataError, match="changed and unchanged"):
        fit_scores(ScoreCounts(np.zeros(256), np.ones(256)), "beta")
    rising = np.arange(256.0)
    with pytest.raises(DataError, match="fall where change grows"):
        fit_scores(ScoreCounts(rising[::-1].copy(), rising), "beta")
