"""The ground squares everything is laid on: CRS, affine and shape, windows and block lattices. Opens nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

from affine import Affine
from pyproj import CRS, Proj, Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio.windows import Window as RasterioWindow

from mmcd.errors import InputError

LATTICE = 16
"""Pixels between two lattice lines: the side of one region of interest, so no region is cut by an edge or a block."""

Bounds = tuple[float, float, float, float]
"""West, south, east, north in the units of some CRS."""

_METRES_PER_DEGREE = 111_320.0  # One degree of latitude, and of longitude at the equator, within 0.6 %.
_EQUAL_AREA_TOLERANCE = 0.01  # UTM and its kin stay far below; Web Mercator passes it from 6 degrees of latitude.
_WHOLE_PIXEL = 1e-3  # Two lattices coincide when they never drift apart by more than this part of a pixel.
_SAME_GSD = 0.9  # A card's GSD within a tenth of the image's own is not worth a resampling.


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels; may reach beyond the raster it refers to.

    Attributes:
        row: First row.
        col: First column.
        height: Number of rows, at least 0.
        width: Number of columns, at least 0.
    """

    row: int
    col: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.height <= 0 or self.width <= 0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of an array (y, x) that starts at row 0, column 0."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    def intersection(self, other: "Window") -> "Window":
        """Return the pixels in both; height and width are 0 when there are none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.row + self.height, other.row + other.height) - row
        width = min(self.col + self.width, other.col + other.width) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else Window(row, col, 0, 0)

    def padded(self, halo: int) -> "Window":
        """Return the window grown by ``halo`` pixels on each side."""
        return Window(self.row - halo, self.col - halo, self.height + 2 * halo, self.width + 2 * halo)

    def shifted(self, rows: int, cols: int) -> "Window":
        """Return the window moved by ``rows`` and ``cols``."""
        return Window(self.row + rows, self.col + cols, self.height, self.width)

    def snapped(self, multiple: int = LATTICE) -> "Window":
        """Return the smallest window on the lattice of ``multiple`` pixels that holds this one."""
        row, col = self.row // multiple * multiple, self.col // multiple * multiple
        bottom = -(-(self.row + self.height) // multiple) * multiple
        right = -(-(self.col + self.width) // multiple) * multiple
        return Window(row, col, bottom - row, right - col)

    def to_rasterio(self) -> RasterioWindow:
        """Return the same window as rasterio writes it."""
        return RasterioWindow(self.col, self.row, self.width, self.height)


def blocks(shape: tuple[int, int], block: int, within: Window | None = None) -> Iterator[Window]:
    """Yield the blocks of the absolute lattice that cover a raster exactly once, row by row.

    Args:
        shape: Rows and columns of the raster.
        block: Side of a block in pixels; the last row and column of blocks are cut at the raster's edge.
        within: Only blocks that share a pixel with this window. They are not cut to it, so that a region is
            computed from the same blocks as the whole.
    """
    whole = Window(0, 0, *shape)
    area = whole if within is None else whole.intersection(within)
    if area.empty:
        return
    for row in range(area.row // block * block, area.row + area.height, block):
        for col in range(area.col // block * block, area.col + area.width, block):
            yield Window(row, col, block, block).intersection(whole)


@dataclass(frozen=True)
class Grid:
    """A raster without its values.

    Attributes:
        crs: Coordinate reference system as ``EPSG:code`` or WKT; None is pixel space, with the identity as transform.
        transform: From (column, row) at pixel corners to coordinates.
        height: Number of rows.
        width: Number of columns.
    """

    crs: str | None
    transform: Affine
    height: int
    width: int

    @classmethod
    def in_pixels(cls, height: int, width: int) -> Self:
        """Return a grid without georeference."""
        return cls(None, Affine.identity(), height, width)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def window(self) -> Window:
        """The window of all pixels."""
        return Window(0, 0, self.height, self.width)

    @property
    def north_up(self) -> bool:
        """Whether rows run from north to south and columns from west to east."""
        t = self.transform
        return bool(t.b == 0 and t.d == 0 and t.a > 0 and t.e < 0)

    @property
    def projected(self) -> bool:
        """Whether coordinates are lengths on a map, in a known or unknown unit."""
        return self.crs is not None and not _crs(self.crs).is_geographic

    @property
    def bounds(self) -> Bounds:
        """West, south, east, north of the corners, in CRS units (pixels in pixel space)."""
        corners = [self.transform @ (x, y) for x in (0, self.width) for y in (0, self.height)]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Length of a pixel's sides along columns and rows, in CRS units."""
        t = self.transform
        return math.hypot(t.a, t.d), math.hypot(t.b, t.e)

    @cached_property
    def metres_per_unit(self) -> tuple[float, float] | None:
        """Ground metres in one CRS unit along x and y at the grid's centre; None in pixel space or an unknown unit.

        A conformal map whose scale is far from one at this place (Web Mercator) is corrected for it. The distortion of
        UTM, below 0.2 %, is left as it is: a pixel of 0.5 m has 0.25 m².
        """
        if self.crs is None:
            return None
        if not self.projected:
            latitude = (self.bounds[1] + self.bounds[3]) / 2
            return _METRES_PER_DEGREE * math.cos(math.radians(latitude)), _METRES_PER_DEGREE
        unit = _linear_unit(self.crs)
        if unit is None:
            return None
        scale = math.sqrt(_areal_scale(self))
        return unit / scale, unit / scale

    @property
    def gsd(self) -> float | None:
        """Ground sample distance in metres, mean of both sides; None in pixel space or an unknown unit."""
        if self.metres_per_unit is None:
            return None
        (width, height), (per_x, per_y) = self.pixel_size, self.metres_per_unit
        return (width * per_x + height * per_y) / 2

    @property
    def pixel_area_m2(self) -> float | None:
        """Ground area of one pixel in square metres; None in pixel space, in degrees and in an unknown unit."""
        if not self.projected or self.metres_per_unit is None:
            return None
        per_x, per_y = self.metres_per_unit
        return abs(self.transform.determinant) * per_x * per_y

    def crop(self, window: Window) -> "Grid":
        """Return the grid of a window of this one; the window may reach beyond the edge.

        Pixel space has no origin to move: there a crop does not remember where it was cut.
        """
        transform = self.transform @ Affine.translation(window.col, window.row)
        if self.crs is None:
            transform = Affine.identity()
        return Grid(self.crs, transform, window.height, window.width)

    def window_of(self, bounds: Bounds) -> Window:
        """Return the smallest window that holds ``bounds``, given in this grid's CRS; it may reach beyond the edge."""
        west, south, east, north = bounds
        inverse = ~self.transform
        corners = [inverse @ (x, y) for x in (west, east) for y in (south, north)]
        cols, rows = zip(*corners, strict=True)
        col, row = _floor(min(cols)), _floor(min(rows))
        return Window(row, col, max(_ceil(max(rows)) - row, 0), max(_ceil(max(cols)) - col, 0))

    def offset_in(self, other: "Grid") -> tuple[int, int] | None:
        """Return (row, column) of this grid's origin in ``other`` when both share one lattice, else None."""
        if not same_crs(self.crs, other.crs):
            return None
        relative = ~other.transform @ self.transform
        span = max(self.height, self.width, 1)
        drift = max(abs(relative.a - 1), abs(relative.e - 1), abs(relative.b), abs(relative.d)) * span
        col, row = round(relative.c), round(relative.f)
        if max(drift, abs(relative.c - col), abs(relative.f - row)) > _WHOLE_PIXEL:
            return None
        return row, col

    def bounds_in(self, crs: str) -> Bounds:
        """Return the bounds in another CRS, with the edges' curvature.

        Raises:
            InputError: The grid is in pixel space, or lies where the other CRS is not defined.
        """
        if self.crs is None:
            raise InputError("An image without georeference has no place on the ground.")
        return transform_bounds(self.bounds, self.crs, crs)

    def geographic_bounds(self) -> Bounds:
        """Return west, south, east, north in EPSG:4326.

        Raises:
            InputError: The grid is in pixel space.
        """
        return self.bounds_in("EPSG:4326")

    def geographic_footprint(self) -> dict[str, Any] | None:
        """Return the outline as a GeoJSON polygon in EPSG:4326; None in pixel space.

        Raises:
            InputError: The grid lies where its CRS is not defined.
        """
        if self.crs is None:
            return None
        corners = [(0, self.height), (self.width, self.height), (self.width, 0), (0, 0), (0, self.height)]
        places = [self.transform @ corner for corner in corners]
        try:
            ring = [_transformer(self.crs, "EPSG:4326").transform(x, y) for x, y in places]
        except (CRSError, ProjError) as error:
            raise InputError(f"The outline has no place in degrees: {error}.", "Check the file's CRS.") from error
        if not all(math.isfinite(value) for place in ring for value in place):
            raise InputError("The outline has no place in degrees.", "Check the file's CRS.")
        return {"type": "Polygon", "coordinates": [[[round(x, 7), round(y, 7)] for x, y in ring]]}


def transform_bounds(bounds: Bounds, source: str, target: str) -> Bounds:
    """Return the box in ``target`` around ``bounds`` given in ``source``.

    Raises:
        InputError: A CRS is not known or the box lies where the target CRS is not defined.
    """
    if same_crs(source, target):
        return bounds
    try:
        west, south, east, north = _transformer(source, target).transform_bounds(*bounds, densify_pts=21)
    except (CRSError, ProjError) as error:
        raise InputError(f"Bounds {bounds} cannot be brought from {source[:40]} to {target[:40]}: {error}.") from error
    if not all(map(math.isfinite, (west, south, east, north))):
        raise InputError(f"Bounds {bounds} have no place in {target[:40]}.", "Check the file's CRS.")
    return west, south, east, north


def same_crs(first: str | None, second: str | None) -> bool:
    """Return whether two CRS texts mean the same system; pixel space equals only itself."""
    if first is None or second is None:
        return first is second
    return first == second or _crs(first) == _crs(second)


def utm_crs(lon: float, lat: float) -> str:
    """Return the UTM zone of a place, or the polar stereographic system beyond 84° N and 80° S.

    The exceptions of Norway and Svalbard are not made: a scene there is some degrees off its central meridian,
    which costs less than 0.3 % of area.

    Args:
        lon: Longitude in degrees; values beyond ±180 are wrapped.
        lat: Latitude in degrees.
    """
    if lat > 84:
        return "EPSG:32661"
    if lat < -80:
        return "EPSG:32761"
    zone = int((lon + 180) % 360 // 6) + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


def common_grid(pre: Grid, post: Grid, card_gsd: float | None = None) -> Grid:
    """Return the grid on which a pair is compared; see :func:`mmcd.geo.raster.output_grid` for the rules.

    Args:
        pre: Grid of the image before.
        post: Grid of the image after.
        card_gsd: Ground sample distance in metres that the model was trained at, None when no model is chosen.

    Raises:
        InputError: The two do not overlap, or differ in size without a georeference.
    """
    if pre.crs is None or post.crs is None:
        return _pixel_space_grid(pre, post)
    keeps_lattice = post.projected and post.north_up
    if keeps_lattice and (card_gsd is None or post.gsd is None or card_gsd >= _SAME_GSD * post.gsd):
        return _on_post_lattice(pre, post)
    return _on_new_lattice(pre, post, card_gsd)


def overlap(pre: Grid, post: Grid) -> float:
    """Return the share of the smaller footprint that both cover, in [0, 1]; 1 for equal sizes in pixel space.

    Footprints are compared as boxes in the CRS of ``post``.
    """
    if pre.crs is None or post.crs is None:
        return float(pre.shape == post.shape)
    first, second = pre.bounds_in(post.crs), post.bounds
    shared = _box_area(_intersect(first, second))
    smaller = min(_box_area(first), _box_area(second))
    return shared / smaller if smaller > 0 else 0.0


def _pixel_space_grid(pre: Grid, post: Grid) -> Grid:
    if pre.shape != post.shape:
        raise InputError(
            f"Without a georeference on both images their sizes must agree: before is {pre.width} × {pre.height} px, "
            f"after is {post.width} × {post.height} px.",
            "Georeference both files, or cut them to the same size.",
        )
    return Grid.in_pixels(*post.shape)


def _on_post_lattice(pre: Grid, post: Grid) -> Grid:
    shared = _shared(pre.bounds_in(str(post.crs)), post.bounds)
    return post.crop(post.window_of(shared).snapped().intersection(post.window))


def _on_new_lattice(pre: Grid, post: Grid, card_gsd: float | None) -> Grid:
    crs = str(post.crs) if post.projected else _utm_of(post)
    shared = _shared(pre.bounds_in(crs), post.bounds_in(crs))
    pixel = _pixel_of(post, card_gsd, Grid(crs, Affine.translation(shared[0], shared[1]), 1, 1))
    cell = LATTICE * pixel
    left, bottom = math.floor(shared[0] / cell + 1e-6), math.floor(shared[1] / cell + 1e-6)
    right, top = math.ceil(shared[2] / cell - 1e-6), math.ceil(shared[3] / cell - 1e-6)
    transform = Affine(pixel, 0, left * cell, 0, -pixel, top * cell)
    return Grid(crs, transform, (top - bottom) * LATTICE, (right - left) * LATTICE)


def _utm_of(grid: Grid) -> str:
    west, south, east, north = grid.geographic_bounds()
    return utm_crs((west + east) / 2, (south + north) / 2)


def _pixel_of(post: Grid, card_gsd: float | None, place: Grid) -> float:
    """Pixel size in units of the CRS of ``place``: the finer of post's and the card's, post's where metres fail."""
    if post.gsd is None or place.metres_per_unit is None:
        return sum(post.pixel_size) / 2
    return min(post.gsd, card_gsd or post.gsd) / place.metres_per_unit[0]


def _shared(first: Bounds, second: Bounds) -> Bounds:
    box = _intersect(first, second)
    if _box_area(box) <= 0:
        raise InputError(
            "The images before and after do not overlap.",
            "Check that both files show the same place and that their CRS is right.",
        )
    return box


def _intersect(first: Bounds, second: Bounds) -> Bounds:
    return max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3])


def _box_area(bounds: Bounds) -> float:
    return max(bounds[2] - bounds[0], 0.0) * max(bounds[3] - bounds[1], 0.0)


def _floor(value: float) -> int:
    return math.floor(value + _WHOLE_PIXEL)


def _ceil(value: float) -> int:
    return math.ceil(value - _WHOLE_PIXEL)


@lru_cache(maxsize=64)
def _crs(text: str) -> CRS:
    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise InputError(f"{text[:60]!r} is not a known coordinate reference system.", "Write EPSG:code.") from error


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer:
    return Transformer.from_crs(_crs(source), _crs(target), always_xy=True)


@lru_cache(maxsize=64)
def _linear_unit(crs: str) -> float | None:
    """Metres in the CRS's unit of length; None where the unit is not a known length."""
    axes = _crs(crs).axis_info
    if not axes or axes[0].unit_name in ("", "unknown") or "degree" in axes[0].unit_name:
        return None
    factor = float(axes[0].unit_conversion_factor)
    return factor if factor > 0 else None


def _areal_scale(grid: Grid) -> float:
    """Map area over true area at the grid's centre; exactly 1 where it is within 1 % of that."""
    crs = str(grid.crs)
    x, y = grid.transform @ (grid.width / 2, grid.height / 2)
    try:
        lon, lat = _transformer(crs, "EPSG:4326").transform(x, y)
        scale = float(Proj(_crs(crs)).get_factors(lon, lat).areal_scale)
    except (CRSError, ProjError):  # A local system without a place on the ellipsoid is taken as true to scale.
        return 1.0
    return scale if math.isfinite(scale) and scale > 0 and abs(scale - 1) > _EQUAL_AREA_TOLERANCE else 1.0
