"""PASTIS: crops of French fields in Sentinel-2 time series, each date taken as an image of its own.

Source: Sainte Fare Garnot and Landrieu 2021, ICCV, "Panoptic segmentation of satellite image time series with
convolutional temporal attention networks". Layout, as published:

* ``root/DATA_S2/S2_<id>.npy``: reflectance times 10000, shape (T, 10, 128, 128), bands by wavelength,
* ``root/ANNOTATIONS/TARGET_<id>.npy``: classes, shape (3, 128, 128), of which the first layer counts,
* ``root/metadata.geojson``: fold and dates of each patch,
* ``root/NORM_S2_patch.json``: mean and standard deviation of the bands in each fold.

``root`` may also be the folder above, which holds ``PASTIS`` or ``PASTIS-R``.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.data.base import UNKNOWN
from mmcd.data.segments import SegmentSample, to_segment
from mmcd.errors import ConfigError, DataError
from mmcd.geo.sensors import standard_name

BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
"""Bands of a file, in its order."""

CLASSES = (
    "background",
    "meadow",
    "soft winter wheat",
    "corn",
    "winter barley",
    "winter rapeseed",
    "spring barley",
    "sunflower",
    "grapevine",
    "beet",
    "winter triticale",
    "winter durum wheat",
    "fruits, vegetables, flowers",
    "potatoes",
    "leguminous fodder",
    "soybeans",
    "orchard",
    "mixed cereal",
    "sorghum",
    "void",
)
BACKGROUND, VOID, NO_LABEL = 0, 19, 255

TRAIN, VAL, TEST = (1, 2, 3), (4,), (5,)
"""Folds of the protocol of reference system 2."""

_HOMES = (".", "PASTIS", "PASTIS-R")


@dataclass(frozen=True)
class Patch:
    """One square of ground.

    Attributes:
        id: Its number.
        fold: 1 to 5.
        dates: Day of each image, in the file's order.
        series: File of the images.
        target: File of the classes.
    """

    id: str
    fold: int
    dates: tuple[date, ...]
    series: Path
    target: Path


def index_pastis(root: Path) -> tuple[Patch, ...]:
    """Read which patches there are, by number; no pixel is read.

    Raises:
        DataError: There is no ``metadata.geojson``, it is not as published, or a patch's file is missing.
    """
    home = _home(root)
    patches = [_patch(home, entry) for entry in _features(home / "metadata.geojson")]
    missing = [path for patch in patches for path in (patch.series, patch.target) if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1:,} more files" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]} is not here{more}.", "Unpack the published archive again.")
    return tuple(sorted(patches, key=lambda patch: (len(patch.id), patch.id)))


def _home(root: Path) -> Path:
    for home in (root / name for name in _HOMES):
        if (home / "metadata.geojson").is_file():
            return home
    raise DataError(
        f"{root} holds no metadata.geojson of PASTIS.", "Give the folder with metadata.geojson and DATA_S2."
    )


def _features(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = [entry["properties"] for entry in json.loads(path.read_text())["features"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the published table of patches: {error}.", "Download it again.") from error
    return found


def _patch(home: Path, entry: dict[str, Any]) -> Patch:
    try:
        number, fold = str(int(entry["ID_PATCH"])), int(entry["Fold"])
        dates = entry["dates-S2"]
        dates = json.loads(dates) if isinstance(dates, str) else dates
        days = [str(dates[key]) for key in sorted(dates, key=int)]
        read = tuple(date(int(day[:4]), int(day[4:6]), int(day[6:])) for day in days)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{home / 'metadata.geojson'} has a patch without ID_PATCH, Fold or dates-S2: {error}.",
            "Download it again.",
        ) from error
    return Patch(
        number, fold, read, home / "DATA_S2" / f"S2_{number}.npy", home / "ANNOTATIONS" / f"TARGET_{number}.npy"
    )


def read_norm(root: Path, folds: Collection[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of the ten bands, averaged over folds as published, each of shape (10,).

    Raises:
        DataError: ``NORM_S2_patch.json`` is missing or lacks a fold.
    """
    path = _home(root) / "NORM_S2_patch.json"
    try:
        values = json.loads(path.read_text())
        means, spreads = (np.array([values[f"Fold_{fold}"][name] for fold in folds]) for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no mean and std of folds {folds}: {error}.", "Download it again.") from error
    if means.shape != (len(folds), len(BANDS)) or spreads.shape != means.shape or not (spreads > 0).all():
        raise DataError(f"{path} does not hold mean and std above 0 of {len(BANDS)} bands.", "Download it again.")
    return means.mean(axis=0).astype(np.float32), spreads.mean(axis=0).astype(np.float32)


class PastisImages:
    """Images of some folds, each with the classes of its patch.

    Args:
        root: Folder of the data set.
        folds: Which folds.
        bands: Names of the bands, in channel order, standard or not.
        mono_date: Only the image nearest to this day, of each patch; every image of the series if left out.
        norm_folds: Folds whose statistics the values are normalised by: those that are trained on.
        ignored: Classes that enter no loss; 255 never does.

    Attributes:
        ids: Patch and day of each sample.
        groups: Patch of each sample.
        bands: Standard names of the bands.

    Raises:
        ConfigError: A band is not among PASTIS's ten.
        DataError: The data set is not as published, or has no patch in these folds.
    """

    classes = CLASSES

    def __init__(
        self,
        root: Path,
        folds: Collection[int],
        bands: Sequence[str] = BANDS,
        mono_date: date | None = None,
        norm_folds: Collection[int] = TRAIN,
        ignored: tuple[int, ...] = (),
    ) -> None:
        self.bands = _chosen(bands)
        self.ignored = ignored
        patches = [patch for patch in index_pastis(root) if patch.fold in folds]
        if not patches:
            raise DataError(f"{root} has no patch of fold {', '.join(map(str, folds))}.", "Unpack the whole archive.")
        self._places = [BANDS.index(band) for band in self.bands]
        mean, spread = read_norm(root, norm_folds)
        self._mean, self._spread = (values[self._places, None, None] for values in (mean, spread))
        self._samples = [(patch, number) for patch in patches for number in _numbers(patch, mono_date)]
        self.groups = [patch.id for patch, _ in self._samples]
        self.ids = [f"{patch.id}/{patch.dates[number].isoformat()}" for patch, number in self._samples]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> SegmentSample:
        patch, number = self._samples[index]
        series = _read(patch.series)
        if series.ndim != 4 or series.shape[:2] != (len(patch.dates), len(BANDS)):
            raise DataError(
                f"{patch.series} has shape {series.shape}, expected {len(patch.dates)} dates of {len(BANDS)} bands.",
                "Download the data set again: file and metadata.geojson do not belong together.",
            )
        image = (series[number, self._places].astype(np.float32) - self._mean) / self._spread
        target = self.labels(index)
        if image.shape[1:] != target.shape:
            raise DataError(f"{patch.target} has another size than {patch.series.name}.", "Download both again.")
        return to_segment(image, target, index, self.ignored)

    def labels(self, index: int) -> NDArray[np.int64]:
        """Return the class of every pixel, `UNKNOWN` where there is none (255), shape (H, W).

        Raises:
            DataError: The file is damaged or holds other values.
        """
        path = self._samples[index][0].target
        layers = _read(path)
        target = np.asarray(layers[0] if layers.ndim == 3 else layers, np.int64)
        known = target != NO_LABEL
        if layers.ndim not in (2, 3) or ((target[known] < 0) | (target[known] >= len(CLASSES))).any():
            raise DataError(f"{path} holds values that are no class of 0 to 19, nor 255.", "Download it again.")
        return np.where(known, target, UNKNOWN)


def _chosen(bands: Sequence[str]) -> tuple[str, ...]:
    names = tuple(standard_name(band) or band for band in bands)
    for name in names:
        if name not in BANDS:
            raise ConfigError(f"PASTIS has no band {name!r}.", f"Choose from {', '.join(BANDS)}.")
    return names


def _numbers(patch: Patch, mono_date: date | None) -> list[int]:
    """Return which images of a patch are samples."""
    if mono_date is None:
        return list(range(len(patch.dates)))
    return [min(range(len(patch.dates)), key=lambda number: abs((patch.dates[number] - mono_date).days))]


def _read(path: Path) -> NDArray[Any]:
    """Map an array from disk, so that of a series only the image that is asked for is read."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Download it again.") from error
