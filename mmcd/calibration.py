"""From raw outputs to probabilities and a threshold that hold on events with another share of change.

The share of change differs more between disasters than anything else a model meets: a threshold tuned at the share
of the training set fails on an event with a third of it. So both the probability calibration and the threshold are
fitted on validation tiles that are re-weighted to the shares that are expected in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression

from mmcd.errors import DataError
from mmcd.evaluation import ScoreCounts, precision_recall_f1


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
