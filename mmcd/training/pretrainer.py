"""Runs pretraining through Lightning: series, checkpoints, resume, several processes, and the trunk with its card."""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from mmcd.data.ombria_dates import OmbriaDates
from mmcd.data.seasonal import SeasonalSeries
from mmcd.data.seasonal_files import index_seasonal
from mmcd.data.seasonal_views import IMAGENET_MEAN, IMAGENET_STD
from mmcd.models.devices import choose_device, choose_precision
from mmcd.models.trunk_weights import numbered_to_torchvision, save_trunk
from mmcd.progress import Progress, silent
from mmcd.samplers import ChangeAwareSampler, PlaceBatchSampler, ResumableLoader
from mmcd.training.patch_trainer import WithinEpoch
from mmcd.training.pretrain_config import OmbriaSourceConfig, PretrainTraining
from mmcd.training.pretrain_task import PretrainTask
from mmcd.training.runs import LAST, Report, fit, make_loggers, refuse_other_settings, run_folder
from mmcd.training.trainer import TrainedRun
from mmcd.trunk_cards import Normalisation, TrunkCard

logger = logging.getLogger(__name__)

Series = SeasonalSeries | OmbriaDates

HISTORY, CHANGE = "history.csv", "change.csv"
_TOLD = 5
_PREFETCHED = 2
_FREE = (
    "trainer.epochs",
    "trainer.steps",
    "trainer.checkpoint_batches",
    "trainer.device",
    "trainer.loggers",
    "export",
    "data.root",
    "data.workers",
    "data.cache_bytes",
)
"""What may change when a run is resumed."""


def open_series(config: PretrainTraining, progress: Progress = silent) -> Series:
    """List the places of a run, or read them into memory; what is left out is told in the log.

    Raises:
        DataError: There is no such folder, or too few acquisitions in all its places.
        ConfigError: Bands or window do not fit.
    """
    data, method = config.data, config.method
    if isinstance(data, OmbriaSourceConfig):
        return OmbriaDates(data.root, method, window=data.window, seed=config.seed, progress=progress)
    index = index_seasonal(data.root, config.bands)
    series = SeasonalSeries(
        index, method, size=data.size, recent=data.recent, cache_bytes=data.cache_bytes, seed=config.seed
    )
    told = (*index.warnings, *series.warnings)
    for line in told[:_TOLD]:
        logger.warning(line)
    if len(told) > _TOLD:
        logger.warning("%d more acquisitions or places are left out.", len(told) - _TOLD)
    return series


def run_pretraining(config: PretrainTraining, resume: bool = False, progress: Progress = silent) -> TrainedRun:
    """Pretrain a trunk and save it with its card.

    Args:
        config: What to train.
        resume: Go on from the last checkpoint of the run of the same name, if need be in the middle of an epoch.
        progress: Called after every step.

    Raises:
        ConfigError: The run exists and is not resumed, or is resumed and does not exist or was begun otherwise; the
            queue is not a multiple of the batches.
        DataError: The series cannot be used, or lack a band of a group.
        Cancelled: ``progress`` asked to stop; the run can be resumed.
    """
    if resume:
        refuse_other_settings(config.name, config.model_dump(mode="json"), _FREE)
    folder = run_folder(config.name, config.to_yaml(), resume)
    L.seed_everything(config.seed, workers=True, verbose=False)
    series = open_series(config, progress)
    task = PretrainTask(config, series.bands, len(series.places))
    task.net.check_batch(config.data.batch_size * config.trainer.processes)
    loader = series_loader(series, config)
    if isinstance(loader.batch_sampler, ChangeAwareSampler):
        task.sampler = loader.batch_sampler
    trainer = _trainer(config, folder, progress)
    fit(trainer, task, loader, None, folder / LAST if resume else None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weights = folder / f"{config.name}.safetensors"
    if trainer.is_global_zero:
        _write_history(task.history, folder / HISTORY)
        if task.beliefs is not None:
            _write_change(task, series, folder / CHANGE)
        save_trunk(trunk_weights(task), trunk_card(config, series, task.history), weights, config.export.stored)
    return TrainedRun(folder, metrics, weights, weights.with_suffix(".toml"))


def trunk_weights(task: PretrainTask) -> dict[str, torch.Tensor]:
    """Return the query encoder's tensors under torchvision's names."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in task.net.encoder_q.state_dict().items()}
    return numbered_to_torchvision(state, task.config.trunk)


def trunk_card(config: PretrainTraining, series: Series, history: Sequence[Mapping[str, float]]) -> TrunkCard:
    """Return the card of a pretrained trunk."""
    export, source = config.export, config.data.source
    bands = tuple(next(iter(config.groups.bands.values()))) if config.grouped else tuple(series.bands)
    record = {"places": len(series.places), **config.record}
    if history:
        record["last_epoch"] = {name: round(value, 5) for name, value in history[-1].items()}
    return TrunkCard(
        name=config.name,
        version=export.version,
        title=export.title or f"{config.trunk} by {config.method} on {source}",
        description=export.description,
        trunk=config.trunk,
        method=config.method,
        bands=bands,
        normalisation=_normalisation(config, bands),
        training=record,
        licence=export.licence,
    )


def _normalisation(config: PretrainTraining, bands: Sequence[str]) -> Normalisation:
    """Return how an 8-bit image, reflectance times 255, becomes what the trunk saw."""
    count = len(bands)
    if config.grouped:
        words = "Reflectance in [0, 1] as it is; an 8-bit image is divided by 255. Any three bands may be shown."
        return Normalisation(
            lower=(0.0,) * count, upper=(255.0,) * count, mean=(0.0,) * count, std=(1.0,) * count, words=words
        )
    lower, upper = zip(*(config.data.stretch[band] for band in bands), strict=True)
    words = "Reflectance times 255, stretched by these limits, then ImageNet's mean and standard deviation."
    return Normalisation(lower=lower, upper=upper, mean=IMAGENET_MEAN, std=IMAGENET_STD, words=words)


def series_loader(series: Series, config: PretrainTraining) -> ResumableLoader:
    """Return full batches of different places, both halves of each side by side where the method needs them."""
    options = config.data
    common: dict[str, Any] = {"halves": series.draw.halves, "seed": config.seed}
    sampler = (
        PlaceBatchSampler(len(series.places), options.batch_size, **common)
        if options.change_aware is None
        else ChangeAwareSampler(len(series.places), options.batch_size, even=options.change_aware, **common)
    )
    many: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": _PREFETCHED} if options.workers else {}
    pinned = choose_device(config.trainer.device).type == "cuda"
    return ResumableLoader(series, batch_sampler=sampler, num_workers=options.workers, pin_memory=pinned, **many)


def _trainer(config: PretrainTraining, folder: Path, progress: Progress) -> L.Trainer:
    options = config.trainer
    device = choose_device(options.device)
    bf16 = choose_precision(options.precision, device) == torch.bfloat16
    always: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    # Queues are the same on every process already: sending those of the first one around would cost more than a step.
    many = DDPStrategy(broadcast_buffers=False, process_group_backend="nccl" if device.type == "cuda" else "gloo")
    return L.Trainer(
        accelerator=device.type,
        devices=options.devices,
        num_nodes=options.nodes,
        strategy=many if options.processes > 1 else "auto",
        use_distributed_sampler=False,
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=options.epochs if options.steps is None else -1,
        max_steps=-1 if options.steps is None else options.steps,
        logger=make_loggers(options.loggers, folder, config.model_dump(mode="json", exclude={"export"})),
        callbacks=[
            ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, **always),
            WithinEpoch(options.checkpoint_batches, folder / LAST),
            Report(progress),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
    )


def _write_history(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write the figures of all epochs as a table; an epoch without a fit of change has none of its figures."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(history)


def _write_change(task: PretrainTask, series: Series, path: Path) -> None:
    """Write what CACo believes of every half of every place: distances, their ratio, and the label."""
    if task.beliefs is None:
        return
    running, labels = task.beliefs.running.cpu().tolist(), task.beliefs.labels.cpu().tolist()
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("location", "half", "d_long", "d_short", "ratio", "label"))
        names = [place.id for place in series.places]
        for name, halves, found in zip(names, running, labels, strict=True):
            for half, (values, label) in enumerate(zip(halves, found, strict=True)):
                table.writerow((name, ("older", "recent")[half], *(f"{value:.5f}" for value in values), label))
