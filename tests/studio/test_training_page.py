"""The Training page as its script draws it, by the keys of its widgets."""

import json
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from mmcd.cards import find_card
from mmcd.jobs import open_store
from mmcd.services import boards
from mmcd.services.tracking import Curve
from mmcd.studio import job_panel
from mmcd.studio.training_charts import metric_chart, smoothed
from mmcd.studio.training_start import TRIAL

from ..services.test_training_runs import leave_weights

PAGE = Path(__file__).resolve().parents[2] / "pages" / "training.py"

pytestmark = pytest.mark.usefixtures("fresh_caches")


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_panel, "ensure_worker", lambda workspace: None)


def opened(**address: str) -> AppTest:
    page = AppTest.from_file(PAGE, default_timeout=60)
    page.query_params.update(address)
    page.run()
    assert not page.exception
    return page


def said(page: AppTest) -> str:
    alerts = [f"{alert.proto.title} {alert.value}" for alert in (*page.info, *page.error, *page.warning, *page.success)]
    return "\n".join([*alerts, *(str(part.value) for part in (*page.markdown, *page.caption, *page.code))])


def lines(page: AppTest, metric: str) -> list[str]:
    """Names of the runs in a metric's chart."""
    specs = {chart.proto.id: json.loads(chart.proto.spec) for chart in page.get("plotly_chart")}
    (spec,) = [spec for key, spec in specs.items() if key.endswith(f"training-chart-{metric}")]
    return [trace["name"] for trace in spec["data"] if "name" in trace]


def test_an_empty_workspace_offers_a_trial_that_needs_no_data(workspace):
    page = opened()
    assert "No training yet." in said(page)
    page.button("start-trial").click().run()
    assert not page.exception
    assert page.query_params["view"] == "start"
    assert page.selectbox("start-config").value == TRIAL
    page.button("start-go").click().run()
    assert not page.exception
    (job,) = open_store(workspace).list()
    assert (job.kind, job.lane) == ("train", "long")
    assert job.request["overrides"]["name"] == "trial" and job.request["overrides"]["trainer.epochs"] == 1
    assert page.query_params["job"] == job.id
    assert "Training trial" in "".join(part.value for part in page.subheader)


def test_the_newest_runs_are_compared_at_first_and_those_of_the_address_else(trained):
    page = opened()
    assert list(page.dataframe[0].value["Run"]) == ["bare", "trunk", "second", "first"]
    assert page.query_params["training"] == "trunk,second,first"
    assert lines(page, "train/loss") == ["trunk", "second", "first"]
    page = opened(training="first,second")
    assert lines(page, "val/ap") == ["first", "second"]
    assert page.session_state["training-table"]["selection"]["rows"] == [3, 2]
    figures = page.dataframe[1].value
    assert list(figures.columns) == ["Metric", "first", "second"]
    assert dict(zip(figures["Metric"], figures["first"], strict=True))["val/ap"] == "0.599"
    differs = page.dataframe[2].value
    assert list(differs["Setting"]) == ["seed"]


def test_metrics_scale_axis_and_smoothing_change_the_charts(trained):
    page = opened(training="first,second")
    assert page.multiselect("training-metrics").value == ["train/loss", "val/ap"]
    page.multiselect("training-metrics").set_value(["train/loss"]).run()
    page.toggle("training-log").set_value(True).run()
    page.slider("training-smoothing").set_value(0.9).run()
    page.segmented_control("training-axis").set_value("hours").run()
    assert not page.exception
    (chart,) = page.get("plotly_chart")
    spec = json.loads(chart.proto.spec)
    assert spec["layout"]["yaxis"]["type"] == "log"
    assert spec["layout"]["xaxis"]["title"]["text"] == "Hours since the run began"
    assert len(spec["data"]) == 4  # each run smoothed, over its values as they are
    assert "first:" in chart.proto.alt and "second:" in chart.proto.alt


def test_none_ticked_and_unknown_runs_are_said(trained):
    assert "No run is chosen." in said(opened(training="nobody"))
    page = opened(training="bare")
    assert "No curve is there yet." in said(page)


def test_the_weights_of_a_run_are_kept_under_a_name_and_never_over_others(trained):
    leave_weights(trained, "first")
    page = opened(training="first")
    page.segmented_control("training-part").set_value("Keep the weights").run()
    page.text_input("training-name-first").set_value("my-floods").run()
    page.text_input("training-version-first").set_value("7").run()
    assert "mmcd train register first --name my-floods --version 7" in said(page)
    page.button("training-keep").click().run()
    assert "Kept as my-floods 7." in said(page) and "Damage map" in said(page)
    assert find_card("my-floods")[1].version == "7"
    page.button("training-keep").click().run()
    assert not page.exception
    assert "already" in said(page)


def test_a_run_without_weights_or_pictures_says_what_leaves_some(trained):
    page = opened(training="second")
    assert "no sample predictions" in said(page)
    page.segmented_control("training-part").set_value("Keep the weights").run()
    assert "left no weights to keep" in said(page)
    page.segmented_control("training-part").set_value("Folder and settings").run()
    assert str(trained / "training" / "second") in said(page)


def test_held_out_tiles_are_drawn_by_a_job_and_then_shown(trained):
    folder = trained / "training" / "first"
    np.savez(folder / "held_out.npz", ids=np.array(["a"]))
    page = opened(training="first")
    page.button("training-draw").click().run()
    (job,) = open_store(trained).list()
    assert (job.kind, job.request["run"]) == ("samples", "first")
    open_store(trained).fail(job.id, "The data are gone.", "Put them back.")
    page.run()
    assert "The data are gone. Put them back." in said(page)


def test_a_form_says_what_is_wrong_before_anything_is_started(workspace, floods):
    page = opened(view="start")
    page.selectbox("start-config").set_value("flood-s2s1").run()
    page.text_input("start-root-flood-s2s1").set_value("/nowhere").run()
    assert "There is no folder /nowhere" in said(page)
    page.text_input("start-root-flood-s2s1").set_value(str(floods)).run()
    page.number_input("start-trainer.epochs-flood-s2s1").set_value(2).run()
    page.text_area("start-more-flood-s2s1").set_value("loss.dice=0").run()
    assert f"--set data.root={floods}" in said(page) and "--set loss.dice=0" in said(page)
    page.button("start-go").click().run()
    assert not page.exception
    (job,) = open_store(workspace).list()
    assert job.request["overrides"] == {"data.root": str(floods), "trainer.epochs": 2, "loss.dice": 0}
    open_store(workspace).fail(job.id, "No such key.", "Correct it.")
    page.run()
    assert "No such key. Correct it." in said(page)


def test_the_own_file_and_every_task_can_be_chosen(workspace, tmp_path):
    page = opened(view="start")
    for task in ("patches", "pretrain", "downstream"):
        page.segmented_control("start-task").set_value(task).run()
        assert not page.exception
        assert page.selectbox("start-config").value
    page.selectbox("start-config").set_value("A file of mine").run()
    page.text_input("start-path").set_value(str(tmp_path / "none.yaml")).run()
    assert "cannot be read" in said(page)


def test_a_board_that_cannot_start_says_why(workspace, trained, monkeypatch):
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    page = opened(training="first")
    page.button("board-start-tensorboard").click().run()
    assert not page.exception
    assert "TensorBoard is not installed here." in said(page)


def test_smoothing_has_no_lag_at_the_start_and_leaves_gaps():
    values = np.array([2.0, 2.0, np.nan, 2.0, 4.0])
    out = smoothed(values, 0.5)
    assert out[[0, 1, 3]].tolist() == [2.0, 2.0, 2.0] and np.isnan(out[2])
    assert 2.0 < out[4] < 4.0
    assert smoothed(values, 0.0) is values


def test_runs_differ_by_dash_and_mark_as_well_as_colour():
    curve = Curve(np.arange(3), np.zeros(3), np.ones(3))
    names = [f"run {number}" for number in range(6)]
    traces = metric_chart("val/ap", dict.fromkeys(names, curve), names, "steps", False, 0.0).figure.data
    for of in (lambda t: t.line.color, lambda t: t.line.dash, lambda t: t.marker.symbol):
        assert len({of(trace) for trace in traces}) == 6


def watching() -> None:
    """Compare runs that seemed to train when the page was drawn first."""
    from dataclasses import replace

    import streamlit as st

    from mmcd.studio.training_panel import compare
    from mmcd.studio.training_source import trainings

    runs = list(trainings().values())
    if "seen" not in st.session_state:
        st.session_state["seen"] = True
        runs = [replace(run, state="running") for run in runs]
    compare(runs)
    st.text(" ".join(run.state for run in runs))


def test_the_whole_page_follows_once_a_watched_training_has_ended(trained):
    page = AppTest.from_function(watching, default_timeout=60).run()
    assert not page.exception
    assert page.text[0].value and "running" not in page.text[0].value
