"""Runs a training job through Lightning: data, folds, loggers, checkpoints, resume, and the weights with their card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset

from mmcd.data.base import PairDataset, Sample
from mmcd.data.bright_pairs import BrightCrops, BrightPairs
from mmcd.data.transforms import mirrored
from mmcd.models import zoo
from mmcd.models.checkpoints import read_plain
from mmcd.models.devices import choose_device, choose_precision
from mmcd.models.fusion_unet import FusionUNet, load_reference, refuse_random_trunk
from mmcd.models.pretrained import fetch_imagenet
from mmcd.models.siamese import SiameseOutput
from mmcd.progress import Progress, silent
from mmcd.samplers import GroupBatchSampler
from mmcd.training.config import ChangeTraining
from mmcd.training.feature_cache import cache_features
from mmcd.training.panels import Panels, keep_artifacts
from mmcd.training.release import write_card_of
from mmcd.training.runs import (
    LAST,
    Report,
    Stop,
    fit,
    make_loggers,
    quiet_lightning,
    refuse_other_settings,
    run_folder,
)
from mmcd.training.splits import Split, open_split
from mmcd.training.steps import StepBatches
from mmcd.training.tasks import VALIDATED, ChangeTask, graded, logit_of, overlapping
from mmcd.training.trunk_init import init_record, start_from_trunks
from mmcd.training.validation import Outputs

MONITOR = "val/ap_shift"
CLASS_MONITOR = "val/miou"
"""What chooses the best weights of a run that is validated by its classes."""

LOSS_MONITOR = "val/loss"
"""What chooses the best weights of a run that is validated by its loss, and stops one early: the lowest."""

_FREE = ("trainer", "export", "data.root", "data.workers")
"""What may change when a run is resumed."""

MARGIN = 128
"""Pixels of mirrored context around a tile: the halo that inference gives every block."""


@dataclass(frozen=True)
class TrainedRun:
    """What a finished run leaves.

    Attributes:
        folder: The run's folder: resolved configuration, checkpoints, logs, outputs.
        metrics: Training losses and figures of the last epoch, and the validation metrics of the weights that are kept.
        weights: Exported weights; none for a baseline without a card.
        card: Their card.
    """

    folder: Path
    metrics: dict[str, float]
    weights: Path | None
    card: Path | None


def run_training(config: ChangeTraining, resume: bool = False, progress: Progress = silent) -> TrainedRun:
    """Train, keep the checkpoint that is asked for, write its outputs on the fold and export weights with a card.

    Args:
        config: What to train.
        resume: Go on from the last checkpoint of the run of the same name.
        progress: Called after every step.

    Raises:
        ConfigError: The run exists and is not resumed, or is resumed and does not exist or was begun otherwise; weights
            cannot be fetched.
        ModelError: The trunk is frozen and random.
        Cancelled: ``progress`` asked to stop; the run can be resumed.
    """
    if resume:
        refuse_other_settings(config.name, config.model_dump(mode="json"), _FREE)
    folder = run_folder(config.name, config.to_yaml(), resume)
    L.seed_everything(config.seed, workers=True, verbose=False)
    split = open_split(config, progress)
    task = ChangeTask(config, split.share)
    last = folder / LAST
    if not resume:
        if config.model.init is not None:
            start_from_trunks(task.model, config.model.init, config.pre, config.post, folder)
        if isinstance(task.model, FusionUNet):
            prepare_weights(task.model, config)
    if config.trainer.cache_features and isinstance(task.model, FusionUNet):
        _cache(task, task.model, split, folder, last if resume else None, progress)
    trainer = _trainer(config, folder, len(split.held_out) > 0, progress)
    _fit(trainer, task, split, last if resume else None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    kept = last if config.trainer.keep == "last" or not len(split.held_out) else folder / "best.ckpt"
    stored = torch.load(kept, map_location="cpu", weights_only=False)
    task.load_state_dict(stored["state_dict"])
    metrics |= stored.get(VALIDATED, {})
    run = _finish(config, folder, task, split, metrics)
    if config.trainer.artifacts:
        made = [kept, folder / "config.yaml", run.weights, run.card, folder / "tensorboard"]
        keep_artifacts(trainer.loggers, [path for path in made if path is not None and path.exists()])
    return run


def prepare_weights(model: FusionUNet, config: ChangeTraining) -> None:
    """Load the weights that a network starts from: all of them from a checkpoint, or those of the trunks.

    Raises:
        ConfigError: They cannot be fetched.
        ModelError: The checkpoint is of another form, or a trunk is frozen and stays random.
    """
    if config.model.checkpoint is not None:
        load_reference(model, read_plain(config.model.checkpoint))
    elif config.model.pretrained == "imagenet":
        for prefix, trunk in model.trunks.items():
            model.load_trunk(fetch_imagenet(trunk), "post" if prefix else "pre")
    refuse_random_trunk(model, config.model.force_random_trunk)


def _cache(
    task: ChangeTask, model: FusionUNet, split: Split, folder: Path, checkpoint: Path | None, progress: Progress
) -> None:
    """Let a task read the features of its samples; of a resumed run the trunk is in the checkpoint."""
    config = task.config
    if checkpoint is not None and checkpoint.is_file():
        stored = torch.load(checkpoint, map_location="cpu", weights_only=False)
        # The averaged weights of a frozen trunk are off by a rounding, and its features would be computed again.
        task.load_state_dict(stored.get("current_model_state", stored["state_dict"]))
    model.to(choose_device(config.trainer.device))
    indices, branches = np.union1d(split.training, split.held_out), (config.pre, config.post)
    batch_size = config.data.validation_batch
    task.features = cache_features(model, split.dataset, indices, branches, folder, batch_size, progress)


def _fit(trainer: L.Trainer, task: ChangeTask, split: Split, checkpoint: Path | None) -> None:
    validation = _plain_loader(split.dataset, split.held_out, task.config) if len(split.held_out) else None
    fit(trainer, task, _training_loader(split, task.config), validation, checkpoint)


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
        logit = logit_of(output, config.changed_from)
        logits.append(_inner(logit))
        far = output.distance if isinstance(output, SiameseOutput) else torch.zeros_like(logit)
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
    quiet_lightning()
    device = choose_device(config.trainer.device)
    bf16 = choose_precision(config.trainer.precision, device) == torch.bfloat16
    # The last epoch has a checkpoint of its own: Lightning's save_last only follows the best one. It is written after
    # the best one, because it holds what a resumed run knows of it.
    epochs, _ = config.trainer.lengths
    best: dict[str, Any] = {"monitor": CLASS_MONITOR if graded(config) else MONITOR, "mode": "max"}
    if overlapping(config):
        best = {"monitor": LOSS_MONITOR, "mode": "min"}
    always: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    checkpoints = [ModelCheckpoint(filename="last", **always)]
    if validates:
        checkpoints.insert(0, ModelCheckpoint(filename="best", **best, **always))
    patience = config.trainer.early_stop
    watching: list[Callback] = [Panels()] if overlapping(config) else []
    if patience is not None:
        # One more than waited for: Lightning stops with the last epoch that it waits for.
        watching.append(EarlyStopping(LOSS_MONITOR, patience=patience + 1, mode="min"))
    return L.Trainer(
        accelerator=device.type,
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=epochs,
        gradient_clip_val=config.optimiser.clip,
        logger=make_loggers(config.trainer.loggers, folder, config.model_dump(mode="json", exclude={"export"})),
        callbacks=[
            EMAWeightAveraging(decay=config.optimiser.ema),
            *watching,
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
    started = init_record(folder, config.model.init)
    card = write_card_of(config, config.export, weights, sha256, outputs, task.training_share, started)
    return TrainedRun(folder, metrics, weights, card)
