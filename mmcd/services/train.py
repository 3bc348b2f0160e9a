"""Train a model as a configuration file says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mmcd.config import Config, read_yaml
from mmcd.errors import ConfigError
from mmcd.progress import Progress, silent

if TYPE_CHECKING:
    from mmcd.training.trainer import TrainedRun


class TrainRequest(Config):
    """What to train.

    Attributes:
        config: YAML file, see ``configs/``.
        overrides: Values over the file's, by dotted key (``trainer.epochs``).
        resume: Go on from the last checkpoint of the run of the same name.
        from_scratch: Begin with random weights where the configuration asks for pretrained ones.
    """

    config: Path
    overrides: dict[str, Any] = Field(default_factory=dict)
    resume: bool = False
    from_scratch: bool = False


@dataclass(frozen=True)
class TrainResult:
    """What a training run left.

    Attributes:
        folder: The run's folder: resolved configuration, checkpoints, logs, outputs of the held-out fold.
        weights: Trained weights, safetensors; none for a baseline that is not shipped.
        card: Their card; none for a baseline that is not shipped.
        metrics: Validation metrics of the weights and losses of the last epoch, by name.
    """

    folder: Path
    weights: Path | None
    card: Path | None
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        return {
            "folder": str(self.folder),
            "weights": str(self.weights) if self.weights else None,
            "card": str(self.card) if self.card else None,
            "metrics": self.metrics,
        }


def train(request: TrainRequest, progress: Progress = silent) -> TrainResult:
    """Train, validate and export; the run's folder is in the workspace under ``training``.

    Raises:
        ConfigError: The file is not a valid configuration, or the run exists and is not resumed; pretrained weights
            cannot be fetched.
        DataError: The data set is not there, has faults or is too small to split.
        ModelError: The network cannot be built, or its trunk is frozen and random.
        Cancelled: ``progress`` asked to stop; the run can be resumed.
    """
    task = read_yaml(request.config).get("task")
    if task is not None and task not in TASKS:
        known = ", ".join(f"`task: {name}`" for name in TASKS)
        raise ConfigError(
            f"{request.config}: there is no task {task!r}.", f"Write {known}, or none to train change as a mask."
        )
    run = (_train_change if task is None else TASKS[task])(request, progress)
    return TrainResult(run.folder, run.weights, run.card, run.metrics)


def _train_change(request: TrainRequest, progress: Progress) -> "TrainedRun":
    from mmcd.training.config import ChangeTraining
    from mmcd.training.trainer import run_training

    config = ChangeTraining.from_yaml(request.config, request.overrides)
    if request.from_scratch and config.model.pretrained == "none":
        raise ConfigError(f"{request.config} asks for no pretrained weights.", "Leave out --from-scratch.")
    if request.from_scratch:
        config = ChangeTraining.from_yaml(request.config, request.overrides | {"model.pretrained": "none"})
    return run_training(config, request.resume, progress)


def _train_patches(request: TrainRequest, progress: Progress) -> "TrainedRun":
    from mmcd.training.patch_config import PatchTraining
    from mmcd.training.patch_trainer import run_patch_training

    start = {"model.pretrained": "none"} if request.from_scratch else {}
    config = PatchTraining.from_yaml(request.config, request.overrides | start)
    return run_patch_training(config, request.resume, progress)


def _train_downstream(request: TrainRequest, progress: Progress) -> "TrainedRun":
    from mmcd.training.benchmarks import read_downstream
    from mmcd.training.downstream import run_downstream

    start = {"start.trunk": "random"} if request.from_scratch else {}
    benchmark, config = read_downstream(request.config, request.overrides | start)
    return run_downstream(benchmark, config, request.resume, progress)


def _train_pretraining(request: TrainRequest, progress: Progress) -> "TrainedRun":
    from mmcd.training.pretrain_config import PretrainTraining
    from mmcd.training.pretrainer import run_pretraining

    if request.from_scratch:
        raise ConfigError(f"{request.config} begins with random weights anyway.", "Leave out --from-scratch.")
    return run_pretraining(PretrainTraining.from_yaml(request.config, request.overrides), request.resume, progress)


TASKS: dict[str, Callable[[TrainRequest, Progress], "TrainedRun"]] = {
    "patches": _train_patches,
    "pretrain": _train_pretraining,
    "downstream": _train_downstream,
}
"""What a configuration's ``task`` may say, and what trains it; without one, change is trained as a mask."""
