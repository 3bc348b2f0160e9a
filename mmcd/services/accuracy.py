"""What is known of a score's accuracy: labelled counts by event, and baselines counted on the same pixels.

Everything is made of tables of 256 counts (`mmcd.evaluation`), here of a run of a labelled scene; those of data sets
are made in `mmcd.services.accuracy_data`. *Positive* means changed.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import find_card
from mmcd.errors import DataError, ModelError
from mmcd.evaluation import ScoreCounts, metrics_at, precision_recall_f1, summary
from mmcd.export import stored_scores
from mmcd.geo.catalog import Scene
from mmcd.geo.display import display_plan
from mmcd.geo.raster import RasterSource
from mmcd.score import NOT_ASSESSED, score_counts, threshold_value
from mmcd.services.labels import changed_from
from mmcd.services.runs import Run
from mmcd.thresholds import LABEL_FREE, LabelFree, label_free_threshold

Counts = Mapping[str, ScoreCounts]

LABEL_FREE_NAMES: dict[LabelFree, str] = {
    "otsu": "Otsu",
    "kittler_illingworth": "Kittler-Illingworth",
    "mixture": "Two-component mixture",
}


@dataclass(frozen=True)
class Measured:
    """What was counted of one model on labelled pixels.

    Attributes:
        title: What was measured, for people.
        model: Name of the model.
        version: Its version.
        sha256: Hash of its weights.
        threshold: Its own threshold, a probability in [0, 1].
        events: Labelled counts of each event; one entry for a scene.
        baselines: Counts of each score that needs no model, over all events.
        histogram: How often each stored byte occurs, labelled or not, shape (256,).
        pixel_area_m2: Ground area of a pixel; None where it is unknown or differs.
        notes: What the figures do not say, one sentence each.
    """

    title: str
    model: str
    version: str
    sha256: str
    threshold: float
    events: Counts
    baselines: Counts
    histogram: NDArray[np.int64]
    pixel_area_m2: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> ScoreCounts:
        """Counts over all events."""
        return sum(self.events.values(), ScoreCounts.none())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, see `from_dict`."""
        values = asdict(self) | {"histogram": self.histogram.tolist(), "notes": list(self.notes)}
        for name, group in {"events": self.events, "baselines": self.baselines}.items():
            values[name] = {
                key: {"changed": counts.changed.tolist(), "unchanged": counts.unchanged.tolist()}
                for key, counts in group.items()
            }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Measured":
        """Return what `to_dict` made JSON of."""
        groups = {
            name: {
                key: ScoreCounts(*(np.array(counts[side], np.float64) for side in ("changed", "unchanged")))
                for key, counts in values[name].items()
            }
            for name in ("events", "baselines")
        }
        histogram = np.array(values["histogram"], np.int64)
        return cls(**{**values, **groups, "histogram": histogram, "notes": tuple(values["notes"])})


def measure_run(run: Run, scene: Scene) -> Measured:
    """Count a run's score against the scene's labels, and what the image after says without a model.

    Args:
        run: A finished run.
        scene: Its scene.

    Raises:
        DataError: The scene has no labels, or none where the run assessed it.
        InputError: A file cannot be read.
    """
    if scene.label is None:
        raise DataError(f"Scene {scene.id} has no labels.", "Choose a labelled scene, or measure on a data set.")
    first, baseline = changed_from(scene.label), _Baseline.of(scene)
    model, trivial, histogram = ScoreCounts.none(), ScoreCounts.none(), np.zeros(256, np.int64)
    with RasterSource(run.score) as source:
        grid = source.grid
    with RasterSource(scene.label, [1]) as labels, RasterSource(baseline.path, baseline.indexes) as image:
        truth, picture = labels.aligned(grid, "nearest"), image.aligned(grid)
        for window, values in stored_scores(run.score):
            known, shades = truth.read(window), picture.read(window)
            changed = known.data[0] >= first
            histogram += score_counts(values)
            model += ScoreCounts.of(values[known.valid], changed[known.valid])
            both = known.valid & (values != NOT_ASSESSED)
            trivial += ScoreCounts.of(baseline.score(shades.data, shades.valid)[both], changed[both])
    if not model.changed[1:].sum() + model.unchanged[1:].sum():
        raise DataError("No pixel is both assessed and labelled.", "Run the model where the scene has labels.")
    facts = run.manifest["model"]
    return Measured(
        title=f"{scene.title or scene.id}, scored by {facts['name']} {facts['version']}",
        model=str(facts["name"]),
        version=str(facts["version"]),
        sha256=str(facts.get("sha256", "")),
        threshold=float(run.manifest["threshold"]),
        events={scene.title or scene.id: model},
        baselines={baseline.name: trivial},
        histogram=histogram,
        pixel_area_m2=grid.pixel_area_m2,
        notes=() if model.changed[1:].any() else ("The labels hold no change here.",),
    )


@dataclass(frozen=True)
class _Baseline:
    """A score that needs no model: how dark the image after is.

    Attributes:
        name: For people.
        path: The image after.
        indexes: Bands that are read.
    """

    name: str
    path: Path
    indexes: tuple[int, ...]

    @classmethod
    def of(cls, scene: Scene) -> "_Baseline":
        return cls("Darkness of the image after", scene.post, display_plan(scene.post).indexes)

    def score(self, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return stored bytes, shape (H, W): dark is change, on the scale on which the image is shown."""
        shade = display_plan(self.path).stretch.apply(values).mean(axis=0)
        stored = 1 + np.rint((1 - np.nan_to_num(shade)).clip(0, 1) * 254)
        return np.where(valid, stored, NOT_ASSESSED).astype(np.uint8)


def event_rows(measured: Measured, threshold: float) -> list[dict[str, Any]]:
    """Return the figures of each event and of all together at a probability threshold; NaN where there is none."""
    groups = dict(measured.events)
    if len(groups) > 1:
        groups["All events"] = measured.total
    rows = []
    for name, counts in groups.items():
        pixels = counts.changed[1:].sum() + counts.unchanged[1:].sum()
        rows.append({"event": name, "pixels": int(pixels), **summary(counts, threshold)})
    return rows


def confusion(counts: ScoreCounts, threshold: float) -> dict[str, int]:
    """Return the pixels of the four outcomes at a probability threshold: ``hit``, ``false``, ``missed``, ``kept``."""
    cut = threshold_value(threshold) - 1
    hit, false = (int(curve[cut]) for curve in counts.at_least())
    changed, unchanged = int(counts.changed[1:].sum()), int(counts.unchanged[1:].sum())
    return {"hit": hit, "false": false, "missed": changed - hit, "kept": unchanged - false}


def threshold_rows(measured: Measured, chosen: float) -> list[dict[str, Any]]:
    """Return the thresholds to compare, each with what it gives on the labels.

    Args:
        measured: What was counted.
        chosen: The threshold that is set now.

    Returns:
        ``name``, ``needs`` (what it is found by), ``threshold`` (None where there is none) and, where there is one, the
        metrics of `mmcd.evaluation.metrics_at`.
    """
    total = measured.total
    f1 = precision_recall_f1(total)[2]
    best = float(np.flatnonzero(f1 == f1.max()).mean().round()) / 254 if f1.max() > 0 else None
    found: list[tuple[str, str, float | None]] = [
        ("Set now", "you", chosen),
        ("The model's own", "its validation", measured.threshold),
        ("Best F1", "these labels", best),
    ]
    counts = measured.histogram.tobytes()
    found += [(LABEL_FREE_NAMES[how], "no labels", _label_free(counts, how)) for how in LABEL_FREE]
    return [
        {"name": name, "needs": needs, "threshold": cut, **({} if cut is None else metrics_at(total, cut))}
        for name, needs, cut in found
    ]


@functools.lru_cache(maxsize=64)
def _label_free(histogram: bytes, how: LabelFree) -> float | None:
    """Keep what does not change while a threshold is moved: the mixture takes a tenth of a second."""
    return label_free_threshold(np.frombuffer(histogram, np.int64), how)


def roc_points(counts: ScoreCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rates for a cut at each stored value, from (0, 0) to (1, 1), shape (256,) each.

    Raises:
        DataError: Only one class is there.
    """
    changed, unchanged = counts.changed[1:].sum(), counts.unchanged[1:].sum()
    if not changed or not unchanged:
        raise DataError("A ROC curve needs changed and unchanged pixels.", "Choose labels that hold both.")
    hit, false = counts.at_least()
    return np.append(false / unchanged, 0.0)[::-1], np.append(hit / changed, 0.0)[::-1]


def card_of(measured: Measured) -> str:
    """Return the word that finds the card that scored, or say that it is gone.

    Raises:
        ModelError: There is no such card.
    """
    name = f"{measured.model}@{measured.version}"
    gone = ModelError(
        f"The card of {measured.model} {measured.version}, which made these scores, is not here.",
        "Score again with a model of `mmcd weights list`.",
    )
    try:
        card = find_card(name)[1]
    except ModelError as error:
        raise gone from error
    if card.sha256 != measured.sha256:
        raise gone
    return name
