"""`mmcd weights calibrate`: labelled scores of a run or a data set become a new version of the model that made them."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mmcd.cards import find_card
from mmcd.cli import app
from mmcd.errors import DataError, MmcdError, UsageError
from mmcd.evaluation import expected_calibration_error
from mmcd.geo.cog import write_cog
from mmcd.score import encode_score
from mmcd.services import calibrate as calibrating
from mmcd.services.accuracy import measure_run
from mmcd.services.calibrate import CalibrateRequest, calibrate
from mmcd.services.recalibrate import fit_calibration
from mmcd.services.runs import load_run

NAME = "flood-s2s1"


@pytest.fixture
def scored(sample_run):
    """A run of a labelled scene, said to be scored by a shipped model that is far too sure of itself."""
    random = np.random.default_rng(0)
    honest = np.where(sample_run.stored > 128, 0.62, 0.3) + random.uniform(-0.25, 0.25, sample_run.stored.shape)
    sure = honest**4 / (honest**4 + (1 - honest) ** 4)
    write_cog(sample_run.run.folder / "score.tif", encode_score(sure, sample_run.stored > 0), sample_run.grid)
    _say(sample_run.run, model={"name": NAME, **find_card(NAME)[1].model_dump(include={"version", "sha256"})})
    return sample_run


def _say(run, **facts) -> None:
    path = run.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize("method", ["temperature", "beta"])
def test_a_run_of_a_labelled_scene_calibrates_its_model(scored, workspace: Path, method):
    words = ["weights", "calibrate", scored.run.id, "--method", method, "--threshold", "0.4", "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    path, card = find_card(found["model"])
    assert (str(path), path.parent, card.name) == (found["card"], workspace / "weights", NAME)
    measured = measure_run(load_run(scored.run.id), scored.scene)
    fitted = fit_calibration(measured, method)
    assert found["before"]["ece"] == pytest.approx(expected_calibration_error(measured.total))
    assert found["after"] == pytest.approx(fitted.after) and found["after"]["ece"] < found["before"]["ece"]
    assert found["threshold"] == card.decision.threshold == pytest.approx(float(fitted.calibration(0.4)), abs=1e-4)
    assert "held_out" not in found  # one event tells nothing of others
    assert find_card(NAME)[1].version == measured.version


def test_people_read_what_it_changed_and_how_the_new_version_is_called(scored):
    done = CliRunner().invoke(app, ["weights", "calibrate", str(scored.run.folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"{NAME}@" in done.stdout and "-calibrated-temperature-1" in done.stdout
    assert "before: calibration error" in done.stdout and "after: log loss (nats)" in done.stdout


def test_a_data_set_is_measured_as_the_accuracy_page_does_it(scored, monkeypatch):
    measured, asked = measure_run(load_run(scored.run.id), scored.scene), []
    monkeypatch.setattr(calibrating, "measure_dataset", lambda request, progress: asked.append(request) or "key")
    monkeypatch.setattr(calibrating, "load_measured", {"key": measured}.__getitem__)
    words = {"dataset": "ombria", "root": Path("there"), "model": NAME, "split": "val"}
    made = calibrate(CalibrateRequest.checked(**words))
    assert asked[0].model_dump(exclude_none=True) == words
    assert made.fitted_on == measured.title
    assert made.card.decision.threshold == pytest.approx(
        float(fit_calibration(measured, "temperature").calibration(measured.threshold)), abs=1e-4
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({}, "Either a run or a data set"),
        ({"run": "a", "dataset": "ombria"}, "Either a run or a data set"),
        ({"dataset": "ombria", "root": "there"}, "needs its folder and a model"),
        ({"run": "a", "model": "b", "split": "val"}, "--model, --split belongs to a data set"),
        ({"run": "a", "threshold": 1.2}, "threshold"),
        ({"run": "a", "method": "isotonic"}, "method"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, says):
    with pytest.raises(MmcdError, match=says) as refused:
        CalibrateRequest.checked(**words)
    assert isinstance(refused.value, UsageError)


def test_runs_that_cannot_calibrate_say_why(scored, bare_run):
    with pytest.raises(DataError, match="two files, which have no labels"):
        calibrate(CalibrateRequest.checked(run=bare_run.run.id))
    _say(scored.run, adapt={"weight": 0.1})
    with pytest.raises(DataError, match="adapted the model"):
        calibrate(CalibrateRequest.checked(run=scored.run.id))
