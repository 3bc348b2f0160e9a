"""The worker as the app starts it, killed in the middle of an inference."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from mmcd import jobs
from mmcd.services.inference import PredictRequest, predict

from ..conftest import write_pair


def until(condition, seconds: float = 300.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError("the condition did not come true")


def _lane(worker: psutil.Process) -> psutil.Process | None:
    return next((child for child in worker.children() if "quick" in child.cmdline()), None)


def test_an_inference_whose_worker_was_killed_goes_on_from_its_last_finished_tile(
    card_path: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pre, post = write_pair(tmp_path, 0, (200, 700), 3, [])
    request = {"pre": str(pre), "post": str(post), "model": str(card_path), "tile": 512, "device": "cpu"}
    workspace.mkdir()
    store = jobs.open_store(workspace)
    job_id = store.submit("predict", request)
    jobs.ensure_worker(workspace)
    started = jobs._spawned.pop(workspace)
    try:
        journal = until(lambda: next(workspace.glob("runs/*/.unfinished/journal"), None))
        until(lambda: len(journal.read_text().splitlines()) > 1)
        killed = _lane(psutil.Process(started.pid))
        os.kill(killed.pid, signal.SIGKILL)
        until(lambda: not store.get(job_id).active)
    finally:
        started.terminate()
        started.wait(30)
    job = store.get(job_id)
    assert (job.state, job.attempt, job.total) == ("done", 2, 1), job.message
    log = "\n".join(jobs.log_tail(jobs.log_path(store.path, job_id), 200))
    assert log.count("score 0 of 2") == 1 and "score 1 of 2" in log
    whole = predict(PredictRequest.checked(**request, out=tmp_path / "whole"))
    stored = (Path(job.result["folder"]) / "score.tif").read_bytes()
    assert stored == (whole.folder / "score.tif").read_bytes()
