"""One LightningModule a job. Here: change between two images, as a mask."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.cards import Branch
from mmcd.data.base import UNKNOWN, Sample
from mmcd.data.bright import CLASSES
from mmcd.data.pair_augment import augment_pairs
from mmcd.data.transforms import augment
from mmcd.evaluation import ScoreCounts, average_precision, precision_recall_f1, roc_auc
from mmcd.losses.contrastive import sample_rois, supervised_infonce
from mmcd.losses.overlap import combined_iou, combined_iou_classes
from mmcd.losses.segmentation import binary_cross_entropy, cross_entropy, lovasz_hinge, lovasz_softmax, soft_dice
from mmcd.models import zoo
from mmcd.models.siamese import EMBEDDING_STRIDE, ROI, SiameseOutput, change_logit
from mmcd.score import encode_score
from mmcd.segmentation_metrics import ConfusionMatrix, grade_summary
from mmcd.training.change_metrics import ChangeMetrics
from mmcd.training.config import BrightDataConfig, ChangeTraining, LevirDataConfig, OptimiserConfig
from mmcd.training.validation import ShiftedCounts, shifted_metrics

if TYPE_CHECKING:
    from mmcd.training.feature_cache import FeatureCache

VALIDATED = "validation_metrics"
"""Name in a checkpoint of what its weights reached in validation."""

_STEP_SEEDS = 1_000_003
"""A prime, so that step n of one seed shares its randomness with no step of a neighbouring seed."""


class ChangeTask(L.LightningModule):
    """Trains any two-image network whose output is a logit, logits of classes or a `SiameseOutput`.

    The contrastive part of the loss applies to networks with embeddings.

    Args:
        config: The run's configuration.
        training_share: Share of change of the data set; validation is weighted to parts of it.

    Attributes:
        features: Features of the samples' images as they are; None runs the trunk.
    """

    def __init__(self, config: ChangeTraining, training_share: float) -> None:
        super().__init__()
        self.config = config
        self.training_share = training_share
        self.features: FeatureCache | None = None
        model = zoo.build(
            config.model.architecture, len(config.pre.bands), len(config.post.bands), config.model.settings
        )
        self.model = model.to(memory_format=torch.channels_last)
        self._validated: list[tuple[NDArray[np.uint8], NDArray[np.bool_]]] = []
        self._grades: ConfusionMatrix | None = ConfusionMatrix.none(len(CLASSES)) if graded(config) else None
        self._counts = ScoreCounts.none()
        # A module cannot hold another one called train or training.
        kinds = ("of_train", "of_val") if overlapping(config) else ()
        self.overlap = nn.ModuleDict({kind: ChangeMetrics() for kind in kinds})

    def forward(self, batch: Sample) -> Tensor | SiameseOutput:
        """Run the network on a batch of stretched images, or on the features of those that are cached as they are."""
        size = tuple(batch["pre"].shape[-2:])
        if self.features is not None and size == self.features.size:
            before, after = self.features.features(batch["index"], self.device)
            return self.model.decode_features(before, after, size)  # type: ignore[operator,no-any-return]
        pre = normalise(batch["pre"], batch["valid"], self.config.pre)
        post = normalise(batch["post"], batch["valid"], self.config.post)
        return self.model(pre, post)  # type: ignore[no-any-return]

    def training_step(self, batch: Sample, batch_index: int) -> Tensor:
        """Return the loss of an augmented batch and log its parts."""
        random = torch.Generator().manual_seed(self.config.seed * _STEP_SEEDS + self.global_step)
        if isinstance(self.config.data, LevirDataConfig):
            batch = augment_pairs(batch, self.config.data.augment, random)
        else:
            batch = augment(batch, self.config.augment, random, self.config.post.level)
        output = self(batch)
        parts = self._losses(output, batch, random)
        loss = torch.stack(list(parts.values())).sum()
        logged = {f"train/{name}": part.detach() for name, part in parts.items()}
        self.log_dict(
            {"train/loss": loss.detach(), **logged}, on_step=False, on_epoch=True, batch_size=len(batch["pre"])
        )
        self._count_overlap("of_train", output, batch)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log IoU, F1 and macro Dice of the epoch's augmented batches, where a run is validated by them."""
        self._log_overlap("of_train", "train")

    def _losses(self, output: Tensor | SiameseOutput, batch: Sample, random: torch.Generator) -> dict[str, Tensor]:
        """Return the weighted parts of the loss by name."""
        weights = self.config.loss
        logit = logit_of(output, self.config.changed_from)[:, 0]
        target, known = self.changed(batch), known_of(batch)
        classes = classes_of(output)
        parts = {}
        if weights.bce and classes is not None:
            parts["bce"] = weights.bce * cross_entropy(classes, batch["target"], known)
        elif weights.bce:
            parts["bce"] = weights.bce * binary_cross_entropy(logit, target, known)
        if weights.dice:
            parts["dice"] = weights.dice * soft_dice(logit, target, known)
        if weights.lovasz and classes is not None:
            parts["lovasz"] = weights.lovasz * lovasz_softmax(classes, batch["target"], known)
        elif weights.lovasz:
            parts["lovasz"] = weights.lovasz * lovasz_hinge(logit, target, known)
        if weights.combined_iou and classes is not None:
            mixed = combined_iou_classes(classes, batch["target"], known, weights.alpha)
            parts["combined_iou"] = weights.combined_iou * mixed
        elif weights.combined_iou:
            parts["combined_iou"] = weights.combined_iou * combined_iou(logit, target, known, weights.alpha)
        if weights.infonce and isinstance(output, SiameseOutput):
            pairs = sample_rois(
                output.pre_embedding,
                output.post_embedding,
                roi_share(target),
                roi_share(known) == 1,
                weights.rois_per_class,
                random,
            )
            if len(pairs[0]):
                contrast = supervised_infonce(*pairs, weights.temperature, weights.own_negatives)
                parts["infonce"] = weights.infonce * contrast
        return parts

    def changed(self, batch: Sample) -> Tensor:
        """Return where a batch's labels count as changed, shape (B, H, W)."""
        return batch["target"] >= self.config.changed_from

    def validation_step(self, batch: Sample, batch_index: int) -> Tensor:
        """Keep what the metrics of the epoch need: the confusion matrix of classes, counts, or the stored score.

        Returns the logit of change, shape (B, 1, H, W).
        """
        output = self(batch)
        whole = logit_of(output, self.config.changed_from)
        logit, classes = whole[:, 0], classes_of(output)
        target, known = self.changed(batch), known_of(batch)
        self.log("val/bce", binary_cross_entropy(logit, target, known), batch_size=len(logit))
        if self._grades is not None and classes is not None:
            truth = torch.where(known, batch["target"], UNKNOWN).cpu().numpy()
            self._grades += ConfusionMatrix.of(truth, classes.argmax(dim=1).cpu().numpy(), len(CLASSES))
            return whole
        score = encode_score(logit.sigmoid().cpu().numpy(), known.cpu().numpy())
        if self.overlap:
            self._count_overlap("of_val", output, batch)
            self._counts += ScoreCounts.of(score, target.cpu().numpy())
            # One draw for every batch: the loss that stops a run must not hang on chance.
            parts = self._losses(output, batch, torch.Generator().manual_seed(self.config.seed))
            self.log("val/loss", torch.stack(list(parts.values())).sum(), batch_size=len(logit))
            return whole
        self._validated.append((score, target.cpu().numpy()))
        return whole

    def on_validation_epoch_end(self) -> None:
        """Log BRIGHT's figures, or the metrics of the fold as it is and under lower shares of change."""
        if self._grades is not None:
            self.log_dict({f"val/{name}": value for name, value in _flat(self._grades).items()})
            self._grades = ConfusionMatrix.none(len(CLASSES))
            return
        if self.overlap:
            self._log_overlap("of_val", "val")
            self.log_dict({f"val/{name}": value for name, value in _plain_metrics(self._counts).items()})
            self._counts = ScoreCounts.none()
            return
        counts = ShiftedCounts.of(*(np.concatenate(parts) for parts in zip(*self._validated, strict=True)))
        self._validated.clear()
        metrics = shifted_metrics(counts, self.training_share)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})

    def _count_overlap(self, kind: str, output: Tensor | SiameseOutput, batch: Sample) -> None:
        if kind in self.overlap:
            logits = logit_of(output, self.config.changed_from).detach()
            self.overlap[kind].update(logits, self.changed(batch).long(), known_of(batch))  # type: ignore[operator]

    def _log_overlap(self, kind: str, part: str) -> None:
        """Log the overlap of all batches since the last time, as figures of a part."""
        if kind in self.overlap:
            found: dict[str, float] = self.overlap[kind].compute()  # type: ignore[operator]
            self.overlap[kind].reset()  # type: ignore[operator]
            self.log_dict({f"{part}/{name}": value for name, value in found.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the validation metrics of the weights with them: a run that goes on overwrites what is logged."""
        logged = self.trainer.callback_metrics
        checkpoint[VALIDATED] = {name: float(value) for name, value in logged.items() if name.startswith("val/")}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser and its schedule."""
        options = self.config.optimiser
        optimiser = build_optimiser(list(self.parameters()), options)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: rate(step, steps, options.warmup, options.schedule)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_optimiser(parameters: Sequence[nn.Parameter], options: OptimiserConfig) -> torch.optim.Optimizer:
    """Return Adam or AdamW over some parameters; vectors (norms, biases) do not decay."""
    kind = torch.optim.AdamW if options.kind == "adamw" else torch.optim.Adam
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    return kind(
        [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=options.lr,
    )


def graded(config: ChangeTraining) -> bool:
    """Return whether a run is validated by the classes of its head, as BRIGHT's protocol does, and not by its score."""
    return isinstance(config.data, BrightDataConfig)


def overlapping(config: ChangeTraining) -> bool:
    """Return whether a run is validated by loss and overlap, as reference system 1 is."""
    return isinstance(config.data, LevirDataConfig)


def _plain_metrics(counts: ScoreCounts) -> dict[str, float]:
    return {
        "auc": roc_auc(counts),
        "ap": average_precision(counts),
        "best_f1": float(precision_recall_f1(counts)[2].max()),
    }


def _flat(grades: ConfusionMatrix) -> dict[str, float]:
    figures = grade_summary(grades, CLASSES)
    return {name: figures[name] for name in ("miou", "oa", "f1_loc", "f1_clf")} | {
        f"iou_{name}": value for name, value in figures["iou"].items()
    }


def rate(step: int, steps: int, warmup: float, schedule: Literal["cosine", "constant"] = "cosine") -> float:
    """Return the learning rate at a step as a part of the highest.

    A linear rise, then half a cosine down to 0, or the highest rate to the end.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def normalise(image: Tensor, valid: Tensor, branch: Branch) -> Tensor:
    """Return stretched images in units of the training set, 0 (the mean) where there is no data, channels last.

    Args:
        image: Values in [0, 1], shape (B, C, H, W).
        valid: Pixels that hold data, shape (B, H, W).
        branch: Mean and standard deviation of each band.
    """
    mean, std = (image.new_tensor(values)[None, :, None, None] for values in (branch.mean, branch.std))
    normalised = torch.where(valid[:, None], (image - mean) / std, 0.0)
    return normalised.contiguous(memory_format=torch.channels_last)


def known_of(batch: Sample) -> Tensor:
    """Return where both images hold data and the label is known, shape (B, H, W)."""
    return batch["valid"] & (batch["target"] != UNKNOWN)


def classes_of(output: Tensor | SiameseOutput) -> Tensor | None:
    """Return the logits of classes, shape (B, K, H, W); None of a network that only tells change."""
    if isinstance(output, SiameseOutput):
        return output.classes
    return output if output.shape[1] > 1 else None


def logit_of(output: Tensor | SiameseOutput, changed_from: int = 1) -> Tensor:
    """Return the logit of change, shape (B, 1, H, W).

    Args:
        output: What a network said.
        changed_from: First class that counts as changed, where it gave logits of classes.
    """
    if isinstance(output, SiameseOutput):
        return output.logit
    return change_logit(output, changed_from) if output.shape[1] > 1 else output


def roi_share(mask: Tensor) -> Tensor:
    """Return the share of every ROI that is in a mask, shape (B, H/8, W/8) from (B, H, W).

    The last row and column, whose ROIs leave the tile, count what is beyond as not in the mask.
    """
    beyond = ROI - EMBEDDING_STRIDE
    padded = F.pad(mask.float()[:, None], (0, beyond, 0, beyond))
    return F.avg_pool2d(padded, kernel_size=ROI, stride=EMBEDDING_STRIDE)[:, 0]
