"""What selected patch pairs look like, and where they lie on the map."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import transform

from mmcd.embedding_table import EmbeddingTable
from mmcd.geo.display import display_plan
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import RasterSource

AROUND = 24
"""Pixels shown on each side of an ROI: without them 16 px are hard to recognise."""

SCALE = 2
_GAP = 4

Picture = NDArray[np.uint8]
Ring = list[tuple[float, float]]


def table_grid(table: EmbeddingTable, tile: int, score: Path | None) -> Grid:
    """Return the grid that rows and columns of a tile's ROIs refer to.

    Args:
        table: The patch pairs.
        tile: Number of the tile.
        score: Score of the run that they are of; None of a data set.

    Raises:
        InputError: The image is gone.
    """
    with RasterSource(score or Path(table.tiles[tile].post)) as source:
        return source.grid


def pictures(table: EmbeddingTable, pairs: Sequence[int], score: Path | None) -> list[Picture]:
    """Return patch pairs as images: before on the left, after on the right, the ROI framed.

    Args:
        table: The patch pairs.
        pairs: Which of them.
        score: Score of the run that they are of; None of a data set.

    Returns:
        Red, green and blue of each, shape (128, 260, 3), uint8.

    Raises:
        InputError: An image is gone or damaged.
    """
    drawn: dict[int, Picture] = {}
    for tile in sorted({int(table.tile[pair]) for pair in pairs}):
        grid = table_grid(table, tile, score)
        members = [pair for pair in pairs if table.tile[pair] == tile]
        windows = [Window(int(table.row[p]), int(table.col[p]), *(int(table.facts["roi"]),) * 2) for p in members]
        sides = [_cut(Path(path), grid, windows) for path in (table.tiles[tile].pre, table.tiles[tile].post)]
        for pair, before, after in zip(members, *sides, strict=True):
            gap = np.full((before.shape[0], _GAP // SCALE, 3), 255, np.uint8)
            drawn[pair] = np.concatenate([before, gap, after], axis=1).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    return [drawn[pair] for pair in pairs]


def _cut(path: Path, grid: Grid, windows: Sequence[Window]) -> list[Picture]:
    """Return the surroundings of ROIs in one image, as they are shown on the map, black beyond its edge."""
    plan = display_plan(path)
    cut = []
    with RasterSource(path, plan.indexes) as source:
        aligned = source.aligned(grid)
        for roi in windows:
            around = roi.padded(AROUND)
            inside = around.intersection(grid.window)
            shade = np.rint(plan.stretch.apply(aligned.read(inside).data) * 255).astype(np.uint8)
            canvas = np.zeros((*around.shape, 3), np.uint8)
            canvas[inside.shifted(-around.row, -around.col).slices] = np.moveaxis(shade, 0, -1)
            cut.append(_framed(canvas))
    return cut


def _framed(canvas: Picture) -> Picture:
    """Frame the ROI in the middle, white around black, which is seen on any image."""
    for reach, value in ((AROUND - 2, 255), (AROUND - 1, 0)):
        ring = np.ones(canvas.shape[:2], np.bool_)
        ring[reach + 1 : -reach - 1, reach + 1 : -reach - 1] = False
        ring[:reach], ring[-reach:], ring[:, :reach], ring[:, -reach:] = False, False, False, False
        canvas[ring] = value
    return canvas


def rings(table: EmbeddingTable, pairs: NDArray[np.integer], score: Path) -> list[Ring]:
    """Return the corners of a run's ROIs as latitude and longitude in degrees.

    Of a scene without a georeference it is where the map shows it: one pixel a metre, its corner at 0° N 0° E.

    Args:
        table: The patch pairs of a run.
        pairs: Which of them, shape (N,).
        score: The run's score.

    Raises:
        InputError: The score is gone.
    """
    grid, side = table_grid(table, 0, score), int(table.facts["roi"])
    corners = np.array([(0, 0), (0, side), (side, side), (side, 0)])
    row, col = (values[pairs][:, None] + corners[:, axis] for axis, values in enumerate((table.row, table.col)))
    t = grid.transform
    x, y = t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f
    lons, lats = transform(grid.crs or "EPSG:3857", "EPSG:4326", x.ravel(), (y if grid.crs else -y).ravel())
    places = np.round(np.stack([lats, lons], axis=1), 7).reshape(len(pairs), 4, 2)
    return [[(float(lat), float(lon)) for lat, lon in ring] for ring in places]
