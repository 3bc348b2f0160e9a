"""The table behind the threshold slider: counts of a stored score, and everything that follows from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmcd.evaluation import ScoreCounts, metrics_at, precision_recall_f1
from mmcd.export import area_summary, stored_scores
from mmcd.geo.raster import RasterSource
from mmcd.score import score_counts, threshold_value

QualityName = Literal["precision", "recall", "f1", "iou"]
PresetName = Literal["sensitive", "balanced", "strict", "best F1"]
PRESET_COST = 3.0  # how much dearer one kind of error is than it was for the model's own threshold


@dataclass(frozen=True)
class ScoreTable:
    """Counts of a run's score, and of its two classes where there is a label.

    Attributes:
        counts: How often each stored byte occurs, shape (256,).
        pixel_area_m2: Ground area of a pixel; None in pixel space.
        labelled: Counts by class; None without a label.
    """

    counts: NDArray[np.int64]
    pixel_area_m2: float | None
    labelled: ScoreCounts | None

    def at(self, threshold: float) -> dict[str, Any]:
        """Return areas, and precision, recall, F1 and IoU where labels exist, at a probability threshold."""
        areas = area_summary(self.counts, threshold, self.pixel_area_m2)
        return areas | (metrics_at(self.labelled, threshold) if self.labelled else {})

    def changed(self) -> NDArray[np.int64]:
        """Return how many pixels count as changed for a cut at each stored value, shape (256,).

        Entry 0 equals entry 1: what was not assessed is never changed.
        """
        above = self.counts[:0:-1].cumsum()[::-1]
        return np.concatenate([above[:1], above])

    def quality(self) -> dict[QualityName, NDArray[np.float64]] | None:
        """Return precision, recall, F1 and IoU for a cut at each stored value, each of shape (256,) in [0, 1].

        Entry 0 equals entry 1. None without a label, or when nothing that is labelled was assessed.
        """
        if self.labelled is None or not (self.labelled.changed[1:].sum() + self.labelled.unchanged[1:].sum()):
            return None
        precision, recall, f1 = precision_recall_f1(self.labelled)
        curves = dict(zip(get_args(QualityName), (precision, recall, f1, f1 / (2 - f1)), strict=True))
        return {name: np.concatenate([curve[:1], curve]) for name, curve in curves.items()}

    def presets(self, threshold: float) -> dict[PresetName, int]:
        """Return the stored values of thresholds to start from.

        A calibrated probability is cut where its odds equal the cost of a false alarm over that of a miss (Elkan 2001,
        The foundations of cost-sensitive learning, equation 2). *Balanced* is the run's own threshold; for *sensitive*
        a miss, for *strict* a false alarm costs `PRESET_COST` times as much as it implies. *Best F1* is measured on
        the labels and is there only where they hold change.

        Args:
            threshold: The run's own threshold, a probability in [0, 1].
        """
        found: dict[PresetName, int] = {
            "sensitive": threshold_value(_tilted(threshold, 1 / PRESET_COST)),
            "balanced": threshold_value(threshold),
            "strict": threshold_value(_tilted(threshold, PRESET_COST)),
        }
        curves = self.quality()
        if curves is not None and curves["f1"].max() > 0:
            found["best F1"] = int(curves["f1"][1:].argmax()) + 1
        return found


def score_table(score: Path, label: Path | None = None, changed_from: int = 1) -> ScoreTable:
    """Count a score COG in one pass.

    Args:
        score: Score COG.
        label: Raster of classes; read nearest in the score's grid.
        changed_from: Smallest class that counts as changed.

    Raises:
        InputError: A file cannot be read, or the label has another place or size.
    """
    counts, labelled = np.zeros(256, np.int64), ScoreCounts.none()
    with RasterSource(score) as source:
        grid = source.grid
    if label is None:
        for _, values in stored_scores(score):
            counts += score_counts(values)
        return ScoreTable(counts, grid.pixel_area_m2, None)
    with RasterSource(label, [1]) as classes:
        aligned = classes.aligned(grid, "nearest")
        for window, values in stored_scores(score):
            counts += score_counts(values)
            known = aligned.read(window)
            labelled += ScoreCounts.of(values[known.valid], known.data[0][known.valid] >= changed_from)
    return ScoreTable(counts, grid.pixel_area_m2, labelled)


def _tilted(probability: float, factor: float) -> float:
    """Return the probability whose odds are ``factor`` times those of ``probability``."""
    return factor * probability / (factor * probability + 1 - probability)
