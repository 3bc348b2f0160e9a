"""Measure a model on OMBRIA, through the same path that scores a user's scene."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Card, find_card
from mmcd.data.ombria import MAIN, OmbriaIndex, OmbriaTile, index_ombria, read_tile, scene_stretches
from mmcd.errors import DataError
from mmcd.evaluation import ScoreCounts, average_precision, roc_auc, summary
from mmcd.geo.cog import SCORE_BAND, write_cog
from mmcd.geo.raster import output_grid
from mmcd.geo.sensors import PairStretch
from mmcd.inference.engine import score_whole
from mmcd.inference.exported import choose_export
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.progress import Progress, silent
from mmcd.services.evaluate_request import EvaluateRequest, named_result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sample:
    """A scored tile: stored scores, darkness of the radar image as the trivial score, and the label."""

    score: NDArray[np.uint8]
    dark: NDArray[np.uint8]
    changed: NDArray[np.bool_]


def evaluate_ombria(request: EvaluateRequest, progress: Progress = silent) -> dict[str, Any]:
    """Return the metrics of a model at its card's threshold, and those of the trivial baselines.

    Every figure is computed from the stored scores of all pixels pooled over the tiles, as they are written by
    ``scores``.

    Raises:
        DataError: There are no such tiles, or a tile is damaged.
        ModelError: The model is missing, damaged or of another kind.
        StorageError: The scores cannot be written.
    """
    card_path, card = find_card(request.model)
    index = open_index(request)
    tiles = select_tiles(request, index)
    export = choose_export(card, request.backend, request.device, request.precision)
    predictor = Predictor.load(card_path, request.device, request.precision, export)
    counts, dark = ScoreCounts.none(), ScoreCounts.none()
    stretches = tile_stretches(index, tiles, card)
    for sample in _scored(tiles, stretches, card, predictor, request.scores, progress):
        counts += ScoreCounts.of(sample.score, sample.changed)
        dark += ScoreCounts.of(sample.dark, sample.changed)
    return {
        **named_result(request, card, len(tiles)),
        **summary(counts, card.decision.threshold),
        "baselines": _baselines(dark),
        "unit": "pixels of all tiles pooled, stored scores",
        "arithmetic": vars(predictor.arithmetic),
    }


def open_index(request: EvaluateRequest) -> OmbriaIndex:
    """Return the tiles of a request's folder, and say which have no partner.

    Raises:
        DataError: It is no folder, or holds no tile.
    """
    if not request.root.is_dir():
        raise DataError(f"{request.root} is not a folder.", "Give the folder of the data set with --root.")
    index = index_ombria(request.root)
    for line in index.unpaired:
        log.warning("%s: the tile is left out", line)
    return index


def select_tiles(request: EvaluateRequest, index: OmbriaIndex) -> list[OmbriaTile]:
    """Return the tiles that a request asks to score.

    Raises:
        DataError: There is none.
    """
    event = request.event or (MAIN if request.split else None)
    tiles = [
        tile
        for tile in index.tiles
        if (event is None or tile.event == event) and (request.split is None or tile.id.startswith(f"{request.split}/"))
    ]
    if not tiles:
        known = ", ".join(sorted({tile.event for tile in index.tiles}))
        raise DataError(f"{request.root} has no tile of event {event!r}.", f"Events there: {known}.")
    return tiles


def tile_stretches(index: OmbriaIndex, tiles: list[OmbriaTile], card: Card) -> dict[str, PairStretch]:
    """Return the stretches of the scenes that some tiles show: of the whole scenes, whichever tiles are measured."""
    groups = {tile.group for tile in tiles}
    scenes = [tile for tile in index.tiles if tile.group in groups]
    return scene_stretches(scenes, map(read_tile, scenes), card.pre, card.post)


def _scored(
    tiles: list[OmbriaTile],
    stretches: dict[str, PairStretch],
    card: Card,
    predictor: Predictor,
    scores: Path | None,
    progress: Progress,
) -> Iterator[_Sample]:
    progress("score", 0, len(tiles))
    names = file_names(tiles)
    for number, tile in enumerate(tiles, start=1):
        arrays = read_tile(tile)
        grid = output_grid(tile.pre, tile.post, card.gsd.nominal)
        with PairReader(tile.pre, tile.post, card, grid, stretch=stretches[tile.group]) as reader:
            score = score_whole(reader, predictor)
        if scores is not None:
            write_score_tile(scores / names[tile.id], score, reader, card)
        yield _Sample(score, np.maximum(255 - arrays.post[0], 1).astype(np.uint8), arrays.changed)
        progress("score", number, len(tiles))


def file_names(tiles: list[OmbriaTile]) -> dict[str, str]:
    """Return the name of each tile's score file: the last part of its own, with its folder where two would collide."""
    last = [tile.id.rsplit("/", 1)[-1] for tile in tiles]
    unique = len(set(last)) == len(last)
    return {tile.id: f"{name}.tif" if unique else f"{tile.id}.tif" for tile, name in zip(tiles, last, strict=True)}


def write_score_tile(path: Path, score: NDArray[np.uint8], reader: PairReader, card: Card) -> None:
    """Write the stored scores of one tile, shape (H, W), as a COG.

    Raises:
        StorageError: The disk is full or the place cannot be written.
    """
    write_cog(path, score, reader.grid, SCORE_BAND, {"MMCD_MODEL": f"{card.name} {card.version}"})


def _baselines(dark: ScoreCounts) -> dict[str, Any]:
    share = dark.prevalence
    return {
        "dark_sar": {"pixel_auc": roc_auc(dark), "average_precision": average_precision(dark)},
        "all_changed": {"pixel_auc": 0.5, "average_precision": share, "f1": 2 * share / (1 + share), "iou": share},
    }
