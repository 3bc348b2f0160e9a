"""Files of building change in folders ``A/ B/ label/``: what belongs together, what has no partner, and reading it.

Source: Chen and Shi 2020, Remote Sensing 12(10), 1662, "A spatial-temporal attention-based method and a new dataset for
remote sensing image change detection". Layouts:

* ``root/{train,val,test}/{A,B,label}/*.png``, as published,
* ``root/{A,B,label}/*.png`` with lists of file names in ``root/list/<part>.txt``, as crops are passed on,
* the same without lists, the part being the first word of the name (``train_36.png``).

Files are paired by stem, never by their place in a listing.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import rasterio
from numpy.typing import NDArray

from mmcd.errors import DataError
from mmcd.geo.raster import GDAL_ERRORS, gdal_reason, ignore_missing_georeference

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

FOLDERS = ("A", "B", "label")
BANDS = ("red", "green", "blue")
_IMAGES = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp"}
_CROP = re.compile(r"(.+)_\d{4}_\d{4}")
SHOWN = 5


@dataclass(frozen=True)
class LevirPair:
    """One pair of images and its label.

    Attributes:
        id: Part and stem, ``train/train_36_0512_0512``, or the stem alone where there is no part.
        group: Scene that it was cut from: its name without the crop's row and column.
        pre: Image before.
        post: Image after.
        label: Above one half of its range where a building was raised or torn down.
    """

    id: str
    group: str
    pre: Path
    post: Path
    label: Path


@dataclass(frozen=True)
class LevirIndex:
    """What a folder holds.

    Attributes:
        pairs: Whole pairs, by part and name.
        warnings: A line for every file whose partner is missing, and for every listed name without a file.
    """

    pairs: tuple[LevirPair, ...]
    warnings: tuple[str, ...]


def index_levir(root: Path, part: Part | None = None) -> LevirIndex:
    """Find and pair the files under ``root``.

    Args:
        root: Folder of the data set.
        part: Only this part; all of them if left out.

    Raises:
        DataError: There is no such layout, no such part, no whole pair, or one stem has two files in a folder.
    """
    pairs: list[LevirPair] = []
    warnings: list[str] = []
    if all((root / name).is_dir() for name in FOLDERS):
        names, missing = _listed(root, part)
        warnings += missing
        pairs += _paired(root, "", names, warnings)
    else:
        for name in (part,) if part else PARTS:
            if (root / name).is_dir():
                pairs += _paired(root / name, f"{name}/", None, warnings)
    if not pairs:
        unpaired = (
            f" {len(warnings)} files have no partner of the same name, such as {warnings[0]}." if warnings else ""
        )
        raise DataError(
            f"{root} holds no {part or 'whole'} pair of A, B and label.{unpaired}",
            "Give the folder with train, val and test, or the one with A, B and label, with equal names in all three.",
        )
    return LevirIndex(tuple(pairs), tuple(warnings))


def _listed(root: Path, part: Part | None) -> tuple[set[str] | None, list[str]]:
    """Return the stems of a part in a flat folder, None for all of them, and a line for each listed name not there."""
    if part is None:
        return None, []
    path, stems = root / "list" / f"{part}.txt", {path.stem for path in _images(root / "A").values()}
    if not path.is_file():
        return {stem for stem in stems if re.match(rf"{part}([_-]|$)", stem)}, []
    listed = {Path(line.strip()).stem for line in path.read_text().splitlines() if line.strip()}
    anywhere = stems.union(*(_images(root / name) for name in FOLDERS))
    return listed, [f"{path}: {name} has no file" for name in sorted(listed - anywhere)]


def _paired(folder: Path, prefix: str, wanted: set[str] | None, warnings: list[str]) -> list[LevirPair]:
    """Return the whole pairs of one folder; adds a line to ``warnings`` for every file without a partner."""
    layers = {name: _images(folder / name) for name in FOLDERS}
    pairs = []
    for stem in sorted(set().union(*layers.values()), key=_natural):
        if wanted is not None and stem not in wanted:
            continue
        missing = [name for name in FOLDERS if stem not in layers[name]]
        if missing:
            warnings.append(f"{prefix}{stem}: no {' and no '.join(missing)}")
            continue
        crop = _CROP.fullmatch(stem)
        files = [layers[name][stem] for name in FOLDERS]
        pairs.append(LevirPair(prefix + stem, prefix + (crop[1] if crop else stem), *files))
    return pairs


def _images(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by stem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() not in _IMAGES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path.name} share a name.", "Keep one of them.")
        found[path.stem] = path
    return found


def _natural(stem: str) -> list[tuple[int, str]]:
    """Return a key that puts train_2 before train_10."""
    return [(int(word), "") if word.isdecimal() else (0, word) for word in re.split(r"(\d+)", stem)]


def read_label(path: Path) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Read a mask and bring it to 0 and 255.

    Args:
        path: Image of one band, or of several equal ones.

    Returns:
        Values as on disk, a mask of 0 and 1 times 255, shape (H, W); and the values that are neither, at most five.

    Raises:
        DataError: The file cannot be read, is not 8 bit, or is a colour image.
    """
    bands = read_image(path, None)
    if (bands != bands[0]).any():
        raise DataError(f"The label {path} is a colour image.", "Give a mask with 255 where a building changed.")
    values: tuple[int, ...] = tuple(int(value) for value in np.unique(bands[0]))
    if max(values) <= 1:
        return bands[0] * np.uint8(255), ()
    return bands[0], tuple(value for value in values if value not in (0, 255))[:SHOWN]


def size_of(pair: LevirPair) -> tuple[int, int]:
    """Return height and width of a pair without reading its pixels.

    Raises:
        DataError: Its three images differ in size, or one cannot be read.
    """
    sizes = [_shape_of(path) for path in (pair.pre, pair.post, pair.label)]
    if len(set(sizes)) > 1:
        told = ", ".join(f"{name} {height} × {width}" for name, (height, width) in zip(FOLDERS, sizes, strict=True))
        raise DataError(
            f"The images of pair {pair.id} differ in size (height × width): {told}.",
            "Cut or resample them to one grid, or take the pair out of the three folders.",
        )
    return sizes[0]


def read_image(path: Path, bands: int | None) -> NDArray[np.uint8]:
    """Read the first ``bands`` bands of an 8-bit image, all for None, shape (bands, H, W).

    Raises:
        DataError: The file cannot be read, is not 8 bit or has too few bands.
    """
    try:
        with ignore_missing_georeference(), rasterio.open(path) as image:
            if image.dtypes[0] != "uint8" or image.count < (bands or 1):
                raise DataError(
                    f"{path} has {image.count} bands of {image.dtypes[0]}, expected {bands or 1} of uint8.",
                    "Give 8-bit images: colour in A and B, one band in label.",
                )
            return np.asarray(image.read(list(range(1, bands + 1)) if bands else None))
    except GDAL_ERRORS as error:
        raise _unreadable(path, error) from error


def _shape_of(path: Path) -> tuple[int, int]:
    """Return height and width without reading pixels."""
    try:
        with ignore_missing_georeference(), rasterio.open(path) as image:
            return image.height, image.width
    except GDAL_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path} cannot be read: {gdal_reason(error)}.", "Copy the file again.")
