"""Accuracy of runs and data sets, and calibrations that become new versions of cards."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmcd.calibration import fit_scores
from mmcd.cards import find_card, known_cards, verify_weights
from mmcd.data.ombria import index_ombria, read_tile
from mmcd.errors import DataError, InputError, ModelError
from mmcd.evaluation import (
    ScoreCounts,
    average_precision,
    expected_calibration_error,
    metrics_at,
    reliability,
    roc_auc,
    summary,
)
from mmcd.geo.cog import SCORE_BAND, write_cog
from mmcd.geo.grid import Grid
from mmcd.inference.predictor import change_probability
from mmcd.paths import weights_dir
from mmcd.score import encode_score, threshold_value
from mmcd.services import accuracy_data
from mmcd.services.accuracy import (
    Measured,
    card_of,
    confusion,
    event_rows,
    measure_run,
    roc_points,
    threshold_rows,
)
from mmcd.services.accuracy_data import AccuracyRequest, list_measured, load_measured, measure_dataset, run_accuracy
from mmcd.services.evaluate_ombria import file_names
from mmcd.services.recalibrate import fit_calibration, refusal, save_calibration

NAME = "flood-s2s1"


def counts_of(share: float, seed: int = 0) -> ScoreCounts:
    """Labels drawn from honest probabilities that are then stated too sharply."""
    random = np.random.default_rng(seed)
    honest = 1 / (1 + np.exp(-random.normal(np.log(share / (1 - share)), 1.5, 60_000)))
    stated = honest**2 / (honest**2 + (1 - honest) ** 2)
    stored = np.rint(stated * 254).astype(np.uint8) + np.uint8(1)
    return ScoreCounts.of(stored, random.random(len(honest)) < honest)


@pytest.fixture
def measured(workspace: Path) -> Measured:
    """Two events, said to be scored by a shipped model."""
    card = find_card(NAME)[1]
    events = {"valley": counts_of(0.2), "coast": counts_of(0.4, 1)}
    total = events["valley"] + events["coast"]
    histogram = (total.changed + total.unchanged).astype(np.int64)
    facts = (card.name, card.version, card.sha256, 0.4)
    return Measured("Two floods", *facts, events, {"Darkness": counts_of(0.5, 2)}, histogram)


def test_a_run_is_counted_on_what_is_assessed_and_labelled(sample_run):
    found = measure_run(sample_run.run, sample_run.scene)
    total = found.total
    assert (total.changed.sum() + total.unchanged.sum()) == sample_run.stored.size
    figures = metrics_at(total, 0.5)  # the run was painted from the labels
    assert (figures["precision"], figures["recall"]) == (1.0, 1.0)
    assert found.histogram.sum() == sample_run.stored.size and found.histogram[0] == (sample_run.stored == 0).sum()
    (baseline,) = found.baselines.values()
    assert baseline.changed[1:].sum() == total.changed[1:].sum()
    assert 0 < average_precision(baseline) < 1
    assert found.pixel_area_m2 == pytest.approx(sample_run.grid.pixel_area_m2)


def test_a_scene_without_labels_says_so(sample_run):
    with pytest.raises(DataError, match="has no labels"):
        measure_run(sample_run.run, replace(sample_run.scene, label=None))


def test_what_was_measured_survives_as_json(measured):
    again = Measured.from_dict(measured.to_dict())
    assert again.title == measured.title and again.notes == () and again.threshold == 0.4
    for name, counts in measured.events.items():
        np.testing.assert_array_equal(again.events[name].changed, counts.changed)
        np.testing.assert_array_equal(again.events[name].unchanged, counts.unchanged)
    np.testing.assert_array_equal(again.histogram, measured.histogram)


def test_events_add_up_and_the_four_outcomes_give_the_metrics(measured):
    rows = {row["event"]: row for row in event_rows(measured, 0.3)}
    assert list(rows) == ["valley", "coast", "All events"]
    assert rows["All events"]["pixels"] == rows["valley"]["pixels"] + rows["coast"]["pixels"]
    four, figures = confusion(measured.total, 0.3), metrics_at(measured.total, 0.3)
    assert four["hit"] / (four["hit"] + four["false"]) == pytest.approx(figures["precision"])
    assert four["hit"] / (four["hit"] + four["missed"]) == pytest.approx(figures["recall"])
    assert sum(four.values()) == rows["All events"]["pixels"]


def test_thresholds_with_and_without_labels_stand_side_by_side(measured):
    rows = {row["name"]: row for row in threshold_rows(measured, 0.25)}
    assert rows["Set now"]["threshold"] == 0.25 and rows["The model's own"]["threshold"] == 0.4
    assert rows["Best F1"]["f1"] == max(row.get("f1", 0) for row in rows.values())
    assert rows["Best F1"]["f1"] == pytest.approx(summary(measured.total, 0.5)["best_f1"])
    assert {"Otsu", "Kittler-Illingworth", "Two-component mixture"} < set(rows)
    empty = replace(measured, histogram=np.eye(256, dtype=np.int64)[3])
    assert [row["threshold"] for row in threshold_rows(empty, 0.25)][3:] == [None] * 3


def test_the_area_under_the_drawn_roc_curve_is_the_printed_one(measured):
    false, hit = roc_points(measured.total)
    assert (false[0], hit[0], false[-1], hit[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(hit, false) == pytest.approx(roc_auc(measured.total))
    with pytest.raises(DataError, match="both"):
        roc_points(ScoreCounts(np.zeros(256), np.ones(256)))


def test_the_reliability_bins_give_the_printed_error(measured):
    stated, observed, pixels = reliability(measured.total)
    known = pixels > 0
    error = (np.abs(stated - observed)[known] * pixels[known]).sum() / pixels.sum()
    assert error == pytest.approx(expected_calibration_error(measured.total))
    assert math.isnan(expected_calibration_error(ScoreCounts.none()))


@pytest.mark.parametrize("method", ["temperature", "beta"])
def test_a_calibration_becomes_a_new_version_and_the_old_card_stays_byte_for_byte(measured, workspace, method):
    old = {path.name: path.read_bytes() for path in weights_dir().iterdir()}
    path, card = save_calibration(measured, method, 0.4)
    assert {path.name: path.read_bytes() for path in weights_dir().iterdir()} == old
    assert path.parent == workspace / "weights"
    shipped = find_card(NAME)[1]
    assert (shipped.version, card.name) == (measured.version, NAME)
    assert card.version != shipped.version and find_card(f"{NAME}@{card.version}") == (path, card)
    assert card.sha256 == shipped.sha256 == hashlib.sha256(verify_weights(path, card).read_bytes()).hexdigest()
    again = save_calibration(measured, method, 0.4)
    assert again[0] != path and again[1].version != card.version
    assert len(list(path.parent.glob("*.safetensors"))) == 1
    assert len(known_cards()) >= 3


@pytest.mark.parametrize("method", ["temperature", "beta"])
def test_the_new_card_says_what_the_calibration_says_and_cuts_at_the_same_place(measured, method):
    card = save_calibration(measured, method, 0.4)[1]
    old = find_card(NAME)[1]
    logit, distance = np.linspace(-1.5, 1.5, 200, dtype=np.float32), np.full(200, 0.3, np.float32)
    before = change_probability(logit, distance, old.decision)
    inner = (before > 0.002) & (before < 0.998)
    calibration = fit_scores(measured.total, method)
    after = change_probability(logit, distance, card.decision)
    np.testing.assert_allclose(after[inner], calibration(before)[inner], atol=2e-4)
    sure = np.abs(before - 0.4) > 1e-3
    assert ((before >= 0.4) == (after >= card.decision.threshold))[sure].all()
    facts = card.training["calibration"]
    assert facts["after"]["ece"] < facts["before"]["ece"] and facts["from_version"] == old.version
    assert card.decision.prevalence == pytest.approx(measured.total.prevalence, abs=1e-5)


def test_a_temperature_may_follow_a_beta_and_a_second_beta_is_refused(measured):
    first = save_calibration(measured, "beta", 0.4)[1]
    moved = replace(measured, version=first.version)
    second = save_calibration(moved, "temperature", 0.4)[1]
    slope = fit_scores(measured.total, "temperature").a
    assert second.decision.beta == pytest.approx([slope * value for value in first.decision.beta])
    assert second.decision.slope == first.decision.slope
    with pytest.raises(ModelError, match="carries a beta calibration already"):
        save_calibration(moved, "beta", 0.4)


def test_the_error_on_events_left_out_is_told_apart(measured):
    fitted = fit_calibration(measured, "temperature")
    assert fitted.after["ece"] < fitted.held_out["ece"] < fitted.before["ece"]
    alone = replace(measured, events={"valley": measured.events["valley"]})
    assert fit_calibration(alone, "beta").held_out is None


def test_scores_of_another_card_calibrate_nothing(measured, sample_run):
    for change in ({"version": "0.0"}, {"sha256": "0" * 64}):
        with pytest.raises(ModelError, match="is not here"):
            card_of(replace(measured, **change))
    assert refusal(sample_run.run) is None and refusal(None) is None
    adapted = replace(sample_run.run, manifest={**sample_run.run.manifest, "adapt": {"weight": 0.1}})
    assert "adapted" in refusal(adapted)


@pytest.fixture(scope="module")
def evaluated(floods: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Score files of twelve flood tiles as `mmcd evaluate --scores` writes them, and what it says of them."""
    folder, random = tmp_path_factory.mktemp("scores"), np.random.default_rng(5)
    counts, tiles = ScoreCounts.none(), list(index_ombria(floods).tiles)
    for tile in tiles:
        changed = read_tile(tile).changed
        stored = encode_score((0.3 * changed + random.random(changed.shape) * 0.7), np.ones_like(changed))
        tags = {"MMCD_MODEL": "tiny 0"}
        write_cog(folder / file_names(tiles)[tile.id], stored, Grid.in_pixels(*stored.shape), SCORE_BAND, tags)
        counts += ScoreCounts.of(stored, changed)
    return summary(counts, 0.5), folder


def test_score_files_of_mmcd_evaluate_give_its_figures(evaluated, floods, card_path, workspace):
    said, folder = evaluated
    request = AccuracyRequest(model=str(card_path), dataset="ombria", root=floods, scores=folder)
    key = measure_dataset(request)
    found = load_measured(key)
    figures = summary(found.total, found.threshold)
    assert figures == pytest.approx({name: said[name] for name in figures})
    (dark,) = found.baselines.values()
    assert roc_auc(dark) > 0.99  # water is drawn dark
    assert list(list_measured()) == [key] and "12 tiles" in list_measured()[key]


def test_a_job_scores_what_was_not_scored_and_keeps_it(evaluated, floods, card_path, workspace, monkeypatch):
    said, folder = evaluated
    asked = []

    def scored(request, progress):
        asked.append(request.scores)
        request.scores.mkdir(parents=True)
        for path in folder.iterdir():
            (request.scores / path.name).write_bytes(path.read_bytes())
        return said

    monkeypatch.setattr("mmcd.services.evaluate.evaluate", scored)
    done = run_accuracy({"model": str(card_path), "dataset": "ombria", "root": str(floods)}, lambda *_: None)
    assert asked == [accuracy_data.results_folder() / done["evaluation"]]
    assert load_measured(done["evaluation"]).total.prevalence == pytest.approx(said["prevalence"])


def test_scores_of_another_model_or_missing_ones_are_refused(evaluated, floods, card_path, workspace, tmp_path):
    _, folder = evaluated
    missing = AccuracyRequest(model=str(card_path), dataset="ombria", root=floods, scores=tmp_path)
    with pytest.raises(DataError, match="is missing"):
        measure_dataset(missing)
    with pytest.raises(ModelError, match="was scored by tiny 0"):
        measure_dataset(AccuracyRequest(model=NAME, dataset="ombria", root=floods, scores=folder))
    for key in ("../../etc/passwd", "0" * 16):
        with pytest.raises(InputError, match="no such measurement"):
            load_measured(key)


def test_the_middle_threshold_names_the_same_byte(measured):
    assert confusion(measured.total, 0.5)["hit"] == measured.total.changed[threshold_value(0.5) :].sum()
