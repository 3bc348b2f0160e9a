"""Files of EuroSAT as it is published: ten folders of 64 px images, in colour or in 13 bands, and lists of its parts.

Source: Helber et al. 2019, IEEE JSTARS 12(7), 2217-2226. Layouts, by what is found under ``root``:

* ``EuroSAT_RGB/<class>/*.jpg`` with ``train.txt`` and ``val.txt`` beside the folder, as reference system 3 has it; also
  ``2750/<class>`` and the class folders themselves,
* ``ds/images/remote_sensing/otherDatasets/sentinel_2/tif/<class>/*.tif`` with ``eurosat-train.txt``, ``-val`` and
  ``-test``, as torchgeo fetches it; also ``EuroSAT_MS/<class>`` and the class folders themselves.

A list holds one file name a line, with or without folders; endings do not matter, because torchgeo's lists name JPEGs
that lie there as GeoTIFFs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray

from mmcd.errors import DataError
from mmcd.geo.raster import GDAL_ERRORS, gdal_reason, ignore_missing_georeference
from mmcd.geo.sensors import standard_name

CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)

Form = Literal["rgb", "ms"]
Split = Literal["published", "spatial", "seeded"]
Part = Literal["train", "val", "test"]

RGB = ("B4", "B3", "B2")
FILE_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "B8A")
"""Bands of the GeoTIFFs in file order: B8A comes last, while the code of reference system 2 expects it behind B8."""

BANDS: dict[Form, tuple[str, ...]] = {"rgb": RGB, "ms": FILE_BANDS}
SIZE = 64

SPLIT_SEED = 42
"""Of reference system 2, which draws a fifth of each class for the test and three tenths of the rest to validate."""

_SUFFIXES: dict[Form, tuple[str, ...]] = {"rgb": (".jpg", ".jpeg", ".png"), "ms": (".tif", ".tiff")}
FOLDERS: dict[Form, tuple[str, ...]] = {
    "rgb": ("EuroSAT_RGB", "2750", "."),
    "ms": ("ds/images/remote_sensing/otherDatasets/sentinel_2/tif", "EuroSAT_MS", "EuroSATallBands", "tif", "."),
}
"""Where the folders of the classes may lie; the first one is where the published archive has them."""

_LISTS: dict[Form, tuple[str, ...]] = {
    "rgb": ("{}.txt", "eurosat-{}.txt"),  # both may lie in one folder, and each form has its own
    "ms": ("eurosat-{}.txt", "{}.txt"),
}
_SPATIAL_LISTS = ("eurosat-spatial-{}.txt",)
_UNITS: dict[Split, str] = {
    "published": "split image by image: the same field or scene can be on both sides, because no image tells its place",
    "seeded": "split image by image within each class: the same scene can be on both sides",
    "spatial": "split by longitude",
}


@dataclass(frozen=True)
class EuroSatIndex:
    """What a folder holds.

    Attributes:
        form: Colour or all bands.
        files: Images of each part, sorted by class and name; no ``val`` where there are two lists only.
        labels: Place in `CLASSES` of each image of each part.
        unit: How it was split, for people.
        warnings: What else is in the folder.
    """

    form: Form
    files: Mapping[Part, tuple[Path, ...]]
    labels: Mapping[Part, tuple[int, ...]]
    unit: str
    warnings: tuple[str, ...]


def index_eurosat(root: Path, form: Form | None = None, split: Split = "published") -> EuroSatIndex:
    """List the images of each part; no pixel is read.

    Args:
        root: Folder of the data set.
        form: Colour or all bands; whichever is there if left out, colour first.
        split: By the lists, by torchgeo's lists of longitudes, or drawn as reference system 2 does. Of two lists,
            ``train`` and ``val``, the second one is the test part and nothing is left to validate on.

    Raises:
        DataError: There is no such layout, a class or a list is missing, or a listed image is not there or in two
            lists.
    """
    form, home = _home(root, form)
    images = _images(home, form)
    names = (
        _drawn(images)
        if split == "seeded"
        else _listed(_lists(root, home, _SPATIAL_LISTS if split == "spatial" else _LISTS[form]), home, images)
    )
    files: dict[Part, tuple[Path, ...]] = {}
    labels: dict[Part, tuple[int, ...]] = {}
    for part, stems in names.items():
        rows = sorted((images[stem] for stem in stems), key=lambda row: (row[1], _natural(row[0].stem)))
        files[part], labels[part] = tuple(path for path, _ in rows), tuple(label for _, label in rows)
        absent = [name for number, name in enumerate(CLASSES) if number not in labels[part]]
        if absent:
            raise DataError(
                f"The {part} part of {root} has no image of {', '.join(absent)}.",
                "Every part needs all ten classes: mend the lists, or use data.split seeded.",
            )
    spare = len(images) - sum(map(len, files.values()))
    warnings = (f"{spare:,} of {len(images):,} images are in no list.",) if spare else ()
    return EuroSatIndex(form, files, labels, _UNITS[split], warnings)


def _home(root: Path, form: Form | None) -> tuple[Form, Path]:
    """Return the folder above the classes, and what lies there."""
    forms: tuple[Form, ...] = ("rgb", "ms") if form is None else (form,)
    for kind in forms:
        for name in FOLDERS[kind]:
            folders = [root / name / each for each in CLASSES]
            if any(folder.is_dir() and files_of(folder, kind) for folder in folders):
                return kind, root / name
    wanted = " or ".join(f"{FOLDERS[kind][0]}/AnnualCrop/*{_SUFFIXES[kind][0]}" for kind in forms)
    raise DataError(f"{root} holds no EuroSAT: no {wanted}.", "Give the folder above; see mmcd data download eurosat.")


def files_of(folder: Path, form: Form) -> list[Path]:
    """Return the images of one class by name."""
    found = folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in _SUFFIXES[form] and not path.name.startswith("."))


def _images(home: Path, form: Form) -> dict[str, tuple[Path, int]]:
    """Return file and class of every image by its stem."""
    images: dict[str, tuple[Path, int]] = {}
    for label, name in enumerate(CLASSES):
        files = files_of(home / name, form)
        if not files:
            raise DataError(f"{home / name} holds no images.", "Unpack EuroSAT again: it has ten classes.")
        for path in files:
            if path.stem in images:
                raise DataError(f"{images[path.stem][0]} and {path} share a name.", "Keep one of them.")
            images[path.stem] = path, label
    return images


def _drawn(images: Mapping[str, tuple[Path, int]]) -> dict[Part, list[str]]:
    """Return stems drawn class by class: a fifth for the test, three tenths of the others to validate."""
    random = np.random.default_rng(SPLIT_SEED)
    names: dict[Part, list[str]] = {"train": [], "val": [], "test": []}
    for label in range(len(CLASSES)):
        stems = sorted((stem for stem, row in images.items() if row[1] == label), key=_natural)
        order = [stems[place] for place in random.permutation(len(stems))]
        test, val = max(1, round(len(order) * 0.2)), max(1, round(len(order) * 0.8 * 0.3))
        names["test"] += order[:test]
        names["val"] += order[test : test + val]
        names["train"] += order[test + val :]
    return names


def _listed(lists: Mapping[Part, Path], home: Path, images: Mapping[str, tuple[Path, int]]) -> dict[Part, list[str]]:
    """Return the stems of the lists."""
    names: dict[Part, list[str]] = {}
    owner: dict[str, Path] = {}
    for part, path in lists.items():
        stems = [Path(line.strip()).stem for line in path.read_text().splitlines() if line.strip()]
        missing = [stem for stem in stems if stem not in images]
        if missing:
            more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise DataError(f"{path} names {missing[0]}{more}, which {home} lacks.", "Unpack EuroSAT again.")
        for stem in stems:
            if stem in owner:
                raise DataError(f"{stem} stands twice, in {owner[stem]} and in {path}.", "Name every image once.")
            owner[stem] = path
        names[part] = stems
    return names


def _lists(root: Path, home: Path, patterns: Sequence[str]) -> dict[Part, Path]:
    """Return the lists of the first pattern that has them; of two the second one is the test."""
    parts: tuple[Part, ...] = ("train", "val", "test")
    for pattern in patterns:
        for folder in (root, home, home.parent):
            found = {part: folder / pattern.format(part) for part in parts}
            there = {part: path for part, path in found.items() if path.is_file()}
            if "train" in there and "test" in there:
                return there
            if "train" in there and "val" in there:
                return {"train": there["train"], "test": there["val"]}
    named = " or ".join(pattern.format("train") for pattern in patterns)
    raise DataError(
        f"{root} has no lists of its parts: no {named} with a val or test list beside it.",
        "Fetch them with the images, or use data.split seeded, which needs none.",
    )


def _natural(stem: str) -> tuple[str, int, str]:
    """Return a key that puts River_2 before River_10."""
    name, _, number = stem.rpartition("_")
    return (name, int(number), "") if number.isdigit() else (stem, 0, "")


def read_bands(path: Path, form: Form, bands: Sequence[str]) -> NDArray[Any]:
    """Read bands of one image by name; a file that does not name its bands has them in the published order.

    Args:
        path: Image.
        form: Colour or all bands.
        bands: Standard names.

    Returns:
        Shape (C, 64, 64), uint8 (colour) or uint16 (reflectance times 10,000).

    Raises:
        DataError: The file cannot be read, or is not of the published size, bands and data type.
    """
    try:
        with ignore_missing_georeference(), rasterio.open(path) as image:
            _check(path, image, form)
            named = tuple(standard_name(text) for text in image.descriptions)
            order = named if set(named) == set(BANDS[form]) else BANDS[form]
            return np.asarray(image.read([order.index(band) + 1 for band in bands]))
    except GDAL_ERRORS as error:
        raise DataError(f"{path} cannot be read: {gdal_reason(error)}.", "Unpack EuroSAT again.") from error


def _check(path: Path, image: Any, form: Form) -> None:
    types = ("uint8",) if form == "rgb" else ("uint16", "int16", "int32", "float32")
    wanted = len(BANDS[form])
    if image.count != wanted or image.dtypes[0] not in types or (image.height, image.width) != (SIZE, SIZE):
        raise DataError(
            f"{path} has {image.count} bands of {image.dtypes[0]}, {image.width} × {image.height} px; EuroSAT has "
            f"{wanted} of {types[0]}, {SIZE} × {SIZE} px.",
            "Unpack EuroSAT again, or take the file out of folder and lists.",
        )
