"""The Accuracy page as its script draws it, by the keys of its widgets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from mmcd.cards import find_card
from mmcd.evaluation import precision_recall_f1
from mmcd.jobs import open_store
from mmcd.score import threshold_value
from mmcd.services.accuracy import Measured, measure_run
from mmcd.services.accuracy_data import results_folder
from mmcd.services.runs import load_run
from mmcd.studio import accuracy_charts as charts

PAGE = Path(__file__).resolve().parents[2] / "pages" / "accuracy.py"
NAME = "flood-s2s1"

pytestmark = pytest.mark.usefixtures("fresh_caches")


def opened(**address: str) -> AppTest:
    page = AppTest.from_file(PAGE, default_timeout=60)
    page.query_params.update(address)
    return page.run()


def words(kind) -> str:
    return "\n".join(f"{alert.proto.title} {alert.value}" for alert in kind)


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


@pytest.fixture
def own(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of the workspace whose run was scored by a shipped model, as its manifest says."""
    folder = tmp_path / "workspace"
    shutil.copytree(prepared.folder, folder)
    monkeypatch.setenv("MMCD_WORKSPACE", str(folder))
    path = folder / "runs" / prepared.run_id / "manifest.json"
    manifest, card = json.loads(path.read_text()), find_card(NAME)[1]
    manifest["model"] |= {"name": NAME, "version": card.version, "sha256": card.sha256}
    path.write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def measured(prepared) -> Measured:
    return measure_run(load_run(prepared.run_id), prepared.placed)


def test_the_run_of_the_damage_map_is_measured_at_its_threshold(prepared, measured):
    page = opened(scene=prepared.placed.id, run=prepared.run_id, threshold="0.25")
    assert not page.exception
    assert page.selectbox("accuracy-run").value == prepared.run_id
    assert page.slider("accuracy-threshold").value == 0.25
    f1 = precision_recall_f1(measured.total)[2][threshold_value(0.25) - 1]
    assert metrics(page)["F1"] == f"{f1:.3f}"
    charts = {chart.proto.alt for chart in page.get("plotly_chart")}
    assert len(charts) == 5 and all(charts)


def test_a_link_to_a_run_made_since_the_runs_were_listed_shows_it(prepared, monkeypatch):
    monkeypatch.setattr("mmcd.studio.loaders.runs", lambda: [])
    page = opened(run=prepared.run_id)
    assert not page.exception and not page.warning
    assert page.selectbox("accuracy-run").value == prepared.run_id


def test_a_threshold_that_is_set_goes_into_the_address_and_into_the_figures(prepared):
    page = opened(scene=prepared.placed.id, run=prepared.run_id)
    before = metrics(page)["F1"]
    assert page.pills("accuracy-take").value == "The model's own"
    page.slider("accuracy-threshold").set_value(0.7).run()
    assert not page.exception
    assert page.query_params["threshold"] == "0.700"
    assert metrics(page)["F1"] != before
    page.pills("accuracy-take").set_value("Best F1").run()
    assert not page.exception
    best = max(float(row) for row in page.dataframe[0].value["F1"] if row != "–")
    assert float(metrics(page)["F1"]) == best
    assert page.query_params["threshold"] != "0.700"
    taken = next(label for label in page.pills("accuracy-take").options if label.startswith("Best F1"))
    assert taken == f"Best F1 {page.query_params['threshold']}"  # what was read is what is set


def test_a_labelled_run_can_be_chosen_here(prepared):
    page = opened()
    assert "No run is selected" in words(page.info)
    page.selectbox("accuracy-run").set_value(prepared.run_id).run()
    assert not page.exception
    assert (page.query_params["scene"], page.query_params["run"]) == (prepared.placed.id, prepared.run_id)
    assert page.metric


def test_without_a_run_a_labelled_scene_is_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path / "workspace"))
    entry = tmp_path / "entry.py"  # links lead to pages of an app only
    entry.write_text(f"import runpy\nrunpy.run_path({str(PAGE.parents[1] / 'app.py')!r}, run_name='__main__')\n")
    page = AppTest.from_file(str(entry), default_timeout=60).switch_page(str(PAGE)).run()
    assert not page.exception
    assert "There is nothing to measure" in words(page.info)
    (link,) = page.get("page_link")
    assert link.proto.label.startswith("Run a model on ")


def test_a_calibration_is_shown_and_kept_as_a_new_version(prepared, own):
    page = opened(scene=prepared.placed.id, run=prepared.run_id)
    page.segmented_control("calibration-method").set_value("beta").run()
    assert not page.exception
    errors = [float(value) for value in page.dataframe[-1].value["Calibration error"]]
    assert len(errors) == 2 and errors[1] < errors[0]
    old = find_card(NAME)[0].read_bytes()
    page.button("calibration-save").click().run()
    assert not page.exception
    version = find_card(NAME)[1].version + "-calibrated-beta-1"
    assert f"{NAME}@{version}" in words(page.success)
    assert find_card(f"{NAME}@{version}")[1].decision.beta is not None
    assert find_card(NAME)[0].read_bytes() == old


def test_scores_of_no_known_card_are_not_kept(prepared):
    page = opened(scene=prepared.placed.id, run=prepared.run_id)
    page.segmented_control("calibration-method").set_value("temperature").run()
    page.button("calibration-save").click().run()
    assert not page.exception
    assert "which made these scores, is not here" in words(page.error)


@pytest.fixture
def kept(own, measured) -> str:
    """A measurement of a data set of three events."""
    key = "0123456789abcdef"
    parts = {"north": measured.total, "south": measured.total * 0.5, "coast": measured.total * 2}
    found = Measured("OMBRIA, all tiles", NAME, "1.0", "0" * 64, 0.5, parts, measured.baselines, measured.histogram)
    (results_folder() / f"{key}.json").write_text(json.dumps(found.to_dict()))
    return key


def test_a_data_set_is_shown_event_by_event(kept):
    page = opened(evaluation=kept)
    assert not page.exception
    assert page.selectbox("accuracy-evaluation").value == kept
    events = page.dataframe[1].value
    assert list(events["Event"]) == ["north", "south", "coast", "All events"]
    page.segmented_control("calibration-method").set_value("temperature").run()
    assert "each of 3 events by a fit on the others" in page.dataframe[-1].value["Scores"].iloc[2]


def test_a_measurement_is_asked_for_as_a_job(own, floods, monkeypatch):
    monkeypatch.setattr("mmcd.studio.job_panel.ensure_worker", lambda workspace: None)
    page = opened()
    page.segmented_control("accuracy-source").set_value("A data set").run()
    assert page.button("accuracy-measure").disabled
    page.text_input("accuracy-root").input("/nowhere").run()
    page.button("accuracy-measure").click().run()
    assert not page.exception
    assert "/nowhere is not a folder" in words(page.error)
    assert page.selectbox("accuracy-model-ombria").value == "flood-s2s1", "what fits the data set comes first"
    page.selectbox("accuracy-model-ombria").set_value(NAME)
    page.text_input("accuracy-root").input(str(floods)).run()
    page.button("accuracy-measure").click().run()
    assert not page.exception
    job = open_store(own).get(page.query_params["job"])
    assert (job.kind, job.request) == ("accuracy", {"model": NAME, "dataset": "ombria", "root": str(floods)})


def test_labels_of_one_class_have_no_curves(measured, own, kept):
    blank = measured.total.__class__(np.zeros(256), measured.total.unchanged)
    path = results_folder() / f"{kept}.json"
    values = json.loads(path.read_text())
    values["events"] = {"calm": {"changed": blank.changed.tolist(), "unchanged": blank.unchanged.tolist()}}
    path.write_text(json.dumps(values))
    page = opened(evaluation=kept)
    assert not page.exception
    assert "one class" in words(page.warning)


def test_every_chart_says_its_figures(measured):
    for chart in (charts.precision_recall(measured, 0.5), charts.roc(measured, 0.5)):
        assert "0.500" in chart.alt and any(line.name == "Set: 0.500" for line in chart.figure.data)
    dashes = [line.line.dash for line in charts.precision_recall(measured, 0.5).figure.data if line.mode == "lines"]
    assert len(set(dashes)) == len(dashes)  # told apart without colour
    figure = charts.f1_by_threshold(measured, 0.5, {"Otsu": 0.3}).figure
    assert [shape.x0 for shape in figure.layout.shapes] == [0.3, 0.5]
    cells = [charts.confusion_matrix(measured, 0.5, dark).figure.data[0] for dark in (False, True)]
    assert "px" not in cells[0].text[0][0]  # areas in ha
    assert [cell.textfont.color for cell in cells] == ["#1a1a1a", "#ffffff"]
