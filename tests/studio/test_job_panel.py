"""One place watches jobs, whatever they do: waiting, working, stopping, ended."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mmcd.jobs import JobStore, open_store
from mmcd.studio import job_panel

pytestmark = pytest.mark.usefixtures("fresh_caches")


def watching(job_id: str) -> None:
    """A page that draws a job while it is active."""
    import streamlit as st

    from mmcd.studio import loaders
    from mmcd.studio.job_panel import watch_job

    if loaders.jobs().get(job_id).active:
        watch_job(job_id)
    else:
        st.text("ended")


def starting() -> None:
    """Ask for a job with a folder as somebody would type it."""
    from pathlib import Path

    import streamlit as st

    from mmcd.services.accuracy_data import AccuracyRequest
    from mmcd.studio.job_panel import start_job

    if "job" not in st.query_params:
        start_job("accuracy", AccuracyRequest(model="m", dataset="ombria", root=Path("floods")))


@pytest.fixture
def store(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    """The jobs of an empty workspace without a worker."""
    workspace.mkdir()
    monkeypatch.setattr(job_panel, "ensure_worker", lambda workspace: None)
    return open_store(workspace)


def drawn(job_id: str) -> AppTest:
    page = AppTest.from_function(watching, args=(job_id,), default_timeout=60).run()
    assert not page.exception
    return page


def bar(page: AppTest) -> str:
    return page.get("progress")[0].text


def captions(page: AppTest) -> str:
    return " ".join(caption.value for caption in page.caption)


def test_a_job_is_watched_from_the_queue_to_its_end(store: JobStore) -> None:
    first, second = store.submit("predict", {}), store.submit("check_scene", {})
    assert bar(drawn(first)) == "Starting the worker …"
    assert "asked for" in captions(drawn(first))
    store.claim()
    assert bar(drawn(second)) == "Waiting for the end of the job before it …"
    assert bar(drawn(first)) == "**Starting**"
    store.progress(first, "score", 3, 8)
    page = drawn(first)
    assert bar(page) == "**Score** · 3 of 8"
    assert "started" in captions(page)
    page.button[0].click().run()
    assert bar(page) == "Stopping …"
    assert page.button[0].disabled
    store.finish(first, {})
    assert page.run().text[0].value == "ended"


def test_a_job_that_was_taken_up_again_says_so(store: JobStore) -> None:
    job_id = store.submit("check_scene", {})
    store.claim()
    store.recover()
    store.claim()
    assert "Taken up again after an interruption (attempt 2)." in captions(drawn(job_id))


def test_a_folder_is_the_same_for_a_worker_that_runs_elsewhere(store: JobStore) -> None:
    page = AppTest.from_function(starting, default_timeout=60).run()
    assert not page.exception
    assert store.get(page.query_params["job"]).request["root"] == str(Path("floods").absolute())
