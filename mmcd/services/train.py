"""Train a model as a configuration file says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mmcd.config import Config
from mmcd.progress import Progress, silent


class TrainRequest(Config):
    """What to train.

    Attributes:
        config: YAML file, see ``configs/``.
        overrides: Values over the file's, by dotted key (``trainer.epochs``).
        resume: Go on from the last checkpoint of the run of the same name.
    """

    config: Path
    overrides: dict[str, Any] = Field(default_factory=dict)
    resume: bool = False


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
        ConfigError: The file is not a valid configuration, or the run exists and is not resumed.
        DataError: The data set is not there or too small to split.
        Cancelled: ``progress`` asked to stop; the run can be resumed.
    """
    from mmcd.training.config import ChangeTraining
    from mmcd.training.trainer import run_training

    config = ChangeTraining.from_yaml(request.config, request.overrides)
    run = run_training(config, request.resume, progress)
    return TrainResult(run.folder, run.weights, run.card, run.metrics)
