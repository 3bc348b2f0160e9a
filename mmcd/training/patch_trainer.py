"""Runs a training on patch pairs through Lightning: patches, loaders, checkpoints, resume, weights with their card."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mmcd.data.patch_files import SUMMARY, Split, read_patches
from mmcd.data.patch_index import PatchTable
from mmcd.data.patches import PatchPairs, paired_transform, select_patches
from mmcd.errors import DataError
from mmcd.models import zoo
from mmcd.models.devices import choose_device, choose_precision
from mmcd.models.pretrained import fetch_imagenet, freeze_trunks, start_from_imagenet
from mmcd.progress import Progress, silent
from mmcd.samplers import RatioBatchSampler, ResumableLoader
from mmcd.training.monitor import GradientMonitor
from mmcd.training.patch_config import PatchTraining
from mmcd.training.patch_release import PatchScores, draw_curves, write_patch_card
from mmcd.training.patch_task import PatchTask
from mmcd.training.runs import (
    LAST,
    Report,
    fit,
    make_loggers,
    quiet_lightning,
    refuse_other_settings,
    run_folder,
)
from mmcd.training.trainer import TrainedRun
from mmcd.training.trunk_init import init_record, start_from_trunks

BEST = "best"
MONITOR = "val/loss"
_PREFETCHED = 2
_FREE = ("trainer", "export", "data.root", "data.metadata", "data.workers", "data.cache_bytes")
"""What may change when a run is resumed."""


@dataclass(frozen=True)
class PatchSplits:
    """Patches to learn from and to validate on, as drawn.

    Attributes:
        train: Patches to learn from.
        val: Patches to validate on.
        damaged_share: Share of damaged patches of the whole validation split, before any were drawn by class.
        split_by: What was kept on one side.
    """

    train: PatchPairs
    val: PatchPairs
    damaged_share: float
    split_by: str


def open_patches(config: PatchTraining) -> PatchSplits:
    """Read the metadata of a run, draw its patches and find their tiles.

    Raises:
        DataError: The metadata are missing, damaged, empty or of another configuration, a class is absent, or the
            tiles are not there.
    """
    options = config.data
    splits: tuple[Split, ...] = ("train", "val")
    tables = {split: read_patches(options.metadata, split, config.rules) for split in splits}
    train, val = (_drawn(config, split, table) for split, table in tables.items())
    transform = paired_transform() if options.transforms else None
    summary = json.loads((options.metadata / SUMMARY).read_text())
    cached: dict[str, Any] = {"cache_bytes": options.cache_bytes, "seed": config.seed}
    return PatchSplits(
        PatchPairs(options.root, train, config.rules, transform=transform, **cached),
        PatchPairs(options.root, val, config.rules, **cached),
        float((~tables["val"].is_positive).mean()),
        str(summary.get("split_by", "patch")),  # the reference splits by patch and does not say so
    )


def _drawn(config: PatchTraining, split: str, table: PatchTable) -> PatchTable:
    """Return the patches of a split that are used; both classes are among them."""
    options, classes = config.data, (("damaged", False), ("unchanged", True))
    for name, positive in classes:
        if not (table.is_positive == positive).any():
            raise DataError(
                f"The {split} split in {options.metadata} holds no {name} patch among its {len(table):,}.",
                "Make it again with mmcd data index: more tiles, or another --seed or --split-by.",
            )
    drawn = table.take(
        select_patches(table.is_positive, options.subset_fraction, options.target_neg_ratio, options.subset_seed)
    )
    for name, positive in classes:
        if not (drawn.is_positive == positive).any():
            raise DataError(
                f"No {name} patch is among the {len(drawn):,} of {len(table):,} that are drawn from the {split} split.",
                "Draw more with data.subset_fraction, or with another data.target_neg_ratio.",
            )
    return drawn


def run_patch_training(config: PatchTraining, resume: bool = False, progress: Progress = silent) -> TrainedRun:
    """Train, keep the epoch with the lowest validation loss, score the validation patches and export weights.

    Args:
        config: What to train.
        resume: Go on from the last checkpoint of the run of the same name, if need be in the middle of an epoch.
        progress: Called after every step.

    Raises:
        ConfigError: The run exists and is not resumed, or is resumed and does not exist or was begun otherwise;
            ImageNet weights cannot be fetched.
        DataError: The patches cannot be used.
        MmcdError: A gradient or an activation is not finite, with ``monitor_gradients``.
        Cancelled: ``progress`` asked to stop; the run can be resumed.
    """
    if resume:
        refuse_other_settings(config.name, config.model_dump(mode="json"), _FREE)
    folder = run_folder(config.name, config.to_yaml(), resume)
    L.seed_everything(config.seed, workers=True, verbose=False)
    splits = open_patches(config)
    training, validation = _loader(splits.train, config, learning=True), _loader(splits.val, config, learning=False)
    task = PatchTask(config)
    if config.model.pretrained == "imagenet" and not resume:
        start_from_imagenet(task.model, fetch_imagenet(config.model.trunk))
    if config.model.init is not None and not resume:
        start_from_trunks(task.model, config.model.init, config.pre, config.post, folder)
    if config.model.freeze_resnet:
        freeze_trunks(task.model)
    trainer = _trainer(config, folder, progress)
    fit(trainer, task, training, validation, folder / LAST if resume else None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    draw_curves(task.history, folder)
    stored = torch.load(folder / f"{BEST}.ckpt", map_location="cpu", weights_only=False)
    task.load_state_dict(stored["state_dict"])
    return _finish(config, folder, task, splits, metrics)


def _finish(
    config: PatchTraining, folder: Path, task: PatchTask, splits: PatchSplits, metrics: dict[str, float]
) -> TrainedRun:
    """Score the validation patches with the best weights and export them."""
    scores = PatchScores(splits.val.table, score_patches(task, splits.val, config))
    scores.save(folder / "held_out.npz")
    weights = folder / f"{config.name}.safetensors"
    sha256 = zoo.save(task.model, weights)
    if config.export is None:
        return TrainedRun(folder, metrics, weights, None)
    started = init_record(folder, config.model.init)
    card = write_patch_card(config, weights, sha256, scores, splits.damaged_share, splits.split_by, started)
    return TrainedRun(folder, metrics, weights, card)


def score_patches(task: PatchTask, pairs: PatchPairs, config: PatchTraining) -> NDArray[np.float32]:
    """Return the distance ``1 - cosine`` of every patch in order, shape (N,), in [0, 2]."""
    device = choose_device(config.trainer.device)
    dtype = choose_precision(config.trainer.precision, device)
    task = task.eval().to(device)
    loader: DataLoader[Any] = DataLoader(
        pairs,
        batch_size=config.data.batch_size,
        num_workers=config.data.workers,  # type: ignore[arg-type]
    )
    distances = []
    for batch in loader:
        moved = {name: batch[name].to(device) for name in ("optical", "sar")}
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            distances.append(task(moved).distance[:, 0].float().cpu().numpy())
    return np.concatenate(distances)


def _loader(pairs: PatchPairs, config: PatchTraining, learning: bool) -> ResumableLoader:
    """Return batches with the wanted share of damage; those of validation are the same in every epoch."""
    options = config.data
    sampler = RatioBatchSampler(
        pairs.table.is_positive,
        options.batch_size,
        options.neg_ratio,
        tolerance=options.tolerance,
        seed=config.seed,
        reseed=learning,
    )
    many: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": _PREFETCHED} if options.workers else {}
    pinned = choose_device(config.trainer.device).type == "cuda"
    return ResumableLoader(pairs, batch_sampler=sampler, num_workers=options.workers, pin_memory=pinned, **many)


def _trainer(config: PatchTraining, folder: Path, progress: Progress) -> L.Trainer:
    options = config.trainer
    device = choose_device(options.device)
    bf16 = choose_precision(options.precision, device) == torch.bfloat16
    always: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    callbacks: list[Callback] = [
        ModelCheckpoint(filename=BEST, monitor=MONITOR, mode="min", **always),
        # Written after the best one, because it holds what a resumed run knows of it.
        ModelCheckpoint(filename=Path(LAST).stem, save_on_train_epoch_end=True, **always),
        WithinEpoch(options.checkpoint_batches, folder / LAST),
        Report(progress),
    ]
    if options.monitor_gradients:
        callbacks.append(GradientMonitor(options.monitor))
    quiet_lightning()
    return L.Trainer(
        accelerator=device.type,
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=options.epochs,
        logger=make_loggers(options.loggers, folder, config.model_dump(mode="json", exclude={"export"})),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


class WithinEpoch(Callback):
    """Writes a checkpoint every so many batches, but not after the last one of an epoch, which has its own.

    Args:
        batches: Batches from one to the next.
        path: Where it is written.
    """

    def __init__(self, batches: int, path: Path) -> None:
        self._batches, self._path = batches, path

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write one when it is time."""
        if (batch_idx + 1) % self._batches == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(self._path)
