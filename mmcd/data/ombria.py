"""OMBRIA: floods, Sentinel-2 and Sentinel-1 before and after, in both published layouts.

Source: Drakonakis et al. 2022, IEEE JSTARS, "OmbriaNet". Two layouts:

* main set: ``OmbriaS1|OmbriaS2/train|test/BEFORE|AFTER|MASK/S1_after_0001.png``,
* later events: ``<any folder>/<EVENT>/Sentinel1|Sentinel2/BEFORE|AFTER|MASK/imafter_1.png``.

Tiles are paired by their number. Layers that were not downloaded (Sentinel-1 before, for example) may be absent.
"""

import csv
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from mmcd.cards import Branch
from mmcd.errors import DataError
from mmcd.geo.sensors import PairStretch, SceneStretch

if TYPE_CHECKING:
    from mmcd.data.base import Sample

MAIN = "main"
_MAIN_FOLDERS = ("train", "test")
BANDS_PRE = ("B11", "B8", "B3")
BANDS_POST = ("VV",)
_LAYERS = {"pre": ("Sentinel2", "BEFORE"), "post": ("Sentinel1", "AFTER"), "mask": ("Sentinel1", "MASK")}
_DISPLAY = PairStretch(
    SceneStretch("uint8", "reflectance", (0.0,), (255.0,)), SceneStretch("uint8", "db", (0.0,), (255.0,))
)
"""8-bit values as they are: value / 255."""
_IMAGES = {".png", ".tif", ".tiff"}


@dataclass(frozen=True)
class OmbriaTile:
    """One tile: Sentinel-2 before, Sentinel-1 after and the flood mask.

    Attributes:
        id: Folder and number, ``train/0001`` or ``2021/ALBANIA/5``.
        event: ``main`` for the main set, else the event's folder name.
        group: What must stay on one side of a split and is stretched as one image. In the main set it is the scene
            groups of ``scene_groups.csv`` whose runs of numbers interlock: tiles were numbered event by event, so these
            show one event though they do not touch. A tile that is not listed stands alone; a later event is one group.
        pre: Sentinel-2 before (B11, B8, B3), 8 bit.
        post: Sentinel-1 after (VV), 8 bit.
        mask: 255 where flooded.
    """

    id: str
    event: str
    group: str
    pre: Path
    post: Path
    mask: Path


@dataclass(frozen=True)
class OmbriaIndex:
    """What a folder holds.

    Attributes:
        tiles: Tiles that have all three layers, by folder and number.
        unpaired: One line for every image whose partner is missing.
    """

    tiles: tuple[OmbriaTile, ...]
    unpaired: tuple[str, ...]


@dataclass(frozen=True)
class TileArrays:
    """Pixels of one tile.

    Attributes:
        pre: Bands of `BANDS_PRE`, shape (3, H, W), uint8.
        post: Bands of `BANDS_POST`, shape (1, H, W), uint8.
        changed: True where flooded, shape (H, W).
    """

    pre: NDArray[np.uint8]
    post: NDArray[np.uint8]
    changed: NDArray[np.bool_]


def index_ombria(root: Path) -> OmbriaIndex:
    """Find and pair the tiles under ``root``: the main set, events beside or below it, or one event's own folder.

    Raises:
        DataError: There is no tile in either layout.
    """
    groups = _main_groups(root)
    tiles: list[OmbriaTile] = []
    unpaired: list[str] = []
    for prefix, event, layers in _folders(root):
        numbers = {layer: _by_number(folder) for layer, folder in layers.items()}
        for number in sorted(set().union(*numbers.values()), key=lambda text: (int(text), text)):
            missing = [layer for layer in layers if number not in numbers[layer]]
            if missing:
                unpaired.append(f"{prefix}/{number}: no {' and no '.join(missing)}")
                continue
            name = f"{prefix}/{number}"
            group = groups.get((prefix, number), name) if event == MAIN else event
            tiles.append(OmbriaTile(name, event, group, **{layer: numbers[layer][number] for layer in layers}))
    if not tiles:
        raise DataError(
            f"{root} holds no OMBRIA tile.",
            "Give the folder with OmbriaS1 and OmbriaS2, or one with <EVENT>/Sentinel1 and <EVENT>/Sentinel2.",
        )
    return OmbriaIndex(tuple(tiles), tuple(unpaired))


def scene_stretches(
    tiles: Sequence[OmbriaTile], arrays: Iterable[TileArrays], pre: Branch, post: Branch
) -> dict[str, PairStretch]:
    """Return the stretch of every group: a scene is stretched as one, however it was cut.

    Args:
        tiles: The tiles.
        arrays: Their pixels, in the same order; not looked at when no level is asked for.
        pre: What the model expects before.
        post: What it expects after.
    """
    if pre.level is None and post.level is None:
        return {tile.group: _DISPLAY for tile in tiles}
    samples: dict[str, list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {}
    for tile, pixels in zip(tiles, arrays, strict=True):
        samples.setdefault(tile.group, []).append((_sampled(pixels.pre), _sampled(pixels.post)))
    return {group: _stretch_of(members, pre, post) for group, members in samples.items()}


def _sampled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return every second row and column of each band, shape (C, N)."""
    return image[:, ::2, ::2].reshape(len(image), -1)


def _stretch_of(
    samples: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]], pre: Branch, post: Branch
) -> PairStretch:
    """Return the stretch of one scene from samples of its tiles."""
    before, after = (list(np.concatenate(images, axis=1)) for images in zip(*samples, strict=True))
    return PairStretch(
        SceneStretch.of_values(before, "uint8", pre.unit, level=pre.level),
        SceneStretch.of_values(after, "uint8", post.unit, level=post.level),
    )


def read_tile(tile: OmbriaTile) -> TileArrays:
    """Read one tile.

    Raises:
        DataError: A file is damaged, has too few bands, or the layers differ in size.
    """
    pre, post, mask = (_read(path, bands) for path, bands in ((tile.pre, 3), (tile.post, 1), (tile.mask, 1)))
    if not pre.shape[1:] == post.shape[1:] == mask.shape[1:]:
        sizes = ", ".join(str(array.shape[1:]) for array in (pre, post, mask))
        raise DataError(f"The layers of tile {tile.id} differ in size: {sizes}.", "Restore the published files.")
    return TileArrays(pre, post, mask[0] > (0 if mask.max() <= 1 else 127))


def read_dates(tiles: Sequence[OmbriaTile]) -> Iterator[NDArray[np.uint8]]:
    """Read Sentinel-2 before and after the event, tile by tile.

    Yields:
        Bands of `BANDS_PRE` of both dates, shape (2, 3, H, W).

    Raises:
        DataError: The image after is missing, a file is damaged, or the dates differ in size.
    """
    folders = {tile.pre.parent: _by_number(tile.pre.parent.parent / "AFTER") for tile in tiles}
    for tile in tiles:
        after = folders[tile.pre.parent].get(tile.id.rsplit("/", 1)[-1])
        if after is None:
            raise DataError(
                f"Tile {tile.id} has no Sentinel-2 image after the event in {tile.pre.parent.parent / 'AFTER'}.",
                "Restore the published files: pretraining compares both dates.",
            )
        dates = _read(tile.pre, 3), _read(after, 3)
        if dates[0].shape != dates[1].shape:
            raise DataError(f"The two dates of tile {tile.id} differ in size.", "Restore the published files.")
        yield np.stack(dates)


class Ombria:
    """Tiles of the main set or of one event as training samples, read once and kept as 8 bit.

    Args:
        root: Folder of the data set.
        event: ``main`` (train and test folders together), or the name of an event.
        branches: What the model expects before and after; without it values are only divided by 255.

    Attributes:
        tiles: The tiles, in order.
        ids: Name of each tile.
        groups: Scene group of each tile.

    Raises:
        DataError: The event has no tile, or a file cannot be read.
    """

    pre_bands = BANDS_PRE
    post_bands = BANDS_POST

    def __init__(self, root: Path, event: str = MAIN, branches: tuple[Branch, Branch] | None = None) -> None:
        found = index_ombria(root).tiles
        self.tiles: Sequence[OmbriaTile] = [tile for tile in found if tile.event == event]
        if not self.tiles:
            known = ", ".join(sorted({tile.event for tile in found}))
            raise DataError(f"{root} has no OMBRIA event {event!r}.", f"Events there: {known}.")
        self.ids = [tile.id for tile in self.tiles]
        self.groups = [tile.group for tile in self.tiles]
        self._arrays = [read_tile(tile) for tile in self.tiles]
        self._stretches = scene_stretches(self.tiles, self._arrays, *branches) if branches else {}

    @property
    def changed_share(self) -> NDArray[np.float64]:
        """Share of flooded pixels of each tile in [0, 1], shape (N,)."""
        return np.array([arrays.changed.mean() for arrays in self._arrays])

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> "Sample":
        from mmcd.data.base import to_sample  # torch, which whoever only pairs files does without

        arrays = self._arrays[index]
        stretch = self._stretches.get(self.tiles[index].group, _DISPLAY)
        valid = np.ones(arrays.changed.shape, dtype=np.bool_)
        pre, post = stretch.pre.apply(arrays.pre), stretch.post.apply(arrays.post)
        return to_sample(pre, post, arrays.changed.astype(np.uint8), valid, index)


def _folders(root: Path) -> list[tuple[str, str, dict[str, Path]]]:
    """Return (id prefix, event, folder of each layer) of every set of tiles under ``root``."""
    found = []
    for split in _MAIN_FOLDERS:
        layers = {name: root / f"OmbriaS{sensor[-1]}" / split / kind for name, (sensor, kind) in _LAYERS.items()}
        if any(folder.is_dir() for folder in layers.values()):
            found.append((split, MAIN, layers))
    sensors = sorted({path.parent for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}Sentinel[12]")})
    for folder in sensors:
        prefix = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
        layers = {name: folder / sensor / kind for name, (sensor, kind) in _LAYERS.items()}
        found.append((prefix, prefix.rsplit("/", 1)[-1], layers))
    return found


def _by_number(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by the number that ends their name."""
    named = ((re.search(r"(\d+)$", path.stem), path) for path in sorted(folder.glob("*")))
    return {match[1]: path for match, path in named if match and path.suffix.lower() in _IMAGES}


def _main_groups(root: Path) -> dict[tuple[str, str], str]:
    """Return the group of each listed tile of the main set: scene groups whose runs of numbers interlock are one."""
    path = root / "scene_groups.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["folder"] in _MAIN_FOLDERS]
    numbers: dict[str, list[int]] = {}
    for row in rows:
        numbers.setdefault(row["scene_group"], []).append(int(row["tile_id"]))
    merged: dict[str, str] = {}
    first, end = "", -1
    for name, members in sorted(numbers.items(), key=lambda item: min(item[1])):
        if min(members) > end:
            first = name
        merged[name] = first
        end = max(end, *members)
    return {(row["folder"], row["tile_id"]): merged[row["scene_group"]] for row in rows}


def _read(path: Path, bands: int) -> NDArray[np.uint8]:
    """Read the first ``bands`` bands of an 8-bit image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as image:
                if image.count < bands or image.dtypes[0] != "uint8":
                    raise DataError(
                        f"{path} has {image.count} bands of {image.dtypes[0]}, expected {bands} of uint8.",
                        "Restore the published file.",
                    )
                return np.asarray(image.read(list(range(1, bands + 1))))
    except RasterioError as error:
        raise DataError(f"{path} cannot be read: {error}.", "Restore the published file.") from error
