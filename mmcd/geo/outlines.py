"""Outlines of connected pixels in a stored raster: patches of change, and buildings where a model marks them.

A raster is read block by block; patches that the border of a block cuts are joined, so neither the memory nor the
result depends on its size or on the blocks.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy.ndimage import label

from mmcd.errors import InputError
from mmcd.geo.cog import SCORE_BAND
from mmcd.geo.footprints import Footprints, Geometries
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import RasterSource
from mmcd.score import NOT_ASSESSED, threshold_value

EVIDENCE_BAND = replace(SCORE_BAND, names=("building probability",))
"""Probability that a building stands or stood in a pixel, stored as the score is."""

EVIDENCE_THRESHOLD = 0.5
"""Probability from which a pixel is part of a building: there it is likelier than everything else together."""

MIN_BUILDING_AREA = 20.0
"""Smallest outline that counts as a building, in m², or in pixels where they have no size: less is a shed or noise."""

MAX_BUILDINGS = 100_000
"""Most buildings that are outlined: their histograms take 100 MB, and more of them in one run are speckle."""

_BLOCK = 1024
_MOST_PIECES = 1_000_000  # At the borders of blocks, to be joined: they are held in memory, about a kilobyte each.


def stored_values(path: Path, block: int = _BLOCK) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Yield the bytes of a stored probability block by block; 0 where it was not assessed.

    Args:
        path: Score COG, or one that is stored as a score is.
        block: Side in pixels of what is read at once.

    Raises:
        InputError: It cannot be read.
    """
    with RasterSource(path) as source:
        for window in blocks(source.grid.shape, block):
            raster = source.read(window)
            yield window, np.where(raster.valid, raster.data[0], NOT_ASSESSED).astype(np.uint8)


def outline_patches(masks: Iterable[tuple[Window, NDArray[np.bool_]]], min_pixels: int, most: int) -> Geometries | None:
    """Return the outlines of connected true pixels, whatever the blocks they come in.

    Pixels that touch only at a corner are not connected.

    Args:
        masks: Blocks that cover a raster once, each with its window, shape (y, x).
        min_pixels: Patches of fewer pixels are left out.
        most: Patches to give up beyond.

    Returns:
        Polygons in columns and rows, shape (N,), in no particular order; None when there are more than ``most``, or
        more than a million pieces at the borders of blocks.
    """
    whole: list[shapely.Geometry] = []
    cut: list[shapely.Geometry] = []
    for window, mask in masks:
        kept, open_ended = _patches(mask, min_pixels)
        for patches, found in ((kept, whole), (open_ended, cut)):
            place = Affine.translation(window.col, window.row)
            found += [shapely.geometry.shape(area) for area, _ in shapes(patches, mask=patches, transform=place)]
        if len(whole) > most or len(cut) > _MOST_PIECES:  # whatever the joining gives
            return None
    joined = shapely.simplify(shapely.get_parts(shapely.union_all(cut)), 0)  # 0: only points on a straight line go
    outlines = np.array([*whole, *joined], dtype=object)
    large: Geometries = outlines[shapely.area(outlines) >= min_pixels]
    return large if len(large) <= most else None


def placed(outlines: Geometries, grid: Grid) -> Geometries:
    """Return polygons in columns and rows of a grid at their place in its CRS, shape (N,)."""
    a, b, c, d, e, f = tuple(grid.transform)[:6]

    def to_place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points.T
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    moved: Geometries = shapely.transform(outlines, to_place)
    return moved


def evidence_footprints(
    evidence: Path, origin: tuple[int, int] = (0, 0), min_area: float = MIN_BUILDING_AREA, block: int = _BLOCK
) -> Footprints:
    """Return the buildings that a model saw: connected pixels where its evidence reaches `EVIDENCE_THRESHOLD`.

    Buildings that touch are one outline. An id, ``b-ROW-COL``, names the leftmost pixel of the topmost row of its
    outline on the grid of the whole scene. So it does not depend on the order of the buildings, on the blocks, or on
    the region that was analysed, unless the border of the region cuts the building there.

    Args:
        evidence: COG of `EVIDENCE_BAND`.
        origin: Row and column of its first pixel on the grid of the whole scene.
        min_area: Smallest outline in m², in pixels where the size of a pixel is not known.
        block: Side in pixels of what is read at once; never changes the result.

    Returns:
        The buildings from top to bottom, in the CRS of the evidence, in pixels without one; possibly none.

    Raises:
        InputError: The evidence cannot be read, or there are more than `MAX_BUILDINGS`.
    """
    with RasterSource(evidence) as source:
        grid = source.grid
    least = math.ceil(round(min_area / (grid.pixel_area_m2 or 1.0), 6))
    cut = threshold_value(EVIDENCE_THRESHOLD)
    masks = ((window, values >= cut) for window, values in stored_values(evidence, block))
    outlines = outline_patches(masks, max(least, 1), MAX_BUILDINGS)
    if outlines is None:
        raise InputError(
            f"The model draws more than {MAX_BUILDINGS:,} buildings here.",
            "Give a file of footprints, or analyse a smaller region.",
        )
    corners = _first_pixels(outlines)
    order = np.lexsort((corners[:, 1], corners[:, 0]))
    ids = tuple(f"b-{row}-{col}" for row, col in (corners[order] + np.array(origin)).tolist())
    return Footprints(ids, placed(outlines[order], grid), grid.crs)


def _patches(mask: NDArray[np.bool_], min_pixels: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the patches of a block that are large enough, and those that may go on beyond its border."""
    labels, count = label(mask)
    at_border = np.zeros(count + 1, bool)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        at_border[line] = True
    large = np.bincount(labels.ravel(), minlength=count + 1) >= min_pixels
    large[0] = at_border[0] = False
    return (large & ~at_border)[labels].astype(np.uint8), at_border[labels].astype(np.uint8)


def _first_pixels(outlines: Geometries) -> NDArray[np.int64]:
    """Return row and column of the leftmost pixel in the topmost row of each outline, shape (N, 2)."""
    points, owner = shapely.get_coordinates(outlines, return_index=True)
    cols, rows = np.rint(points).astype(np.int64).T
    order = np.lexsort((cols, rows, owner))  # its upper left corner is a corner of the outline
    _, first = np.unique(owner[order], return_index=True)
    return np.column_stack([rows, cols])[order[first]]
