"""Count the score files that `mmcd evaluate --scores` writes against the labels of a data set, event by event."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmcd.data.bright import DAMAGED, UNLABELLED, BrightTile, read_layer
from mmcd.data.levir import LevirPairs
from mmcd.data.ombria import OmbriaTile
from mmcd.data.ombria import read_tile as read_ombria
from mmcd.errors import DataError, InputError, ModelError
from mmcd.evaluation import ScoreCounts
from mmcd.geo.raster import RasterSource
from mmcd.progress import Progress
from mmcd.score import score_counts
from mmcd.services.evaluate_bright import chosen_tiles
from mmcd.services.evaluate_ombria import file_names, open_index, select_tiles
from mmcd.services.evaluate_request import EvaluateRequest

Bytes = NDArray[np.uint8]
Truth = tuple[NDArray[np.bool_], NDArray[np.bool_], Bytes]
"""Where it is changed, where that is known, and a score without a model, all of shape (H, W)."""


@dataclass(frozen=True)
class CountedTiles:
    """What the tiles of a data set hold.

    Attributes:
        tiles: Number of tiles.
        events: Labelled counts of each event, by name.
        baselines: Counts of a score without a model, by its name.
        histogram: How often each stored byte occurs, shape (256,).
    """

    tiles: int
    events: dict[str, ScoreCounts]
    baselines: dict[str, ScoreCounts]
    histogram: NDArray[np.int64]


@dataclass(frozen=True)
class _Tile:
    event: str
    file: str
    truth: Callable[[tuple[int, int]], Truth]


def count_tiles(request: EvaluateRequest, folder: Path, model: tuple[str, str], progress: Progress) -> CountedTiles:
    """Count the score files of a folder.

    Args:
        request: Which tiles of which data set.
        folder: What `mmcd evaluate --scores` filled.
        model: Name and version of the model that must have scored them.
        progress: Told of every tile.

    Raises:
        DataError: A score is missing, is of another model or does not fit its label.
    """
    baseline, tiles = _tiles_of(request)
    events: dict[str, ScoreCounts] = {}
    trivial, histogram = ScoreCounts.none(), np.zeros(256, np.int64)
    progress("count", 0, len(tiles))
    for number, tile in enumerate(tiles, start=1):
        score = _read_score(folder / tile.file, model)
        changed, known, without = tile.truth((score.shape[0], score.shape[1]))
        if changed.shape != score.shape:
            raise DataError(
                f"The score {folder / tile.file} is {score.shape[1]} × {score.shape[0]} px and its label is "
                f"{changed.shape[1]} × {changed.shape[0]} px.",
                "Score the data set again.",
            )
        events[tile.event] = events.get(tile.event, ScoreCounts.none()) + ScoreCounts.of(score[known], changed[known])
        trivial += ScoreCounts.of(without[known], changed[known])
        histogram += score_counts(score)
        progress("count", number, len(tiles))
    return CountedTiles(len(tiles), dict(sorted(events.items())), {baseline: trivial}, histogram)


def _read_score(path: Path, model: tuple[str, str]) -> Bytes:
    if not path.is_file():
        raise DataError(f"The score {path} is missing.", "Run `mmcd evaluate` with --scores again for the same tiles.")
    try:
        with RasterSource(path) as source:
            raster, said = source.read(), source.tags.get("MMCD_MODEL", "")
    except InputError as error:
        raise DataError(error.message, error.hint) from error
    if said and said != " ".join(model):
        raise ModelError(f"{path} was scored by {said}, not by {' '.join(model)}.", "Name the model that scored it.")
    return np.where(raster.valid, raster.data[0], 0).astype(np.uint8)


def _tiles_of(request: EvaluateRequest) -> tuple[str, Sequence[_Tile]]:
    """Return the name of the baseline and the tiles."""
    if request.dataset == "ombria":
        return "Darkness of the radar image", list(_of_ombria(request))
    if request.dataset == "bright":
        return "Darkness of the radar image", [_of_bright(tile) for tile in chosen_tiles(request).tiles]
    if request.dataset == "levir":
        return "Difference of colours", list(_of_levir(request))
    raise DataError(f"{request.dataset} has no map of change.", "Choose ombria, bright or levir.")


def _of_ombria(request: EvaluateRequest) -> Iterator[_Tile]:
    tiles = select_tiles(request, open_index(request))
    names = file_names(tiles)
    for tile in tiles:
        yield _Tile(tile.event, names[tile.id], lambda _, tile=tile: _ombria_truth(tile))  # type: ignore[misc]


def _ombria_truth(tile: OmbriaTile) -> Truth:
    arrays = read_ombria(tile)
    return arrays.changed, np.ones_like(arrays.changed), np.maximum(255 - arrays.post[0], 1).astype(np.uint8)


def _of_bright(tile: BrightTile) -> _Tile:
    def truth(_: tuple[int, int]) -> Truth:
        label, post = read_layer(tile, "label")[0][0], read_layer(tile, "post")[0][0]
        known = label != UNLABELLED
        return known & (label >= DAMAGED), known, np.maximum(255 - post, 1).astype(np.uint8)

    return _Tile(tile.event, f"{tile.id}.tif", truth)


def _of_levir(request: EvaluateRequest) -> Iterator[_Tile]:
    split = request.split
    if not request.root.is_dir():
        raise DataError(f"{request.root} is not a folder.", "Give the folder of the data set with --root.")
    part = split if split in ("train", "val", "test") else None
    opened: dict[int, LevirPairs] = {}

    def pairs(size: int) -> LevirPairs:
        return opened.setdefault(size, LevirPairs(request.root, part, size))

    def truth(number: int, shape: tuple[int, int]) -> Truth:
        sample = pairs(shape[0])[number]
        apart = (sample["pre"] - sample["post"]).abs().mean(dim=0).numpy()
        changed = sample["target"].numpy() > 0
        return changed, np.ones_like(changed), np.maximum(np.rint(apart * 255), 1).astype(np.uint8)

    for number, name in enumerate(LevirPairs(request.root, part).ids):
        event = name.rpartition("/")[0] or "all pairs"
        yield _Tile(event, f"{name}.tif", lambda shape, number=number: truth(number, shape))  # type: ignore[misc]
