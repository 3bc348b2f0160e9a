"""Accuracy of class maps against labels, from one confusion matrix of a whole set.

Matrices add up over tiles and events, so every figure of a set comes from its pooled pixels and not from a mean over
tiles. A class that neither labels nor maps hold has no IoU and no F1: it is NaN and left out of means, which always
say what they were taken over.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mmcd.errors import DataError


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often each class is taken for each other one.

    Attributes:
        counts: Pixels, labelled class by mapped class, shape (K, K), int64.
    """

    counts: NDArray[np.int64]

    @classmethod
    def none(cls, classes: int) -> Self:
        """Return an empty matrix, the start of a sum."""
        return cls(np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, label: NDArray[np.integer[Any]], mapped: NDArray[np.integer[Any]], classes: int) -> Self:
        """Count one map.

        Args:
            label: Labelled class, any shape; a pixel that is no class (255, -1) is not labelled and counts nowhere.
            mapped: Class on the map, same shape.
            classes: Number of classes.

        Raises:
            DataError: Label and map differ in size, or the map holds something else where a label is.
        """
        if label.shape != mapped.shape:
            raise DataError(f"Label {label.shape} and map {mapped.shape} differ in size.", "Bring them to one grid.")
        known = (label >= 0) & (label < classes)
        truth, answer = label[known].astype(np.int64), mapped[known].astype(np.int64)
        if answer.size and not 0 <= answer.min() <= answer.max() < classes:
            raise DataError(f"The map holds values outside 0 to {classes - 1}.", "Give a map of these classes.")
        return cls(np.bincount(truth * classes + answer, minlength=classes**2).reshape(classes, classes))

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts + other.counts)

    @property
    def total(self) -> int:
        """Labelled pixels."""
        return int(self.counts.sum())

    @property
    def hits(self) -> NDArray[np.int64]:
        """Pixels of each class that are mapped as it, shape (K,)."""
        return self.counts.diagonal()

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Labelled pixels of each class, shape (K,)."""
        return np.asarray(self.counts.sum(axis=1), np.int64)

    @property
    def mapped(self) -> NDArray[np.int64]:
        """Pixels that are mapped as each class, shape (K,)."""
        return np.asarray(self.counts.sum(axis=0), np.int64)

    @property
    def accuracy(self) -> float:
        """Overall accuracy: share of labelled pixels that are mapped right; NaN without a label."""
        return float(self.hits.sum() / self.total) if self.total else float("nan")

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, shape (K,); NaN where neither label nor map holds it."""
        return _share(self.hits, self.labelled + self.mapped - self.hits)

    @property
    def f1(self) -> NDArray[np.float64]:
        """F1 of each class, shape (K,); NaN where neither label nor map holds it."""
        return _share(2 * self.hits, self.labelled + self.mapped)

    @property
    def kappa(self) -> float:
        """Cohen's kappa, agreement beyond chance; NaN where chance alone agrees everywhere. Source: Cohen 1960."""
        total = self.total
        if not total:
            return float("nan")
        chance = float(self.labelled.astype(np.float64) @ self.mapped.astype(np.float64)) / total**2
        return (self.accuracy - chance) / (1 - chance) if chance < 1 else float("nan")

    def merged(self, classes: Iterable[int]) -> "ConfusionMatrix":
        """Return the matrix of two classes: 1 is any of ``classes``, 0 any other one."""
        inside = np.isin(np.arange(len(self.counts)), list(classes)).astype(np.int64)
        sides = np.stack([1 - inside, inside])  # (2, K)
        return ConfusionMatrix(sides @ self.counts @ sides.T)

    def of_labels(self, classes: Iterable[int]) -> "ConfusionMatrix":
        """Return the matrix over pixels that are labelled as one of ``classes``."""
        inside = np.isin(np.arange(len(self.counts)), list(classes))
        return ConfusionMatrix(self.counts * inside[:, None])


def harmonic_mean(values: NDArray[np.float64]) -> float:
    """Return the harmonic mean of values that are not NaN: 0 where one is 0, NaN where there is none."""
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan")
    return float(len(known) / (1 / known).sum()) if known.all() else 0.0


def grade_summary(matrix: ConfusionMatrix, names: Sequence[str]) -> dict[str, Any]:
    """Return BRIGHT's figures of a map of background and building grades.

    ``f1_loc`` is the F1 of buildings against background, whatever their grade. ``f1_clf`` is the harmonic mean of the
    F1 of the grades over the pixels that are labelled as buildings; a building mapped as background is a miss there.
    ``miou`` and ``f1_clf`` leave out what ``absent`` names; ``miou_absent_zero`` counts its IoU as 0.

    Args:
        matrix: Confusion matrix, background first.
        names: Names of the classes.

    Source: Chen et al. 2025, ESSD 17, 6217-6253.
    """
    grades = range(1, len(names))
    iou, graded = matrix.iou, matrix.of_labels(grades).f1[1:]
    absent = np.isnan(iou)
    return {
        "oa": matrix.accuracy,
        "miou": float(np.nanmean(iou)) if not absent.all() else float("nan"),
        "miou_absent_zero": float(np.nan_to_num(iou).mean()),
        "f1_loc": float(matrix.merged(grades).f1[1]),
        "f1_clf": harmonic_mean(graded),
        "iou": dict(zip(names, iou.tolist(), strict=True)),
        "f1_graded": dict(zip(names[1:], graded.tolist(), strict=True)),
        "labelled_px": dict(zip(names, matrix.labelled.tolist(), strict=True)),
        "absent": [name for name, missing in zip(names, absent, strict=True) if missing],
    }


def change_summary(matrix: ConfusionMatrix) -> dict[str, float]:
    """Return the figures of unsupervised change detection of a matrix of unchanged and changed."""
    return {
        "oa": matrix.accuracy,
        "f1": float(matrix.f1[1]),
        "iou": float(matrix.iou[1]),
        "kappa": matrix.kappa,
    }


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares
