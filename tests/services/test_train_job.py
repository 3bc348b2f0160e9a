"""Training as a job: a run that a worker left goes on, somebody else's run is not touched."""

import json
import threading
from pathlib import Path

import pytest
import torch
import yaml

from mmcd import jobs
from mmcd.errors import ConfigError
from mmcd.services import train_job
from mmcd.services.train import TrainRequest, TrainResult
from mmcd.services.train_job import run_name, run_train
from mmcd.services.worker import HANDLERS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def request_of_job(floods: Path, workspace: Path, tmp_path: Path) -> dict:
    """Return the request of a job: the shipped configuration made tiny."""
    torch.set_num_threads(1)
    values = yaml.safe_load((CONFIGS / "flood-s2s1.yaml").read_text())
    values |= {"name": "tiny", "augment": {"crop": 32}}
    values["data"] |= {"root": str(floods), "folds": 3, "batch_size": 4}
    values["model"]["settings"] = {"width": 16, "embedding_dim": 8}
    values["trainer"] = {"epochs": 2, "device": "cpu", "precision": "fp32", "loggers": []}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    workspace.mkdir()
    return TrainRequest(config=path).model_dump(mode="json")


def test_a_training_that_was_left_goes_on_and_one_of_another_job_is_refused(
    workspace: Path, request_of_job: dict
) -> None:
    store, stop, steps = jobs.open_store(workspace), threading.Event(), []

    def watched(request, progress):
        def step(stage, done, total):
            steps.append(done)
            if done == 3 and len(steps) == 3:
                stop.set()
            progress(stage, done, total)

        return run_train(request, step)

    first = store.submit("train", request_of_job)
    assert store.get(first).lane == "long"
    jobs.run_worker(store, {"train": watched}, stop=stop)
    assert (store.get(first).state, steps) == ("queued", [1, 2, 3])
    jobs.run_worker(store, {"train": watched}, idle_seconds=0.0)
    job = store.get(first)
    assert (job.state, job.result["run"], job.done, job.total) == ("done", "tiny", 4, 4), job.message
    assert steps[3:] == [3, 4]  # the second epoch once more, not the first
    assert Path(job.result["card"]).is_file()

    checkpoint = workspace / "training" / "tiny" / "last.ckpt"
    kept = checkpoint.stat().st_mtime_ns
    other = store.submit("train", request_of_job)
    for _ in range(2):  # a retry is no reason to go on with the run of another job
        jobs.run_worker(store, HANDLERS, idle_seconds=0.0)
        assert "'tiny' exists" in store.get(other).message
        store.retry(other)
    assert checkpoint.stat().st_mtime_ns == kept


def test_a_metric_that_is_no_number_is_none(request_of_job: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    result = TrainResult(Path("run"), None, None, {"val/ap": float("nan"), "train/loss": 0.5})
    monkeypatch.setattr(train_job, "train", lambda request, progress: result)
    made = run_train(request_of_job, lambda *step: None)
    assert made["metrics"] == {"val/ap": None, "train/loss": 0.5}
    json.dumps(made, allow_nan=False)


def test_the_name_of_a_run_comes_from_the_overrides_or_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: in-the-file")
    assert run_name(TrainRequest(config=path)) == "in-the-file"
    assert run_name(TrainRequest(config=path, overrides={"name": "over"})) == "over"
    for wrong in ("../away", "..", "", 3, None):
        with pytest.raises(ConfigError, match="`name`"):
            run_name(TrainRequest(config=path, overrides={"name": wrong}))
