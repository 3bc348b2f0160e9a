"""Files of OSCD: 24 cities, two Sentinel-2 images of each and what was built between them.

Source: Daudt et al. 2018, IGARSS, "Urban change detection for multispectral Earth observation using convolutional
neural networks". Layouts, of which each layer may come from another one:

* images ``root/<city>/imgs_{1,2}_rect/B01.tif ... B12.tif, B8A.tif``, on one grid of 10 m, or
  ``root/<city>/imgs_{1,2}/<scene>_B01.tif``, each band in its own resolution,
* labels ``root/labels/<city>/cm/cm.png`` or ``root/<city>/cm/cm.png``,
* all of it below the folders that the published archives unpack to,
* ``train.txt`` and ``test.txt`` beside the cities, separated by commas; without them the published parts.

Bands are found by name, never by their place in a listing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling

from mmcd.errors import ConfigError, DataError
from mmcd.geo.raster import GDAL_ERRORS, gdal_environment, gdal_reason, ignore_missing_georeference
from mmcd.geo.sensors import SENTINEL2_L1C, standard_name

OscdPart = Literal["train", "test"]
OSCD_PARTS: tuple[OscdPart, ...] = get_args(OscdPart)

PUBLISHED: dict[OscdPart, tuple[str, ...]] = {
    "train": (
        *("abudhabi", "aguasclaras", "beihai", "beirut", "bercy", "bordeaux", "cupertino", "hongkong", "mumbai"),
        *("nantes", "paris", "pisa", "rennes", "saclay_e"),
    ),
    "test": (
        *("brasilia", "chongqing", "dubai", "lasvegas", "milano", "montpellier", "norcia", "rio", "saclay_w"),
        "valencia",
    ),
}
"""The official parts, 14 and 10 cities."""

_ARCHIVE = "Onera Satellite Change Detection dataset - "
_IMAGE_HOMES = (".", f"{_ARCHIVE}Images")
_LABEL_HOMES = ("labels", ".", f"{_ARCHIVE}Train Labels", f"{_ARCHIVE}Test Labels")
_SUFFIXES = (".tif", ".tiff")
_STEPS = (1, 2, 6)
"""Bands of 10, 20 and 60 m, seen from the finest."""


@dataclass(frozen=True)
class City:
    """One place.

    Attributes:
        id: Its name, as the folder is called.
        before: File of each band of the first image, in the order of the bands asked for.
        after: File of each band of the second image.
        label: 255 where something was built.
    """

    id: str
    before: tuple[Path, ...]
    after: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class OscdIndex:
    """What a folder holds.

    Attributes:
        bands: Bands of every image, by standard name.
        cities: Cities of each part, by name.
        warnings: A line for every city of a part that is not here, and for every one that is in no part.
    """

    bands: tuple[str, ...]
    cities: dict[OscdPart, tuple[City, ...]]
    warnings: tuple[str, ...]


def index_oscd(root: Path, bands: Sequence[str] = SENTINEL2_L1C) -> OscdIndex:
    """Find the cities under ``root`` and the files of their bands; no pixel is read.

    Args:
        root: Folder of the data set.
        bands: Names of the bands that are needed, in their order, standard or not (``B02``, ``blue``).

    Raises:
        ConfigError: A name is no band of Sentinel-2, or is given twice.
        DataError: There is no city, a city has no label or lacks a band, or one is in both parts.
    """
    wanted = _standard(bands)
    homes, warnings = _image_folders(root), []
    if not homes:
        raise DataError(
            f"{root} holds no city of OSCD.",
            "Give the folder with CITY/imgs_1_rect or CITY/imgs_1, or the one that the published archives were "
            "unpacked into.",
        )
    parts = _parts(root)
    cities: dict[OscdPart, tuple[City, ...]] = {}
    for part, names in parts.items():
        warnings += [f"{name} of the {part} part is not here." for name in names if name not in homes]
        cities[part] = tuple(_city(root, homes[name], wanted) for name in names if name in homes)
    spare = sorted(homes.keys() - set().union(*parts.values()))
    warnings += [f"{name} is in no part and is not read." for name in spare]
    return OscdIndex(wanted, cities, tuple(warnings))


def _standard(bands: Sequence[str]) -> tuple[str, ...]:
    names = tuple(standard_name(band) or band for band in bands)
    unknown = [name for name in names if name not in SENTINEL2_L1C]
    if unknown or len(set(names)) < len(names) or not names:
        wrong = unknown[0] if unknown else ", ".join(bands)
        raise ConfigError(
            f"{wrong!r} does not name bands of Sentinel-2, each once.", f"Choose from {', '.join(SENTINEL2_L1C)}."
        )
    return names


def _image_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each city by its name in small letters."""
    found: dict[str, Path] = {}
    for home in (root / name for name in _IMAGE_HOMES):
        for folder in sorted(home.glob("*")):
            if any((folder / f"imgs_1{ending}").is_dir() for ending in ("_rect", "")):
                found.setdefault(folder.name.lower(), folder)
    return found


def _parts(root: Path) -> dict[OscdPart, tuple[str, ...]]:
    """Return the names of each part, sorted: as the lists beside the cities say, else the published ones."""
    lists: dict[OscdPart, Path] = {}
    for part in OSCD_PARTS:
        there = [path for home in _IMAGE_HOMES if (path := root / home / f"{part}.txt").is_file()]
        if there:
            lists[part] = there[0]
    if not lists:
        return PUBLISHED
    if len(lists) < len(OSCD_PARTS):
        path = next(iter(lists.values()))
        raise DataError(f"{path} is the only list of cities.", "Give train.txt and test.txt, or neither of them.")
    named = {part: _names(path) for part, path in lists.items()}
    if both := sorted(set(named["train"]) & set(named["test"])):
        raise DataError(f"{both[0]} is in {lists['train']} and in {lists['test']}.", "A city is in one part only.")
    return named


def _names(path: Path) -> tuple[str, ...]:
    words = path.read_text(encoding="utf-8-sig").replace("\n", ",").split(",")
    return tuple(sorted({word.strip().lower() for word in words if word.strip()}))


def _city(root: Path, folder: Path, bands: tuple[str, ...]) -> City:
    labels = [path for home in _LABEL_HOMES if (path := root / home / folder.name / "cm" / "cm.png").is_file()]
    labels += [path for path in [folder / "cm" / "cm.png"] if path.is_file()]
    if not labels:
        raise DataError(
            f"{folder.name} has no label: neither labels/{folder.name}/cm/cm.png nor {folder.name}/cm/cm.png is in "
            f"{root}.",
            "Unpack the archive of labels there, or take the city's folder out.",
        )
    before, after = (_band_files(_dated(folder, number), bands) for number in (1, 2))
    return City(folder.name, before, after, labels[0])


def _dated(folder: Path, number: int) -> Path:
    """Return the folder of one of the two images, the one on a common grid where there are two."""
    rect, raw = folder / f"imgs_{number}_rect", folder / f"imgs_{number}"
    if not rect.is_dir() and not raw.is_dir():
        raise DataError(f"{folder} has neither {rect.name} nor {raw.name}.", "Unpack the archive of images again.")
    # Both images have to be of one kind: only the rectified ones lie on each other.
    both = all((folder / f"imgs_{each}_rect").is_dir() for each in (1, 2))
    return rect if both else raw


def _band_files(folder: Path, bands: tuple[str, ...]) -> tuple[Path, ...]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        name = standard_name(path.stem.rpartition("_")[2])
        if path.suffix.lower() in _SUFFIXES and name is not None and not path.name.startswith("."):
            if name in found:
                raise DataError(f"{found[name]} and {path.name} are both {name}.", "Keep one of them.")
            found[name] = path
    if missing := [name for name in bands if name not in found]:
        raise DataError(
            f"{folder} has no file of {', '.join(missing)}.",
            "Unpack the archive of images again, or ask for other bands (--set bands=[B4,B3,B2]).",
        )
    return tuple(found[name] for name in bands)


def read_city(city: City) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.bool_]]:
    """Read both images and the label of a city, on the grid of the label.

    Bands of 20 and 60 m are resampled to it bilinearly, as the published rectified ones are.

    Returns:
        The image before and the one after as stored (reflectance times 10000), each of shape (C, H, W), uint16, and
        where the label says that something was built, shape (H, W).

    Raises:
        DataError: A file is damaged, has another size than the label, or the label holds other values than 0 and 255.
    """
    changed = read_change(city.label)
    with gdal_environment(), ignore_missing_georeference():
        before, after = (
            np.stack([_band(path, changed.shape) for path in files]) for files in (city.before, city.after)
        )
    return before, after, changed


def read_change(path: Path) -> NDArray[np.bool_]:
    """Read a label, shape (H, W), bool: 255 (or 1) where something was built and 0 elsewhere.

    Raises:
        DataError: The file is damaged or holds other values, such as a colour image or a smoothed one.
    """
    try:
        with ignore_missing_georeference(), rasterio.open(path) as image:
            # A fourth band, or a second one, is the opacity that some of the published labels carry.
            bands = np.asarray(image.read(list(range(1, image.count + (image.count % 2)))))
    except GDAL_ERRORS as error:
        raise _unreadable(path, error) from error
    if (bands != bands[0]).any():
        raise DataError(f"The label {path} is a colour image.", "Give the published cm.png: 255 where it changed.")
    values = np.unique(bands[0])
    top = 1 if values.max() == 1 else 255
    if others := [int(value) for value in values if value not in (0, top)]:
        told = ", ".join(map(str, others[:5]))
        raise DataError(f"The label {path} holds {told}.", "Give the published cm.png: 255 where it changed, else 0.")
    return np.asarray(bands[0] == top)


def _band(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    try:
        with rasterio.open(path) as file:
            if not any(_fits((file.height, file.width), shape, step) for step in _STEPS):
                raise DataError(
                    f"{path} is {file.width} × {file.height} px, its city's label {shape[1]} × {shape[0]}.",
                    "Use the images of imgs_1_rect and imgs_2_rect, which lie on the label's grid.",
                )
            values = np.asarray(file.read(1, out_shape=shape, resampling=Resampling.bilinear))
    except GDAL_ERRORS as error:
        raise _unreadable(path, error) from error
    return np.asarray(np.clip(values, 0, 65535), np.uint16)


def _fits(found: tuple[int, int], shape: tuple[int, ...], step: int) -> bool:
    """Return whether a band is the label's square in pixels ``step`` times as large, a pixel at the edge aside."""
    return all(abs(own - side / step) <= (step > 1) for own, side in zip(found, shape, strict=True))


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason: Any = gdal_reason(error)
    return DataError(f"{path} cannot be read: {reason}.", "The file may be cut short: copy or download it again.")
