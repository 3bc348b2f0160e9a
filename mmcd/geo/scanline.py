"""Which pixels lie in which polygon, for very many polygons at once, whether or not they overlap.

A pixel belongs to a polygon when its centre lies inside, as in GDAL's rasterisation; a centre on an edge belongs to
the polygon below or to the right of it, so that polygons sharing a wall never share a pixel. Each polygon is filled by
itself: unlike one raster of ids, no polygon hides a part of another and the order of the polygons means nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import shapely
from numpy.typing import NDArray

from mmcd.geo.grid import Window

_PIXELS = 2**22  # Pixels of polygons expanded at once: some arrays of 32 MB.
_POLYGONS = 2**13  # Polygons expanded at once: a table of 256 counts for each is 16 MB.


@dataclass(frozen=True)
class Spans:
    """Runs of pixels in one row of one polygon, sorted by polygon.

    Attributes:
        polygon: Index of the polygon, shape (S,).
        start: Index of the first pixel in the flattened window, shape (S,).
        length: Number of pixels, at least 1, shape (S,).
    """

    polygon: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def parts(self) -> Iterator["Spans"]:
        """Yield the same spans in parts of bounded size; a polygon is never cut in two."""
        if not len(self.polygon):
            return
        first = np.flatnonzero(np.diff(self.polygon, prepend=-1))
        before = np.cumsum(self.length)[first] - self.length[first]
        part = np.stack([before // _PIXELS, np.arange(len(first)) // _POLYGONS])
        cuts = first[np.flatnonzero(np.diff(part, prepend=-1).any(axis=0))]
        for begin, end in zip(cuts, [*cuts[1:], len(self.polygon)], strict=True):
            yield Spans(self.polygon[begin:end], self.start[begin:end], self.length[begin:end])

    def pixels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return polygon and flat index of every pixel, shape (P,) each."""
        ends = np.cumsum(self.length)
        steps = np.repeat(self.start - ends + self.length, self.length)
        return np.repeat(self.polygon, self.length), steps + np.arange(len(steps))


@dataclass(frozen=True)
class Edges:
    """The edges of polygons in pixel coordinates, each from its upper to its lower end.

    Edges of two polygons that share a wall are computed alike, so their crossings agree to the last bit.

    Attributes:
        ends: x and y of the upper, x and y of the lower end, shape (E, 4).
        polygon: Index of the polygon, ascending, shape (E,).
        boxes: Left, top, right, bottom of each polygon; not a number for one without a place, shape (N, 4).
    """

    ends: NDArray[np.float64]
    polygon: NDArray[np.int64]
    boxes: NDArray[np.float64]

    @classmethod
    def of(cls, geometry: NDArray[np.object_]) -> Self:
        """Take the edges of polygons.

        Args:
            geometry: Valid polygons and multipolygons in columns and rows, shape (N,).
        """
        boxes = shapely.bounds(geometry)
        boxes[~np.isfinite(boxes).all(axis=1)] = np.nan
        parts, polygon_of_part = shapely.get_parts(geometry, return_index=True)
        rings, part_of_ring = shapely.get_rings(parts, return_index=True)
        points, ring = shapely.get_coordinates(rings, return_index=True)
        joined = ring[1:] == ring[:-1]
        begin, end = points[:-1][joined], points[1:][joined]
        polygon = polygon_of_part[part_of_ring[ring[1:][joined]]]
        placed = ~np.isnan(boxes[polygon, 0]) & (begin[:, 1] != end[:, 1])
        begin, end, polygon = begin[placed], end[placed], polygon[placed]
        downward = (begin[:, 1] < end[:, 1])[:, None]
        ends = np.hstack([np.where(downward, begin, end), np.where(downward, end, begin)])
        return cls(ends, polygon.astype(np.int64), boxes)

    def touching(self, window: Window) -> NDArray[np.bool_]:
        """Return which polygons have a box that reaches into a window, shape (N,)."""
        left, top, right, bottom = self.boxes.T
        beside = (right > window.col) & (left < window.col + window.width)
        inside: NDArray[np.bool_] = beside & (bottom > window.row) & (top < window.row + window.height)
        return inside

    def spans(self, window: Window) -> Spans:
        """Return the pixels of a window that lie in each polygon."""
        height, width = window.shape
        chosen = self.touching(window)[self.polygon]
        polygon, (x0, y0, x1, y1) = self.polygon[chosen], self.ends[chosen].T
        top = np.clip(_first_centre(y0), window.row, window.row + height)
        rows = np.clip(_first_centre(y1), window.row, window.row + height) - top
        edge = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows - top, rows)
        slope = (x1 - x0) / (y1 - y0)
        crossing = x0[edge] + (row + 0.5 - y0[edge]) * slope[edge]
        col = np.clip(_first_centre(crossing), window.col, window.col + width) - window.col
        # Columns sort as crossings do, so one sort of whole numbers pairs where a polygon is entered and left in a row.
        line = polygon[edge] * height + row - window.row
        marks = np.sort(line * (width + 1) + col)
        enter, length = marks[0::2], marks[1::2] - marks[0::2]
        enter, length = enter[length > 0], length[length > 0]
        line, col = np.divmod(enter, width + 1)
        found, row = np.divmod(line, height)
        return Spans(found, row * width + col, length)


def _first_centre(place: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the first pixel whose centre lies at or beyond a place."""
    return np.ceil(place - 0.5).astype(np.int64)
