"""Curves over every distinct score of single samples, the best thresholds on them, and how sure the area is.

Stored maps are counted in `mmcd.evaluation`; here scores are floats, one a sample. *Positive* means changed (damaged).
The thresholds that need no label, at the end, cut the histogram of a stored map.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from mmcd.errors import DataError

Floats = NDArray[np.float64]

GRID = np.round(np.arange(0, 2.1, 0.1), 1)
"""Thresholds of reference system 0, for display."""

METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "specificity", "tpr", "fpr")
"""What is known at every threshold."""

OPTIMISED = ("accuracy", "balanced_accuracy", "f1")
"""What a best threshold is searched by."""


@dataclass(frozen=True)
class ThresholdCurve:
    """What a cut at each of some thresholds gives; a score counts as change from the threshold on.

    Attributes:
        threshold: Thresholds, shape (K,).
        hit: Positive samples found at each, shape (K,).
        false: Negative samples found at each, shape (K,).
        positives: Positive samples in all.
        negatives: Negative samples in all.
    """

    threshold: Floats
    hit: Floats
    false: Floats
    positives: int
    negatives: int

    @classmethod
    def of(cls, score: NDArray[np.floating], positive: NDArray[np.bool_], threshold: Floats | None = None) -> Self:
        """Cut scores at some thresholds.

        Args:
            score: Scores, shape (N,).
            positive: True where changed, shape (N,).
            threshold: Thresholds; every distinct score, falling, when None.

        Raises:
            DataError: Only one class is there.
        """
        check_classes(positive)
        cuts = np.unique(score)[::-1] if threshold is None else threshold
        hit, false = (_at_least(part, cuts) for part in (score[positive], score[~positive]))
        damaged = int(positive.sum())
        return cls(np.asarray(cuts, np.float64), hit, false, damaged, len(positive) - damaged)

    def metric(self, name: str) -> Floats:
        """Return one of `METRICS` at every threshold, shape (K,), in [0, 1]; 0 where nothing is found."""
        tpr, fpr = self.hit / self.positives, self.false / self.negatives
        kept = self.negatives - self.false
        values = {
            "accuracy": (self.hit + kept) / (self.positives + self.negatives),
            "balanced_accuracy": (tpr + 1 - fpr) / 2,
            "precision": self.hit / np.maximum(self.hit + self.false, 1),
            "recall": tpr,
            "f1": 2 * self.hit / (self.hit + self.false + self.positives),
            "specificity": 1 - fpr,
            "tpr": tpr,
            "fpr": fpr,
        }
        return values[name]

    def best(self, name: str) -> tuple[float, float]:
        """Return the threshold at which a metric is highest, the first of several, and its value there.

        Where damage is rare, accuracy may be highest above all scores, where nothing counts as change.
        """
        values = self.metric(name)
        place = int(values.argmax())
        if name == "accuracy" and self.negatives > values[place] * (self.positives + self.negatives):
            above = np.nextafter(self.threshold.max(), np.inf, dtype=np.float32)  # scores are float32
            return float(above), self.negatives / (self.positives + self.negatives)
        return float(self.threshold[place]), float(values[place])

    def rows(self) -> list[dict[str, float]]:
        """Return threshold and all `METRICS`, one row a threshold."""
        columns = {"threshold": self.threshold} | {name: self.metric(name) for name in METRICS}
        return [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]

    def roc_auc(self) -> float:
        """Return the area under the ROC curve by trapezoids from (0, 0); over all distinct scores it is exact."""
        order = np.argsort(-self.threshold, kind="stable")
        fpr, tpr = (np.append(0.0, self.metric(name)[order]) for name in ("fpr", "tpr"))
        return float(np.trapezoid(tpr, fpr))

    def average_precision(self) -> float:
        """Return the step-wise area under the precision-recall curve; meant for all distinct scores."""
        recall = np.append(0.0, self.metric("recall"))
        return float((np.diff(recall) * self.metric("precision")).sum())


def check_classes(positive: NDArray[np.bool_]) -> None:
    """Refuse samples of one class.

    Raises:
        DataError: Only one class is there.
    """
    if positive.all() or not positive.any():
        which = "damaged" if positive.any() else "unchanged"
        raise DataError(
            f"All {len(positive):,} patches are {which}: no threshold can be searched.",
            "Choose a split with both classes, or index it otherwise (mmcd data index --split-by).",
        )


def _at_least(score: NDArray[np.floating], cuts: NDArray[np.floating]) -> Floats:
    """Return how many scores reach each cut."""
    return np.asarray(len(score) - np.searchsorted(np.sort(score), cuts), np.float64)


@dataclass(frozen=True)
class PairedWins:
    """How often positive samples of one group score above negative ones of another: all that an AUC is made of.

    Attributes:
        wins: Pairs of a positive sample of group i and a negative one of group j in which the first scores higher, ties
            counted half, shape (G, G).
        positives: Positive samples of each group, shape (G,).
        negatives: Negative samples of each group, shape (G,).
    """

    wins: Floats
    positives: Floats
    negatives: Floats

    @classmethod
    def of(cls, score: NDArray[np.floating], positive: NDArray[np.bool_], group: NDArray[np.integer]) -> Self:
        """Count the pairs of samples.

        Args:
            score: Scores, shape (N,).
            positive: True where changed, shape (N,).
            group: Group of each sample, from 0, shape (N,).
        """
        count = int(group.max()) + 1
        wins = np.zeros((count, count))
        for other in range(count):
            rivals = np.sort(score[~positive & (group == other)])
            above = sum(np.searchsorted(rivals, score[positive], side=side) for side in ("left", "right"))
            wins[:, other] = np.bincount(group[positive], above / 2, count)
        sizes = [np.bincount(group[part], minlength=count).astype(np.float64) for part in (positive, ~positive)]
        return cls(wins, *sizes)

    def auc(self, weight: Floats) -> Floats:
        """Return the area under the ROC curve when group g is there ``weight[..., g]`` times; NaN of one class."""
        pairs = (weight @ self.positives) * (weight @ self.negatives)
        won = ((weight @ self.wins) * weight).sum(axis=-1)
        return np.asarray(np.divide(won, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0))

    def interval(self, resamples: int = 1000, seed: int = 42, level: float = 0.95) -> dict[str, Any] | None:
        """Return the percentile interval of the AUC over groups drawn with replacement.

        Args:
            resamples: Number of draws; those without one of the classes say nothing and are left out.
            seed: Seed of the draws.
            level: Share of the draws inside.

        Returns:
            ``low``, ``high``, ``level`` and the ``resamples`` that count; None where a single group or draw is left.
        """
        count = len(self.positives)
        if count < 2:
            return None
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        values = self.auc(drawn.astype(np.float64))
        values = values[np.isfinite(values)]
        if len(values) < 2:
            return None
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return {"low": float(low), "high": float(high), "level": level, "resamples": len(values)}


LabelFree = Literal["otsu", "kittler_illingworth", "mixture"]
LABEL_FREE: tuple[LabelFree, ...] = get_args(LabelFree)
"""Ways to a threshold without a label."""


def label_free_threshold(counts: NDArray[np.integer] | Floats, method: LabelFree) -> float | None:
    """Return the probability at which a stored map falls into two classes by its histogram alone.

    * ``otsu``: the classes' means lie as far apart as they can (Otsu 1979, "A threshold selection method from
      gray-level histograms").
    * ``kittler_illingworth``: two normal distributions, one on each side, explain the histogram with the least error
      (Kittler and Illingworth 1986, "Minimum error thresholding").
    * ``mixture``: two normal distributions that overlap are fitted by expectation and maximisation, and the cut is
      where the higher one becomes the likelier.

    A map that holds no change has one class and still gets a cut from the first two: these are starting points.

    Args:
        counts: How often each stored byte occurs, shape (256,); entry 0, not assessed, is left out.
        method: Which one.

    Returns:
        A probability in (0, 1]: the upper class begins there. None where the histogram has fewer than two values, or
        the mixture no place where the higher part takes over.
    """
    weight = np.asarray(counts, np.float64)[1:]
    if np.count_nonzero(weight) < 2:
        return None
    if method == "mixture":
        return _mixture_cut(weight / weight.sum())
    cost = {"otsu": _otsu_cost, "kittler_illingworth": _kittler_cost}[method](weight / weight.sum())
    best = np.flatnonzero(cost == cost.min())  # a plateau between two heaps of values is cut in its middle
    return float((best[0] + best[-1]) / 2 + 1) / 254


def _sides(weight: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """Return share, mean and variance below and above a cut after each value but the last, each of shape (254,)."""
    values = np.linspace(0, 1, 255)
    moments = [np.cumsum(weight * values**power)[:-1] for power in range(3)]
    whole = [float((weight * values**power).sum()) for power in range(3)]
    sides: list[Floats] = []
    for share, first, second in (moments, [total - part for total, part in zip(whole, moments, strict=True)]):
        safe = np.where(share > 1e-12, share, 1.0)
        mean = first / safe
        sides += [share, mean, np.maximum(second / safe - mean**2, 0.0)]
    return sides[0], sides[1], sides[2], sides[3], sides[4], sides[5]


def _otsu_cost(weight: Floats) -> Floats:
    """Return minus the variance between the classes for a cut after each value, rounded so that plateaus are flat."""
    below, low, _, above, high, _ = _sides(weight)
    return -np.round(below * above * (high - low) ** 2, 12)


def _kittler_cost(weight: Floats) -> Floats:
    """Return Kittler and Illingworth's criterion J for a cut after each value; infinite where a side is empty."""
    below, _, spread_low, above, _, spread_high = _sides(weight)
    step = (1 / 254) ** 2 / 12  # what rounding to a byte adds; a class of one value has no other spread
    terms = [
        share * np.log(spread + step) - 2 * share * np.log(np.maximum(share, 1e-300))
        for share, spread in ((below, spread_low), (above, spread_high))
    ]
    empty = (below < 1e-12) | (above < 1e-12)
    return np.where(empty, np.inf, np.round(terms[0] + terms[1], 12))


def _mixture_cut(weight: Floats, rounds: int = 500) -> float | None:
    """Return where the higher of two fitted normal distributions becomes the likelier one; None where it never does."""
    values, step = np.linspace(0, 1, 255), (1 / 254) ** 2 / 12
    centre = float((weight * values).sum())
    share, mean = np.array([0.5, 0.5]), np.array([centre / 2, (1 + centre) / 2])
    spread = np.full(2, float((weight * (values - centre) ** 2).sum()) + step)
    for _ in range(rounds):
        logs = np.log(share) - 0.5 * np.log(spread) - 0.5 * (values[:, None] - mean) ** 2 / spread
        member = np.exp(logs - logs.max(axis=1, keepdims=True))
        member *= (weight / member.sum(axis=1))[:, None]
        before, share = share, np.maximum(member.sum(axis=0), 1e-12)
        mean = (member * values[:, None]).sum(axis=0) / share
        spread = (member * (values[:, None] - mean) ** 2).sum(axis=0) / share + step
        share = share / share.sum()
        if np.abs(share - before).max() < 1e-9:
            break
    low, high = (0, 1) if mean[0] <= mean[1] else (1, 0)
    logs = np.log(share) - 0.5 * np.log(spread) - 0.5 * (values[:, None] - mean) ** 2 / spread
    likelier = (logs[:, high] > logs[:, low]) & (values > mean[low])
    return float(values[likelier.argmax()]) if likelier.any() else None
