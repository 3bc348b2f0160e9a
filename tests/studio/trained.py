"""A workspace with trainings, written through MLflow itself, so that another version of its tables is noticed."""

from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from mmcd.services.tracking import STORE

BEGAN = 1_780_000_000_000
"""Start of the first run, milliseconds."""

HOUR = 3_600_000
SETTINGS = {
    "first": {"name": "first", "seed": "0", "data/source": "ombria", "data/root": "/data/ombria", "data/fold": "0"},
    "second": {"name": "second", "seed": "1", "data/source": "ombria", "data/root": "/data/ombria", "data/fold": "0"},
    "trunk": {"name": "trunk", "task": "pretrain", "seed": "0", "data/source": "seasonal"},
}


def write_trainings(workspace: Path) -> None:
    """Write three runs: ``first`` was resumed, ``second`` is silent, ``trunk`` failed; and an untracked folder."""
    folder = workspace / "training"
    folder.mkdir(parents=True)
    client = MlflowClient(f"sqlite:///{folder / STORE}")
    experiment = client.create_experiment("mmcd", artifact_location=(folder / "mlartifacts").as_uri())

    def run(name: str, number: int, steps: range, offset: float, state: str | None) -> None:
        start = BEGAN + number * HOUR
        made = client.create_run(experiment, start_time=start, run_name=name)
        figures = [
            Metric(key, value, start + step * 36_000, step)
            for step in steps
            for key, value in {
                "train/loss": offset + 1 / (1 + step),
                "val/ap": 0.5 + step / 1000,
                "monitor/layer1/mean": 0.1,
            }.items()
        ]
        settings = [Param(key, value) for key, value in SETTINGS[name].items()]
        client.log_batch(made.info.run_id, metrics=figures, params=settings)
        if state is not None:
            client.set_terminated(made.info.run_id, state, start + HOUR)

    run("first", 0, range(0, 60), 0.0, "FAILED")
    run("second", 1, range(0, 50), 0.5, None)
    run("trunk", 2, range(0, 3), 2.0, "FAILED")
    run("first", 3, range(40, 100), 0.1, "FINISHED")
    client._tracking_client.store.engine.dispose()
    for name in ("first", "second"):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(yaml.safe_dump({"name": name, "seed": 0}))
    (folder / "bare").mkdir()
    (folder / "bare" / "config.yaml").write_text("task: downstream\nname: bare\ndata: {source: eurosat}\n")
