"""Training as a job: what the worker does for the Training page, and how it goes on after an interruption."""

import math
from pathlib import Path
from typing import Any

from mmcd.config import read_yaml
from mmcd.errors import ConfigError
from mmcd.jobs import current_job
from mmcd.paths import workspace
from mmcd.progress import Progress
from mmcd.services.train import TrainRequest, train

OWNER = "job"
"""File in a run's folder with the id of the job that began it: only that job may go on with it unasked."""

_LAST = "last.ckpt"  # as in mmcd.training.runs, which takes seconds to import


def run_train(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Train as a `TrainRequest` says; a job that is taken up again goes on from the checkpoint that it left.

    Returns:
        ``run`` (name of the run), ``folder``, ``weights``, ``card`` and ``metrics`` as JSON values; a metric that is
        not a number is None.

    Raises:
        MmcdError: The configuration or the data is at fault, or the user stopped the job.
    """
    asked = TrainRequest.checked(**request)
    name = run_name(asked)
    result = train(_going_on(asked, name), progress).to_dict()
    metrics = {key: value if math.isfinite(value) else None for key, value in result["metrics"].items()}
    return {"run": name, **result, "metrics": metrics}


def run_name(request: TrainRequest) -> str:
    """Return the name of the run that a request trains.

    Raises:
        ConfigError: The file cannot be read, or names none.
    """
    name = request.overrides.get("name", read_yaml(request.config).get("name"))
    if not isinstance(name, str) or not name or Path(name).name != name or name == "..":
        raise ConfigError(f"{request.config}: `name` is missing or no file name.", "Write name: MY_RUN into it.")
    return name


def _going_on(request: TrainRequest, name: str) -> TrainRequest:
    """Resume what this job has begun; a run of anybody else is refused by the training itself."""
    job, folder = current_job(), workspace() / "training" / name
    if job is None or request.resume:
        return request
    owner, begun = folder / OWNER, (folder / _LAST).is_file()
    if begun and owner.is_file() and owner.read_text(encoding="utf-8") == job.id:
        return request.model_copy(update={"resume": True})
    if not begun:
        folder.mkdir(parents=True, exist_ok=True)
        owner.write_text(job.id, encoding="utf-8")
    return request
