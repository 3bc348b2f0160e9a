"""Jobs in a real browser: a refresh, a cancel, two visitors and a restart of the whole app in the middle of one."""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mmcd.jobs import JobStore, open_store

from ...conftest import write_pair
from ..conftest import bench_app

pytestmark = pytest.mark.browser

RUN_MS = 240_000  # a process loads the model first, which takes long on a busy machine


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The request of a run of six tiles."""
    return request_of(*write_pair(tmp_path_factory.mktemp("short"), 3, (600, 1500), 3, []))


def request_of(pre: Path, post: Path) -> dict:
    return {"pre": str(pre), "post": str(post), "model": "flood-s2s1", "tile": 512, "device": "cpu"}


class Trickle(BaseHTTPRequestHandler):
    """An image that comes a byte a second and never ends: a job that is silent for as long as a test looks at it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000000")
        self.end_headers()
        self.wfile.write(b"II*\0" + bytes(3 << 20))
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"\0")
                time.sleep(1)


@pytest.fixture
def endless() -> Iterator[dict]:
    """The request of a check of images that never come."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {"pre": f"{address}/pre.tif", "post": f"{address}/post.tif", "id": "endless"}
    server.shutdown()
    server.server_close()


def until(condition: Callable[[], object], seconds: float = RUN_MS / 1000) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition did not come true")


def tiles_done(store: JobStore, job_id: str) -> int:
    job = store.get(job_id)
    return job.done if job.stage == "score" else 0


def open_job(page: Page, address: str, job_id: str) -> None:
    page.goto(f"{address}/jobs?job={job_id}", wait_until="commit", timeout=RUN_MS)
    expect(page.get_by_role("heading", name="Follow and manage jobs")).to_be_visible(timeout=RUN_MS)
    expect(page.get_by_text(f"Id: {job_id}")).to_be_visible(timeout=RUN_MS)


def test_a_refresh_and_a_second_visitor_see_the_same_job_and_either_cancels_it(
    watched, browser, address, prepared, endless
):
    store = open_store(prepared.folder)
    job_id = store.submit("check_scene", endless)
    page, other = watched.page, browser.new_context(viewport={"width": 1280, "height": 900})
    second = other.new_page()
    for each in (page, second):
        each.set_default_timeout(RUN_MS)
    open_job(page, address, job_id)
    stage = re.compile(r"pre\.tif → post\.tif · downloading pre\.tif \(MB\), \d+ of 95")
    expect(page.get_by_text(stage)).to_be_visible(timeout=RUN_MS)

    page.reload(wait_until="commit")
    expect(page.get_by_text(stage)).to_be_visible(timeout=RUN_MS)
    search = page.get_by_role("textbox", name="Search")
    search.fill("post")
    page.wait_for_timeout(2500)  # two refreshes of what runs
    expect(search).to_be_focused()
    expect(search).to_have_value("post")

    second.goto(f"{address}/jobs", wait_until="commit")
    second.get_by_role("button", name="Details").click()
    expect(second.get_by_text(f"Id: {job_id}")).to_be_visible(timeout=RUN_MS)
    second.get_by_role("button", name="Cancel").click()
    for each in (second, page):
        expect(each.get_by_text("The job was cancelled.")).to_be_visible(timeout=RUN_MS)
    assert store.get(job_id).state == "cancelled"
    other.close()


@pytest.mark.slow
def test_a_restart_of_the_app_in_the_middle_of_a_job_loses_nothing(watched, tmp_path: Path, short):
    folder, environment = tmp_path / "workspace", {"OMP_NUM_THREADS": "1"}
    folder.mkdir()
    store = open_store(folder)
    job_id = store.submit("predict", short)
    page = watched.page
    with bench_app.served(folder, environment) as address:
        open_job(page, address, job_id)
        until(lambda: tiles_done(store, job_id) >= 2)
        page.goto("about:blank")
    assert store.get(job_id).state in ("queued", "running")
    with bench_app.served(folder, environment) as address:
        open_job(page, address, job_id)
        expect(page.get_by_text("Ended:")).to_be_visible(timeout=RUN_MS)
        page.goto("about:blank")  # an open page complains when its server ends
    job = store.get(job_id)
    assert job.state == "done", job.message
    manifest = json.loads((Path(job.result["folder"]) / "manifest.json").read_text())
    assert manifest["resumed"]
