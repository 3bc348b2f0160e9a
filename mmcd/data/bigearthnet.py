"""BigEarthNet (version 1) as it is published: 590,326 patches of Sentinel-2, each with the kinds of land in it.

Source: Sumbul et al. 2019, IGARSS, 5901-5904; nomenclature of 19 classes: Sumbul et al. 2021, IEEE GRSM 9(3), 174-180.
Layout: ``BigEarthNet-v1.0/<patch>/<patch>_B02.tif`` and so on, with ``<patch>_labels_metadata.json``, and lists
``bigearthnet-{train,val,test}.csv`` (a patch and its Sentinel-1 partner a line, as torchgeo fetches them) or ``.txt``
(a patch a line, as reference system 3 has them). Only the bands that are asked for are read, which is why torchgeo's
reader, which opens all twelve and takes every file for granted, is not used; the two are tested to agree.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import Resampling
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mmcd.errors import DataError
from mmcd.geo.raster import GDAL_ERRORS, gdal_reason, ignore_missing_georeference
from mmcd.geo.sensors import SENTINEL2_L2A

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")

FOLDER = "BigEarthNet-v1.0"
DROPPED = ("patches_with_seasonal_snow.csv", "patches_with_cloud_and_shadow.csv")
"""Lists of its makers; a patch in one of them that lies beside the folder is left out."""

SIDE = 120
"""Pixels of a patch at 10 m."""

RESIZED = 128
"""Pixels that reference system 3 resizes a patch to."""

LAND: Mapping[str, tuple[str, ...]] = {
    "Urban fabric": ("Continuous urban fabric", "Discontinuous urban fabric"),
    "Industrial or commercial units": ("Industrial or commercial units",),
    "Arable land": ("Non-irrigated arable land", "Permanently irrigated land", "Rice fields"),
    "Permanent crops": (
        "Vineyards",
        "Fruit trees and berry plantations",
        "Olive groves",
        "Annual crops associated with permanent crops",
    ),
    "Pastures": ("Pastures",),
    "Complex cultivation patterns": ("Complex cultivation patterns",),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    ),
    "Agro-forestry areas": ("Agro-forestry areas",),
    "Broad-leaved forest": ("Broad-leaved forest",),
    "Coniferous forest": ("Coniferous forest",),
    "Mixed forest": ("Mixed forest",),
    "Natural grassland and sparsely vegetated areas": ("Natural grassland", "Sparsely vegetated areas"),
    "Moors, heathland and sclerophyllous vegetation": ("Moors and heathland", "Sclerophyllous vegetation"),
    "Transitional woodland, shrub": ("Transitional woodland/shrub",),
    "Beaches, dunes, sands": ("Beaches, dunes, sands",),
    "Inland wetlands": ("Inland marshes", "Peatbogs"),
    "Coastal wetlands": ("Salt marshes", "Salines"),
    "Inland waters": ("Water courses", "Water bodies"),
    "Marine waters": ("Coastal lagoons", "Estuaries", "Sea and ocean"),
}
"""The 19 classes and which of the 43 of CORINE Land Cover each is made of."""

CLASSES = tuple(LAND)
LEFT_OUT = (
    "Road and rail networks and associated land",
    "Port areas",
    "Airports",
    "Mineral extraction sites",
    "Dump sites",
    "Construction sites",
    "Green urban areas",
    "Sport and leisure facilities",
    "Bare rock",
    "Burnt areas",
    "Intertidal flats",
)
"""Those of the 43 that belong to none of the 19."""

_PLACES = {name: place for place, names in enumerate(LAND.values()) for name in names}

STATISTICS = {
    "B1": (340.77, 554.81),
    "B2": (429.94, 572.42),
    "B3": (614.22, 582.88),
    "B4": (590.24, 675.89),
    "B5": (950.68, 729.90),
    "B6": (1792.46, 1096.01),
    "B7": (2075.47, 1273.45),
    "B8": (2218.95, 1365.46),
    "B8A": (2266.46, 1356.14),
    "B9": (2246.06, 1302.33),
    "B11": (1594.43, 1079.19),
    "B12": (1009.33, 818.87),
}
"""Mean and standard deviation of its bands, as its makers give them; two deviations either side become 0 and 255."""

_DEVIATIONS = 2


@dataclass(frozen=True)
class BigEarthNetIndex:
    """What a folder holds.

    Attributes:
        folders: Patches of each part, in the order of its list.
        warnings: What was left out.
    """

    folders: Mapping[Part, tuple[Path, ...]]
    warnings: tuple[str, ...]


def index_bigearthnet(root: Path, parts: Sequence[Part] = PARTS) -> BigEarthNetIndex:
    """List the patches of each part; no pixel and no label is read.

    Args:
        root: Folder of the data set.
        parts: Which parts.

    Raises:
        DataError: Folder or lists are missing, or a listed patch is not there or in two lists.
    """
    home = root / FOLDER
    if not home.is_dir():
        raise DataError(f"{root} holds no folder {FOLDER}.", "Unpack BigEarthNet-S2-v1.0.tar.gz there.")
    there = {path.name for path in home.iterdir()}
    dropped = {line for name in DROPPED if (root / name).is_file() for line in _names(root / name)}
    owner: dict[str, Part] = {}
    folders: dict[Part, tuple[Path, ...]] = {}
    left_out = 0
    for part in parts:
        path = _list(root, part)
        names = _names(path)
        kept = [name for name in names if name not in dropped]
        left_out += len(names) - len(kept)
        for name in kept:
            if name not in there:
                raise DataError(f"{path} names {name}, which {home} lacks.", "Unpack the archive again.")
            if name in owner:
                raise DataError(f"{name} is in the lists of {owner[name]} and of {part}.", "Name every patch once.")
            owner[name] = part
        if not kept:
            raise DataError(f"{path} names no patch to use.", "Fetch the list again.")
        folders[part] = tuple(home / name for name in kept)
    lost = (f"{left_out:,} patches with snow, clouds or shadow are left out.",) if left_out else ()
    return BigEarthNetIndex(folders, lost)


def _list(root: Path, part: Part) -> Path:
    for ending in ("csv", "txt"):
        path = root / f"bigearthnet-{part}.{ending}"
        if path.is_file():
            return path
    raise DataError(
        f"{root} has no bigearthnet-{part}.csv or .txt.", "Fetch the lists of the 19-class nomenclature beside it."
    )


def _names(path: Path) -> list[str]:
    """Return the patches of a list; a line may go on with other columns behind a comma."""
    return [line.split(",")[0].strip() for line in path.read_text().splitlines() if line.strip()]


class BigEarthNetImages:
    """Patches of one part with the classes in them.

    Args:
        folders: Patches.
        bands: Standard names, in channel order.
        scaling: ``protocol``: mean less and plus two deviations become 0 and 255, resized to 128 px, / 255. ``trunk``:
            8-bit values, 255 being a reflectance of 1, resized likewise.
    """

    def __init__(self, folders: Sequence[Path], bands: Sequence[str], scaling: Literal["protocol", "trunk"]) -> None:
        self.folders, self.bands, self.scaling = folders, tuple(bands), scaling
        if unknown := [band for band in self.bands if band not in STATISTICS]:
            raise DataError(f"BigEarthNet has no band {unknown[0]}.", f"Choose from {', '.join(SENTINEL2_L2A)}.")

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a patch, shape (C, 128, 128), float32, and 1 for each class in it, shape (19,), float32.

        Raises:
            DataError: A file is missing or damaged, or a label is not known.
        """
        values = np.stack([read_band(self.folders[index], band) for band in self.bands])
        return self._scaled(values), read_labels(self.folders[index])

    def _scaled(self, values: NDArray[np.float32]) -> Tensor:
        if self.scaling == "trunk":
            eight_bit = values * (255 / 10_000)
        else:
            mean, deviation = (np.array(column)[:, None, None] for column in zip(*self._statistics(), strict=True))
            eight_bit = (values - mean + _DEVIATIONS * deviation) / (2 * _DEVIATIONS * deviation) * 255
        stored = torch.from_numpy(eight_bit.clip(0, 255).astype(np.uint8))
        resized: Tensor = TF.resize(stored, [RESIZED, RESIZED], v2.InterpolationMode.BICUBIC, antialias=True).float()
        return resized if self.scaling == "trunk" else resized / 255

    def _statistics(self) -> list[tuple[float, float]]:
        return [STATISTICS[band] for band in self.bands]


def read_band(folder: Path, band: str) -> NDArray[np.float32]:
    """Return one band of a patch on the grid of 10 m, reflectance times 10,000, shape (120, 120).

    Raises:
        DataError: The file is missing or damaged.
    """
    path = folder / f"{folder.name}_B{band.removeprefix('B').zfill(2)}.tif"
    try:
        with ignore_missing_georeference(), rasterio.open(path) as file:
            found = file.read(1, out_shape=(SIDE, SIDE), resampling=Resampling.bilinear)
            return np.asarray(found, np.float32)
    except GDAL_ERRORS as error:
        raise DataError(f"{path} cannot be read: {gdal_reason(error)}.", "Unpack the patch again.") from error


def read_labels(folder: Path) -> Tensor:
    """Return 1 for each of the 19 classes in a patch, shape (19,), float32.

    Raises:
        DataError: The file is missing, damaged or names an unknown class.
    """
    path = folder / f"{folder.name}_labels_metadata.json"
    try:
        names = json.loads(path.read_text())["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__} {error}"
        raise DataError(f"{path} cannot be read: {reason}.", "Unpack the patch again.") from error
    unknown = [name for name in names if name not in _PLACES and name not in LEFT_OUT]
    if unknown:
        raise DataError(f"{path} names the class {unknown[0]!r}, which is none of the 43.", "Unpack the patch again.")
    labels = torch.zeros(len(CLASSES))
    labels[[_PLACES[name] for name in names if name in _PLACES]] = 1
    return labels
