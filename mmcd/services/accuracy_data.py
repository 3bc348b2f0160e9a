"""Measure a model on a data set event by event, and keep the counts in the workspace."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from mmcd.cards import Card, find_card
from mmcd.config import Config
from mmcd.errors import InputError
from mmcd.geo.cog import atomic_path
from mmcd.paths import workspace_folder
from mmcd.progress import Progress, silent
from mmcd.services.accuracy import Measured

DatasetName = Literal["ombria", "bright", "levir"]
DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)
"""Data sets whose labels are maps of change."""

_AFTER: dict[DatasetName, tuple[str, float]] = {
    "ombria": ("sar", 10.0),
    "bright": ("sar", 0.5),
    "levir": ("optical", 0.5),
}
"""Kind and pixel size, metres, of a data set's images after the event."""


def fitting_first(models: Mapping[str, Card], dataset: DatasetName) -> list[str]:
    """Return the names of models, those first that were made for images like a data set's."""
    kind, gsd = _AFTER[dataset]
    return sorted(
        models, key=lambda name: (models[name].post.modality != kind, abs(math.log(models[name].gsd.nominal / gsd)))
    )


class AccuracyRequest(Config):
    """What to measure, in the words of `mmcd evaluate`.

    Attributes:
        model: Name of a model or path of a card.
        dataset: Name of the data set.
        root: Its folder.
        event: One event; all tiles when left out.
        split: Part of the data set; all tiles when left out.
        scores: Folder that `mmcd evaluate --scores` filled; nothing is then scored again.
    """

    model: str
    dataset: DatasetName
    root: Path
    event: str | None = None
    split: str | None = None
    scores: Path | None = None

    @property
    def key(self) -> str:
        """Name under which the result is kept: the same request of the same card has the same one."""
        card = find_card(self.model)[1]
        parts = [self.model_dump_json(), card.model_dump_json(include={"version", "sha256", "decision"})]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def measure_dataset(request: AccuracyRequest, progress: Progress = silent) -> str:
    """Score a data set unless it was scored already, count it by event and keep the result; return its key.

    Raises:
        DataError: There are no such tiles, or a tile or its score is damaged.
        ModelError: The model is missing or of another kind.
        StorageError: The result cannot be written.
    """
    # torch is loaded only where something is scored; the pages read what was kept.
    from mmcd.services.accuracy_tiles import count_tiles
    from mmcd.services.evaluate import evaluate
    from mmcd.services.evaluate_request import EvaluateRequest

    asked, folder = EvaluateRequest.checked(**request.model_dump()), results_folder() / request.key
    notes: tuple[str, ...] = ()
    if asked.scores is None:
        found = evaluate(asked.model_copy(update={"scores": folder}), progress)
        notes = tuple(found.get("warnings", ()))
    card = find_card(asked.model)[1]
    counted = count_tiles(asked, asked.scores or folder, (card.name, card.version), progress)
    part = asked.event or asked.split or "all tiles"
    measured = Measured(
        title=f"{asked.dataset.upper()}, {part}: {counted.tiles:,} tiles, scored by {card.name} {card.version}",
        model=card.name,
        version=card.version,
        sha256=card.sha256,
        threshold=card.decision.threshold,
        events=counted.events,
        baselines=counted.baselines,
        histogram=counted.histogram,
        notes=notes,
    )
    with atomic_path(results_folder() / f"{request.key}.json") as temporary:
        temporary.write_text(json.dumps(measured.to_dict()))
    return request.key


def run_accuracy(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Measure a data set as a job; the result names what was kept.

    Raises:
        MmcdError: It cannot be measured, or the user stopped the job.
    """
    return {"evaluation": measure_dataset(AccuracyRequest.checked(**request), progress)}


def results_folder() -> Path:
    """Return where measurements of data sets are kept."""
    return workspace_folder("accuracy")


def load_measured(key: str) -> Measured:
    """Return a measurement of a data set.

    Raises:
        InputError: There is none with this key.
    """
    path = results_folder() / f"{key}.json"
    if len(key) != 16 or not set(key) <= set("0123456789abcdef") or not path.is_file():
        raise InputError("There is no such measurement in the workspace.", "Measure the data set again.")
    return Measured.from_dict(json.loads(path.read_text()))


def list_measured() -> dict[str, str]:
    """Return the title of each kept measurement by its key, newest first."""
    paths = sorted(results_folder().glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return {path.stem: str(json.loads(path.read_text())["title"]) for path in paths}
