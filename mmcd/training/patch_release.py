"""What a training on patch pairs leaves for people and for inference: curves, scores, card."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.calibration import LogisticCalibration, best_f1_threshold, fit_logistic
from mmcd.cards import Decision
from mmcd.data.patch_index import PatchTable
from mmcd.evaluation import ScoreCounts, average_precision, metrics_at, roc_auc
from mmcd.score import encode_score
from mmcd.training.patch_config import PatchTraining
from mmcd.training.release import Architecture, write_card_with

logger = logging.getLogger(__name__)

CURVES = "training_curves.png"
HISTORY = "history.csv"
_PANELS = {
    "Loss": ("loss",),
    "Terms of the loss": ("positive_loss", "negative_loss"),
    "Balanced accuracy": ("balanced_accuracy",),
}


@dataclass(frozen=True)
class PatchScores:
    """Distances of patches beside what is known of them.

    Attributes:
        table: The patches.
        distance: ``1 - cosine``, shape (N,), in [0, 2].
    """

    table: PatchTable
    distance: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write everything to a compressed npz file; a patch's tile is an index into ``image_ids``."""
        table = self.table
        np.savez_compressed(
            path,
            image_ids=np.array(table.image_ids),
            image=table.image,
            position=table.position,
            damage_ratio=table.damage_ratio,
            is_positive=table.is_positive,
            distance=self.distance,
        )


def draw_curves(history: Sequence[dict[str, float]], folder: Path) -> None:
    """Write the figures of all epochs as a table and as three panels: loss, its terms, balanced accuracy."""
    from matplotlib.figure import Figure

    with (folder / HISTORY).open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(history[0]))
        table.writeheader()
        table.writerows(history)
    epochs = [row["epoch"] + 1 for row in history]
    figure = Figure(figsize=(15, 4), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for side, line in (("train", "-"), ("val", "--")):
            for name in names:
                values = [row[f"{side}/{name}"] for row in history]
                axes.plot(epochs, values, line, marker=".", label=f"{side} {name.replace('_', ' ')}")
        axes.set(title=title, xlabel="Epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    figure.savefig(folder / CURVES)


def fit_patch_decision(scores: PatchScores, damaged_share: float) -> tuple[Decision, dict[str, float]]:
    """Fit the probability of damage from the distance, and the threshold with the best F1 of damage.

    Patches that were drawn by class are weighted back to the share of damage that their split has.

    Args:
        scores: Distances of validation patches; both classes occur.
        damaged_share: Share of damaged patches of the split.

    Returns:
        The decision, and what it reaches on these patches.
    """
    damaged = ~scores.table.is_positive
    drawn = float(damaged.mean())
    weights = damaged_share / drawn, (1 - damaged_share) / (1 - drawn)
    distance, nothing = scores.distance.astype(np.float64), np.zeros(len(damaged))
    fitted = fit_logistic(nothing, distance, damaged, np.where(damaged, *weights))
    calibration = LogisticCalibration(0.0, fitted.cosine_weight, fitted.intercept)
    counts = ScoreCounts.of(encode_score(calibration(nothing, distance), np.ones(len(damaged), np.bool_)), damaged)
    weighted = ScoreCounts(counts.changed * weights[0], counts.unchanged * weights[1])
    threshold = best_f1_threshold([weighted])
    decision = Decision(
        head_weight=0.0,
        cosine_weight=calibration.cosine_weight,
        intercept=calibration.intercept,
        threshold=threshold,
        prevalence=damaged_share,
    )
    curves = {"auc": roc_auc(weighted), "ap": average_precision(weighted)}
    return decision, curves | metrics_at(weighted, threshold)


def write_patch_card(
    config: PatchTraining,
    weights: Path,
    sha256: str,
    scores: PatchScores,
    damaged_share: float,
    split_by: str,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write the card beside the weights and return its path.

    Args:
        config: The run's configuration; its ``export`` is set.
        weights: The weight file.
        sha256: Its hash.
        scores: Distances of the validation patches.
        damaged_share: Share of damaged patches of the validation split.
        split_by: What was kept on one side of the split.
        more: What else is told of the training.
    """
    export = config.export
    if export is None:
        raise ValueError("a card needs the configuration's export")
    decision, reached = fit_patch_decision(scores, damaged_share)
    if not decision.cosine_weight:
        logger.warning("The distance tells nothing of damage on the validation patches: train longer, or on more.")
    start = {"pretrained": config.model.pretrained, "freeze_resnet": config.model.freeze_resnet, "split_by": split_by}
    measured = {
        "data": f"validation patches, split by {split_by}",
        "unit": "patch, weighted to the split's share of damage",
        "patches": len(scores.distance),
        "prevalence": damaged_share,
        "seeds": 1,
        **reached,
    }
    network: tuple[Architecture, dict[str, Any]] = ("siamese", config.settings)
    return write_card_with(config, export, weights, sha256, network, decision, start | dict(more or {}), (measured,))
