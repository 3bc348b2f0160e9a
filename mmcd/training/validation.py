"""Validation under the shares of change that are met in use, and the card's decision that is fitted on it.

The training set is flooded three to ten times as much as the events the weights meet later. Validation therefore
weights pieces of tiles so that their mean share is a third and a tenth of the training share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from mmcd.calibration import (
    LogisticCalibration,
    best_f1_threshold,
    fit_logistic,
    tilt_to_share,
    weighted_counts,
)
from mmcd.cards import Decision
from mmcd.errors import DataError
from mmcd.evaluation import ScoreCounts, average_precision, precision_recall_f1, roc_auc
from mmcd.score import encode_score

T = TypeVar("T", bound=np.generic)

PIECES = 2
"""A tile is weighted in 2 x 2 pieces: whole tiles were chosen to show a flood, quarters of them need not."""

SHIFTS = (1 / 3, 1 / 10)
"""Shares of change in use, as parts of the share of the training set."""

_SAMPLE_STEP = 7
"""Every 7th row and column of pixels enters the logistic fit: neighbours say the same."""


@dataclass(frozen=True)
class Outputs:
    """Raw outputs of a model over the tiles of a validation fold.

    Attributes:
        ids: Name of each tile.
        groups: Group of each tile.
        logit: Head logits, shape (N, H, W), float16.
        distance: ``1 - cosine``, shape (N, H, W), float16; zeros for a model without embeddings.
        changed: True where changed, shape (N, H, W).
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    logit: NDArray[np.float16]
    distance: NDArray[np.float16]
    changed: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """Write everything to a compressed npz file."""
        np.savez_compressed(
            path,
            ids=np.array(self.ids),
            groups=np.array(self.groups),
            logit=self.logit,
            distance=self.distance,
            changed=self.changed,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(
                tuple(stored["ids"].tolist()),
                tuple(stored["groups"].tolist()),
                stored["logit"],
                stored["distance"],
                stored["changed"],
            )

    @classmethod
    def pooled(cls, parts: Sequence["Outputs"]) -> Self:
        """Return several folds as one."""
        return cls(
            tuple(name for part in parts for name in part.ids),
            tuple(name for part in parts for name in part.groups),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("logit", "distance", "changed")),
        )

    def scored(self, calibration: LogisticCalibration) -> NDArray[np.uint8]:
        """Return the stored score of every pixel, shape (N, H, W)."""
        return np.stack(
            [
                encode_score(
                    calibration(logit.astype(np.float32), distance.astype(np.float32)), np.ones(logit.shape, np.bool_)
                )
                for logit, distance in zip(self.logit, self.distance, strict=True)
            ]
        )


def grouped_folds(
    groups: Sequence[str], share: NDArray[np.floating], folds: int, seed: int = 0
) -> list[NDArray[np.intp]]:
    """Return the validation indices of every fold: no group in two folds, shares of change alike.

    Args:
        groups: Group of each sample.
        share: Share of change of each sample; the strata are its quintiles.
        folds: Number of folds.
        seed: Seed of the shuffle.

    Raises:
        DataError: There are fewer groups than folds.
    """
    if len(set(groups)) < folds:
        raise DataError(
            f"{len(set(groups))} groups cannot be split into {folds} folds without a leak.",
            "Choose fewer folds with --set data.folds=N.",
        )
    strata = np.searchsorted(np.quantile(share, [0.2, 0.4, 0.6, 0.8]), share)
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    return [held_out for _, held_out in splitter.split(share, strata, groups)]


def pieces(images: NDArray[T]) -> list[NDArray[T]]:
    """Return the quarters of every tile, (N, H, W) to 4 N arrays of (H/2, W/2)."""
    return [
        piece for image in images for rows in np.array_split(image, PIECES) for piece in np.array_split(rows, PIECES, 1)
    ]


@dataclass(frozen=True)
class ShiftedCounts:
    """Score counts of pieces of tiles, ready to be weighted to any share of change.

    Attributes:
        counts: Counts of each piece.
        share: Share of changed pixels of each piece, shape (P,).
    """

    counts: tuple[ScoreCounts, ...]
    share: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.uint8], changed: NDArray[np.bool_]) -> Self:
        """Count the pieces of tiles.

        Args:
            scores: Stored scores, shape (N, H, W).
            changed: True where the label says changed, same shape.
        """
        parts = zip(pieces(scores), pieces(changed), strict=True)
        counts = tuple(ScoreCounts.of(score, target) for score, target in parts)
        return cls(counts, np.array([table.prevalence for table in counts]))

    def at_share(self, wanted: float) -> ScoreCounts:
        """Return the counts weighted to a mean share of change."""
        return weighted_counts(self.counts, tilt_to_share(self.share, wanted))


def shifted_metrics(shifted: ShiftedCounts, training_share: float) -> dict[str, float]:
    """Return AUC, AP and best F1 as they are and at the shares of `SHIFTS`.

    ``ap_shift`` is the mean of average precision at the shifted shares; checkpoints are chosen by it.
    """
    plain = weighted_counts(shifted.counts, np.ones(len(shifted.share)))
    low = [shifted.at_share(shift * training_share) for shift in SHIFTS]
    return {
        "auc": roc_auc(plain),
        "ap": average_precision(plain),
        "best_f1": float(precision_recall_f1(plain)[2].max()),
        "ap_third": average_precision(low[0]),
        "ap_tenth": average_precision(low[1]),
        "ap_shift": float(np.mean([average_precision(counts) for counts in low])),
    }


def fit_decision(
    outputs: Outputs,
    training_share: float,
    shifts: Sequence[float] = SHIFTS,
    head: bool = True,
    cosine: bool = True,
) -> Decision:
    """Fit weights and calibration for the shifted shares, and the threshold for events that were never seen.

    Args:
        outputs: Out-of-fold outputs.
        training_share: Share of change of the training set.
        shifts: Shares of change in use, as parts of it; probabilities are calibrated for the first. The threshold is
            chosen for these parts of every event's own share.
        head: Use the head's logit.
        cosine: Use the embedding distance.
    """
    calibration = _fit_at(outputs, shifts[0] * training_share, head, cosine)
    threshold = best_f1_threshold(
        *event_scenarios(outputs.groups, outputs.scored(calibration), outputs.changed, shifts)
    )
    return Decision(
        head_weight=calibration.head_weight,
        cosine_weight=calibration.cosine_weight,
        slope=1.0,
        intercept=calibration.intercept,
        threshold=threshold,
        prevalence=shifts[0] * training_share,
    )


def event_scenarios(
    groups: Sequence[str], scores: NDArray[np.uint8], changed: NDArray[np.bool_], shifts: Sequence[float]
) -> tuple[list[ScoreCounts], list[float]]:
    """Return every group's counts at parts of its own share of change, and how much each should weigh.

    How sure a model is differs from event to event. Over pooled pixels the largest events decide on the threshold, and
    on another event it lies too high or too low. A group therefore weighs by the root of its number of tiles, as the
    sampler draws it. A share that no weighting of a group's pieces has is left out; where none has any, all tiles are
    one group.

    Args:
        groups: Group of each tile.
        scores: Stored scores, shape (N, H, W).
        changed: True where changed, same shape.
        shifts: Parts of a group's share of change.

    Raises:
        DataError: The tiles cannot be weighted to these shares, for example because nothing changed.
    """
    names = np.asarray(groups)
    scenarios: list[ScoreCounts] = []
    weights: list[float] = []
    for name in sorted(set(groups)):
        rows = np.flatnonzero(names == name)
        shifted = ShiftedCounts.of(scores[rows], changed[rows])
        wanted = [part * float(changed[rows].mean()) for part in shifts]
        found = [shifted.at_share(share) for share in wanted if shifted.share.min() < share < shifted.share.max()]
        scenarios += found
        weights += [math.sqrt(len(rows)) / len(wanted)] * len(found)
    if not scenarios:
        pooled = ShiftedCounts.of(scores, changed)
        scenarios = [pooled.at_share(part * float(changed.mean())) for part in shifts]
    return scenarios, weights or [1.0] * len(scenarios)


def _fit_at(outputs: Outputs, share: float, head: bool, cosine: bool) -> LogisticCalibration:
    """Fit the logistic combination on a lattice of pixels, weighted to a share of change."""
    step = (slice(None), slice(None, None, _SAMPLE_STEP), slice(None, None, _SAMPLE_STEP))
    logit, distance, changed = (
        [piece.ravel() for piece in pieces(array[step])] for array in (outputs.logit, outputs.distance, outputs.changed)
    )
    weight = tilt_to_share(np.array([piece.mean() for piece in changed]), share)
    return fit_logistic(
        np.concatenate(logit).astype(np.float64) * head,
        np.concatenate(distance).astype(np.float64) * cosine,
        np.concatenate(changed),
        np.repeat(weight, [len(piece) for piece in changed]),
    )
