"""The job store and its worker, with real processes that are really killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, timedelta
from pathlib import Path

import pytest

from mmcd import jobs
from mmcd.errors import InputError, StorageError

WORKER = """
import sys, time
from pathlib import Path
from mmcd.errors import InputError
from mmcd.jobs import JobStore, run_worker

def count(request, progress):
    marks = Path(request["marks"])
    for done in range(request["total"]):
        progress("counting", done, request["total"])
        with marks.open("a") as file:
            file.write(f"{done}\\n")
        time.sleep(request["pause"])
    return {"counted": request["total"]}

def refuse(request, progress):
    raise InputError("The file is torn.", "Fetch it again.")

def crash(request, progress):
    raise ZeroDivisionError("a defect")

handlers = {"count": count, "refuse": refuse, "crash": crash}
run_worker(JobStore(Path(sys.argv[1])), handlers, idle_seconds=float(sys.argv[2]))
"""


def start_worker(store: jobs.JobStore, idle: float = 0.5) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WORKER), str(store.path), str(idle)])


def wait_for(condition, seconds: float = 15.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError("the condition did not come true")


@pytest.fixture
def store(tmp_path: Path) -> jobs.JobStore:
    return jobs.JobStore(tmp_path / "jobs.sqlite")


def test_a_job_goes_from_queued_to_done_and_its_times_are_utc(store, tmp_path):
    job_id = store.submit("count", {"marks": str(tmp_path / "marks"), "total": 3, "pause": 0})
    assert store.get(job_id).state == "queued"
    assert start_worker(store).wait(20) == 0
    job = store.get(job_id)
    assert (job.state, job.result, job.attempt) == ("done", {"counted": 3}, 1)
    assert job.submitted.utcoffset() == timedelta(0)
    assert job.submitted <= job.started <= job.finished


def test_ids_are_long_random_and_safe_in_an_address(store):
    ids = {store.submit("count", {}) for _ in range(50)}
    assert len(ids) == 50
    assert all(len(i) >= 22 and i.replace("-", "").replace("_", "").isalnum() for i in ids)


def test_jobs_are_claimed_once_and_in_order(store):
    first, second = store.submit("count", {}), store.submit("count", {})
    assert [store.claim().id, store.claim().id] == [first, second]
    assert store.claim() is None


def test_errors_are_kept_as_message_and_hint_without_a_traceback(store):
    torn, defect, unknown = store.submit("refuse", {}), store.submit("crash", {}), store.submit("nonsense", {})
    assert start_worker(store).wait(20) == 0
    assert (store.get(torn).state, store.get(torn).message, store.get(torn).hint) == (
        "failed",
        "The file is torn.",
        "Fetch it again.",
    )
    assert "ZeroDivisionError: a defect" in store.get(defect).message
    assert "Traceback" not in store.get(defect).message + store.get(defect).hint
    assert "nonsense" in store.get(unknown).message


def test_a_job_whose_worker_was_killed_is_taken_up_again(store, tmp_path):
    marks = tmp_path / "marks"
    job_id = store.submit("count", {"marks": str(marks), "total": 8, "pause": 0.1})
    worker = start_worker(store)
    wait_for(lambda: marks.exists() and len(marks.read_text().split()) >= 2)
    assert jobs.worker_alive(store)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert store.get(job_id).state == "running"
    assert not jobs.worker_alive(store)

    assert start_worker(store).wait(20) == 0
    job = store.get(job_id)
    assert (job.state, job.attempt) == ("done", 2)
    assert marks.read_text().split().count("0") == 2


def test_a_job_that_takes_every_worker_down_is_given_up(store):
    job_id = store.submit("count", {})
    for _ in range(jobs.MAX_ATTEMPTS - 1):
        store.claim()
        store.recover()
        assert store.get(job_id).state == "queued"
    store.claim()
    store.recover()
    assert store.get(job_id).state == "failed"
    assert "3 times" in store.get(job_id).message


def test_a_running_job_is_cancelled_within_two_seconds(store, tmp_path):
    job_id = store.submit("count", {"marks": str(tmp_path / "marks"), "total": 1000, "pause": 0.05})
    worker = start_worker(store)
    wait_for(lambda: store.get(job_id).done > 0)
    asked = time.monotonic()
    store.cancel(job_id)
    wait_for(lambda: store.get(job_id).state == "cancelled")
    assert time.monotonic() - asked < 2
    assert worker.wait(20) == 0


def test_a_queued_job_is_cancelled_at_once_and_a_finished_one_stays_finished(store):
    queued, finished = store.submit("count", {}), store.submit("count", {})
    store.cancel(queued)
    assert store.get(queued).state == "cancelled"
    assert store.claim().id == finished
    store.finish(finished, {})
    store.cancel(finished)
    assert store.get(finished).state == "done"


def test_a_cancelled_job_that_its_worker_leaves_does_not_wait_for_the_next_one(store):
    cancelled, left = store.submit("count", {}), store.submit("count", {})
    assert {store.claim().id, store.claim().id} == {cancelled, left}
    store.cancel(cancelled)
    for job_id in (cancelled, left):
        store.release(job_id)
    assert store.get(cancelled).state == "cancelled" and store.get(cancelled).finished is not None
    assert store.get(left).state == "queued" and store.get(left).finished is None


def test_a_store_that_is_busy_for_a_while_costs_no_job(store, monkeypatch):
    def busy(*_: object) -> None:
        raise StorageError("The job store cannot be used: database is locked.", "Try again.")

    def work(request: dict, progress: jobs.Progress) -> dict:
        progress("counting", 0, 1)
        return {"counted": 1}

    job_id = store.submit("count", {})
    monkeypatch.setattr(store, "progress", busy)
    jobs.run_worker(store, {"count": work}, idle_seconds=0.0)
    assert store.get(job_id).state == "done", store.get(job_id).message
    assert any("progress was not noted" in line for line in jobs.log_tail(jobs.log_path(store.path, job_id)))


def test_a_worker_outlives_a_store_that_is_busy_while_it_looks_for_a_job(store, monkeypatch):
    claim, tries = store.claim, []

    def busy_at_first(*asked: object) -> jobs.Job | None:
        tries.append(asked)
        if len(tries) == 1:
            raise StorageError("The job store cannot be used: database is locked.", "Try again.")
        return claim(*asked)

    stop = threading.Event()

    def work(request: dict, progress: jobs.Progress) -> dict:
        stop.set()
        return {}

    job_id = store.submit("count", {})
    monkeypatch.setattr(store, "claim", busy_at_first)
    jobs.run_worker(store, {"count": work}, stop=stop, idle_seconds=30.0)
    assert store.get(job_id).state == "done" and len(tries) > 1


def test_a_cancel_survives_the_death_of_the_worker(store):
    job_id = store.submit("count", {})
    store.claim()
    store.cancel(job_id)
    store.recover()
    assert store.get(job_id).state == "cancelled"


def test_only_one_worker_serves_a_store(store):
    stop = threading.Event()
    thread = threading.Thread(target=jobs.run_worker, args=(store, {}), kwargs={"stop": stop})
    thread.start()
    try:
        wait_for(lambda: jobs.worker_alive(store))
        assert jobs.run_worker(store, {}) is False
    finally:
        stop.set()
        thread.join()
    assert not jobs.worker_alive(store)


def test_the_heart_beats_while_a_handler_is_silent(store):
    release = threading.Event()
    job_id = store.submit("silent", {})
    worker = threading.Thread(
        target=jobs.run_worker,
        args=(store, {"silent": lambda request, progress: {"waited": release.wait(10)}}),
        kwargs={"idle_seconds": 0.0},
    )
    worker.start()
    first = wait_for(lambda: store.get(job_id).heartbeat)
    try:
        wait_for(lambda: store.get(job_id).heartbeat > first)
    finally:
        release.set()
        worker.join()


def test_time_left_follows_the_pace_of_the_stage(store):
    job_id = store.submit("count", {})
    store.claim()
    store.progress(job_id, "predict", 0, 10)
    assert store.get(job_id).seconds_left() is None
    store.progress(job_id, "predict", 2, 10)
    job = store.get(job_id)
    assert job.seconds_left(job.stage_started + timedelta(seconds=4)) == pytest.approx(16)
    store.progress(job_id, "write", 0, 1)
    assert store.get(job_id).stage_started > job.stage_started


def test_an_unknown_id_is_an_input_error(store):
    with pytest.raises(InputError, match="no such job"):
        store.get("nothing")


def test_a_store_of_a_newer_version_is_refused(store):
    connection = sqlite3.connect(store.path)
    connection.execute(f"PRAGMA user_version = {jobs.SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StorageError, match="newer mmcd"):
        jobs.JobStore(store.path)


def test_a_file_that_is_no_database_is_a_storage_error(tmp_path):
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"this is not a database, only a text that is long enough to be read as a header" * 20)
    with pytest.raises(StorageError, match="cannot be used"):
        jobs.JobStore(path)


def test_many_processes_may_open_a_new_store_together(tmp_path):
    code = "import sys, pathlib, mmcd.jobs as jobs; jobs.JobStore(pathlib.Path(sys.argv[1])).submit('a', {})"
    path = tmp_path / "jobs.sqlite"
    children = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(6)]
    assert [child.wait(30) for child in children] == [0] * 6
    assert len(jobs.JobStore(path).list()) == 6


def test_the_list_is_newest_first_and_can_be_of_one_kind(store):
    old, other, new = store.submit("count", {}), store.submit("other", {}), store.submit("count", {})
    assert [job.id for job in store.list()] == [new, other, old]
    assert [job.id for job in store.list(kind="count")] == [new, old]
    assert store.list(limit=1)[0].submitted.tzinfo is UTC


def test_the_app_starts_one_worker_for_a_workspace_and_only_one(tmp_path):
    store = jobs.open_store(tmp_path)
    try:
        for _ in range(3):
            jobs.ensure_worker(tmp_path)
        worker = jobs._spawned[tmp_path]
        wait_for(lambda: jobs.worker_alive(store), seconds=60)
        jobs.ensure_worker(tmp_path)
        assert jobs._spawned[tmp_path] is worker
    finally:
        worker = jobs._spawned.pop(tmp_path)
        worker.terminate()
        assert worker.wait(30) == 0
    assert not jobs.worker_alive(store)
