"""Plan, read, predict, write: a scene of any size in the memory of one block.

The scene's grid is cut into blocks on its own lattice, always the same ones: a region is computed from the blocks that
touch it, and a tile is nothing but the blocks between two saves. So neither the tile size nor the region can change a
byte of the result.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmcd.geo.cog import CogWriter
from mmcd.geo.grid import LATTICE, Grid, Window, blocks
from mmcd.geo.vector import Region
from mmcd.inference.pair import ArrayPair, PairBlock, PairReader
from mmcd.inference.predictor import Predictor, Probabilities
from mmcd.inference.roi import Origins, VectorFile, Vectors
from mmcd.progress import Progress
from mmcd.score import NOT_ASSESSED, encode_score

LARGEST_BLOCK = 512
"""Side of a block in pixels. With a halo of 128 px on each side its activations stay near 200 MB."""


@dataclass(frozen=True)
class Stored:
    """The stored bytes of a block.

    Attributes:
        score: Probability of change, shape (block, block), uint8.
        buildings: Probability that a building stands or stood there, same shape; None of a model that marks none.
        classes: Likeliest class, same shape, also where an image holds no data; None where it was not asked for.
    """

    score: NDArray[np.uint8]
    buildings: NDArray[np.uint8] | None = None
    classes: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Plan:
    """What has to be computed, in the order in which it will be.

    Attributes:
        grid: Grid of the whole scene.
        region: Part of it to answer for.
        block: Side of a block in pixels.
        tiles: Blocks between two saves.
        polygon: Pixels of the region outside it are not assessed; None assesses the whole window.
    """

    grid: Grid
    region: Window
    block: int
    tiles: tuple[tuple[Window, ...], ...]
    polygon: Region | None = None

    @property
    def block_count(self) -> int:
        """Number of blocks in all."""
        return sum(len(tile) for tile in self.tiles)


def plan_blocks(grid: Grid, region: Window, tile: int, polygon: Region | None = None) -> Plan:
    """Cut a region into tiles of blocks.

    Args:
        grid: Grid of the whole scene.
        region: Window of it.
        tile: Wanted side of a tile in pixels; rounded to whole blocks, at least one.
        polygon: Part of the window to assess; None is all of it.
    """
    block = block_size(grid.shape)
    side = max(tile // block, 1) * block
    tiles = tuple(
        tuple(blocks(grid.shape, block, within=window.intersection(region)))
        for window in blocks(grid.shape, side, within=region)
    )
    return Plan(grid, region, block, tiles, polygon)


def block_size(shape: tuple[int, int]) -> int:
    """Return the block side for a scene: small scenes are one block, so that little of it is padding.

    It depends on the whole scene alone, never on the region or the tile.
    """
    return min(LARGEST_BLOCK, -(-max(shape) // LATTICE) * LATTICE)


def score_region(
    plan: Plan,
    reader: PairReader,
    predictor: Predictor,
    writer: CogWriter,
    journal: "Journal",
    progress: Progress,
    buildings: CogWriter | None = None,
    vectors: VectorFile | None = None,
) -> None:
    """Score every block of a plan that the journal does not hold yet.

    Args:
        plan: What to compute.
        reader: The scene.
        predictor: The model.
        writer: Takes the scores.
        journal: Knows the finished blocks, and is told of each tile.
        progress: Told of the blocks done; may raise to stop.
        buildings: Takes the evidence of buildings of a model that marks them.
        vectors: Takes the embeddings of its ROIs, of a model that has them.

    Raises:
        Cancelled: The progress callback asked to stop; finished tiles are kept.
    """
    todo = [tile for tile in plan.tiles if not all(journal.holds(block) for block in tile)]
    done = plan.block_count - sum(len(tile) for tile in todo)
    progress("score", done, plan.block_count)
    for tile in todo:
        for block, inputs in _ahead(tile, plan, reader, predictor.halo):
            found = _compared(block, inputs, predictor, vectors)
            stored = _stored(found, inputs, predictor.halo)
            _write(plan, block, stored.score, writer)
            if buildings is not None and stored.buildings is not None:
                _write(plan, block, stored.buildings, buildings)
            done += 1
            progress("score", done, plan.block_count)
        if vectors is not None:
            vectors.flush()
        journal.add(tile)


def _compared(block: Window, inputs: PairBlock, predictor: Predictor, vectors: VectorFile | None) -> Probabilities:
    """Return what the model says of a padded block; the embeddings of its ROIs go to their file."""
    images = inputs.pre, inputs.post, inputs.pre_valid, inputs.post_valid
    rois = None if vectors is None else vectors.inside(block)
    if vectors is None or rois is None or not rois.size:
        return predictor.probabilities(*images)
    found = predictor.probabilities(*images, vectors.cells(rois, block, predictor.halo))
    if found.vectors is not None:
        vectors.write(rois, found.vectors)
    return found


def _write(plan: Plan, block: Window, values: NDArray[np.uint8], writer: CogWriter) -> None:
    """Write the part of a block that lies in the region; not assessed outside its polygon."""
    part = block.intersection(plan.region)
    answer = values[part.shifted(-block.row, -block.col).slices]
    if plan.polygon is not None:
        answer = np.where(plan.polygon.mask(plan.grid.crop(part)), answer, np.uint8(NOT_ASSESSED))
    writer.write(part.shifted(-plan.region.row, -plan.region.col), answer)


def score_whole(reader: PairReader | ArrayPair, predictor: Predictor) -> NDArray[np.uint8]:
    """Return the stored scores of a small scene in memory, shape (H, W); the same bytes as `score_region` writes."""
    return stored_whole(reader, predictor).score


def stored_whole(reader: PairReader | ArrayPair, predictor: Predictor) -> Stored:
    """Return what is stored of a small scene in memory, each of shape (H, W), see `score_whole`."""
    grid = reader.grid
    plan = plan_blocks(grid, grid.window, LARGEST_BLOCK)
    whole: dict[str, NDArray[np.uint8]] = {}
    for tile in plan.tiles:
        for block, inputs in _ahead(tile, plan, reader, predictor.halo):
            for name, values in vars(stored_block(inputs, predictor)).items():
                if values is not None:
                    target = whole.setdefault(name, np.zeros(grid.shape, np.uint8))
                    target[block.slices] = values[: block.height, : block.width]
    return Stored(**whole)


def embedded_whole(
    reader: PairReader | ArrayPair, predictor: Predictor, origins: Origins
) -> tuple[NDArray[np.uint8], Vectors]:
    """Return score and embeddings of a small scene in memory, of the blocks that hold one of some ROIs.

    Args:
        reader: The scene.
        predictor: A model that has embeddings.
        origins: First row and column of each ROI, shape (N, 2).

    Returns:
        Stored scores, shape (H, W), 0 in blocks without a ROI, and vectors of both branches, shape (2, N, D).
    """
    plan = plan_blocks(reader.grid, reader.grid.window, LARGEST_BLOCK)
    vectors = VectorFile(None, origins, predictor.embedding_dim)
    score = np.zeros(reader.grid.shape, np.uint8)
    wanted = [block for tile in plan.tiles for block in tile if vectors.inside(block).size]
    for block, inputs in _ahead(wanted, plan, reader, predictor.halo):
        found = _compared(block, inputs, predictor, vectors)
        score[block.slices] = _stored(found, inputs, predictor.halo).score[: block.height, : block.width]
    return score, vectors.read()


def score_block(inputs: PairBlock, predictor: Predictor) -> NDArray[np.uint8]:
    """Return the stored scores of a padded block, see `stored_block`."""
    return stored_block(inputs, predictor).score


def stored_block(inputs: PairBlock, predictor: Predictor) -> Stored:
    """Return what is stored of a padded block, without its halo; not assessed where an image holds no data."""
    found = predictor.probabilities(inputs.pre, inputs.post, inputs.pre_valid, inputs.post_valid)
    return _stored(found, inputs, predictor.halo)


def _stored(found: Probabilities, inputs: PairBlock, halo: int) -> Stored:
    inner = slice(halo, -halo or None)
    valid = (inputs.pre_valid & inputs.post_valid)[inner, inner]
    buildings = None if found.building is None else encode_score(found.building, valid)
    return Stored(encode_score(found.change, valid), buildings, found.classes)


def _ahead(
    tile: Iterable[Window], plan: Plan, reader: PairReader | ArrayPair, halo: int
) -> Iterator[tuple[Window, PairBlock]]:
    """Yield blocks with their inputs; the next one is read while the model works on this one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="mmcd-read") as pool:
        waiting: tuple[Window, Future[PairBlock]] | None = None
        for block in tile:
            padded = Window(block.row, block.col, plan.block, plan.block).padded(halo)
            following = (block, pool.submit(reader.read, padded))
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting:
            yield waiting[0], waiting[1].result()


class Journal:
    """Which blocks of a run are on the disk; a killed run goes on from here.

    Args:
        path: Text file, one JSON line a tile after a first line with the key.
        key: What the run is computed from; a journal of anything else is begun anew.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        tiles = [_windows(line) for line in lines[1:]] if lines and lines[0] == key else []
        self._done = {window for tile in tiles for window in tile}
        # Written again, because a kill may have cut the last line: its tile is computed once more.
        path.write_text("\n".join([key, *(_line(tile) for tile in tiles if tile)]) + "\n")

    @property
    def started(self) -> bool:
        """Whether an earlier run left finished blocks."""
        return bool(self._done)

    def holds(self, block: Window) -> bool:
        """Return whether a block is done."""
        return block in self._done

    def add(self, tile: Iterable[Window]) -> None:
        """Note the blocks of a tile as done; call it after they are on the disk."""
        windows = tuple(tile)
        with self._path.open("a") as file:
            file.write(_line(windows) + "\n")
        self._done.update(windows)


def _line(tile: Iterable[Window]) -> str:
    return json.dumps([[w.row, w.col, w.height, w.width] for w in tile])


def _windows(line: str) -> tuple[Window, ...]:
    try:
        return tuple(Window(*values) for values in json.loads(line))
    except ValueError:
        return ()
