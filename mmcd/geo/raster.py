"""Reading any GDAL raster by window, in its own grid or in another, with bounded memory and repeatable bytes."""

import math
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from mmcd.errors import InputError
from mmcd.geo.closing import Closing
from mmcd.geo.grid import Grid, Window, blocks, common_grid, transform_bounds, utm_crs

Georeference = Literal["affine", "gcps", "none"]
Method = Literal["auto", "nearest"]

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError)
"""What a failing read or write of GDAL may raise."""

_CACHE_BYTES = 64 * 2**20  # Two files read block by block need no more; GDAL's default is 5 % of the memory.
_TOLERANCE = 0.01  # Pixels; GDAL's eighth of a pixel is a tenth of the registration error that models bear.
_TILE = 256  # The warper is always asked for the same squares, so a value cannot depend on the window around it.
_TILE_CACHE_BYTES = 128 * 2**20  # Four rows of three-band tiles over 10,000 columns: halos are not warped twice.
_AVERAGE_FROM = 1.2  # Coarser than this many source pixels, bilinear reading would skip some of them.
_STRIPE_BYTES = 8 * 2**20  # Whole-scene statistics read this much at a time.


@dataclass(frozen=True)
class Raster:
    """Pixels with what is needed to place and trust them.

    Attributes:
        data: Values in the file's unit, magnitude for complex files, 0 where not valid, shape (band, y, x), float32.
        valid: Whether the pixel was measured, shape (y, x), bool.
        grid: Where the pixels lie.
    """

    data: NDArray[np.float32]
    valid: NDArray[np.bool_]
    grid: Grid


@contextmanager
def gdal_environment() -> Iterator[None]:
    """Set GDAL's options for all reading and writing of this package: a small block cache, damage is an error."""
    options = {
        "GDAL_CACHEMAX": _CACHE_BYTES,
        "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
        "RAW_CHECK_FILE_SIZE": "YES",
        "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE",
    }
    with rasterio.Env(**options):
        yield


@contextmanager
def ignore_missing_georeference() -> Iterator[None]:
    """Silence rasterio's warning: a file without georeference is a case of its own here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


class RasterSource(Closing):
    """A raster file opened for reading by window.

    Alpha bands and masks are not counted as bands: they decide what is valid, like nodata and values that are not
    finite. A nodata value of 0 makes a pixel invalid where *all* bands hold it, since 0 is also a measurement; any
    other nodata value where *one* band holds it.

    Use it as a context manager, and keep one per thread.

    Attributes:
        path: The file.
        indexes: Bands that are read, from 1.
        grid: Its own grid: the file's, or for a file with only ground control points a north-up UTM grid of the same
            number of metres a pixel, or pixel space.
        georeference: Where the grid comes from.
        count: Number of bands that are read.
        dtype: Name of the file's data type.
        complex: Whether the file holds complex numbers, which are read as magnitude.
        band_names: Descriptions of the read bands, None where there is none.
        nodata: The file's nodata value.
        tags: Tags of the file.
    """

    def __init__(self, path: Path | str, indexes: Sequence[int] | None = None) -> None:
        """Open ``path``.

        Args:
            path: Any raster that GDAL reads.
            indexes: Bands to read, from 1, in this order; None for all but alpha bands.

        Raises:
            InputError: The file is missing, not a raster, unreadable, or has no such band.
        """
        self.path = Path(path)
        self._stack = ExitStack()
        try:
            self._open(indexes)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, indexes: Sequence[int] | None) -> None:
        # The options are set around each access, not for the life of the source: rasterio's environments must be left
        # in the reverse order of entering, and two sources are closed in any order.
        file = self._stack.enter_context(_open_dataset(self.path))
        alpha = [i for i, colour in zip(file.indexes, file.colorinterp, strict=True) if colour is ColorInterp.alpha]
        usable = [band for band in file.indexes if band not in alpha]
        self.indexes = tuple(indexes) if indexes is not None else tuple(usable)
        if not usable or not set(self.indexes) <= set(file.indexes) or not self.indexes:
            raise InputError(
                f"{self.path} has {len(usable)} bands; bands {list(self.indexes)} were asked for.",
                "Choose bands that are in the file.",
            )
        self.count = len(self.indexes)
        self.dtype: str = file.dtypes[self.indexes[0] - 1]
        self.complex = self.dtype.startswith("complex")
        self.band_names: tuple[str | None, ...] = tuple(file.descriptions[i - 1] for i in self.indexes)
        self.nodata: float | None = file.nodatavals[self.indexes[0] - 1]
        self.tags: dict[str, str] = dict(file.tags())
        masked = bool(alpha) or MaskFlags.per_dataset in file.mask_flag_enums[self.indexes[0] - 1]
        self._has_mask = masked and self.nodata is None
        mask_band = str(alpha[0]) if alpha else f"mask,{self.indexes[0]}"
        # A virtual file in front brings every source to one form: chosen bands, magnitude, mask as the last band.
        xml = _virtual_xml(file, self.indexes, mask_band if self._has_mask else None)
        with _reading(self.path), ignore_missing_georeference():
            self._base = self._stack.enter_context(rasterio.open(xml))
        self.georeference, self.grid, self._unwarped = self._own_grid()

    def _own_grid(self) -> tuple[Georeference, Grid, Any]:
        base = self._base
        gcps, gcp_crs = base.gcps
        if base.crs is not None and not base.transform.is_identity:
            return "affine", Grid(_crs_text(base.crs), base.transform, base.height, base.width), base
        if len(gcps) < 3 or gcp_crs is None:
            return "none", Grid.in_pixels(base.height, base.width), base
        lon, lat = _centre_of(gcps, gcp_crs)
        with _reading(self.path):
            warped = self._stack.enter_context(WarpedVRT(base, crs=utm_crs(lon, lat), **self._warp_options(base)))
        grid = Grid(_crs_text(warped.crs), warped.transform, warped.height, warped.width)
        return "gcps", grid, _Warped(warped, grid, self.path)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def read(self, window: Window | None = None) -> Raster:
        """Read a window of the source's own grid.

        Args:
            window: Rows and columns; may reach beyond the edge, where pixels are 0 and not valid. None reads all.

        Raises:
            InputError: The file is damaged there.
        """
        return self._read(self._unwarped, self.grid, window or self.grid.window)

    def aligned(self, grid: Grid, method: Method = "auto") -> "AlignedSource":
        """Return a view of this source in another grid.

        Args:
            grid: The grid to read in.
            method: ``auto`` averages when the grid is coarser than the file and is bilinear otherwise; ``nearest``
                keeps stored values, for labels and masks.

        Raises:
            InputError: One of the two has no georeference and their sizes differ.
        """
        return AlignedSource(self, grid, method)

    def read_decimated(self, max_pixels: int = 1_000_000) -> Raster:
        """Read every n-th row and column of the whole file, for statistics.

        Pixels are taken, never averaged, and overviews are not used: averaging would shrink the spread of speckle,
        and the statistics of a file would depend on its overviews.

        Args:
            max_pixels: Largest number of pixels to return.

        Raises:
            InputError: The file is damaged.
        """
        step = max(1, math.ceil(math.sqrt(self.grid.height * self.grid.width / max_pixels)))
        stripe = max(1, _STRIPE_BYTES // (4 * self.count * max(self.grid.width, 1) * step)) * step
        parts = []
        for row in range(0, self.grid.height, stripe):
            window = Window(row, 0, min(stripe, self.grid.height - row), self.grid.width)
            part = self.read(window)
            parts.append((part.data[:, ::step, ::step].copy(), part.valid[::step, ::step].copy()))
        data = np.concatenate([data for data, _ in parts], axis=1)
        valid = np.concatenate([valid for _, valid in parts], axis=0)
        coarse = self.grid.transform @ Affine.scale(step)
        transform = self.grid.transform if self.grid.crs is None else coarse
        return Raster(data, valid, Grid(self.grid.crs, transform, *valid.shape))

    def _warp_options(self, dataset: Any) -> dict[str, Any]:
        """Options of the warper that make each value independent of the window it is read in."""
        raw = dataset is self._base
        return {
            "dtype": "float32",
            "nodata": math.nan,
            "src_nodata": self.nodata if raw and self.nodata is not None else math.nan,
            "src_alpha": self.count + 1 if raw and self._has_mask else 0,
            "tolerance": _TOLERANCE,
            "resampling": Resampling.bilinear,
            "XSCALE": "1",  # Else the warper guesses a kernel width from the shape of the window it is asked for.
            "YSCALE": "1",
            "SOURCE_EXTRA": "8",
            "UNIFIED_SRC_NODATA": "YES" if raw and self.nodata == 0 else "PARTIAL",
        }

    def _read(self, dataset: Any, grid: Grid, window: Window) -> Raster:
        data = np.zeros((self.count, *window.shape), dtype=np.float32)
        valid = np.zeros(window.shape, dtype=np.bool_)
        inside = window.intersection(grid.window)
        if not inside.empty:
            rows, cols = inside.shifted(-window.row, -window.col).slices
            if isinstance(dataset, _Warped):
                values = dataset.read(inside)[: self.count]
                measured = np.isfinite(values).all(axis=0)  # The warper turned nodata, mask and the outside into NaN.
            else:
                with _reading(self.path):
                    stored = dataset.read(window=inside.to_rasterio(), out_dtype=np.float32)
                values, measured = stored[: self.count], self._measured(stored)
            data[:, rows, cols] = np.where(measured, values, 0)
            valid[rows, cols] = measured
        return Raster(data, valid, grid.crop(window))

    def _measured(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        bands = values[: self.count]
        missing = ~np.isfinite(bands).all(axis=0)
        if self._has_mask:
            missing |= values[self.count] == 0
        if self.nodata is not None and not math.isnan(self.nodata):
            combine = np.logical_and if self.nodata == 0 else np.logical_or
            missing |= combine.reduce(bands == np.float32(self.nodata), axis=0)
        return np.logical_not(missing)


class AlignedSource:
    """A source read in another grid; without resampling where both share one pixel lattice.

    Attributes:
        source: The source that is read.
        grid: The grid it is read in.
        direct: Whether pixels are read as stored.
    """

    def __init__(self, source: RasterSource, grid: Grid, method: Method) -> None:
        self.source = source
        self.grid = grid
        self._offset = grid.offset_in(source.grid)
        self.direct = self._offset is not None
        if not self.direct:
            self._warped = self._warp(method)

    def _warp(self, method: Method) -> Any:
        source, grid = self.source, self.grid
        if source.grid.crs is None or grid.crs is None:
            raise InputError(
                f"{source.path} has no georeference and {source.grid.width} × {source.grid.height} px; "
                f"{grid.width} × {grid.height} px are needed.",
                "Georeference both files, or cut them to the same size.",
            )
        dataset = source._unwarped.dataset if isinstance(source._unwarped, _Warped) else source._unwarped
        options = source._warp_options(dataset)
        if method == "nearest":
            options["resampling"] = Resampling.nearest
        elif _pixels_per_pixel(source.grid, grid) > _AVERAGE_FROM:
            options["resampling"] = Resampling.average
        with _reading(source.path):
            warped = WarpedVRT(
                dataset,
                crs=CRS.from_user_input(grid.crs),
                transform=grid.transform,
                height=grid.height,
                width=grid.width,
                **options,
            )
        return _Warped(source._stack.enter_context(warped), grid, source.path)

    def read(self, window: Window | None = None) -> Raster:
        """Read a window of the view's grid; see :meth:`RasterSource.read`. Its bytes do not depend on its size.

        Raises:
            InputError: The file is damaged there.
        """
        window = window or self.grid.window
        if self._offset is None:
            return self.source._read(self._warped, self.grid, window)
        raster = self.source.read(window.shifted(*self._offset))
        inside = self.grid.window.intersection(window)
        if inside == window:
            return Raster(raster.data, raster.valid, self.grid.crop(window))
        return _only(raster, inside.shifted(-window.row, -window.col), self.grid.crop(window))


class _Warped:
    """A warped file read as squares of one fixed lattice, the latest of them kept."""

    def __init__(self, dataset: Any, grid: Grid, path: Path) -> None:
        self.dataset = dataset
        self._grid = grid
        self._path = path
        self._kept: OrderedDict[Window, NDArray[np.float32]] = OrderedDict()
        self._capacity = max(1, _TILE_CACHE_BYTES // (4 * dataset.count * _TILE**2))

    def read(self, window: Window) -> NDArray[np.float32]:
        values = np.empty((self.dataset.count, *window.shape), dtype=np.float32)
        for tile in blocks(self._grid.shape, _TILE, within=window):
            shared = tile.intersection(window)
            target = shared.shifted(-window.row, -window.col).slices
            values[:, *target] = self._tile(tile)[:, *shared.shifted(-tile.row, -tile.col).slices]
        return values

    def _tile(self, tile: Window) -> NDArray[np.float32]:
        if tile in self._kept:
            self._kept.move_to_end(tile)
            return self._kept[tile]
        with _reading(self._path):
            values: NDArray[np.float32] = self.dataset.read(window=tile.to_rasterio(), out_dtype=np.float32)
        self._kept[tile] = values
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return values


def output_grid(pre: Path, post: Path, card_gsd: float | None = None) -> Grid:
    """Return the grid on which a pair is analysed and its score is written.

    * The pixel size is the finer of post's own and the card's.
    * When post is projected and its own size is used, its own pixel lattice is kept. Damage is read from post, and
      each resampling of a radar image averages neighbouring speckle: it changes the statistics a model learned and
      moves the score by part of a pixel against the image the analyst looks at. Pre is brought to post, never post to
      a rounder origin.
    * Otherwise the lattice is that of post's projected CRS, or of the UTM zone, with its origin on a multiple of
      16 pixels.
    * The extent is what both cover, grown to whole cells of 16 pixels, but never beyond post on post's own lattice.
    * When one of the two has no georeference the pair is compared pixel by pixel; sizes must agree.

    Args:
        pre: Image before.
        post: Image after.
        card_gsd: Ground sample distance in metres that the model was trained at; None keeps post's.

    Raises:
        InputError: A file cannot be read, the two do not overlap, or their sizes differ without a georeference.
    """
    with RasterSource(pre) as before, RasterSource(post) as after:
        return common_grid(before.grid, after.grid, card_gsd)


def _open_dataset(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path} does not exist.", "Check the path.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes).", "Download or copy the file again.")
    try:
        with gdal_environment(), ignore_missing_georeference():
            file = rasterio.open(path)
    except GDAL_ERRORS as error:
        raise InputError(
            f"{path} is not a raster that can be read: {gdal_reason(error)}.", "Give a GeoTIFF or another GDAL raster."
        ) from error
    if file.count == 0 or file.width == 0 or file.height == 0:
        file.close()
        raise InputError(f"{path} holds no pixels.", "Choose one of its subdatasets, or another file.")
    return file


def _virtual_xml(file: Any, indexes: Sequence[int], mask_band: str | None) -> str:
    """A GDAL virtual file: the chosen bands as float32, complex ones as magnitude, then the mask."""
    bands = [_virtual_band(file, number, str(index)) for number, index in enumerate(indexes, start=1)]
    if mask_band is not None:
        alpha = _virtual_band(file, len(indexes) + 1, mask_band)
        bands.append(alpha.replace("><", "><ColorInterp>Alpha</ColorInterp><", 1))
    place = ""
    if file.crs is not None:
        place = f"<SRS>{escape(file.crs.to_wkt())}</SRS>"
        place += f"<GeoTransform>{', '.join(repr(float(v)) for v in file.transform.to_gdal())}</GeoTransform>"
    elif file.gcps[1] is not None:
        points = "".join(
            f'<GCP Id="{i}" Pixel="{p.col!r}" Line="{p.row!r}" X="{p.x!r}" Y="{p.y!r}" Z="{p.z or 0.0!r}"/>'
            for i, p in enumerate(file.gcps[0])
        )
        place = f"<GCPList Projection={quoteattr(file.gcps[1].to_wkt())}>{points}</GCPList>"
    size = f'rasterXSize="{file.width}" rasterYSize="{file.height}"'
    return f"<VRTDataset {size}>{place}{''.join(bands)}</VRTDataset>"


def _virtual_band(file: Any, number: int, source_band: str) -> str:
    source = (
        f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(file.name)}</SourceFilename>'
        f"<SourceBand>{source_band}</SourceBand></SimpleSource>"
    )
    kind, function = "", ""
    if source_band.isdigit() and file.dtypes[int(source_band) - 1].startswith("complex"):
        kind = ' subClass="VRTDerivedRasterBand"'
        function = "<PixelFunctionType>mod</PixelFunctionType><SourceTransferType>CFloat32</SourceTransferType>"
    return f'<VRTRasterBand dataType="Float32" band="{number}"{kind}>{function}{source}</VRTRasterBand>'


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with gdal_environment():
            yield
    except GDAL_ERRORS as error:
        raise InputError(
            f"{path} is damaged and cannot be read: {gdal_reason(error)}.", "Download or copy the file again."
        ) from error


def gdal_reason(error: BaseException) -> str:
    """Return the first cause of a GDAL error as one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")


def _crs_text(crs: CRS) -> str:
    return str(crs.to_string())


def _centre_of(gcps: Sequence[GroundControlPoint], crs: CRS) -> tuple[float, float]:
    xs, ys = [point.x for point in gcps], [point.y for point in gcps]
    box = transform_bounds((min(xs), min(ys), max(xs), max(ys)), _crs_text(crs), "EPSG:4326")
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _pixels_per_pixel(source: Grid, target: Grid) -> float:
    """How many source pixels lie along the side of a target pixel, at the target's centre."""
    centre = target.crop(Window(target.height // 2, target.width // 2, 1, 1))
    west, south, east, north = centre.bounds_in(str(source.crs))
    width, height = source.pixel_size
    return math.sqrt((east - west) * (north - south) / (width * height))


def _only(raster: Raster, inside: Window, grid: Grid) -> Raster:
    """Keep the pixels of ``inside``; the rest, beyond the view's edge, is filled."""
    kept = np.zeros_like(raster.valid)
    kept[inside.slices] = raster.valid[inside.slices]
    return Raster(np.where(kept, raster.data, np.float32(0)), kept, grid)
