"""Measure a model on LEVIR-CD, or whatever has its layout, through the same path that scores a user's scene."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.data.base import Sample
from mmcd.evaluation import ScoreCounts, average_precision, roc_auc, summary
from mmcd.geo.cog import SCORE_BAND, write_cog
from mmcd.progress import Progress, silent
from mmcd.score import threshold_value
from mmcd.services.evaluate_request import EvaluateRequest, named_result
from mmcd.services.levir_model import grid_of, open_model, open_pairs, score_sample

FEW = 30
"""Pairs below which figures say that a model runs, not how good it is."""


def evaluate_levir(request: EvaluateRequest, progress: Progress = silent) -> dict[str, Any]:
    """Return the metrics of a model at its card's threshold, and those of the trivial baselines.

    ``f1`` and ``iou`` are those of change. The mean of the F1 of change and of background, which reference system 1
    reports as Dice, is ``macro_dice_with_background``. Pairs are resized as the model's training pairs were.

    Raises:
        DataError: There are no such pairs, a file has no partner or a label is grey.
        ModelError: The model is missing, damaged or of another kind.
        StorageError: The scores cannot be written.
    """
    model = open_model(request.model, request.device, request.precision, request.backend)
    # The request refuses BRIGHT's parts.
    part = None if request.split == "holdout" or request.split == "unsupervised" else request.split
    pairs = open_pairs(request.root, part, model.size)
    pairs.refuse_faults()
    counts, apart = ScoreCounts.none(), ScoreCounts.none()
    progress("score", 0, len(pairs))
    for number, name in enumerate(pairs.ids):
        sample = pairs[number]
        score = score_sample(sample, model)
        changed = sample["target"].numpy() > 0
        counts += ScoreCounts.of(score, changed)
        apart += ScoreCounts.of(_difference(sample), changed)
        if request.scores is not None:
            tags = {"MMCD_MODEL": f"{model.card.name} {model.card.version}"}
            write_cog(request.scores / f"{name}.tif", score, grid_of(sample), SCORE_BAND, tags)
        progress("score", number + 1, len(pairs))
    return {
        **named_result(request, model.card, len(pairs)),
        "size": model.size,
        **summary(counts, model.card.decision.threshold),
        "macro_dice_with_background": macro_dice(counts, model.card.decision.threshold),
        "baselines": _baselines(counts, apart),
        "warnings": _warnings(len(pairs), len(set(pairs.groups))),
        "unit": "pixels of all pairs pooled, stored scores; positive is changed",
        "arithmetic": vars(model.predictor.arithmetic),
    }


def macro_dice(counts: ScoreCounts, threshold: float) -> float:
    """Return the mean of the F1 of change and that of background at a probability threshold.

    As in training and in the reference, a class that neither labels nor maps hold is left out; NaN without a pixel.
    """
    index = threshold_value(threshold) - 1
    hit, false = (float(curve[index]) for curve in counts.at_least())
    changed, unchanged = float(counts.changed[1:].sum()), float(counts.unchanged[1:].sum())
    wrong = false + changed - hit
    dice = [2 * right / (2 * right + wrong) for right in (hit, unchanged - false) if right or wrong]
    return sum(dice) / len(dice) if dice else float("nan")


def _difference(sample: Sample) -> NDArray[np.uint8]:
    """Return how much the two images differ, as a score without a model, shape (H, W)."""
    apart = (sample["pre"] - sample["post"]).abs().mean(dim=0).numpy()
    stored: NDArray[np.uint8] = np.maximum(np.rint(apart * 255), 1).astype(np.uint8)
    return stored


def _baselines(counts: ScoreCounts, apart: ScoreCounts) -> dict[str, Any]:
    share = counts.prevalence
    return {
        "difference_of_colours": {"pixel_auc": roc_auc(apart), "average_precision": average_precision(apart)},
        "all_changed": {"pixel_auc": 0.5, "average_precision": share, "f1": 2 * share / (1 + share), "iou": share},
    }


def _warnings(pairs: int, scenes: int) -> list[str]:
    """Return what the figures do not say."""
    if pairs >= FEW:
        return []
    return [f"{pairs} pairs of {scenes} scenes prove nothing but that the model runs: measure it on {FEW} or more."]
