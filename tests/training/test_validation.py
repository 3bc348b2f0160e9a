import numpy as np
import pytest

from mmcd.calibration import LogisticCalibration, best_f1_threshold
from mmcd.errors import DataError
from mmcd.evaluation import ScoreCounts, metrics_at
from mmcd.score import encode_score
from mmcd.training.validation import (
    SHIFTS,
    Outputs,
    ShiftedCounts,
    fit_decision,
    grouped_folds,
    pieces,
    shifted_metrics,
)


@pytest.fixture(scope="module")
def outputs():
    """Tiles with shares of change from 0 to 0.9, an informative head and a less informative distance."""
    random = np.random.default_rng(0)
    count, size = 40, 28
    changed = random.random((count, size, size)) < np.linspace(0, 0.9, count)[:, None, None]
    logit = np.where(changed, 2.0, -1.0) + random.normal(0, 1.5, changed.shape)
    distance = np.where(changed, 1.1, 0.7) + random.normal(0, 0.3, changed.shape)
    names = tuple(f"t{number}" for number in range(count))
    return Outputs(names, names, logit.astype(np.float16), distance.astype(np.float16), changed)


def test_folds_keep_groups_together_and_cover_everything():
    groups = [f"g{number // 3}" for number in range(60)]
    folds = grouped_folds(groups, np.linspace(0, 1, 60), 5)
    assert sorted(np.concatenate(folds).tolist()) == list(range(60))
    owners = [{groups[index] for index in fold} for fold in folds]
    assert all(not owners[a] & owners[b] for a in range(5) for b in range(a))


def test_too_few_groups_would_leak():
    with pytest.raises(DataError, match="2 groups cannot be split into 5"):
        grouped_folds(["a", "a", "b", "b", "b"], np.linspace(0, 1, 5), 5)


def test_pieces_are_the_quarters():
    image = np.arange(2 * 4 * 4).reshape(2, 4, 4)
    parts = pieces(image)
    assert len(parts) == 8
    assert parts[1].tolist() == [[2, 3], [6, 7]] and parts[4].tolist() == [[16, 17], [20, 21]]


def test_shifted_counts_have_the_wanted_share(outputs):
    scores = outputs.scored(LogisticCalibration(1, 0, 0))
    shifted = ShiftedCounts.of(scores, outputs.changed)
    for wanted in (0.3, 0.1, 0.03):
        assert shifted.at_share(wanted).prevalence == pytest.approx(wanted, rel=1e-6)
    metrics = shifted_metrics(shifted, outputs.changed.mean())
    assert metrics["ap"] > metrics["ap_third"] > metrics["ap_tenth"]
    assert metrics["ap_shift"] == pytest.approx((metrics["ap_third"] + metrics["ap_tenth"]) / 2)


def test_decision_is_chosen_for_the_lower_share(outputs):
    share = float(outputs.changed.mean())
    decision = fit_decision(outputs, share)
    assert decision.prevalence == pytest.approx(share / 3)
    calibration = LogisticCalibration(decision.head_weight, decision.cosine_weight, decision.intercept)
    shifted = ShiftedCounts.of(outputs.scored(calibration), outputs.changed)

    def mean_f1(threshold):
        return np.mean([metrics_at(shifted.at_share(part * share), threshold)["f1"] for part in SHIFTS])

    best = max(mean_f1(threshold) for threshold in np.arange(255) / 254)
    assert mean_f1(decision.threshold) == pytest.approx(best, abs=1e-3)
    assert best > mean_f1(0.05) + 0.02


def test_the_threshold_is_chosen_for_events_and_not_for_the_largest():
    """One large event on which the model is sure, six small ones on which it is not."""
    random = np.random.default_rng(1)
    sizes = [60, *[4] * 6]
    groups = tuple(f"e{event}" for event, size in enumerate(sizes) for _ in range(size))
    share = np.tile([0.02, 0.4, 0.1, 0.25], len(groups) // 4)[:, None, None]
    changed = random.random((len(groups), 28, 28)) < share
    sure = np.array([1.5 if name == "e0" else -1.5 for name in groups])[:, None, None]
    logit = (np.where(changed, 2.0, -2.0) + sure + random.normal(0, 1.0, changed.shape)).astype(np.float16)
    outputs = Outputs(groups, groups, logit, np.zeros_like(logit), changed)
    decision = fit_decision(outputs, float(changed.mean()), (1.0,))
    calibration = LogisticCalibration(decision.head_weight, decision.cosine_weight, decision.intercept)
    scores = outputs.scored(calibration)

    def mean_f1(threshold):
        rows = [np.array(groups) == name for name in sorted(set(groups))]
        return np.mean([metrics_at(ScoreCounts.of(scores[row], changed[row]), threshold)["f1"] for row in rows])

    pooled = best_f1_threshold([ScoreCounts.of(scores, changed)])
    assert mean_f1(decision.threshold) > mean_f1(pooled) + 0.03


def test_decision_is_calibrated_at_its_share(outputs):
    share = float(outputs.changed.mean())
    decision = fit_decision(outputs, share)
    calibration = LogisticCalibration(decision.head_weight, decision.cosine_weight, decision.intercept)
    probability = calibration(outputs.logit.astype(float), outputs.distance.astype(float))
    shifted = ShiftedCounts.of(encode_score(probability, np.ones(probability.shape, bool)), outputs.changed)
    counts = shifted.at_share(share / 3)
    total = counts.changed + counts.unchanged
    stated = (total[1:] * np.arange(255) / 254).sum() / total.sum()
    assert stated == pytest.approx(counts.prevalence, abs=0.02)


def test_ablation_uses_one_part_alone(outputs):
    share = float(outputs.changed.mean())
    assert fit_decision(outputs, share, cosine=False).cosine_weight == pytest.approx(0, abs=1e-6)
    assert fit_decision(outputs, share, head=False).head_weight == pytest.approx(0, abs=1e-6)
    assert fit_decision(outputs, share).head_weight > 0 and fit_decision(outputs, share).cosine_weight > 0


def test_outputs_come_back_from_disk_and_pool(outputs, tmp_path):
    outputs.save(tmp_path / "o.npz")
    loaded = Outputs.load(tmp_path / "o.npz")
    assert loaded.ids == outputs.ids and np.array_equal(loaded.logit, outputs.logit)
    both = Outputs.pooled([outputs, loaded])
    assert len(both.ids) == 80 and both.changed.shape == (80, 28, 28)
    assert ScoreCounts.of(both.scored(LogisticCalibration(1, 1, 0)), both.changed).changed.sum() == both.changed.sum()
