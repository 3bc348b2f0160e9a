"""The Jobs page by its widgets: empty, full, long; cancel, retry, delete, open the result."""

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mmcd.jobs import JobStore, log_path, open_store
from mmcd.paths import shipped
from mmcd.services import job_control
from mmcd.services.worker import HANDLERS
from mmcd.studio import jobs_page
from mmcd.studio.job_details import result_link

pytestmark = pytest.mark.usefixtures("fresh_caches")


def page() -> None:
    from mmcd.studio.jobs_page import jobs_page

    jobs_page()


def drawn(**query: str) -> AppTest:
    app = AppTest.from_function(page, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


@pytest.fixture(autouse=True)
def links(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What the page links to; a page of its own has no menu that the links could be in."""
    found: list[dict[str, object]] = []
    monkeypatch.setattr(jobs_page.st, "page_link", lambda target, **rest: found.append({"page": target, **rest}))
    return found


@pytest.fixture
def store(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    """The jobs of an empty workspace without a worker."""
    workspace.mkdir()
    for module in (jobs_page, job_control):
        monkeypatch.setattr(module, "ensure_worker", lambda workspace: None)
    return open_store(workspace)


def listed(app: AppTest) -> list[str]:
    return list(app.dataframe[0].value["On"])


def texts(app: AppTest) -> str:
    alerts = [f"{alert.proto.title} {alert.value}" for alert in (*app.info, *app.error, *app.warning)]
    return "\n".join([*alerts, *(str(part.value) for part in (*app.markdown, *app.caption, *app.subheader))])


def test_without_jobs_the_sample_scene_is_offered(store: JobStore, links: list) -> None:
    app = drawn()
    assert "No job yet." in texts(app)
    assert links[0]["page"].name == "damage_map.py"
    assert links[0]["query_params"]["scene"].startswith("simulated-")


def test_what_runs_says_stage_and_tiles_and_can_be_cancelled(store: JobStore) -> None:
    job_id = store.submit("predict", {"scene": "valley", "model": "flood"})
    store.claim(gpu=False)
    store.progress(job_id, "score", 3, 12)
    app = drawn()
    assert app.get("progress")[0].value == 25
    assert app.get("progress")[0].text == "**Analysis** · valley · flood · score, 3 of 12 tiles"
    assert "on the processor" in texts(app)
    app.button(key=f"details-{job_id}").click().run()
    assert app.query_params["job"] == job_id
    assert "Analysis: valley" in texts(app)
    app.button(key=f"cancel-{job_id}").click().run()
    assert store.get(job_id).cancel_requested
    assert app.button(key=f"cancel-{job_id}").disabled
    assert "stopping" in app.get("progress")[0].text


def test_a_failed_job_says_why_shows_its_log_and_is_retried(store: JobStore) -> None:
    job_id = store.submit("predict", {"scene": "valley"})
    store.claim()
    store.fail(job_id, "The disk is full.", "Free some space.")
    log = log_path(store.path, job_id)
    log.parent.mkdir(parents=True)
    log.write_text("the last words\n")
    app = drawn(job=job_id)
    assert list(app.dataframe[0].value["Why"]) == ["The disk is full."]
    assert "The disk is full. Free some space." in texts(app)
    assert app.code[0].value == "the last words"
    app.button(key="job-retry").click().run()
    assert store.get(job_id).state == "queued"
    assert "Waiting" in texts(app)


def test_a_finished_job_leads_to_its_result_and_is_deleted(store: JobStore, links: list) -> None:
    job_id = store.submit("predict", {"scene": "valley"})
    store.finish(job_id, {"run_id": "abc"})
    app = drawn(job=job_id)
    assert links[0]["query_params"] == {"scene": "valley", "run": "abc"}
    app.button(key="job-delete").click().run()
    assert store.list() == []
    assert "job" not in app.query_params
    assert "No job yet." in texts(app)


def test_a_run_is_known_by_its_scene_and_the_log_of_a_failure_is_folded(
    prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: list
) -> None:
    shutil.copytree(prepared.folder / "runs", tmp_path / "runs")
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path))
    store = open_store(tmp_path)
    ids = [store.submit("embed", {"run": run, "method": "pca"}) for run in (prepared.run_id, "0" * 32, "my-training")]
    for _ in ids:
        store.fail(store.claim("quick", gpu=False).id, "The disk is full.")
    app = drawn(job=ids[0])
    assert listed(app) == ["my-training · pca", "00000000 · pca", "valley-flood · pca"]
    assert not next(part for part in app.expander if part.label == "Log").proto.expanded


def test_a_link_to_a_job_that_is_gone_says_so_and_the_page_stays(store: JobStore) -> None:
    store.submit("predict", {"scene": "valley"})
    app = drawn(job="nonsense")
    assert "No such job here." in texts(app)
    assert listed(app) == ["valley"]


def test_a_thousand_jobs_are_paged_filtered_and_handled_together(store: JobStore) -> None:
    for number in range(120):
        store.submit("predict", {"scene": f"scene-{number:04d}"})
    for _ in range(70):
        job = store.claim("quick", gpu=False)
        store.fail(job.id, "The disk is full.")
    other = store.submit("check_scene", {"pre": "a/before.tif", "post": "b/after.tif"})
    app = drawn()
    assert len(listed(app)) == jobs_page.PAGE_ROWS
    assert listed(app)[:2] == ["before.tif → after.tif", "scene-0119"]
    assert "51 waiting" in texts(app)
    app.selectbox(key="jobs-kind").set_value("check_scene").run()
    assert listed(app) == ["before.tif → after.tif"]
    app.selectbox(key="jobs-kind").set_value("all").run()
    app.text_input(key="jobs-search").set_value("scene-003").run()
    assert len(listed(app)) == 10
    app.text_input(key="jobs-search").set_value("").run()
    app.segmented_control(key="jobs-state").set_value("failed").run()
    assert app.query_params["state"] == "failed"
    app.button(key="jobs-retry-all").click().run()
    assert store.counts()["failed"] == 0 and store.counts()["queued"] == 121
    assert "No job matches." in texts(app)
    app.segmented_control(key="jobs-state").set_value("queued").run()
    app.button(key="jobs-cancel-all").click().run()
    assert store.counts()["cancelled"] == 121
    assert store.get(other).state == "cancelled"


def test_the_address_brings_back_the_filter_and_the_job(store: JobStore) -> None:
    done, failed = store.submit("predict", {"scene": "a"}), store.submit("predict", {"scene": "b"})
    store.finish(done, {})
    store.fail(failed, "No space.")
    app = drawn(state="done", job=done)
    assert listed(app) == ["a"]
    assert "Analysis: a" in texts(app)
    assert app.session_state["jobs-table"]["selection"]["rows"] == [0]


def test_how_long_the_rest_takes_follows_the_latest_jobs(store: JobStore) -> None:
    waiting = [store.submit("predict", {}) for _ in range(2)]
    queued = [store.get(job_id) for job_id in waiting]
    assert job_control.seconds_to_go(store, queued) is None
    store.claim("quick")
    store.finish(waiting[0], {})
    pace = store.get(waiting[0]).seconds
    assert job_control.seconds_to_go(store, queued) == pytest.approx(2 * pace)
    assert job_control.seconds_to_go(store, []) == 0


def test_every_kind_leads_somewhere(store: JobStore) -> None:
    check = store.get(store.submit("check_scene", {"pre": "a.tif", "post": "b.tif"}))
    assert result_link(check)[1:] == (shipped("pages") / "scenes.py", {"view": "add", "job": check.id})
    running = store.get(store.submit("predict", {"scene": "a"}))
    assert result_link(running)[2] == {"scene": "a", "job": running.id}
    assert result_link(store.get(store.submit("predict", {"pre": "a.tif", "post": "b.tif"}))) is None
    training = store.submit("train", {"config": "a.yaml"})
    store.finish(training, {"run": "mine"})
    assert result_link(store.get(training))[1:] == (shipped("pages") / "training.py", {"training": "mine"})
    for kind in set(HANDLERS) - {"predict"}:
        link = result_link(store.get(store.submit(kind, {"run": "mine"})))
        assert link is not None and link[1].is_file(), kind


def test_a_finished_measurement_or_picture_is_opened_without_its_job(store: JobStore) -> None:
    def linked(kind: str, result: dict[str, object] | None) -> tuple[str, dict[str, str]]:
        job_id = store.submit(kind, {"model": "a", "number": len(store.list())})
        if result is not None:
            store.finish(job_id, result)
        _, page, query = result_link(store.get(job_id))
        return page.name, query

    assert linked("accuracy", {"evaluation": "0a1b"}) == ("accuracy.py", {"evaluation": "0a1b"})
    drawn = {"method": "umap", "what": "sar"}
    facts = {**drawn, "points": 9}
    assert linked("embed", {"table": "b2", "run": None, **facts}) == ("embeddings.py", {"table": "b2", **drawn})
    assert linked("embed", {"table": None, "run": "c3", **facts}) == ("embeddings.py", {"run": "c3", **drawn})
    for kind in ("accuracy", "embed"):
        page, query = linked(kind, None)
        assert page.startswith(kind[:5]) and list(query) == ["job"]
