"""Writing cloud-optimised GeoTIFFs block by block: nothing at the final name until the file is whole and valid."""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_translate, cog_validate

from mmcd.errors import InputError, StorageError
from mmcd.geo.closing import Closing
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import GDAL_ERRORS, gdal_environment, gdal_reason, ignore_missing_georeference
from mmcd.score import NOT_ASSESSED, OFFSET, SCALE

_BLOCK = 512
_GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}
_STRIPE_ROWS = 512


@dataclass(frozen=True)
class Band:
    """How the bands of a file are stored and described.

    Attributes:
        dtype: Data type of all bands: uint8, uint16, int16 or float32.
        names: Description of each band.
        nodata: Value of pixels without a measurement, None when every pixel has one.
        scale: Value is ``scale * stored + offset``.
        offset: See ``scale``.
        unit: Unit of the value.
        compression: ``deflate`` is lossless; ``jpeg`` (quality 85) is for 8-bit images of one or three bands.
        overviews: ``nearest`` keeps stored values, so that 0 is never mixed into a score; ``average`` is for images.
    """

    dtype: str = "uint8"
    names: tuple[str, ...] = ("",)
    nodata: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    compression: Literal["deflate", "jpeg"] = "deflate"
    overviews: Literal["nearest", "average"] = "nearest"


SCORE_BAND = Band(names=("change probability",), nodata=NOT_ASSESSED, scale=SCALE, offset=OFFSET, unit="probability")
"""Change probability: 0 not assessed, else ``p = (v - 1) / 254``."""

MASK_BAND = Band(names=("change",), nodata=255)
"""Change at a threshold: 0 unchanged, 1 changed, 255 not assessed."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name in the folder of ``path``; it takes the final name only when the block succeeds.

    Whatever ends the block otherwise, an interrupt included, leaves nothing behind.

    Args:
        path: The final name; its folder is created when missing.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_file(path) as temporary:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failing write below into one sentence that names the file and the reason.

    Raises:
        StorageError: An operating system or GDAL error came up.
    """
    try:
        yield
    except GDAL_ERRORS as error:
        plain = error.strerror if isinstance(error, OSError) else None
        reason = plain or f"the disk may be full ({gdal_reason(error)})"
        raise StorageError(
            f"{path} cannot be written: {reason}.", "Free some space or choose another folder."
        ) from error


class CogWriter(Closing):
    """Collects blocks in any order and writes one validated COG of them.

    Blocks go straight to an uncompressed working file, so memory does not grow with the raster and a block that
    ``write`` has returned from survives the death of the process. ``commit`` makes the COG from it; its bytes depend
    only on values, grid, band and tags.

    Attributes:
        path: Final name of the COG.
        grid: Grid of the COG.
        resumed: Whether an earlier working file of the same size was found and goes on.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        band: Band = SCORE_BAND,
        tags: Mapping[str, str] | None = None,
        partial: Path | None = None,
    ) -> None:
        """Open the working file.

        Args:
            path: Final name of the COG; its folder is created when missing.
            grid: Grid of the COG.
            band: Storage and description of the bands.
            tags: Tags of the file, such as model and run.
            partial: Working file that outlives a failed or killed run and is taken up by the next writer; None for a
                temporary one in the folder of ``path``, removed whatever happens.

        Raises:
            StorageError: The disk is full, the folder cannot be written, or ``partial`` belongs to another raster.
        """
        self.path = path
        self.grid = grid
        self._band = band
        self._tags = dict(tags or {})
        self._dtype = np.dtype(band.dtype)
        self._keep = partial is not None
        self._file = -1
        size = self._dtype.itemsize * len(band.names) * grid.height * grid.width
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = partial or _temporary(path)
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            self.resumed = self._keep and self._partial.exists() and self._partial.stat().st_size > 0
            try:
                self._open(size)
            except BaseException:
                self.close()
                raise

    def _open(self, size: int) -> None:
        self._file = os.open(self._partial, os.O_RDWR | os.O_CREAT)
        if not self.resumed:
            self._start(size)
        elif os.fstat(self._file).st_size != size:
            raise StorageError(f"{self._partial} belongs to a raster of another size.", "Delete it and run again.")

    def _start(self, size: int) -> None:
        """Give the working file its size, as a sparse file of nodata."""
        os.ftruncate(self._file, size)
        if self._band.nodata:
            row = np.full(self.grid.width, self._band.nodata, self._dtype).tobytes()
            for number in range(len(self._band.names) * self.grid.height):
                _write_all(self._file, row, number * len(row))

    def close(self) -> None:
        """Close the working file; a temporary one is removed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if not self._keep:
            self._partial.unlink(missing_ok=True)

    def write(self, window: Window, values: NDArray[Any]) -> None:
        """Store a block.

        Args:
            window: Where it lies in the grid; must lie inside.
            values: Stored values, shape (y, x) or (band, y, x), of the band's data type.

        Raises:
            InputError: The block does not fit the window, the grid or the data type.
            StorageError: The disk is full.
        """
        stack = values[np.newaxis] if values.ndim == 2 else values
        fits = stack.shape == (len(self._band.names), *window.shape) and stack.dtype == self._dtype
        if not fits or window.intersection(self.grid.window) != window:
            raise InputError(
                f"A block of shape {values.shape} and type {values.dtype} does not fit {window} of {self.path.name}."
            )
        step = self._dtype.itemsize
        with storage_errors(self.path):
            for number, plane in enumerate(stack):
                for row, line in enumerate(plane, start=window.row):
                    place = (number * self.grid.height + row) * self.grid.width + window.col
                    _write_all(self._file, line.tobytes(), place * step)

    def commit(self) -> Path:
        """Write the COG, validate it, give it its name and remove the working file.

        Returns:
            The final path.

        Raises:
            StorageError: The disk is full, or what was written is not what was to be written.
        """
        with atomic_path(self.path) as temporary, _virtual_file(self._partial, self.grid, self._band) as source:
            _translate(source, temporary, self.grid, self._band, self._tags)
            _verify(temporary, source, lossless=self._band.compression == "deflate")
        self._keep = False
        self.close()
        return self.path


def write_cog(
    path: Path,
    values: NDArray[Any] | Iterable[tuple[Window, NDArray[Any]]],
    grid: Grid,
    band: Band = SCORE_BAND,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Write a validated COG atomically.

    Args:
        path: Final name.
        values: Stored values, shape (y, x) or (band, y, x), or blocks of them with their windows in any order.
        grid: Grid of the file.
        band: Storage and description of the bands.
        tags: Tags of the file.

    Returns:
        The final path.

    Raises:
        InputError: A block does not fit.
        StorageError: The disk is full or the folder cannot be written.
    """
    blocks = [(grid.window, values)] if isinstance(values, np.ndarray) else values
    with CogWriter(path, grid, band, tags) as writer:
        for window, block in blocks:
            writer.write(window, block)
        return writer.commit()


@contextmanager
def _virtual_file(raw: Path, grid: Grid, band: Band) -> Iterator[Path]:
    """A GDAL virtual file beside the working file that says how to read it."""
    with _temporary_file(raw.with_suffix(".vrt")) as path:
        path.write_text(_virtual_xml(raw, grid, band), encoding="utf-8")
        yield path


def _virtual_xml(raw: Path, grid: Grid, band: Band) -> str:
    place = ""
    if grid.crs is not None:
        place = f"<SRS>{escape(CRS.from_user_input(grid.crs).to_wkt())}</SRS>"
        place += f"<GeoTransform>{', '.join(repr(float(v)) for v in grid.transform.to_gdal())}</GeoTransform>"
    size = np.dtype(band.dtype).itemsize
    nodata = "" if band.nodata is None else f"<NoDataValue>{band.nodata!r}</NoDataValue>"
    bands = "".join(
        f'<VRTRasterBand dataType="{_GDAL_TYPES[band.dtype]}" band="{number + 1}" subClass="VRTRawRasterBand">'
        f"<Metadata><MDI key={quoteattr('units')}>{escape(band.unit)}</MDI></Metadata>"
        f"<Description>{escape(name)}</Description>{nodata}"
        f"<Scale>{band.scale!r}</Scale><Offset>{band.offset!r}</Offset>"
        f'<SourceFilename relativeToVRT="1">{escape(raw.name)}</SourceFilename>'
        f"<ImageOffset>{number * grid.height * grid.width * size}</ImageOffset>"
        f"<PixelOffset>{size}</PixelOffset><LineOffset>{grid.width * size}</LineOffset><ByteOrder>LSB</ByteOrder>"
        "</VRTRasterBand>"
        for number, name in enumerate(band.names)
    )
    return f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">{place}{bands}</VRTDataset>'


def _translate(source: Path, target: Path, grid: Grid, band: Band, tags: Mapping[str, str]) -> None:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": band.compression,
    }
    if band.compression == "deflate":
        profile["zlevel"] = 1
    else:
        profile |= {"jpeg_quality": 85, "photometric": "YCBCR" if len(band.names) == 3 else "MINISBLACK"}
    with gdal_environment(), ignore_missing_georeference():
        cog_translate(
            str(source),
            str(target),
            profile,
            overview_level=_overview_level(grid),
            overview_resampling=band.overviews,
            in_memory=False,
            forward_band_tags=bool(band.unit),
            additional_cog_metadata=dict(tags),
            config={"GDAL_TIFF_INTERNAL_MASK": True, "GDAL_TIFF_OVR_BLOCKSIZE": str(_BLOCK)},
            quiet=True,
        )


def _overview_level(grid: Grid) -> int:
    """Return how often the longer side is halved to fit a block; rio-cogeo's own choice forgets narrow rasters."""
    return max(0, math.ceil(math.log2(max(grid.shape) / _BLOCK)))


def _verify(written: Path, source: Path, *, lossless: bool) -> None:
    """Read the whole file back: GDAL may report a full disk only when a file is closed, or not at all."""
    with gdal_environment(), ignore_missing_georeference():
        valid, errors, warnings = cog_validate(str(written), strict=True, quiet=True)
        if not valid:
            raise StorageError(f"{written.name} is not a valid COG: {'; '.join([*errors, *warnings])}.")
        with rasterio.open(written) as found, rasterio.open(source) as wanted:
            for row in range(0, wanted.height, _STRIPE_ROWS):
                stripe = Window(row, 0, min(_STRIPE_ROWS, wanted.height - row), wanted.width).to_rasterio()
                values = found.read(window=stripe)
                if lossless and not np.array_equal(
                    values, wanted.read(window=stripe), equal_nan=values.dtype.kind == "f"
                ):
                    raise StorageError(f"{written.name} does not hold what was written.", "Check the disk.")


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    temporary = _temporary(path)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _write_all(file: int, data: bytes, place: int) -> None:
    """A disk that fills up takes a part of the bytes first and refuses at the next call."""
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, place)
        view, place = view[count:], place + count


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
