"""Open rasters, kept and shared between requests: bounded in number and never used by two threads at once."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import rasterio
from affine import Affine
from rasterio.transform import from_gcps
from rasterio.vrt import WarpedVRT
from rio_tiler.io import Reader

from mmcd.errors import InputError
from mmcd.geo.raster import GDAL_ERRORS, gdal_environment

MAX_IDLE = 16  # files kept open; each costs a descriptor and some hundred kilobytes
MAX_LENT = 4  # files read at once, so that a burst of tile requests leaves memory and cores to the pages

Key = tuple[Path, int]


class ReaderPool:
    """Lends tile readers. A reader is out to one thread at a time; idle ones are closed oldest first.

    Args:
        max_idle: Readers kept open while nobody uses them.
        max_lent: Readers in use at once; further threads wait.
    """

    def __init__(self, max_idle: int = MAX_IDLE, max_lent: int = MAX_LENT) -> None:
        self.max_idle = max_idle
        self._idle: OrderedDict[int, tuple[Key, _OpenRaster]] = OrderedDict()
        self._lock = threading.Lock()
        self._lent = threading.BoundedSemaphore(max_lent)

    @contextlib.contextmanager
    def lend(self, path: Path) -> Iterator[Reader]:
        """Give a reader of a file for the time of a ``with`` block.

        Raises:
            InputError: The file is missing or not a raster.
        """
        with self._lent, gdal_environment():
            key = (path, _modified(path))
            raster = self._take(key) or _OpenRaster(path)
            try:
                yield raster.reader
            except GDAL_ERRORS as error:
                raster.close()
                raise InputError(f"{path.name} cannot be read: {error}.", "The file may be damaged.") from error
            else:
                self._give_back(key, raster)

    def close(self) -> None:
        """Close all idle readers."""
        with self._lock:
            idle, self._idle = self._idle, OrderedDict()
        for _, raster in idle.values():
            raster.close()

    def _take(self, key: Key) -> "_OpenRaster | None":
        with self._lock:
            for token, (idle_key, raster) in self._idle.items():
                if idle_key == key:
                    del self._idle[token]
                    return raster
        return None

    def _give_back(self, key: Key, raster: "_OpenRaster") -> None:
        surplus = []
        with self._lock:
            self._idle[id(raster)] = (key, raster)
            while len(self._idle) > self.max_idle:
                surplus.append(self._idle.popitem(last=False)[1][1])
        for old in surplus:
            old.close()


class _OpenRaster:
    """A reader with everything that must be closed with it."""

    def __init__(self, path: Path) -> None:
        self._stack = contextlib.ExitStack()
        try:
            dataset = self._stack.enter_context(rasterio.open(path))
            if dataset.dtypes[0].startswith("complex"):
                # The tile reader knows no complex numbers; GDAL's derived view holds their magnitude.
                dataset = self._stack.enter_context(rasterio.open(f"DERIVED_SUBDATASET:AMPLITUDE:{path}"))
                if dataset.gcps[0]:
                    dataset = self._stack.enter_context(_placed_by_points(dataset))
            if not dataset.gcps[0] and (dataset.crs is None or dataset.transform.is_identity):
                dataset = self._stack.enter_context(pixel_space_view(dataset))
            self.reader = self._stack.enter_context(Reader(None, dataset=dataset))
        except GDAL_ERRORS as error:
            self._stack.close()
            raise InputError(f"{path.name} is not a readable raster: {error}.", "Check the file.") from error

    def close(self) -> None:
        self._stack.close()


def pixel_space_view(dataset: rasterio.DatasetReader) -> WarpedVRT:
    """Return a raster without georeference as if one pixel were one metre, its corner at 0° N 0° E.

    Scenes in pixel space are shown there with a note; all their layers share the place, so they still overlay.
    """
    placed = Affine.scale(1, -1) @ dataset.transform
    return WarpedVRT(
        dataset,
        src_crs="EPSG:3857",
        src_transform=placed,
        crs="EPSG:3857",
        transform=placed,
        width=dataset.width,
        height=dataset.height,
    )


def _placed_by_points(dataset: rasterio.DatasetReader) -> WarpedVRT:
    """Return magnitudes placed by their ground control points, 0 being the fill around a radar image."""
    points, crs = dataset.gcps
    return WarpedVRT(dataset, src_crs=crs, src_transform=from_gcps(points), src_nodata=0, nodata=0)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path.name} is missing.", "Choose the scene again, or run the analysis again.") from error
