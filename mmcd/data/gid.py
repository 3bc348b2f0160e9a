"""GID: land cover of Chinese cities in images of Gaofen-2, 15 or 5 classes, cut into squares as they are asked for.

Source: Tong et al. 2020, Remote Sensing of Environment 237, 111322, "Land-cover classification with high-resolution
remote sensing images using transferable deep models". Layouts:

* GID-15 as torchgeo fetches it: ``root/GID/img_dir/{train,val,test}/<name>.tif`` and
  ``root/GID/ann_dir/{train,val}/<name>_15label.png`` with 0 for no label and 1 to 15. Labels of ``test`` were never
  published.
* GID as published: ``root/image_RGB/<name>.tif`` and ``root/label_15classes/<name>_label.tif`` or
  ``label_5classes``, labels in colours. There are no parts: a fifth of the images, drawn once, is ``val``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from mmcd.data.base import UNKNOWN
from mmcd.data.patch_grid import Corner, corners, cut
from mmcd.data.segments import SegmentSample, to_segment
from mmcd.errors import DataError
from mmcd.geo.raster import GDAL_ERRORS, gdal_environment, gdal_reason, ignore_missing_georeference

GidPart = Literal["train", "val"]
Classes = Literal[5, 15]

BANDS = ("red", "green", "blue")
SIDE = 224

FINE: dict[str, tuple[int, int, int]] = {
    "industrial land": (200, 0, 0),
    "urban residential": (250, 0, 150),
    "rural residential": (200, 150, 150),
    "traffic land": (250, 150, 150),
    "paddy field": (0, 200, 0),
    "irrigated land": (150, 250, 0),
    "dry cropland": (150, 200, 150),
    "garden plot": (200, 0, 200),
    "arbor woodland": (150, 0, 250),
    "shrub land": (150, 150, 250),
    "natural grassland": (250, 200, 0),
    "artificial grassland": (200, 200, 0),
    "river": (0, 0, 200),
    "lake": (0, 150, 200),
    "pond": (0, 200, 250),
}
"""The 15 classes and their colours; black is no label."""

COARSE: dict[str, tuple[int, int, int]] = {
    "built-up": (255, 0, 0),
    "farmland": (0, 255, 0),
    "forest": (0, 255, 255),
    "meadow": (255, 255, 0),
    "water": (0, 0, 255),
}
"""The 5 classes and their colours."""

_COARSE_OF = np.repeat(np.arange(len(COARSE)), (4, 3, 3, 2, 3))
"""Coarse class of each fine one."""

_PARTS_SEED, _VAL_SHARE = 0, 0.2


@dataclass(frozen=True)
class GidImage:
    """One image and its label.

    Attributes:
        id: Its name.
        image: Red, green, blue, 8 bit.
        label: Numbers of classes, or their colours.
        size: Height and width.
    """

    id: str
    image: Path
    label: Path
    size: tuple[int, int]


def index_gid(root: Path, part: GidPart, classes: Classes = 15) -> tuple[GidImage, ...]:
    """Find the images of a part and their labels, by name.

    Args:
        root: Folder of the data set.
        part: ``train`` or ``val``; there is no labelled ``test``.
        classes: How fine the labels have to be.

    Raises:
        DataError: There is no such layout, an image has no label, or the two differ in size.
    """
    for home in (root, root / "gid-15"):
        if (home / "GID" / "img_dir").is_dir() or (home / "img_dir").is_dir():
            return _fetched(home / "GID" if (home / "GID" / "img_dir").is_dir() else home, part)
    if (root / "image_RGB").is_dir():
        return _published(root, part, classes)
    raise DataError(
        f"{root} holds no images of GID.",
        "Give the folder with GID/img_dir and GID/ann_dir, or with image_RGB and label_15classes or label_5classes.",
    )


def _fetched(home: Path, part: GidPart) -> tuple[GidImage, ...]:
    images = sorted((home / "img_dir" / part).glob("*.tif"))
    if not images:
        raise DataError(f"{home / 'img_dir' / part} holds no .tif.", "Unpack gid-15.zip again.")
    return tuple(_image(path, home / "ann_dir" / part / f"{path.stem}_15label.png") for path in images)


def _published(root: Path, part: GidPart, classes: Classes) -> tuple[GidImage, ...]:
    folder = root / f"label_{classes}classes"
    if classes == 5 and not folder.is_dir():
        folder = root / "label_15classes"
    images = sorted((root / "image_RGB").glob("*.tif"))
    if len(images) < 2 or not folder.is_dir():
        raise DataError(
            f"{root} holds {len(images)} images and {'a' if folder.is_dir() else 'no'} folder {folder.name}.",
            "Give at least two images and their labels.",
        )
    order = np.random.default_rng(_PARTS_SEED).permutation(len(images))
    val = set(order[: max(1, round(_VAL_SHARE * len(images)))].tolist())
    chosen = [path for number, path in enumerate(images) if (number in val) == (part == "val")]
    return tuple(_image(path, folder / f"{path.stem}_label.tif") for path in chosen)


def _image(image: Path, label: Path) -> GidImage:
    if not label.is_file():
        raise DataError(f"{image} has no label {label}.", "Unpack the labels, or take the image out.")
    sizes = [_size(path) for path in (image, label)]
    if sizes[0] != sizes[1]:
        raise DataError(f"{label} has another size than {image.name}.", "Download both again.")
    return GidImage(image.stem, image, label, sizes[0])


class GidPatches:
    """Squares of some images on a grid without overlap; beyond an image's edge there is neither value nor label.

    Args:
        images: The images.
        classes: 15, or 5, which fine labels are merged to.
        side: Side of a square in pixels.

    Attributes:
        classes: Names of the classes; pixels without one are `UNKNOWN`.
        groups: Image of each square.
        ids: Image, row and column of each square.
    """

    bands = BANDS

    def __init__(self, images: Sequence[GidImage], classes: Classes = 15, side: int = SIDE) -> None:
        self.classes = tuple(FINE if classes == 15 else COARSE)
        self.side = side
        self._places = [(image, corner) for image in images for corner in corners(*image.size, side)]
        self.groups = [image.id for image, _ in self._places]
        self.ids = [f"{image.id}/{corner.top}_{corner.left}" for image, corner in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> SegmentSample:
        place, corner = self._places[index]
        values = _read(place.image, corner, self.side)
        if values.dtype != np.uint8 or len(values) < len(BANDS):
            raise DataError(
                f"{place.image} has {len(values)} bands of {values.dtype}.", "Give red, green and blue as 8 bit."
            )
        image = cut(values[: len(BANDS)], Corner(0, 0), self.side).astype(np.float32) / np.float32(255)
        return to_segment(image, self.labels(index), index)

    def labels(self, index: int) -> NDArray[np.int64]:
        """Return the class of every pixel, `UNKNOWN` where there is none, shape (side, side).

        Raises:
            DataError: The label cannot be read or holds something that is no class.
        """
        place, corner = self._places[index]
        numbers = class_numbers(_read(place.label, corner, self.side), len(self.classes), place.label)
        return cut(numbers + 1, Corner(0, 0), self.side) - 1  # beyond the edge: 0 less 1, which is UNKNOWN


def class_numbers(label: NDArray[Any], classes: int, path: Path) -> NDArray[np.int64]:
    """Return the class of every pixel from 0, `UNKNOWN` where there is none, shape (H, W).

    Args:
        label: Numbers with 0 for no label, shape (1, H, W), or colours, shape (3, H, W), uint8.
        classes: 15 or 5; labels of 15 classes are merged to 5.
        path: Named in errors; labels in ``label_5classes`` are of 5 classes, all others of 15.

    Raises:
        DataError: A number or a colour is no class.
    """
    palette = COARSE if path.parent.name == "label_5classes" else FINE
    numbers = _of_colours(label, palette) if len(label) >= 3 else label[0].astype(np.int64)
    if numbers.min() < 0 or numbers.max() > len(palette):
        raise DataError(f"{path} holds a value that is no class of GID.", "Give the published labels, not resampled.")
    found = numbers - 1
    if len(palette) > classes:
        return np.where(found >= 0, _COARSE_OF[found], UNKNOWN)
    if len(palette) < classes:
        raise DataError(f"{path} has {len(palette)} classes.", f"Ask for {len(palette)} (--set data.classes=5).")
    return found


def _of_colours(label: NDArray[Any], palette: Mapping[str, tuple[int, int, int]]) -> NDArray[np.int64]:
    """Return the number of every pixel's colour from 1, 0 for black and more than there are for any other."""
    mixed = (label[0].astype(np.int64) << 16) | (label[1].astype(np.int64) << 8) | label[2]
    numbers = np.where(mixed == 0, 0, len(palette) + 1)
    for number, (red, green, blue) in enumerate(palette.values(), start=1):
        numbers[mixed == (red << 16 | green << 8 | blue)] = number
    return numbers


def _read(path: Path, corner: Corner, side: int) -> NDArray[Any]:
    """Return a window of all bands, cut off at the image's edge."""
    try:
        with gdal_environment(), ignore_missing_georeference(), rasterio.open(path) as file:
            height, width = min(side, file.height - corner.top), min(side, file.width - corner.left)
            return np.asarray(file.read(window=Window(corner.left, corner.top, width, height)))
    except GDAL_ERRORS as error:
        raise DataError(f"{path} cannot be read: {gdal_reason(error)}.", "Copy or download it again.") from error


def _size(path: Path) -> tuple[int, int]:
    try:
        with ignore_missing_georeference(), rasterio.open(path) as file:
            return file.height, file.width
    except GDAL_ERRORS as error:
        raise DataError(f"{path} cannot be read: {gdal_reason(error)}.", "Copy or download it again.") from error
