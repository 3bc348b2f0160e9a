"""How a scene's raster is shown: which bands, and from which stored value to which shade; measured once a file."""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject

from mmcd.cards import Unit
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import RasterSource
from mmcd.geo.sensors import POLARISATIONS, SceneStretch, band_names, detect_radiometry, to_unit
from mmcd.score import NOT_ASSESSED

STRETCH_PERCENTILES = (1.0, 99.0)
STRETCH_PIXELS = 500_000
DARK_SHARE = 0.4  # median over 99th percentile: about 0.2 in 8-bit amplitude of a town, above 0.5 in stretched decibels
TRUE_COLOUR = ("B4", "B3", "B2")
WEB_MERCATOR = "EPSG:3857"
_READ = 2048  # Side in pixels of what is read at once of a score.
MAX_PLANS = 128  # display plans kept; one is a few numbers


@dataclass(frozen=True)
class DisplayPlan:
    """How one raster is shown, the same for every tile of it.

    Attributes:
        indexes: Bands shown: three as red, green, blue, or one as grey.
        stretch: From stored values to black and white; radar amplitude and intensity in decibels.
    """

    indexes: tuple[int, ...]
    stretch: SceneStretch


def display_plan(path: Path) -> DisplayPlan:
    """Return how a raster is shown, measured once on the whole raster and then kept until the file changes."""
    return _measured_plan(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=MAX_PLANS)
def _measured_plan(path: Path, modified: int) -> DisplayPlan:
    with RasterSource(path) as source:
        indexes = _shown_bands(source)
    with RasterSource(path, indexes) as source:
        sample = source.read_decimated(STRETCH_PIXELS)
        radiometry = detect_radiometry(sample, source.dtype)
        if radiometry == "uint8" and len(indexes) == 1 and _looks_linear(sample.data[0][sample.valid]):
            radiometry = "amplitude"
    unit: Unit = "db" if radiometry in ("amplitude", "intensity", "complex") else "reflectance"
    if radiometry == "uint8" and len(indexes) == 3:
        return DisplayPlan(indexes, SceneStretch(radiometry, unit, (0.0,) * 3, (255.0,) * 3))
    limits = [_limits(band) for band in to_unit(sample.data[:, sample.valid], radiometry, unit)]
    return DisplayPlan(indexes, SceneStretch(radiometry, unit, *zip(*limits, strict=True)))


def _shown_bands(source: RasterSource) -> tuple[int, ...]:
    """Return red, green and blue where the file has them, else three optical bands as they come, else one band."""
    names = band_names(source.band_names)
    if all(name in names for name in TRUE_COLOUR):
        return tuple(source.indexes[names.index(name)] for name in TRUE_COLOUR)
    radar = source.complex or any(name in POLARISATIONS for name in names)
    return source.indexes[:1] if radar or source.count < 3 else source.indexes[:3]


def _looks_linear(values: NDArray[np.float32]) -> bool:
    """Whether 8-bit radar values are amplitude: most of an image is then far darker than its bright points."""
    if values.size == 0:
        return False
    middle, bright = np.percentile(values, (50, 99))
    return bool(middle < DARK_SHARE * bright)


def _limits(band: NDArray[np.float32]) -> tuple[float, float]:
    known = band[np.isfinite(band)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(known, STRETCH_PERCENTILES)
    return float(low), float(high)


@dataclass(frozen=True)
class Picture:
    """A small image of a whole raster, ready to be laid on a map.

    Attributes:
        pixels: Red, green, blue (or one grey) and alpha, shape (4 or 2, y, x), uint8.
        grid: Where it lies: Web Mercator, or pixel space.
    """

    pixels: NDArray[np.uint8]
    grid: Grid


def picture_grid(grid: Grid, max_size: int) -> Grid:
    """Return the Web Mercator grid around a grid, or in pixel space the same place, in no more than so many pixels.

    Args:
        grid: A raster's grid.
        max_size: Largest number of rows and of columns.
    """
    if grid.crs is None:
        step = max(1, math.ceil(max(grid.shape) / max_size))
        return Grid.in_pixels(-(-grid.height // step), -(-grid.width // step))
    west, south, east, north = grid.bounds_in(WEB_MERCATOR)
    pixel = max((east - west) / min(max_size, grid.width), (north - south) / min(max_size, grid.height))
    rows, cols = max(1, round((north - south) / pixel)), max(1, round((east - west) / pixel))
    return Grid(WEB_MERCATOR, Affine((east - west) / cols, 0, west, 0, (south - north) / rows, north), rows, cols)


def picture(path: Path, around: Grid, max_size: int) -> Picture:
    """Return a small image of a raster as it is displayed.

    Args:
        path: A raster of a scene.
        around: Grid to be covered; in pixel space the raster's own.
        max_size: Largest number of rows and of columns.

    Raises:
        InputError: The file is missing or damaged.
    """
    plan, target = display_plan(path), picture_grid(around, max_size)
    with RasterSource(path, plan.indexes) as source:
        raster = source.aligned(target).read() if around.crs else source.read_decimated(max_size**2)
    shades = np.rint(plan.stretch.apply(raster.data) * 255).astype(np.uint8)
    alpha = np.where(raster.valid & plan.stretch.measured(raster.data), 255, 0).astype(np.uint8)
    return Picture(np.concatenate([shades, alpha[None]]), target)


def score_picture(score: Path, max_size: int) -> tuple[NDArray[np.uint8], Grid]:
    """Return a small copy of a stored score in which each pixel holds the highest score that lies under it.

    Small damage would vanish from a sample of every n-th pixel.

    Args:
        score: Score COG.
        max_size: Largest number of rows and of columns.

    Returns:
        Stored bytes, shape (y, x), and their grid: Web Mercator, or pixel space.

    Raises:
        InputError: The file is missing or damaged.
    """
    with RasterSource(score) as source:
        grid, target = source.grid, picture_grid(source.grid, max_size)
        step = max(1, math.ceil(max(grid.shape) / max_size))
        coarse = Grid(grid.crs, grid.transform @ Affine.scale(step), -(-grid.height // step), -(-grid.width // step))
        highest = np.zeros(coarse.shape, np.uint8)
        for window in blocks(grid.shape, max(1, _READ // step) * step):
            raster = source.read(window)
            values = np.where(raster.valid, raster.data[0], NOT_ASSESSED).astype(np.uint8)
            rows, cols = (np.arange(0, size, step) for size in window.shape)
            reduced = np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), cols, axis=1)
            highest[Window(window.row // step, window.col // step, *reduced.shape).slices] = reduced
    if grid.crs is None:
        return highest, target
    shown = np.zeros(target.shape, np.uint8)
    reproject(
        highest,
        shown,
        src_crs=grid.crs,
        src_transform=coarse.transform,
        src_nodata=NOT_ASSESSED,
        dst_crs=target.crs,
        dst_transform=target.transform,
        dst_nodata=NOT_ASSESSED,
        resampling=Resampling.max,
    )
    return shown, target
