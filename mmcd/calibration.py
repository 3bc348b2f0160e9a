"""From raw outputs to probabilities and a threshold that hold on events with another share of change.

The share of change differs more between disasters than anything else a model meets: a threshold tuned at the share
of the training set fails on an event with a third of it. So both the probability calibration and the threshold are
fitted on validation tiles that are re-weighted to the shares that are expected in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from sklearn.linear_model import LogisticRegression

from mmcd.errors import DataError
from mmcd.evaluation import ScoreCounts, precision_recall_f1

Method = Literal["temperature", "beta"]
METHODS: tuple[Method, ...] = get_args(Method)
"""Ways to calibrate a stored score again."""


@dataclass(frozen=True)
class LogisticCalibration:
    """``p = sigmoid(head_weight * logit + cosine_weight * distance + intercept)``.

    Attributes:
        head_weight: Weight of the head's logit.
        cosine_weight: Weight of the embedding distance ``1 - cosine``.
        intercept: Constant.
    """

    head_weight: float
    cosine_weight: float
    intercept: float

    def __call__(self, logit: NDArray[np.floating], distance: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the probability of change, same shape as the inputs."""
        z = self.head_weight * logit + self.cosine_weight * distance + self.intercept
        return 1 / (1 + np.exp(-np.clip(z, -60, 60)))


def fit_logistic(
    logit: NDArray[np.floating],
    distance: NDArray[np.floating],
    target: NDArray[np.bool_],
    weight: NDArray[np.floating],
) -> LogisticCalibration:
    """Fit the combination of head and cosine and its calibration at once, by weighted logistic regression.

    The cosine's weight is never negative.

    Args:
        logit: Head logits of sampled validation pixels, shape (N,).
        distance: ``1 - cosine`` at the same pixels, shape (N,), in [0, 2].
        target: True where changed, shape (N,).
        weight: Weight of each pixel, shape (N,), for example from `tilt_to_share`.

    Raises:
        DataError: Only one class is present.
    """
    if target.all() or not target.any():
        raise DataError("Calibration needs changed and unchanged pixels.", "Choose validation groups that hold both.")
    fitted = _regress(np.column_stack([logit, distance]), target, weight)
    if fitted.cosine_weight < 0:
        # Distance is evidence of change by construction. A negative weight corrects the head on this fold only.
        fitted = _regress(np.column_stack([logit, np.zeros_like(logit)]), target, weight)
    return fitted


def _regress(
    features: NDArray[np.floating], target: NDArray[np.bool_], weight: NDArray[np.floating]
) -> LogisticCalibration:
    fitted = LogisticRegression(C=1e6, max_iter=1000).fit(features, target, sample_weight=weight / weight.mean())
    head, cosine = (float(value) for value in fitted.coef_[0])
    return LogisticCalibration(head, cosine, float(fitted.intercept_[0]))


def tilt_to_share(share: NDArray[np.floating], wanted: float) -> NDArray[np.float64]:
    """Return weights of tiles under which the mean share of change is ``wanted``.

    Exponential tilting: among all weightings with that mean share it is the one closest to equal weights, so tiles
    stay whole and the mix of easy and hard tiles is disturbed least. It is the expectation of resampling the tiles.

    Args:
        share: Share of changed pixels of each tile, shape (T,).
        wanted: Mean share after weighting, between the smallest and the largest share.

    Raises:
        DataError: No weighting of these tiles has that share.
    """
    if not share.min() < wanted < share.max():
        raise DataError(
            f"Tiles with shares of change from {share.min():.3f} to {share.max():.3f} cannot be weighted to {wanted}.",
            "Choose a share in between.",
        )

    def weights(slope: float) -> NDArray[np.float64]:
        tilted = np.exp(slope * share - (slope * share).max())
        return np.asarray(tilted / tilted.sum() * len(share), dtype=np.float64)

    slope = brentq(lambda s: float((weights(s) * share).mean()) - wanted, -1e4, 1e4)
    return weights(slope)


def weighted_counts(tiles: Sequence[ScoreCounts], weight: NDArray[np.floating]) -> ScoreCounts:
    """Return the sum of the tiles' counts under one weight a tile, shape (T,)."""
    return sum((counts * float(w) for counts, w in zip(tiles, weight, strict=True)), ScoreCounts.none())


def best_f1_threshold(scenarios: Sequence[ScoreCounts], weights: Sequence[float] | None = None) -> float:
    """Return the probability threshold with the highest mean F1.

    Args:
        scenarios: Counts of events, or of shares of change, whose F1 is averaged.
        weights: How much each counts; None counts all alike.
    """
    mean_f1 = np.average([precision_recall_f1(counts)[2] for counts in scenarios], axis=0, weights=weights)
    return float(np.flatnonzero(mean_f1 == mean_f1.max()).mean().round()) / 254


@dataclass(frozen=True)
class ScoreCalibration:
    """``p' = sigmoid(a ln p - b ln(1 - p) + c)`` of a stored probability ``p``; it keeps the order of the scores.

    Beta calibration (Kull et al. 2017, "Beta calibration"); with ``a = b = 1 / T`` and ``c = 0`` it is temperature
    scaling (Guo et al. 2017, "On calibration of modern neural networks").

    Attributes:
        method: How it was fitted.
        a: Weight of ``ln p``, not negative.
        b: Weight of ``-ln(1 - p)``, not negative.
        c: Constant.
    """

    method: Method
    a: float
    b: float
    c: float

    @property
    def temperature(self) -> float:
        """What logits are divided by; of a temperature scaling."""
        return 1 / self.a

    def __call__(self, probability: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the calibrated probabilities in [0, 1], same shape.

        What is stored as 0 or 1 stands for all that was rounded to it, and is taken as the middle of that.
        """
        p = np.clip(np.asarray(probability, np.float64), _END, 1 - _END)
        return np.asarray(1 / (1 + np.exp(-(self.a * np.log(p) - self.b * np.log1p(-p) + self.c))))

    def applied(self, counts: ScoreCounts) -> ScoreCounts:
        """Return the counts of the map that the calibrated model would store."""
        after = np.rint(self(_STORED) * 254).astype(int) + 1
        parts = []
        for part in (counts.changed, counts.unchanged):
            moved = np.bincount(after, part[1:], 256).astype(np.float64)
            moved[0] = part[0]
            parts.append(moved)
        return ScoreCounts(*parts)


_STORED = np.arange(255) / 254
_END = 1 / 1016
"""Middle of what is stored as 0: probabilities below 1/508."""


def fit_scores(counts: ScoreCounts, method: Method) -> ScoreCalibration:
    """Fit a calibration to labelled counts of a stored score, by maximum likelihood.

    Positive means changed. The share of change of these counts becomes that of the calibration: it is worth no more
    than they are like what is scored later.

    Raises:
        DataError: Only one class is there, or the scores do not rise with change.
    """
    changed, unchanged = counts.changed[1:], counts.unchanged[1:]
    if not changed.sum() or not unchanged.sum():
        raise DataError("Calibration needs changed and unchanged pixels.", "Choose labels that hold both.")
    p = np.clip(_STORED, _END, 1 - _END)
    if method == "beta":
        return _fit_beta(np.log(p), -np.log1p(-p), changed, unchanged)
    logit = np.log(p) - np.log1p(-p)

    def loss(log_slope: float) -> float:
        z = np.exp(log_slope) * logit
        return float((changed * np.logaddexp(0, -z) + unchanged * np.logaddexp(0, z)).sum())

    slope = float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))
    return ScoreCalibration("temperature", slope, slope, 0.0)


def _fit_beta(
    log_p: NDArray[np.float64],
    minus_log_rest: NDArray[np.float64],
    changed: NDArray[np.float64],
    unchanged: NDArray[np.float64],
) -> ScoreCalibration:
    """Fit by logistic regression; a feature whose weight comes out negative is left out, as Kull et al. do."""
    features = np.column_stack([log_p, minus_log_rest])
    used = [0, 1]
    while used:
        weight = np.concatenate([changed, unchanged])
        rows, target = np.tile(features[:, used], (2, 1)), np.repeat([True, False], len(log_p))
        fitted = LogisticRegression(C=1e6, max_iter=1000).fit(rows, target, sample_weight=weight / weight.mean())
        found = dict(zip(used, map(float, fitted.coef_[0]), strict=True))
        if min(found.values()) >= 0:
            return ScoreCalibration("beta", found.get(0, 0.0), found.get(1, 0.0), float(fitted.intercept_[0]))
        used.remove(min(found, key=lambda name: found[name]))
    raise DataError("These scores fall where change grows.", "Check that the labels belong to this map.")


def log_loss(counts: ScoreCounts) -> float:
    """Return the mean negative log-likelihood of the labels in nats, NaN when nothing is labelled and assessed."""
    changed, unchanged = counts.changed[1:], counts.unchanged[1:]
    total = float(changed.sum() + unchanged.sum())
    p = np.clip(_STORED, _END, 1 - _END)
    return float(-(changed * np.log(p) + unchanged * np.log1p(-p)).sum() / total) if total else float("nan")
