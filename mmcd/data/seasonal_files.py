"""Files of seasonal series as SeCo and CACo publish them: locations, their acquisitions, one GeoTIFF a band.

Layout: ``root/<location>/<acquisition>/B1.tif ... B12.tif``, uint8 (reflectance times 255) or uint16 (times 10000).
Names of acquisitions sort by date. Bands are found by name, never by their place in a listing.

Sources: Mañas et al. 2021 (SeCo), Mall, Hariharan and Bala 2023 (CACo).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling

from mmcd.errors import ConfigError, DataError
from mmcd.geo.raster import GDAL_ERRORS, gdal_environment, gdal_reason, ignore_missing_georeference
from mmcd.geo.sensors import SENTINEL2_L2A, standard_name

RGB = ("B4", "B3", "B2")
"""Bands that SeCo and CACo learn from, in the order of an image."""

RECENT = 5
"""Newest acquisitions of a location, which CACo takes for its recent half; those before are the older one."""

LEAST = 3
"""Acquisitions that an item is drawn from, at least."""

SCALES = {"uint8": 255, "uint16": 10_000}
"""Stored number of a reflectance of 1, by data type."""

_SUFFIXES = (".tif", ".tiff")
_STEPS = (1, 2, 3, 6)  # Pixels of 10, 20 and 60 m, seen from any of them.
THREADS = min(16, 4 * (os.cpu_count() or 1))  # Listing and reading many small files waits for the disk.


@dataclass(frozen=True)
class Location:
    """One place and its images.

    Attributes:
        id: Name of its folder.
        acquisitions: Folders, oldest first.
        files: File of each band of each acquisition, in the order of the bands asked for.
    """

    id: str
    acquisitions: tuple[Path, ...]
    files: tuple[tuple[Path, ...], ...]

    def halves(self, recent: int = RECENT) -> tuple[range, range]:
        """Return the numbers of the acquisitions of the older and of the recent half."""
        border = max(0, len(self.acquisitions) - recent)
        return range(border), range(border, len(self.acquisitions))


@dataclass(frozen=True)
class SeasonalIndex:
    """What a folder holds.

    Attributes:
        root: The folder.
        bands: Bands that every acquisition has.
        locations: Places with at least three whole acquisitions, by name.
        warnings: A line for every acquisition that lacks a band, and for every place left out.
    """

    root: Path
    bands: tuple[str, ...]
    locations: tuple[Location, ...]
    warnings: tuple[str, ...]


def index_seasonal(root: Path, bands: Sequence[str] = SENTINEL2_L2A) -> SeasonalIndex:
    """List the locations under ``root``; no pixel is read.

    An acquisition that lacks a band is left out, and so is a location with fewer than three others.

    Args:
        root: Folder with one folder a location, such as ``seco_100k`` or ``clean_10k_geography``.
        bands: Names of the bands that are needed, standard or not (``B02``, ``blue``).

    Raises:
        ConfigError: A name is no band of Sentinel-2, or is given twice.
        DataError: There is no such folder, or no location is left.
    """
    wanted = _standard(bands)
    if not root.is_dir():
        raise DataError(f"{root} is no folder.", "Give the folder that holds one folder for each location.")
    homes = _folders(root)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda home: _location(home, wanted), homes))
    locations = tuple(location for location, _ in found if location is not None)
    warnings = tuple(line for _, lines in found for line in lines)
    if not locations:
        told = f" The first of {len(warnings):,} reasons: {warnings[0]}" if warnings else ""
        raise DataError(
            f"{root} holds no location with {LEAST} acquisitions of {', '.join(wanted)}.{told}",
            "Give the folder above the locations: LOCATION/ACQUISITION/B1.tif, B2.tif and so on.",
        )
    return SeasonalIndex(root, wanted, locations, warnings)


def _standard(bands: Sequence[str]) -> tuple[str, ...]:
    names = tuple(standard_name(band) or band for band in bands)
    unknown = [name for name in names if name not in (*SENTINEL2_L2A, "B10")]
    if unknown or len(set(names)) < len(names) or not names:
        wrong = unknown[0] if unknown else ", ".join(bands)
        raise ConfigError(
            f"{wrong!r} does not name bands of Sentinel-2, each once.", f"Choose from {', '.join(SENTINEL2_L2A)}."
        )
    return names


def _folders(home: Path) -> list[Path]:
    with os.scandir(home) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    return [home / name for name in names]


def _location(home: Path, bands: tuple[str, ...]) -> tuple[Location | None, list[str]]:
    """Return a location, None where too little of it is whole, and a line for each fault."""
    lines: list[str] = []
    acquisitions, files = [], []
    for folder in _folders(home):
        there = _bands_in(folder, lines)
        if missing := [band for band in bands if band not in there]:
            lines.append(f"{home.name}/{folder.name} is left out: no {', '.join(f'{band}.tif' for band in missing)}.")
            continue
        acquisitions.append(folder)
        files.append(tuple(there[band] for band in bands))
    if len(files) < LEAST:
        lines.append(
            f"{home.name} is left out: {len(files)} whole acquisitions, but {LEAST} are needed; fetch it again, or ask "
            "for fewer bands if these are what it lacks."
        )
        return None, lines
    return Location(home.name, tuple(acquisitions), tuple(files)), lines


def _bands_in(folder: Path, lines: list[str]) -> dict[str, Path]:
    """Return the files of an acquisition by band; of two for one band the first by name."""
    found: dict[str, Path] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a path for each of millions of files takes minutes
        band = standard_name(stem)
        if suffix.lower() not in _SUFFIXES or band is None:
            continue
        if band in found:
            lines.append(f"{folder.parent.name}/{folder.name}: {name} is not read, {found[band].name} is {band} too.")
            continue
        found[band] = folder / name
    return found


def read_acquisition(files: Sequence[Path], size: int | None = None) -> NDArray[Any]:
    """Read the bands of an acquisition onto the grid of the finest one.

    Args:
        files: One file a band.
        size: Height and width that everything is resampled to, bilinearly; None keeps those of the finest band.

    Returns:
        Shape (C, H, W), uint8 or uint16.

    Raises:
        DataError: A file is damaged, of another data type, or no band of this place.
    """
    with ExitStack() as stack:
        opened = _opened_together(files, stack)
        finest = _finest(files, [(file.height, file.width) for file in opened])
        shape = finest if size is None else (size, size)
        return np.stack([_band(path, file, shape) for path, file in zip(files, opened, strict=True)])


def acquisition_type(files: Sequence[Path]) -> tuple[str, tuple[int, int]]:
    """Return data type and the finest band's height and width of an acquisition, without reading pixels.

    Raises:
        DataError: As `read_acquisition`.
    """
    with ExitStack() as stack:
        opened = _opened_together(files, stack)
        return str(opened[0].dtypes[0]), _finest(files, [(file.height, file.width) for file in opened])


def _opened_together(files: Sequence[Path], stack: ExitStack) -> list[Any]:
    stack.enter_context(gdal_environment())
    stack.enter_context(ignore_missing_georeference())
    opened = [stack.enter_context(_opened(path)) for path in files]
    _check_types(files, [str(file.dtypes[0]) for file in opened])
    return opened


def _opened(path: Path) -> Any:
    try:
        return rasterio.open(path)
    except GDAL_ERRORS as error:
        raise _unreadable(path, error) from error


def _band(path: Path, file: Any, shape: tuple[int, int]) -> NDArray[Any]:
    try:
        return np.asarray(file.read(1, out_shape=shape, resampling=Resampling.bilinear))
    except GDAL_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} cannot be read: {gdal_reason(error)}.", "The file may be cut short: copy or download it again."
    )


def _check_types(files: Sequence[Path], types: Sequence[str]) -> None:
    for path, dtype in zip(files, types, strict=True):
        if dtype not in SCALES or dtype != types[0]:
            raise DataError(
                f"{path} holds {dtype}, {files[0].name} holds {types[0]}.",
                "Give uint8 (reflectance times 255) or uint16 (times 10000), one of them for all bands.",
            )


def _finest(files: Sequence[Path], shapes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the shape of the finest band, once all others are as large or one of its coarser grids."""
    finest = max(shapes)
    for path, shape in zip(files, shapes, strict=True):
        if not any(shape == tuple(round(length / step) for length in finest) for step in _STEPS):
            first = files[shapes.index(finest)].name
            raise DataError(
                f"{path} is {shape[1]} × {shape[0]} px, {first} beside it {finest[1]} × {finest[0]}: no grid of 10, 20 "
                "or 60 m of one square.",
                "Cut the bands to one square again, or take the acquisition's folder out.",
            )
    return finest
