"""The worker with real processes: they die, hang and are asked to stop, and no job is lost."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mmcd import jobs
from mmcd.jobs import supervisor

LANE = """
import os, sys, time
from pathlib import Path
from mmcd.jobs import JobStore, run_lane

def count(request, progress):
    marks = Path(request["marks"])
    begun = len(marks.read_text().split()) if marks.exists() else 0
    for done in range(begun, request["total"]):
        progress("counting", done, request["total"])
        with marks.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(request["pause"])
    return {"counted": request["total"]}

def deaf(request, progress):
    progress("listening", 0, 1)
    Path(request["marks"]).write_text(str(os.getpid()))
    time.sleep(600)

handlers = {"count": count, "train": count, "deaf": deaf}
run_lane(JobStore(Path(sys.argv[1])), handlers, sys.argv[2], idle_seconds=30)
"""

WHOLE = """
import sys, threading
from pathlib import Path
from mmcd.jobs import JobStore, Supervisor
command = lambda lane: [sys.executable, sys.argv[2], sys.argv[1], lane]
Supervisor(JobStore(Path(sys.argv[1])), command).run(threading.Event())
"""


def wait_for(condition, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError("the condition did not come true")


@pytest.fixture
def store(tmp_path: Path) -> jobs.JobStore:
    return jobs.JobStore(tmp_path / "jobs.sqlite")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "lane.py"
    path.write_text(textwrap.dedent(LANE))
    return path


@pytest.fixture
def stop(store: jobs.JobStore, script: Path) -> Iterator[threading.Event]:
    """A supervisor at work; setting the event ends it."""
    stop = threading.Event()
    worker = jobs.Supervisor(store, lambda lane: [sys.executable, str(script), str(store.path), lane])
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    yield stop
    stop.set()
    thread.join()
    assert not [child for child in psutil.Process().children() if str(script) in child.cmdline()]


def counting(marks: Path, total: int, pause: float = 0.1) -> dict:
    return {"marks": str(marks), "total": total, "pause": pause}


def words(marks: Path) -> list[str]:
    return marks.read_text().split() if marks.exists() else []


def test_a_process_that_is_killed_is_started_again_and_its_job_goes_on(store, stop, tmp_path):
    marks = tmp_path / "marks"
    job_id = store.submit("count", counting(marks, 8))
    pid = int(wait_for(lambda: words(marks)[1:])[0])
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: store.get(job_id).state == "done")
    assert store.get(job_id).attempt == 2
    assert len(words(marks)) == 8 and len(set(words(marks))) == 2


def test_a_job_that_does_not_answer_is_ended_and_the_lane_goes_on(store, stop, tmp_path):
    deaf = store.submit("deaf", {"marks": str(tmp_path / "pid")})
    behind = store.submit("count", counting(tmp_path / "marks", 1, 0))
    pid = int(wait_for(lambda: words(tmp_path / "pid"))[0])
    store.cancel(deaf)
    wait_for(lambda: store.get(deaf).state == "cancelled")
    assert not psutil.pid_exists(pid)
    assert "did not answer" in jobs.log_tail(jobs.log_path(store.path, deaf))[-1]
    wait_for(lambda: store.get(behind).state == "done")


def test_quick_work_runs_beside_a_training(store, stop, tmp_path):
    training = store.submit("train", counting(tmp_path / "training", 10_000))
    wait_for(lambda: words(tmp_path / "training"))
    quick = store.submit("count", counting(tmp_path / "quick", 2, 0))
    wait_for(lambda: store.get(quick).state == "done")
    assert store.get(training).state == "running"
    store.cancel(training)
    wait_for(lambda: store.get(training).state == "cancelled")


def test_a_worker_that_is_asked_to_stop_leaves_its_job_to_the_next_one(store, stop, tmp_path):
    job_id = store.submit("count", counting(tmp_path / "marks", 10_000))
    wait_for(lambda: words(tmp_path / "marks"))
    stop.set()
    wait_for(lambda: store.get(job_id).state == "queued")
    assert store.get(job_id).attempt == 0
    assert "the next one goes on" in jobs.log_tail(jobs.log_path(store.path, job_id))[-1]


def test_when_the_supervisor_is_killed_its_processes_end_and_the_next_one_goes_on(store, script, tmp_path):
    marks = tmp_path / "marks"
    job_id = store.submit("count", counting(marks, 10))
    command = [sys.executable, "-c", textwrap.dedent(WHOLE), str(store.path), str(script)]
    with subprocess.Popen(command) as first:
        wait_for(lambda: words(marks)[1:])
        first.kill()
    before = int(words(marks)[0])
    with subprocess.Popen(command) as second:
        wait_for(lambda: store.get(job_id).state == "done")
        second.terminate()
    assert before != int(words(marks)[-1])
    wait_for(lambda: not psutil.pid_exists(before))
    assert (len(words(marks)), store.get(job_id).attempt) == (10, 2)


def test_a_process_that_does_not_start_fails_its_jobs_with_the_reason(store, monkeypatch):
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.0)
    job_id = store.submit("count", {})
    stop = threading.Event()
    worker = jobs.Supervisor(store, lambda lane: [sys.executable, "-c", "raise SystemExit(3)"])
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    wait_for(lambda: store.get(job_id).state == "failed")
    stop.set()
    thread.join()
    assert "does not start (it ended with 3)" in store.get(job_id).message
    assert "logs/worker.log" in store.get(job_id).hint


def test_an_idle_worker_leaves_and_a_second_one_does_not_begin(store):
    assert jobs.Supervisor(store, lambda lane: [], idle_seconds=0.0).run(threading.Event())
    release = threading.Event()
    thread = threading.Thread(target=jobs.Supervisor(store, lambda lane: []).run, args=(release,))
    thread.start()
    wait_for(lambda: jobs.worker_alive(store))
    assert jobs.Supervisor(store, lambda lane: []).run(threading.Event()) is False
    release.set()
    thread.join()


def test_a_job_keeps_a_log_with_its_stages_and_the_traceback(store, caplog):
    def fail(request, progress):
        progress("prepare", 0, 1)
        progress("score", 0, 12)
        raise ZeroDivisionError("a defect")

    job_id = store.submit("predict", {"scene": "valley"})
    jobs.run_worker(store, {"predict": fail}, idle_seconds=0.0)
    lines = jobs.log_tail(jobs.log_path(store.path, job_id))
    text = "\n".join(lines)
    assert " UTC  INFO" in lines[0] and "{'scene': 'valley'}" in text and "score 0 of 12" in text
    assert "ZeroDivisionError: a defect" in lines[-1] and "Traceback" in text
    assert jobs.log_tail(jobs.log_path(store.path, job_id), 1) == lines[-1:]
    assert f"logs/jobs/{job_id}.log" in store.get(job_id).hint


def test_the_tail_of_a_long_log_begins_with_a_whole_line(tmp_path):
    path = tmp_path / "long.log"
    path.write_text("\n".join(f"line {number:06d}" for number in range(20_000)))
    tail = jobs.log_tail(path, 10_000)
    assert tail[-1] == "line 019999"
    assert all(len(line) == 11 for line in tail)
    assert jobs.log_tail(tmp_path / "none.log") == []
