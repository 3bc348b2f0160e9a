"""Measures a distance map against damage labels as the reference does, and keeps a thinned copy of both to draw."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.data.bright import DAMAGED, UNLABELLED
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import AlignedSource, RasterSource
from mmcd.inference.patch_map import Places, roi_weights, spread

THRESHOLDS = (0.8, 1.0, 1.25, 1.5)
"""Distances at which the reference cuts its map; above one of them is change."""

_BLOCK = 512
_PLACES = 64  # Side of a square of places whose labels are read at once.
_DRAWN = 1024  # Longest side in pixels of what is drawn.


@dataclass(frozen=True)
class Evaluation:
    """What a map says, thinned to be drawn, and how right it is.

    Attributes:
        distance: Every n-th pixel of the map, shape (H, W), NaN where not assessed.
        label: The same pixels of the label, `UNLABELLED` where it says nothing, shape (H, W), uint8; None without one.
        damaged_places: The same pixels of the label as places see it: the share of the ROIs over a pixel that are no
            unchanged pair, shape (H, W), NaN where no ROI is; None without a label.
        rows: Threshold, IoU, precision, recall and F1 of damage at each of `THRESHOLDS`; empty without a label.
        pixels: Pixels that are assessed and labelled.
        damaged: Damaged ones among them.
    """

    distance: NDArray[np.float32]
    label: NDArray[np.uint8] | None = None
    damaged_places: NDArray[np.float32] | None = None
    rows: tuple[dict[str, float], ...] = ()
    pixels: int = 0
    damaged: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the figures."""
        if not self.rows or self.damaged:
            return ()
        return (f"The label shows no damage (classes from {DAMAGED} on) where the map was assessed.",)

    def to_dict(self) -> dict[str, Any] | None:
        """Return the figures as JSON values; None without a label."""
        if not self.rows:
            return None
        best = max(self.rows, key=lambda row: row["f1"])
        return {
            "unit": "assessed and labelled pixels",
            "positive": "damaged or destroyed",
            "pixels": self.pixels,
            "damaged_pixels": self.damaged,
            "thresholds": list(self.rows),
            "best_f1": {"threshold": best["threshold"], "f1": best["f1"]},
        }


class LabelReader:
    """A raster of damage classes read in the grid of a scene. Use it within an `ExitStack`.

    Args:
        path: The raster: 0 background, 1 intact, 2 damaged, 3 destroyed.
        grid: Grid of the scene.
        stack: Closes the file.

    Raises:
        InputError: It cannot be read or brought to the grid.
    """

    def __init__(self, path: Path, grid: Grid, stack: ExitStack) -> None:
        source = stack.enter_context(RasterSource(path, (1,)))
        self._background = source.nodata == 0  # a file that calls background "no data" still means background
        self._view: AlignedSource = source.aligned(grid, "nearest")

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return classes in a window of the scene, `UNLABELLED` where there is none, shape (H, W)."""
        raster = self._view.read(window)
        classes = np.where(raster.data[0] > DAMAGED + 1, UNLABELLED, raster.data[0]).astype(np.uint8)
        return classes if self._background else np.where(raster.valid, classes, np.uint8(UNLABELLED))


def check_label(path: Path, grid: Grid) -> None:
    """Open a label for a scene before hours are spent on the scene.

    Raises:
        InputError: It cannot be read or brought to the grid.
    """
    with ExitStack() as stack:
        LabelReader(path, grid, stack)


def evaluate_map(distance: Path, label: Path | None, grid: Grid, places: Places, region: Window) -> Evaluation:
    """Compare a distance map with a label, block by block.

    Only assessed pixels count, so the border that no ROI covers (120 px) is left out, as in the reference.

    Args:
        distance: Distance map of the region, NaN where not assessed.
        label: Raster of damage classes; None only thins the map.
        grid: Grid of the scene.
        places: Places of the scene.
        region: Part of the scene that the map shows.

    Raises:
        InputError: A file is damaged.
    """
    step = math.ceil(max(region.shape) / _DRAWN)
    shape = math.ceil(region.height / step), math.ceil(region.width / step)
    thin = np.full(shape, np.nan, np.float32)
    with ExitStack() as stack:
        source = stack.enter_context(RasterSource(distance))
        if label is None:
            for window in blocks(region.shape, _BLOCK):
                _put(thin, _read(source, window), window, step)
            return Evaluation(thin)
        reader = LabelReader(label, grid, stack)
        damaged = damaged_places(reader, places, region)
        drawn, seen = np.full(shape, UNLABELLED, np.uint8), np.full(shape, np.nan, np.float32)
        counts = np.zeros((len(THRESHOLDS), 3), np.int64)
        pixels = 0
        for window in blocks(region.shape, _BLOCK):
            part = window.shifted(region.row, region.col)
            values, classes = _read(source, window), reader.read(part)
            _put(thin, values, window, step)
            _put(drawn, classes, window, step)
            _put(
                seen,
                spread(damaged, places, part, roi_weights("classic", 1, places.rules.roi_patch_size)),
                window,
                step,
            )
            known = np.isfinite(values) & (classes != UNLABELLED)
            counts += _counts(values[known], classes[known] >= DAMAGED)
            pixels += int(known.sum())
    rows = tuple(_figures(threshold, *map(int, row)) for threshold, row in zip(THRESHOLDS, counts, strict=True))
    return Evaluation(thin, drawn, seen, rows, pixels, int(counts[0, 0] + counts[0, 2]))


def damaged_places(label: LabelReader, places: Places, region: Window) -> NDArray[np.float32]:
    """Return 1 for each place whose ROI is too damaged for an unchanged pair, else 0; NaN away from the region.

    Args:
        label: Damage classes of the scene.
        places: Its places.
        region: Pixels that matter.

    Returns:
        Shape (rows, columns) of places.
    """
    answer = np.full(places.shape, np.nan, np.float32)
    for square in blocks(places.shape, _PLACES, within=places.touching(region)):
        classes = label.read(places.rois(square))
        known = _shares(classes != UNLABELLED, places)
        harmed = _shares((classes >= DAMAGED) & (classes != UNLABELLED), places)
        ratio = np.divide(harmed, known, out=np.zeros_like(harmed), where=known > 0)
        answer[square.slices] = ratio > places.rules.pos_threshold
    return answer


def _shares(mask: NDArray[np.bool_], places: Places) -> NDArray[np.float64]:
    """Return the share of true pixels in every ROI of an area that ROIs cover, shape (rows, columns) of places."""
    side, stride = places.rules.roi_patch_size, places.rules.patch_stride
    views = np.lib.stride_tricks.sliding_window_view(mask, (side, side))[::stride, ::stride]
    shares: NDArray[np.float64] = views.mean(axis=(2, 3))
    return shares


def _read(source: RasterSource, window: Window) -> NDArray[np.float32]:
    raster = source.read(window)
    return np.where(raster.valid, raster.data[0], np.float32(np.nan))


def _put(thin: NDArray[Any], values: NDArray[Any], window: Window, step: int) -> None:
    """Put every n-th pixel of a block to its place in a thinned raster."""
    row, col = -window.row % step, -window.col % step
    taken = values[row::step, col::step]
    top, left = (window.row + row) // step, (window.col + col) // step
    thin[top : top + taken.shape[0], left : left + taken.shape[1]] = taken


def _counts(values: NDArray[np.float32], damaged: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return true positives, false positives and false negatives at each threshold, shape (T, 3)."""
    return np.array([_cut(values > threshold, damaged) for threshold in THRESHOLDS], np.int64)


def _cut(changed: NDArray[np.bool_], damaged: NDArray[np.bool_]) -> list[int]:
    hit = int((changed & damaged).sum())
    return [hit, int(changed.sum()) - hit, int(damaged.sum()) - hit]


def _figures(threshold: float, hit: int, false: int, missed: int) -> dict[str, float]:
    def share(part: int, whole: int) -> float:
        return part / whole if whole else 0.0

    return {
        "threshold": threshold,
        "iou": share(hit, hit + false + missed),
        "precision": share(hit, hit + false),
        "recall": share(hit, hit + missed),
        "f1": share(2 * hit, 2 * hit + false + missed),
    }
