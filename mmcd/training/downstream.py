"""What all downstream tasks of pretrained trunks share: configuration, the loop over seeds, training and its folder.

A task is a function of configuration, seed and place that trains what follows the trunk on the train part and returns
its figures on the test part. It is registered by one line of `mmcd.training.benchmarks.BENCHMARKS`.
"""

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from mmcd.config import Config
from mmcd.models.devices import Device, Precision, choose_device, choose_precision
from mmcd.progress import Progress, silent
from mmcd.training.runs import (
    LAST,
    LoggerName,
    Report,
    fit,
    make_loggers,
    quiet_lightning,
    refuse_other_settings,
    run_folder,
)
from mmcd.training.trainer import TrainedRun
from mmcd.training.trunk_start import TrunkStart, trunk_words

BEST = "best"
RESULT = "result.json"
"""Figures of a run's test part, in its folder."""

_FREE = ("data.root", "data.workers", "trainer.device", "trainer.loggers", "start.seeds")
"""What may change when a run is resumed."""


class DownstreamOptimiser(Config):
    """How the weights move.

    Attributes:
        name: Adam or AdamW.
        lr: Learning rate.
        weight_decay: Weight decay.
        schedule: The rate stays, is multiplied by ``gamma`` at each of ``milestones``, or after every epoch.
        milestones: Epochs of ``multistep``.
        gamma: What the rate is multiplied by.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "multistep", "exponential"] = "constant"
    milestones: tuple[int, ...] = (60, 80)
    gamma: float = Field(default=0.1, gt=0, le=1)


class DownstreamTrainer(Config):
    """How long and on what to train.

    Attributes:
        epochs: Passes over the train part.
        batch_size: Samples of a batch.
        keep: Which epoch's weights are measured: the last one's, or those that did best on the validation part. The
            test part never chooses.
        device: Device to run on.
        precision: Arithmetic; ``auto`` is bf16 where the device has it.
        loggers: Where losses and metrics of ``mmcd train start`` are written.
    """

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=32, ge=1)
    keep: Literal["last", "best"] = "last"
    device: Device = "auto"
    precision: Precision = "fp32"
    loggers: tuple[LoggerName, ...] = ("tensorboard", "mlflow")


class DownstreamData(Config):
    """What the data of every task say; each task adds its own options.

    Attributes:
        source: Name of the data set, which chooses the task; a `Literal` in the task's own class.
        root: Its folder.
        workers: Loader processes.
    """

    source: str
    root: Path
    workers: int = Field(default=0, ge=0)


class DownstreamConfig(Config):
    """One downstream task; each has a class of its own, with its own ``data`` and other defaults.

    Attributes:
        task: Tells this configuration from others.
        name: Name of the run and of its folder in the workspace.
        data: Data set; ``data.source`` chooses the task.
        start: Trunk.
        optimiser: Optimiser.
        trainer: Duration and device.
    """

    task: Literal["downstream"] = "downstream"
    name: str = Field(default="downstream", pattern=r"^[\w.-]+$")
    data: DownstreamData
    start: TrunkStart = TrunkStart()
    optimiser: DownstreamOptimiser = DownstreamOptimiser()
    trainer: DownstreamTrainer = DownstreamTrainer()

    @model_validator(mode="after")
    def _run_of_its_own(self) -> Self:
        if self.name in (".", ".."):
            raise ValueError("name must be that of a folder")
        return self


@dataclass(frozen=True)
class RunPlace:
    """Where one training of a task lives.

    Attributes:
        folder: Gets checkpoints and logs.
        loggers: Where losses and metrics are written; none while ``mmcd evaluate`` measures.
        resume: Go on from the last checkpoint in the folder.
        progress: Called after every step.
    """

    folder: Path
    loggers: tuple[LoggerName, ...] = ()
    resume: bool = False
    progress: Progress = silent


@dataclass(frozen=True)
class Outcome:
    """What one training of a task gave.

    Attributes:
        figures: Figures of the test part by name, averaged over seeds.
        weights: What was learned, by name; with the trunk only if it was fine-tuned.
        samples: How many samples each part has, by its name.
        unit: What is counted and how it was split, for people.
        details: What is not averaged, such as a confusion matrix; JSON values.
        warnings: What the figures do not say.
    """

    figures: Mapping[str, float]
    weights: Mapping[str, Tensor]
    samples: Mapping[str, int]
    unit: str
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


C = TypeVar("C", bound=DownstreamConfig)
_C = TypeVar("_C", bound=DownstreamConfig, contravariant=True)


class DownstreamRun(Protocol[_C]):
    """Trains what follows a trunk on the train part, once, and measures it on the test part."""

    def __call__(self, config: _C, seed: int, place: RunPlace) -> Outcome:
        """Return figures and weights; everything random depends on ``seed``."""
        ...


@dataclass(frozen=True)
class Benchmark(Generic[C]):
    """A registered task.

    Attributes:
        title: What is measured, for people.
        config: Its configuration; every default is the published protocol.
        run: Trains and measures it once.
    """

    title: str
    config: type[C]
    run: DownstreamRun[C]


def run_seeds(
    benchmark: Benchmark[C], config: C, seeds: Sequence[int], progress: Progress = silent
) -> tuple[list[dict[str, Any]], list[Outcome]]:
    """Train and measure a task once a seed; nothing is kept but the figures.

    Returns:
        A row of figures for each seed and two more, ``mean`` and ``sd`` (of the sample; none with one seed), each with
        its name under ``seed``; and what each seed gave.

    Raises:
        MmcdError: What the task raises.
    """
    outcomes = []
    for number, seed in enumerate(seeds):
        progress(f"seed {seed}", number, len(seeds))

        def told(stage: str, done: int, total: int, seed: int = seed) -> None:
            progress(f"seed {seed}: {stage}", done, total)

        with tempfile.TemporaryDirectory(prefix="mmcd-") as folder:
            outcomes.append(benchmark.run(config, seed, RunPlace(Path(folder), progress=told)))
    rows = [{"seed": seed, **outcome.figures} for seed, outcome in zip(seeds, outcomes, strict=True)]
    return [*rows, *summarise([outcome.figures for outcome in outcomes])], outcomes


def summarise(figures: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return the rows ``mean`` and ``sd`` of figures that every seed has; NaN is passed over."""
    columns = {name: [row[name] for row in figures if not math.isnan(row[name])] for name in figures[0]}
    mean = {name: statistics.fmean(values) if values else math.nan for name, values in columns.items()}
    spread = {name: statistics.stdev(values) if len(values) > 1 else math.nan for name, values in columns.items()}
    return [{"seed": "mean", **mean}, {"seed": "sd", **spread}]


def run_downstream(benchmark: Benchmark[C], config: C, resume: bool = False, progress: Progress = silent) -> TrainedRun:
    """Train a task with its first seed and keep the weights, the logs and the figures in the run's folder.

    Raises:
        ConfigError: The run exists and is not resumed, or is resumed and does not exist or was begun otherwise.
        Cancelled: ``progress`` asked to stop; the run can be resumed.
        MmcdError: What the task raises.
    """
    if resume:
        refuse_other_settings(config.name, config.model_dump(mode="json"), _FREE)
    folder = run_folder(config.name, config.to_yaml(), resume)
    seed = config.start.seeds[0]
    outcome = benchmark.run(config, seed, RunPlace(folder, config.trainer.loggers, resume, progress))
    weights = folder / f"{config.name}.safetensors"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in outcome.weights.items()}, weights)
    said = {"seed": seed, **trunk_words(config.start), "unit": outcome.unit, "samples": dict(outcome.samples)}
    figures = {name: value for name, value in outcome.figures.items() if not math.isnan(value)}
    told = said | {"figures": figures, "details": dict(outcome.details), "warnings": list(outcome.warnings)}
    (folder / RESULT).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return TrainedRun(folder, figures, weights, None)


def fit_downstream(
    task: L.LightningModule,
    training: Iterable[Any],
    validation: Any,
    config: DownstreamConfig,
    place: RunPlace,
    monitor: tuple[str, Literal["min", "max"]] = ("val/loss", "min"),
) -> None:
    """Train a task and leave the weights in it that are to be measured.

    Args:
        task: What learns; its state dict is checkpointed every epoch, so keep a frozen trunk out of it.
        training: Batches of the train part.
        validation: Batches of the validation part, None where there is none.
        config: How long, on what, and which epoch's weights are measured.
        place: Folder, loggers, resume.
        monitor: Logged figure that chooses the best epoch, and whether less or more of it is better.

    Raises:
        Cancelled: Ctrl-C; the run can be resumed from its last checkpoint, where there is one.
    """
    best = config.trainer.keep == "best" and validation is not None
    trainer = _trainer(config, place, monitor if best else None)
    fit(trainer, task, training, validation, place.folder / LAST if place.resume else None)
    if best:
        stored = torch.load(place.folder / f"{BEST}.ckpt", map_location="cpu", weights_only=False)
        task.load_state_dict(stored["state_dict"])


def _trainer(config: DownstreamConfig, place: RunPlace, monitor: tuple[str, Literal["min", "max"]] | None) -> L.Trainer:
    device = choose_device(config.trainer.device)
    bf16 = choose_precision(config.trainer.precision, device) == torch.bfloat16
    always: dict[str, Any] = {"dirpath": place.folder, "enable_version_counter": False}
    callbacks: list[Callback] = [Report(place.progress)]
    if monitor is not None:
        callbacks.append(ModelCheckpoint(filename=BEST, monitor=monitor[0], mode=monitor[1], **always))
    # Written after the best one, because it holds what a resumed run knows of it.
    callbacks.append(ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, **always))
    quiet_lightning()
    return L.Trainer(
        accelerator=device.type,
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=config.trainer.epochs,
        logger=make_loggers(place.loggers, place.folder, config.model_dump(mode="json")) or False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def make_optimiser(options: DownstreamOptimiser, parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """Return optimiser and schedule as a Lightning module's ``configure_optimizers`` has to."""
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    optimiser = kind(learning, lr=options.lr, weight_decay=options.weight_decay)
    if options.schedule == "constant":
        return {"optimizer": optimiser}
    if options.schedule == "exponential":
        return {
            "optimizer": optimiser,
            "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimiser, options.gamma),
        }
    steps = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(options.milestones), options.gamma)
    return {"optimizer": optimiser, "lr_scheduler": steps}
