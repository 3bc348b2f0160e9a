"""What a run shows beside its curves: pictures of the first validation pairs, and its files in MLflow."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from torch import Tensor

from mmcd.data.base import Sample

SAMPLES = 4
"""Validation pairs that are shown, the first ones."""

PANELS = ("Input1", "Input2", "Label", "Output")
"""Names of the pictures, as in reference system 1: before, after, label, probability of change."""


class Panels(Callback):
    """Writes four pictures of the first validation pairs to TensorBoard after every validation."""

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, ...]] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Sample,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first pairs with what the network said of them."""
        missing = SAMPLES - sum(len(shown[0]) for shown in self._seen)
        if missing > 0 and isinstance(outputs, Tensor):
            changed = (batch["target"] > 0)[:, None].float()
            images = (batch["pre"], batch["post"], changed, outputs.float().sigmoid())
            self._seen.append(tuple(image[:missing].detach().cpu() for image in images))

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the pictures."""
        if self._seen:
            for name, images in zip(PANELS, map(torch.cat, zip(*self._seen, strict=True)), strict=True):
                for logger in trainer.loggers:
                    if isinstance(logger, TensorBoardLogger):
                        logger.experiment.add_images(name, images, trainer.global_step)
        self._seen.clear()


def keep_artifacts(loggers: Iterable[Logger], paths: Iterable[Path]) -> None:
    """Copy files and folders of a finished run to its MLflow run; they stay where they are.

    Args:
        loggers: Loggers of the run; only MLflow keeps files.
        paths: Files, and folders, which keep their names.
    """
    kept = list(paths)
    for logger in loggers:
        if isinstance(logger, MLFlowLogger) and logger.run_id is not None:
            for path in kept:
                if path.is_dir():
                    logger.experiment.log_artifacts(logger.run_id, str(path), f"{path.name}_logs")
                else:
                    logger.experiment.log_artifact(logger.run_id, str(path))
