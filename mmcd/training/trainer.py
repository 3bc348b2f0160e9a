"""Runs a training job through Lightning: data, folds, loggers, checkpoints, resume, and the weights with their card."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from mmcd.data.base import PairDataset, Sample
from mmcd.data.bright_pairs import BrightCrops, BrightPairs
from mmcd.data.ombria import Ombria
from mmcd.data.simulated import Simulated
from mmcd.data.transforms import mirrored
from mmcd.errors import ConfigError, DataError
from mmcd.models import zoo
from mmcd.models.devices import choose_device, choose_precision
from mmcd.models.siamese import SiameseOutput
from mmcd.progress import Progress, silent
from mmcd.samplers import GroupBatchSampler
from mmcd.training.config import BrightDataConfig, ChangeTraining, SimulatedDataConfig
from mmcd.training.release import write_card_of
from mmcd.training.runs import LAST, Report, Stop, fit, make_loggers, run_folder
from mmcd.training.steps import StepBatches
from mmcd.training.tasks import ChangeTask, graded, logit_of
from mmcd.training.validation import Outputs, grouped_folds

logger = logging.getLogger(__name__)

MONITOR = "val/ap_shift"
CLASS_MONITOR = "val/miou"
"""What chooses the best weights of a run that is validated by its classes."""

MARGIN = 128
"""Pixels of mirrored context around a tile: the halo that inference gives every block."""


@dataclass(frozen=True)
class Split:
    """A data set and which of its samples train and validate.

    Attributes:
        dataset: All samples.
        training: Indices of the training samples.
        held_out: Indices of the validation fold; empty when everything trains.
        share: Share of change of the data; validation is weighted to parts of it.
        calibrating: Indices of the validation samples that calibrate the card; None for all.
    """

    dataset: PairDataset
    training: NDArray[np.intp]
    held_out: NDArray[np.intp]
    share: float
    calibrating: NDArray[np.intp] | None = None


@dataclass(frozen=True)
class TrainedRun:
    """What a finished run leaves.

    Attributes:
        folder: The run's folder: resolved configuration, checkpoints, logs, outputs.
        metrics: Last logged training losses and the validation metrics of the best epoch.
        weights: Exported weights; none for a baseline without a card.
        card: Their card.
    """

    folder: Path
    metrics: dict[str, float]
    weights: Path | None
    card: Path | None


def open_split(config: ChangeTraining, progress: Progress = silent) -> Split:
    """Open the data set and hold out the fold or the scenes of the configuration.

    Args:
        config: The run's configuration.
        progress: Told of the scenes that are simulated or checked; may raise to stop.

    Raises:
        DataError: The data set is not there or too small to split.
        ConfigError: There is no such fold.
    """
    options = config.data
    if isinstance(options, SimulatedDataConfig):
        simulated = Simulated(options.scenes, progress)
        natural = float(simulated.changed_share[simulated.validation].mean())
        return Split(simulated, simulated.training, simulated.validation, natural)
    if isinstance(options, BrightDataConfig):
        return _bright_split(options, progress)
    dataset = Ombria(options.root, options.event, (config.pre, config.post))
    everything, share = np.arange(len(dataset)), float(dataset.changed_share.mean())
    if options.fold is None:
        return Split(dataset, everything, everything[:0], share)
    if options.fold >= options.folds:
        raise ConfigError(
            f"Fold {options.fold} of {options.folds} does not exist.", "Folds are counted from 0: --set data.fold=0."
        )
    held_out = grouped_folds(dataset.groups, dataset.changed_share, options.folds)[options.fold]
    return Split(dataset, np.setdiff1d(everything, held_out), held_out, share)


def _bright_split(options: BrightDataConfig, progress: Progress) -> Split:
    """Open BRIGHT's train and val tiles.

    Raises:
        DataError: A list or a tile cannot be used, or no tile that calibrates the card shows damage.
    """
    pairs = BrightPairs(options, progress)
    for line in pairs.warnings:
        logger.warning(line)
    step = -(-len(pairs.validation) // options.calibration_tiles)
    calibrating = pairs.validation[::step]
    share = float(pairs.shares(calibrating).mean())
    if not share:
        raise DataError(
            f"None of the {len(calibrating):,} val tiles that would calibrate the model shows damage.",
            "Give a val list with damaged or destroyed buildings, or more of it: --set data.calibration_tiles=N.",
        )
    return Split(pairs, pairs.training, pairs.validation, share, calibrating)


def run_training(config: ChangeTraining, resume: bool = False, progress: Progress = silent) -> TrainedRun:
    """Train, keep the checkpoint that is asked for, write its outputs on the fold and export weights with a card.

    Args:
        config: What to train.
        resume: Go on from the last checkpoint of the run of the same name.
        progress: Called after every step.

    Raises:
        ConfigError: The run exists and is not resumed, or is resumed and does not exist.
        Cancelled: ``progress`` asked to stop; the run can be resumed.
    """
    folder = run_folder(config.name, config.to_yaml(), resume)
    L.seed_everything(config.seed, workers=True, verbose=False)
    split = open_split(config, progress)
    task = ChangeTask(config, split.share)
    last = folder / LAST
    trainer = _trainer(config, folder, len(split.held_out) > 0, progress)
    _fit(trainer, task, split, last if resume else None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    kept = last if config.trainer.keep == "last" or not len(split.held_out) else folder / "best.ckpt"
    stored = torch.load(kept, map_location="cpu", weights_only=False)
    task.load_state_dict(stored["state_dict"])
    return _finish(config, folder, task, split, metrics)


def _fit(trainer: L.Trainer, task: ChangeTask, split: Split, checkpoint: Path | None) -> None:
    config = task.config
    fit(
        trainer,
        task,
        _training_loader(split, config),
        _plain_loader(split.dataset, split.held_out, config) if len(split.held_out) else None,
        checkpoint,
    )


def predict(task: ChangeTask, dataset: PairDataset, indices: NDArray[np.intp], config: ChangeTraining) -> Outputs:
    """Return a trained task's raw outputs over some samples, in the run's own arithmetic.

    Tiles are continued by their mirror image, as inference continues a scene, because calibration has to fit that.
    """
    device = choose_device(config.trainer.device)
    dtype = choose_precision(config.trainer.precision, device)
    task = task.eval().to(device)
    logits, distances, changed = [], [], []
    for batch in _plain_loader(dataset, indices, config):
        moved: Any = {name: torch.as_tensor(values).to(device) for name, values in mirrored(batch, MARGIN).items()}
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = task(moved)
        logits.append(_inner(logit_of(output)))
        far = output.distance if isinstance(output, SiameseOutput) else torch.zeros_like(logit_of(output))
        distances.append(_inner(far))
        changed.append(task.changed(batch).numpy())
    return Outputs(
        tuple(dataset.ids[index] for index in indices),
        tuple(dataset.groups[index] for index in indices),
        np.concatenate(logits),
        np.concatenate(distances),
        np.concatenate(changed),
    )


def _inner(values: torch.Tensor) -> NDArray[np.float16]:
    """Return maps of shape (B, 1, H + 2 margin, W + 2 margin) without their margin, shape (B, H, W)."""
    return values[:, 0, MARGIN:-MARGIN, MARGIN:-MARGIN].cpu().numpy().astype(np.float16)


def _training_loader(split: Split, config: ChangeTraining) -> "DataLoader[Sample]":
    groups = [split.dataset.groups[index] for index in split.training]
    sampler: Any = GroupBatchSampler(groups, config.data.batch_size, config.data.group_power, config.seed)
    subset: Any = Subset(split.dataset, split.training.tolist())  # type: ignore[arg-type]
    cropped = isinstance(split.dataset, BrightPairs)
    if isinstance(split.dataset, BrightPairs):
        subset = BrightCrops(split.dataset, split.training, config.seed)
    _, steps = config.trainer.lengths
    if steps or cropped:
        sampler = StepBatches(sampler, steps or len(sampler), len(subset) if cropped else 0)
    return DataLoader(subset, batch_sampler=sampler, num_workers=config.data.workers)


def _plain_loader(dataset: PairDataset, indices: NDArray[np.intp], config: ChangeTraining) -> "DataLoader[Sample]":
    subset: Any = Subset(dataset, indices.tolist())  # type: ignore[arg-type]
    return DataLoader(subset, batch_size=config.data.validation_batch, num_workers=config.data.workers)


def _trainer(config: ChangeTraining, folder: Path, validates: bool, progress: Progress) -> L.Trainer:
    device = choose_device(config.trainer.device)
    bf16 = choose_precision(config.trainer.precision, device) == torch.bfloat16
    # The last epoch has a checkpoint of its own: Lightning's save_last only follows the best one. It is written after
    # the best one, because it holds what a resumed run knows of it.
    epochs, _ = config.trainer.lengths
    monitor = CLASS_MONITOR if graded(config) else MONITOR
    always: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    checkpoints = [ModelCheckpoint(filename="last", **always)]
    if validates:
        checkpoints.insert(0, ModelCheckpoint(filename="best", monitor=monitor, mode="max", **always))
    return L.Trainer(
        accelerator=device.type,
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=epochs,
        gradient_clip_val=config.optimiser.clip,
        logger=make_loggers(config.trainer.loggers, folder, config.model_dump(mode="json", exclude={"export"})),
        callbacks=[
            EMAWeightAveraging(decay=config.optimiser.ema),
            *checkpoints,
            Report(progress),
            Stop(config.trainer.stop_after or epochs),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def _finish(
    config: ChangeTraining, folder: Path, task: ChangeTask, split: Split, metrics: dict[str, float]
) -> TrainedRun:
    """Write the outputs of the held-out fold, or of what calibrates of it, and export the weights."""
    outputs = None
    if len(split.held_out):
        chosen = split.held_out if split.calibrating is None else split.calibrating
        outputs = predict(task, split.dataset, chosen, config)
        outputs.save(folder / "held_out.npz")
    weights = folder / f"{config.name}.safetensors"
    sha256 = zoo.save(task.model, weights)
    if config.export is None:
        return TrainedRun(folder, metrics, weights, None)
    card = write_card_of(config, config.export, weights, sha256, outputs, task.training_share)
    return TrainedRun(folder, metrics, weights, card)
