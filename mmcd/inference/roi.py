"""Which patch pairs of a scene keep their embeddings, and the file in which these grow beside the score.

The choice depends on the region alone, so neither the tile nor an interruption can change it; and as every block goes
through the network in the same way, the stored vectors are the same bytes however the work is cut.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmcd.geo.grid import LATTICE, Window

MOST_ROIS = 10_000
"""Patch pairs of one run: enough to see its shape, few enough to draw and to lay out in some seconds."""

CELL = 8
"""Pixels from one cell of a model's embeddings to the next."""

SEED = 0

Origins = NDArray[np.int32]
"""First row and column of each ROI in the scene, multiples of 16, shape (N, 2), by row and column."""

Vectors = NDArray[np.float16]
"""Unit vectors of both branches, shape (2, N, D)."""


def choose_rois(region: Window, most: int = MOST_ROIS, seed: int = SEED) -> Origins:
    """Return the ROIs of a region on the scene's 16 px lattice: all of them, or one at random of each of equal parts.

    Parts of equal size over the ground keep every corner of a scene in the sample, and each ROI has nearly the same
    chance, so shares of the sample are those of the scene.

    Args:
        region: Window of the scene; only ROIs wholly inside count.
        most: Number of ROIs at most.
        seed: Seed of the draw.
    """
    starts = [-(-first // LATTICE) for first in (region.row, region.col)]
    ends = [(first + extent) // LATTICE for first, extent in zip((region.row, region.col), region.shape, strict=True)]
    rows, cols = (max(end - start, 0) for start, end in zip(starts, ends, strict=True))
    if rows * cols <= most:
        chosen = np.indices((rows, cols)).reshape(2, -1).T
    else:
        chosen = _one_of_each(rows, cols, most, np.random.default_rng(seed))
    return np.asarray((chosen + starts) * LATTICE, np.int32)


def _one_of_each(rows: int, cols: int, most: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return one cell of each of at most ``most`` rectangles that cover a lattice, shape (N, 2), by row and column."""
    high = min(rows, max(1, math.isqrt(most * rows // cols)))
    wide = min(cols, most // high)
    share = random.random((2, high, wide))
    picked = []
    for axis, (count, parts) in enumerate(((rows, high), (cols, wide))):
        edges = np.arange(parts + 1) * count // parts
        shape = (-1, 1) if axis == 0 else (1, -1)
        picked.append(edges[:-1].reshape(shape) + (share[axis] * np.diff(edges).reshape(shape)).astype(np.int64))
    cells = np.stack(picked, axis=-1).reshape(-1, 2)
    return cells[np.lexsort((cells[:, 1], cells[:, 0]))]


class VectorFile:
    """The embeddings of a run while it grows; a killed run goes on from here.

    Args:
        path: Working file, created when missing; None keeps them in memory.
        origins: The ROIs.
        length: Length of a vector.
    """

    def __init__(self, path: Path | None, origins: Origins, length: int) -> None:
        self._origins = origins
        shape = (2, len(origins), length)
        self._kept: Vectors
        if path is None:
            self._kept = np.zeros(shape, np.float16)
        elif path.exists():
            self._kept = np.lib.format.open_memmap(path, mode="r+")
        else:
            self._kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)

    @staticmethod
    def holds(path: Path, origins: Origins, length: int) -> bool:
        """Return whether a working file is there and made for these ROIs."""
        try:
            found: tuple[int, ...] = np.load(path, mmap_mode="r").shape
        except (OSError, ValueError, EOFError):  # a process that was killed left it without its head
            return False
        return found == (2, len(origins), length)

    def inside(self, block: Window) -> NDArray[np.intp]:
        """Return which ROIs begin in a block, shape (n,)."""
        away = self._origins - (block.row, block.col)
        return np.flatnonzero(((away >= 0) & (away < block.shape)).all(axis=1))

    def cells(self, rois: NDArray[np.intp], block: Window, halo: int) -> NDArray[np.int64]:
        """Return row and column of ROIs among the embeddings of a padded block, shape (n, 2)."""
        return (self._origins[rois].astype(np.int64) - (block.row, block.col) + halo) // CELL

    def write(self, rois: NDArray[np.intp], vectors: Vectors) -> None:
        """Keep the vectors of some ROIs, shape (2, n, D)."""
        self._kept[:, rois] = vectors

    def flush(self) -> None:
        """Bring what was written to the disk."""
        if isinstance(self._kept, np.memmap):
            self._kept.flush()

    def read(self) -> Vectors:
        """Return all vectors, 0 where none was written, shape (2, N, D)."""
        return np.array(self._kept)
