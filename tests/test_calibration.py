import numpy as np
import pytest

from mmcd.calibration import best_f1_threshold, fit_logistic, tilt_to_share, weighted_counts
from mmcd.errors import DataError
from mmcd.evaluation import ScoreCounts, metrics_at


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
