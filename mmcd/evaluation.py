"""Accuracy of stored scores against labels, from set-level counts.

Everything is computed from two tables of 256 counts, one for changed and one for unchanged pixels: they add up over
tiles and events, need no memory, and give every curve exactly, because a stored score has at most 255 values.
Here *positive* means changed.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mmcd.errors import DataError
from mmcd.score import NOT_ASSESSED, threshold_value

_PROBABILITY = (np.arange(1, 256) - 1) / 254
_COUNTED = 2**20
"""Numbers that are counted at once: numpy widens them to 64 bits first, here 8 MB."""
_SAMPLED = 2**12
"""Values that show which one is the commonest."""


@dataclass(frozen=True)
class ScoreCounts:
    """How often each stored score occurs among changed and among unchanged pixels.

    Attributes:
        changed: Count (or weight) of each byte over changed pixels, shape (256,).
        unchanged: The same over unchanged pixels, shape (256,).
    """

    changed: NDArray[np.float64]
    unchanged: NDArray[np.float64]

    @classmethod
    def of(cls, score: NDArray[np.uint8], target: NDArray[np.bool_]) -> Self:
        """Count one map.

        Args:
            score: Stored scores, any shape, uint8.
            target: True where the label says changed, same shape.
        """
        if score.shape != target.shape:
            raise DataError(f"Score {score.shape} and label {target.shape} differ in size.", "Bring them to one grid.")
        # Few pixels are changed: those are picked out, all are counted, and the difference is the rest.
        changed, everything = _histogram(_picked(score, target)), _histogram(score)
        return cls(changed.astype(np.float64), (everything - changed).astype(np.float64))

    @classmethod
    def none(cls) -> Self:
        """Return empty counts, the start of a sum."""
        return cls(np.zeros(256), np.zeros(256))

    def __add__(self, other: "ScoreCounts") -> "ScoreCounts":
        return ScoreCounts(self.changed + other.changed, self.unchanged + other.unchanged)

    def __mul__(self, weight: float) -> "ScoreCounts":
        return ScoreCounts(self.changed * weight, self.unchanged * weight)

    @property
    def prevalence(self) -> float:
        """Share of changed pixels among those assessed and labelled; NaN when there are none."""
        changed, total = self.changed[1:].sum(), self.changed[1:].sum() + self.unchanged[1:].sum()
        return float(changed / total) if total else float("nan")

    @property
    def assessed_share(self) -> float:
        """Share of labelled pixels that carry a score."""
        total = self.changed.sum() + self.unchanged.sum()
        missing = self.changed[NOT_ASSESSED] + self.unchanged[NOT_ASSESSED]
        return float(1 - missing / total) if total else float("nan")

    def at_least(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return true and false positives for a cut at each byte 1 ... 255, two arrays of shape (255,)."""
        return self.changed[:0:-1].cumsum()[::-1], self.unchanged[:0:-1].cumsum()[::-1]


def _picked(score: NDArray[np.uint8], target: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the scores where the label says changed, in one row.

    Change lies in patches: eight pixels in a row of which none is changed are passed over as one word.
    """
    values, wanted = np.ascontiguousarray(score).ravel(), np.ascontiguousarray(target).ravel()
    whole = len(values) // 8 * 8
    touched = wanted[:whole].view(np.uint64) != 0
    scores, chosen = (np.compress(touched, flat[:whole].view(np.uint64)) for flat in (values, wanted))
    tail = values[whole:][wanted[whole:]]
    return np.concatenate([scores.view(np.uint8)[chosen.view(np.bool_)], tail])


def _histogram(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each byte occurs, shape (256,).

    Most of a map is ground that did not change, all of one stored value: eight such pixels in a row are counted as one
    word. Of the rest, two neighbours are counted as one number of 16 bits.
    """
    flat = np.ascontiguousarray(values).ravel()
    if len(flat) < _COUNTED:
        return np.bincount(flat, minlength=256)
    words = flat[: len(flat) // 8 * 8].view(np.uint64)
    common = int(np.bincount(flat[:: len(flat) // _SAMPLED]).argmax())
    # `compress` takes a third of the time of an index by the same mask.
    uncommon = np.compress(words != np.uint64(common * 0x0101010101010101), words).view(np.uint16)
    pairs = np.zeros(2**16, np.int64)
    for begin in range(0, len(uncommon), _COUNTED):
        pairs += np.bincount(uncommon[begin : begin + _COUNTED], minlength=2**16)
    square = pairs.reshape(256, 256)
    total: NDArray[np.int64] = square.sum(axis=0) + square.sum(axis=1)
    total += np.bincount(flat[8 * len(words) :], minlength=256)
    total[common] += 8 * len(words) - 2 * len(uncommon)
    return total


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def precision_recall_f1(counts: ScoreCounts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return precision, recall and F1 of the change class for a cut at each byte 1 ... 255, each of shape (255,)."""
    hit, false = counts.at_least()
    changed = np.full_like(hit, counts.changed[1:].sum())
    return _ratio(hit, hit + false), _ratio(hit, changed), _ratio(2 * hit, hit + false + changed)


def roc_auc(counts: ScoreCounts) -> float:
    """Return the area under the ROC curve; ties count half. NaN when a class is absent."""
    changed, unchanged = counts.changed[1:], counts.unchanged[1:]
    pairs = changed.sum() * unchanged.sum()
    if not pairs:
        return float("nan")
    below = unchanged.cumsum() - unchanged
    return float((changed * (below + unchanged / 2)).sum() / pairs)


def average_precision(counts: ScoreCounts) -> float:
    """Return average precision, the step-wise area under the precision-recall curve. NaN without changed pixels."""
    if not counts.changed[1:].sum():
        return float("nan")
    precision, recall, _ = precision_recall_f1(counts)
    steps = recall - np.append(recall[1:], 0.0)
    return float((precision * steps).sum())


def reliability(
    counts: ScoreCounts, bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean stated probability, observed share of change and pixels of equal-width probability bins.

    Args:
        counts: Labelled counts.
        bins: Number of bins over [0, 1].

    Returns:
        Three arrays of shape (bins,); stated and observed are NaN in a bin without a pixel.
    """
    total = counts.changed[1:] + counts.unchanged[1:]
    which = np.minimum((_PROBABILITY * bins).astype(int), bins - 1)
    pixels = np.bincount(which, total, bins).astype(np.float64)
    sums = np.bincount(which, total * _PROBABILITY, bins), np.bincount(which, counts.changed[1:], bins)
    stated, observed = (np.divide(part, pixels, out=np.full(bins, np.nan), where=pixels > 0) for part in sums)
    return stated, observed, pixels


def expected_calibration_error(counts: ScoreCounts, bins: int = 15) -> float:
    """Return the mean distance between stated and observed share of change over equal-width probability bins.

    Source: Naeini et al. 2015; Guo et al. 2017, with ``bins`` equal-width bins.
    """
    stated, observed, pixels = reliability(counts, bins)
    if not pixels.sum():
        return float("nan")
    return float(np.nansum(np.abs(stated - observed) * pixels) / pixels.sum())


def metrics_at(counts: ScoreCounts, threshold: float) -> dict[str, float]:
    """Return precision, recall, F1 and IoU of the change class and accuracy at a probability threshold."""
    index = threshold_value(threshold) - 1
    precision, recall, f1 = (float(curve[index]) for curve in precision_recall_f1(counts))
    hit, false = (float(curve[index]) for curve in counts.at_least())
    changed, unchanged = counts.changed[1:].sum(), counts.unchanged[1:].sum()
    union = changed + false
    total = changed + unchanged
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "iou": hit / union if union else 0.0,
        "accuracy": float((hit + unchanged - false) / total) if total else float("nan"),
    }


def summary(counts: ScoreCounts, threshold: float) -> dict[str, float]:
    """Return the figures that every evaluation prints, at the stored threshold and over all thresholds."""
    return {
        "pixel_auc": roc_auc(counts),
        "average_precision": average_precision(counts),
        **metrics_at(counts, threshold),
        "best_f1": float(precision_recall_f1(counts)[2].max()),
        "ece": expected_calibration_error(counts),
        "prevalence": counts.prevalence,
        "assessed_share": counts.assessed_share,
    }
