"""What every training run has, whatever it trains: a folder, loggers, reports, a clean end when it is interrupted."""

import logging
import signal
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from mmcd.config import read_yaml
from mmcd.errors import Cancelled, ConfigError
from mmcd.locks import turn
from mmcd.paths import workspace
from mmcd.progress import Progress

logger = logging.getLogger(__name__)

LoggerName = Literal["tensorboard", "mlflow"]
"""Where losses and metrics are written."""

STORE_SECONDS = 300
"""How long a training waits for another one that is creating their store, which takes some seconds."""

CONFIG = "config.yaml"
"""The whole configuration of a run, in its folder."""

LAST = "last.ckpt"
"""Checkpoint that a run is resumed from."""


_WANTED_ALL_THE_SAME = (
    r"Found \d+ module\(s\) in eval mode",  # a frozen trunk is
    r"You defined a `validation_step` but have no `val_dataloader`",  # everything trains
    r"Checkpoint directory .* exists and is not empty",  # it holds the run's configuration
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
)
"""Beginnings of warnings that tell a user nothing to do."""


def run_folder(name: str, resolved: str, resume: bool) -> Path:
    """Return the folder of a run in the workspace, with its configuration written.

    Args:
        name: Name of the run.
        resolved: The whole configuration as YAML.
        resume: Whether the run has to exist; else it must not.

    Raises:
        ConfigError: It exists and is not resumed, or is resumed and does not exist.
    """
    folder = workspace() / "training" / name
    exists = (folder / LAST).is_file()
    if resume and not exists:
        raise ConfigError(f"There is no run {name!r} to resume in {folder.parent}.", "Start it without --resume.")
    if exists and not resume:
        raise ConfigError(f"The run {name!r} exists in {folder.parent}.", "Use --resume, or --set name=ANOTHER_NAME.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(resolved)
    return folder


def refuse_other_settings(name: str, settings: Mapping[str, Any], free: Collection[str]) -> None:
    """Refuse to resume a run with settings that its checkpoint would overrule, or that its card would tell wrongly.

    Args:
        name: Name of the run; nothing is compared where there is none.
        settings: The configuration that is asked for, as plain values.
        free: Dotted keys that may change, with all below them.

    Raises:
        ConfigError: A setting is not the run's.
    """
    path = workspace() / "training" / name / CONFIG
    if not path.is_file():
        return
    begun, asked = (dict(_dotted(values)) for values in (read_yaml(path), settings))
    for key in sorted(begun.keys() | asked.keys()):
        was, now = begun.get(key), asked.get(key)
        if was != now and not any(f"{key}.".startswith(f"{each}.") for each in free):
            raise ConfigError(
                f"The run {name!r} was begun with {key} {was}, which is now {now}.",
                "Resume it with the options it was begun with, or start another one with --set name=ANOTHER_NAME.",
            )


def _dotted(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def fit(
    trainer: L.Trainer, task: L.LightningModule, training: Iterable[Any], validation: Any, checkpoint: Path | None
) -> None:
    """Train, from a checkpoint if one is given.

    Raises:
        Cancelled: Ctrl-C; the run can be resumed from its last checkpoint, where there is one.
    """
    quiet_lightning()
    try:
        with warnings.catch_warnings():
            for words in _WANTED_ALL_THE_SAME:
                warnings.filterwarnings("ignore", words)
            trainer.fit(
                task,
                train_dataloaders=training,
                val_dataloaders=validation,
                ckpt_path=checkpoint,
                weights_only=False,
            )
    except SystemExit as stop:
        # Lightning answers Ctrl-C with an exit of its own and leaves the signal switched off.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kept = [each.dirpath for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        begun = any(folder and (Path(folder) / LAST).is_file() for folder in kept)
        raise Cancelled(
            "The training was interrupted." if begun else "The training was interrupted before its first checkpoint.",
            "Go on with --resume." if begun else "Start it again without --resume.",
        ) from stop


def quiet_lightning() -> None:
    """Keep Lightning's hints off the terminal, where they would tear the progress bar; call it before a trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def make_loggers(names: Sequence[LoggerName], folder: Path, hyperparameters: dict[str, Any]) -> list[Logger]:
    """Return the loggers of a run, told of its configuration.

    Args:
        names: Which.
        folder: Folder of the run, named as the run; runs beside it share one MLflow store.
        hyperparameters: The configuration as plain values.

    Raises:
        StorageError: Another training is still creating the store.
    """
    made: list[Logger] = []
    if "tensorboard" in names:
        made.append(TensorBoardLogger(folder.parent, name=folder.name, version="tensorboard"))
    if "mlflow" in names:
        made.append(_mlflow(folder.name, folder.parent))
    for each in made:
        each.log_hyperparams(hyperparameters)
    return made


def _mlflow(name: str, folder: Path) -> MLFlowLogger:
    """Begin a run in the MLflow store of a folder, which is created when missing.

    Raises:
        StorageError: Another training is still creating it.
    """
    store, artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlartifacts").as_uri()
    # Two that create it at one moment collide in its tables and migrations, and then in its experiment.
    with turn(folder / "mlflow.lock", STORE_SECONDS):
        made = MLFlowLogger("mmcd", run_name=name, tracking_uri=store, artifact_location=artifacts)
        made.experiment  # noqa: B018 - asking for it makes experiment and run
    return made


class Report(Callback):  # type: ignore[misc]
    """Reports every step, and writes the epoch's figures to the log."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Tell the progress of a step."""
        self._progress("train", trainer.global_step, int(trainer.estimated_stepping_batches))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log the figures of an epoch."""
        figures = {name: f"{float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items())}
        logger.info("epoch %d: %s", trainer.current_epoch, figures)


class Stop(Callback):
    """Ends training after an epoch, however long the schedule of the learning rate is."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Ask to stop after the last epoch."""
        trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= self._epochs
