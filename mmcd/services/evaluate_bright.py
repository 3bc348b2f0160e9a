"""BRIGHT's protocol: grades of buildings and, for any model, destroyed against everything else.

Whole tiles are scored as they are, pixel by pixel on the label's grid, and every figure of a set comes from one
confusion matrix over its pixels. The tiles that were scored are named, and those of the list that were not: the
published figures include events whose optical images cannot be downloaded.

Source: Chen et al. 2025, ESSD 17, 6217-6253, and its official baseline protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import BUILDING_CLASSES, Branch, Card, find_card
from mmcd.data.bright import (
    CLASSES,
    DAMAGED,
    EVENTS,
    SUFFIXES,
    UNLABELLED,
    BrightPixels,
    BrightTile,
    index_bright,
    read_tile,
)
from mmcd.data.bright_choice import (
    TileChoice,
    choose_all,
    choose_of_split,
    choose_part,
    held_out_split,
    lists_folder,
)
from mmcd.data.bright_splits import read_split, unsupervised_split
from mmcd.errors import DataError, ModelError
from mmcd.evaluation import ScoreCounts, summary
from mmcd.geo.cog import SCORE_BAND, Band, write_cog
from mmcd.geo.sensors import SceneStretch
from mmcd.inference.engine import Stored, stored_whole
from mmcd.inference.exported import choose_export
from mmcd.inference.pair import ArrayPair
from mmcd.inference.predictor import Predictor
from mmcd.progress import Progress
from mmcd.score import threshold_value
from mmcd.segmentation_metrics import ConfusionMatrix, change_summary, grade_summary
from mmcd.services.evaluate_request import EvaluateRequest, named_result
from mmcd.services.published_bright import published_beside

DESTROYED = len(CLASSES) - 1
"""The only class that is positive in the protocol of unsupervised change detection."""

CLASS_BAND = Band(names=("background, intact, damaged, destroyed",))

_IMAGES = (3, 1)  # Bands of a tile's image before and after.


@dataclass(frozen=True)
class Tally:
    """Counts over tiles.

    Attributes:
        tiles: Number of tiles.
        grades: Confusion matrix of the four classes; empty of a model that maps no classes.
        destroyed: Confusion matrix of destroyed against everything else.
        scores: Stored scores over damaged and destroyed, and over the other labelled pixels.
    """

    tiles: int
    grades: ConfusionMatrix
    destroyed: ConfusionMatrix
    scores: ScoreCounts

    @classmethod
    def none(cls) -> "Tally":
        """Return empty counts, the start of a sum."""
        return cls(0, ConfusionMatrix.none(len(CLASSES)), ConfusionMatrix.none(2), ScoreCounts.none())

    @classmethod
    def of(cls, label: NDArray[np.uint8], found: Stored, threshold: float) -> "Tally":
        """Count one tile.

        Args:
            label: Class or `UNLABELLED`, shape (H, W).
            found: What the model says of it.
            threshold: Probability from which a pixel of a model without classes counts as destroyed.
        """
        known = label != UNLABELLED
        scores = ScoreCounts.of(found.score[known], label[known] >= DAMAGED)
        if found.classes is not None:
            grades = ConfusionMatrix.of(label, found.classes, len(CLASSES))
            return cls(1, grades, grades.merged([DESTROYED]), scores)
        truth = np.where(known, label == DESTROYED, -1)
        changed = (found.score >= threshold_value(threshold)).astype(np.uint8)
        return cls(1, ConfusionMatrix.none(len(CLASSES)), ConfusionMatrix.of(truth, changed, 2), scores)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.tiles + other.tiles,
            self.grades + other.grades,
            self.destroyed + other.destroyed,
            self.scores + other.scores,
        )

    def figures(self) -> dict[str, Any]:
        """Return the figures of these tiles."""
        grades = grade_summary(self.grades, CLASSES) if self.grades.total else {}
        return {**grades, "binary": change_summary(self.destroyed)}


def evaluate_bright(request: EvaluateRequest, progress: Progress) -> dict[str, Any]:
    """Return the figures of BRIGHT's protocol beside the published ones, see `mmcd.services.evaluate.evaluate`.

    Raises:
        DataError: There are no such tiles, none is labelled, or one is damaged or not as published.
        ModelError: The model is missing, damaged, takes other images or maps classes that are not BRIGHT's.
        StorageError: The scores cannot be written.
    """
    card_path, card = find_card(request.model)
    choice = chosen_tiles(request)
    _keep_labels(choice, request.scores)
    predictor = _load(card_path, card, request)
    events: dict[str, Tally] = {}
    sizes: list[float] = []
    for tile, tally, gsd in _tallies(choice, card, predictor, request.scores, progress):
        events[tile.event] = events.get(tile.event, Tally.none()) + tally
        sizes += [] if gsd is None else [gsd]
    total = sum(events.values(), Tally.none())
    return {
        **named_result(request, card, total.tiles),
        "protocol": choice.name,
        "hold_out": request.hold_out,
        "shots": None if request.hold_out is None else int(request.one_shot),
        **total.figures(),
        "confusion": total.grades.counts.tolist() if total.grades.total else None,
        "change": summary(total.scores, card.decision.threshold),
        "events": {
            event: {"name": EVENTS.get(event, ""), "tiles": tally.tiles, **tally.figures()}
            for event, tally in sorted(events.items())
        },
        "published": published_beside(request, total.grades.total > 0),
        "tiles_scored": [tile.id for tile in choice.tiles],
        "tiles_missing": choice.missing,
        "warnings": [*choice.warnings, *_warnings(card, choice, total), *_unfit(request, card, sizes)],
        "unit": "all labelled pixels of all tiles pooled; change: damaged or destroyed; binary: destroyed only",
        "arithmetic": vars(predictor.arithmetic),
    }


def chosen_tiles(request: EvaluateRequest) -> TileChoice:
    """Return the tiles that a request asks to score.

    Raises:
        DataError: There are no such tiles, or none is labelled.
    """
    if not request.root.is_dir():
        raise DataError(f"{request.root} is not a folder.", "Give the folder of the data set with --root.")
    if request.hold_out is not None:
        split = held_out_split(lists_folder(request.root, request.lists), request.hold_out, request.one_shot)
        return choose_of_split(index_bright(request.root), split, "test")
    if request.split is None:
        if request.lists is not None:
            raise DataError("--lists names the tiles of several parts.", "Choose one with --split.")
        return choose_all(request.root, request.event)
    lists = lists_folder(request.root, request.lists)
    if request.split == "unsupervised":
        others = unsupervised_split(read_split(lists, "standard_ML"))
        return choose_of_split(index_bright(request.root), others, "test", request.event)
    return choose_part(request.root, lists, request.protocol, request.split, request.event)


def _keep_labels(choice: TileChoice, scores: Path | None) -> None:
    """Refuse to write maps where the labels are: they have the names of the labels and would replace them."""
    folders = {tile.label.parent.resolve() for tile in choice.tiles if tile.label is not None}
    if scores is not None and scores.resolve() in folders:
        raise DataError(f"{scores} holds the labels, and maps have their names.", "Give --scores another folder.")


def _load(card_path: Path, card: Card, request: EvaluateRequest) -> Predictor:
    if "patch" in (card.pre.scaling, card.post.scaling):
        raise ModelError(
            f"{card.name!r} scores patches by their context and maps no pixels.", "Choose a model of the dense form."
        )
    found = len(card.pre.bands), len(card.post.bands)
    if found != _IMAGES:
        raise ModelError(
            f"{card.name!r} takes {found[0]} bands before and {found[1]} after; BRIGHT's tiles have 3 and 1.",
            "Choose a model for three optical bands and one of SAR.",
        )
    classes = int(card.settings.get("classes", 1))
    if classes > 1 and card.classes != BUILDING_CLASSES:
        raise ModelError(
            f"{card.name!r} maps {', '.join(card.classes)}; BRIGHT's classes are {', '.join(BUILDING_CLASSES)}.",
            "Choose a model of these classes, or one with a single output of change.",
        )
    export = choose_export(card, request.backend, request.device, request.precision)
    if export is not None and classes > 1:
        raise ModelError("Exports map no classes.", "Measure BRIGHT with --backend torch.")
    return Predictor.load(card_path, request.device, request.precision, export, all_classes=True)


def _tallies(
    choice: TileChoice, card: Card, predictor: Predictor, scores: Path | None, progress: Progress
) -> Iterator[tuple[BrightTile, Tally, float | None]]:
    progress("score", 0, len(choice.tiles))
    for number, tile in enumerate(choice.tiles, start=1):
        pixels = read_tile(tile)
        if pixels.label is None:
            raise DataError(f"Tile {tile.id} has no label file.", "Download the target folder.")
        found = stored_whole(array_pair(pixels, card), predictor)
        if scores is not None:
            _write(scores, tile, pixels, found, card)
        yield tile, Tally.of(pixels.label, found, card.decision.threshold), pixels.grid.gsd
        progress("score", number, len(choice.tiles))


def array_pair(pixels: BrightPixels, card: Card) -> ArrayPair:
    """Return a tile as the card takes it: pixel on pixel, whatever the two georeferences say, as the protocol does."""
    return ArrayPair(_stretched(pixels.pre, card.pre), _stretched(pixels.post, card.post), pixels.grid)


def _stretched(image: NDArray[np.uint8], branch: Branch) -> NDArray[np.float32]:
    return SceneStretch.of_values(list(image), "uint8", branch.unit, branch.percentiles, branch.level).apply(image)


def _write(folder: Path, tile: BrightTile, pixels: BrightPixels, found: Stored, card: Card) -> None:
    tags = {"MMCD_MODEL": f"{card.name} {card.version}"}
    write_cog(folder / f"{tile.id}.tif", found.score, pixels.grid, SCORE_BAND, tags)
    if found.classes is not None:
        write_cog(folder / f"{tile.id}{SUFFIXES['label']}", found.classes, pixels.grid, CLASS_BAND, tags)


def _warnings(card: Card, choice: TileChoice, total: Tally) -> list[str]:
    """Return what the figures do not say."""
    warnings = []
    if not total.grades.total:
        warnings.append(f"{card.name!r} has one output of change and no grades: only the binary protocol applies.")
    labelled = total.grades.labelled if total.grades.total else None
    for name, count in zip(CLASSES, [] if labelled is None else labelled.tolist(), strict=False):
        if not count:
            warnings.append(f"No scored tile is labelled {name}: score more tiles before its IoU and F1 mean anything.")
    if not {tile.event for tile in choice.tiles} & EVENTS.keys():
        warnings.append("None of the scored tiles is of a published event: the published figures are of other tiles.")
    elif choice.missing:
        warnings.append(
            f"{len(choice.missing):,} of {len(choice.missing) + len(choice.tiles):,} tiles were not scored, see "
            "tiles_missing: published figures over all of them are of other tiles."
        )
    return warnings


def _unfit(request: EvaluateRequest, card: Card, sizes: list[float]) -> list[str]:
    """Return a warning for tiles that the card is not made for, and for those that it may have learned from.

    Args:
        request: What is measured.
        card: The model's card.
        sizes: Metres a pixel of each tile that has a georeference.
    """
    warnings = []
    outside = [gsd for gsd in sizes if not card.gsd.min <= gsd <= card.gsd.max]
    if outside:
        warnings.append(
            f"{len(outside):,} tiles have pixels of {min(outside):.2f} to {max(outside):.2f} m and {card.name!r} is "
            f"made for {card.gsd.min:g} to {card.gsd.max:g} m: they are scored as they are, without resampling."
        )
    data = card.training.get("data", {})
    if request.hold_out is None and data.get("source") == "bright":
        warnings += _learned_from(request, card.name, data.get("hold_out"))
    known = data.get("hold_out") == request.hold_out and data.get("one_shot", False) <= request.one_shot
    if request.hold_out is not None and not known:
        warnings.append(
            f"The card of {card.name!r} does not say that it was trained without {request.hold_out}: train one with "
            f"--set data.hold_out={request.hold_out} before calling this a cross-event figure."
        )
    return warnings


def _learned_from(request: EvaluateRequest, name: str, hold_out: str | None) -> list[str]:
    """Return a warning where a model that was trained on BRIGHT may have seen the scored tiles.

    Args:
        request: What is measured, without an event that is held out.
        name: The model.
        hold_out: Event that it was trained without; such a model learns from the test tiles of the other events.
    """
    if hold_out is not None:
        return [
            f"{name!r} was trained without {hold_out} and on the test tiles of the other events: only "
            f"--hold-out {hold_out} measures it on tiles that it never saw."
        ]
    if request.split in (None, "train", "unsupervised"):
        return [f"{name!r} was trained on a train list of BRIGHT, which may be scored here: give --split test."]
    return []
