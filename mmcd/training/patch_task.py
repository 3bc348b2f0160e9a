"""Training on patch pairs: reference system 0's loss, schedule and figures. *Positive* means an unchanged pair."""

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from mmcd.data.patches import PatchSample
from mmcd.losses.contrastive import reference_infonce
from mmcd.models.siamese import ContextOutput, ContextSiamese
from mmcd.training.patch_config import PatchTraining

Side = Literal["train", "val"]

NEAR = 1.0
"""Distance below which a pair is taken for unchanged in the balanced accuracy of an epoch."""


class EpochFigures:
    """Loss and balanced accuracy of an epoch as sums, so that a checkpoint within it can hold them."""

    def __init__(self) -> None:
        self.sums = torch.zeros(7, dtype=torch.float64)

    def add(self, positive: Tensor, negative: Tensor, distance: Tensor, is_positive: Tensor) -> None:
        """Count a batch.

        Args:
            positive: Loss of its unchanged pairs.
            negative: Loss of its damaged pairs, weighted.
            distance: ``1 - cosine``, shape (B,).
            is_positive: True for unchanged pairs, shape (B,).
        """
        near, far = (distance < NEAR) & is_positive, (distance >= NEAR) & ~is_positive
        counts = torch.stack([near.sum(), is_positive.sum(), far.sum(), (~is_positive).sum()])
        losses = torch.stack([torch.ones_like(positive), positive, negative])
        self.sums += torch.cat([losses.detach().double().cpu(), counts.double().cpu()])

    def figures(self) -> dict[str, float]:
        """Return the means over batches, and the mean over the classes that occur of the share that is right."""
        batches, positive, negative, *counts = self.sums.tolist()
        rates = [right / total for right, total in (counts[:2], counts[2:]) if total]
        batches = max(batches, 1)
        return {
            "loss": (positive + negative) / batches,
            "positive_loss": positive / batches,
            "negative_loss": negative / batches,
            "balanced_accuracy": sum(rates) / max(len(rates), 1),
        }


class PatchTask(L.LightningModule):
    """Trains the reference form on standardised patch pairs.

    Args:
        config: The run's configuration.

    Attributes:
        history: Figures of every finished epoch, by name.
    """

    def __init__(self, config: PatchTraining) -> None:
        super().__init__()
        self.config = config
        self.model = ContextSiamese(len(config.pre.bands), len(config.post.bands), **config.settings)
        self.history: list[dict[str, float]] = []
        self._seen: dict[Side, EpochFigures] = {"train": EpochFigures(), "val": EpochFigures()}
        self._plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None

    def forward(self, batch: PatchSample) -> ContextOutput:
        """Compare a batch of standardised patch pairs."""
        output: ContextOutput = self.model(batch["optical"], batch["sar"])
        return output

    def training_step(self, batch: PatchSample, batch_index: int) -> Tensor:
        """Return the loss of a batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: PatchSample, batch_index: int) -> None:
        """Count a batch."""
        self._step(batch, "val")

    def _step(self, batch: PatchSample, side: Side) -> Tensor:
        output, is_positive = self(batch), batch["is_positive"]
        options = self.config.loss
        embeddings = output.pre_embedding, output.post_embedding
        with torch.autocast(self.device.type, enabled=False):  # bf16 would round cosines that are divided by 0.07
            positive, negative = reference_infonce(*embeddings, is_positive, options.temperature)
        negative = options.negative_weight * negative
        self._seen[side].add(positive, negative, output.distance[:, 0], is_positive)
        return positive + negative

    def on_validation_epoch_start(self) -> None:
        """Begin to count anew."""
        self._seen["val"] = EpochFigures()

    def on_validation_epoch_end(self) -> None:
        """Log the figures by which the best epoch is known."""
        self._log("val")

    def on_train_epoch_end(self) -> None:
        """Log the figures of the epoch, keep them, and let the validation loss decide on the learning rate.

        The schedule is stepped here and not by Lightning, which does it after the epoch's checkpoint was written.
        """
        self._log("train")
        figures = {f"{side}/{name}": value for side in self._seen for name, value in self._seen[side].figures().items()}
        rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("lr", rate)
        self.history.append({"epoch": float(self.current_epoch), "lr": rate, **figures})
        if self._plateau is not None:
            self._plateau.step(figures["val/loss"])
        self._seen["train"] = EpochFigures()

    def _log(self, side: Side) -> None:
        self.log_dict({f"{side}/{name}": value for name, value in self._seen[side].figures().items()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam over what is not frozen, and set up its schedule."""
        options = self.config.optimiser
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimiser = torch.optim.Adam(learning, lr=options.lr, weight_decay=options.weight_decay)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimiser, "min", factor=options.factor, patience=options.patience
        )
        if self._plateau_state is not None:
            self._plateau.load_state_dict(self._plateau_state)
        return optimiser

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs beyond weights and optimiser."""
        checkpoint["patches"] = {
            "history": self.history,
            "seen": {side: figures.sums for side, figures in self._seen.items()},
            "plateau": self._plateau.state_dict() if self._plateau is not None else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        state = checkpoint["patches"]
        self.history, self._plateau_state = list(state["history"]), state["plateau"]
        for side, sums in state["seen"].items():
            self._seen[side].sums = sums.clone()
