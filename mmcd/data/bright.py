"""BRIGHT and the tiles of the IEEE GRSS contest 2025 (track 2): optical before, SAR after, graded buildings.

Source: Chen et al. 2025, ESSD 17, 6217-6253, "BRIGHT". Two layouts:

* flat: ``pre-event|post-event|target/<id>_pre_disaster.tif``, ``_post_disaster.tif``, ``_building_damage.tif``,
* the contest's: the same three folders below ``train``, ``val`` or ``test``, with or without
  ``dfc25_track2_trainval`` around them.

An id is the event, an underscore and eight digits: ``la_palma-volcano_00000113``. No part of this module needs torch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmcd.errors import DataError, InputError
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import RasterSource

Layer = Literal["pre", "post", "label"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
FOLDERS: dict[Layer, str] = {"pre": "pre-event", "post": "post-event", "label": "target"}
SUFFIXES: dict[Layer, str] = {
    "pre": "_pre_disaster.tif",
    "post": "_post_disaster.tif",
    "label": "_building_damage.tif",
}
_BANDS: dict[Layer, tuple[int, ...]] = {"pre": (1, 2, 3), "post": (1,), "label": (1,)}
_WORDS: dict[Layer, str] = {"pre": "optical", "post": "SAR", "label": "label"}

CONTEST_FOLDER = "dfc25_track2_trainval"
PARTS = ("train", "val", "test")
"""Folders of the contest's layout; ``train`` holds its train and its holdout list."""

CLASSES = ("background", "intact", "damaged", "destroyed")
PALETTE = ((255, 255, 255), (70, 181, 121), (228, 189, 139), (182, 70, 69))
"""BRIGHT's own colours of the classes, red, green and blue."""

DAMAGED = 2
"""First class that counts as damage."""

UNLABELLED = 255
"""Read where a label file declares that it holds no value; enters no count."""

_UNLABELLED_COLOUR = (128, 128, 128)

EVENTS = {
    "bata-explosion": "Bata-EP-2021",
    "beirut-explosion": "Beirut-EP-2020",
    "congo-volcano": "Goma-VE-2021",
    "haiti-earthquake": "Les Cayes-EQ-2021",
    "hawaii-wildfire": "Hawaii-WF-2023",
    "la_palma-volcano": "La Palma-VE-2021",
    "libya-flood": "Derna-FL-2023",
    "marshall-wildfire": "Marshall-WF-2021",
    "mexico-hurricane": "Acapulco-HC-2023",
    "morocco-earthquake": "Morocco-EQ-2023",
    "myanmar-hurricane": "Kyaukpyu-CC-2023",
    "noto-earthquake": "Noto-EQ-2024",
    "turkey-earthquake": "Turkey-EQ-2023",
    "ukraine-conflict": "Ukraine-AC-2022",
}
"""The paper's name of each published event."""

NOT_SHARED = ("mexico-hurricane", "myanmar-hurricane", "ukraine-conflict")
"""Events whose optical images may not be passed on: 4246 SAR and label files are published, 3395 optical ones."""

_ID = re.compile(r"(\w[\w.-]*)_(\d+)")
_TOUCH = 1.0  # Pixels between two tiles that still count as touching: tiles are cut to whole pixels.


def event_of(image_id: str) -> str:
    """Return the event of an id: what stands before its last underscore.

    Raises:
        DataError: It is not an event, an underscore and a number.
    """
    match = _ID.fullmatch(image_id)
    if match is None:
        raise DataError(
            f"{image_id[:80]!r} is not the id of a BRIGHT tile.",
            "Ids are an event and a number, such as la_palma-volcano_00000113.",
        )
    return match[1]


def is_tile_id(text: str) -> bool:
    """Return whether a text is an event, an underscore and a number; such a text is safe as a file's name."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class BrightTile:
    """One tile that has both images.

    Attributes:
        id: Event and number.
        part: Folder of the contest's layout, ``train``, ``val`` or ``test``; empty in the flat layout.
        pre: Optical image before, three bands, 8 bit.
        post: SAR amplitude after, 8 bit.
        label: Classes of `CLASSES`; None where the file is missing.
    """

    id: str
    part: str
    pre: Path
    post: Path
    label: Path | None

    @property
    def event(self) -> str:
        """What stands before the last underscore of the id."""
        return event_of(self.id)


@dataclass(frozen=True)
class MissingFile:
    """A file that the others of its tile ask for.

    Attributes:
        id: The tile.
        layer: Which of its files.
        path: Where it should be.
    """

    id: str
    layer: Layer
    path: Path


@dataclass(frozen=True)
class BrightIndex:
    """What a folder holds.

    Attributes:
        root: The folder that was given.
        layout: ``flat`` or ``contest``.
        tiles: Tiles with both images, by folder and id.
        missing: Every file that is missing from a tile of which another file is there.
        strays: GeoTIFFs in the layers' folders whose names are not those of a tile.
    """

    root: Path
    layout: Literal["flat", "contest"]
    tiles: tuple[BrightTile, ...]
    missing: tuple[MissingFile, ...]
    strays: tuple[Path, ...]

    def report(self) -> list[str]:
        """Return one line for every missing or misnamed file; a layer that a folder lacks altogether is one line."""
        absent = Counter(file.path.parent for file in self.missing if not file.path.parent.is_dir())
        lines = [f"{folder} is not there: {count:,} tiles lack their file." for folder, count in absent.items()]
        lines += [_missing_line(file) for file in self.missing if file.path.parent not in absent]
        return lines + [f"{path} is not named as a BRIGHT tile and is left out." for path in self.strays]


@dataclass(frozen=True)
class BrightPixels:
    """Pixels of one tile or of a window of it.

    Attributes:
        pre: Red, green and blue, shape (3, H, W), uint8.
        post: SAR amplitude, shape (1, H, W), uint8.
        label: Class or `UNLABELLED`, shape (H, W), uint8; None without a label file.
        grid: Grid of the SAR image.
    """

    pre: NDArray[np.uint8]
    post: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    grid: Grid


def index_bright(root: Path) -> BrightIndex:
    """Find and pair the tiles under ``root``, whichever layout it has. Opens no image.

    Raises:
        DataError: There is no tile with both images.
    """
    layout, homes = _homes(root)
    tiles: list[BrightTile] = []
    missing: list[MissingFile] = []
    strays: list[Path] = []
    for part, home in homes:
        found = {layer: _ids(home, layer, strays) for layer in LAYERS}
        for image_id in sorted(set().union(*found.values())):
            paths = {layer: home / FOLDERS[layer] / f"{image_id}{SUFFIXES[layer]}" for layer in LAYERS}
            absent = [layer for layer in LAYERS if image_id not in found[layer]]
            missing += [MissingFile(image_id, layer, paths[layer]) for layer in absent]
            if "pre" not in absent and "post" not in absent:
                label = None if "label" in absent else paths["label"]
                tiles.append(BrightTile(image_id, part, paths["pre"], paths["post"], label))
    if not tiles:
        raise DataError(
            f"{root} holds no BRIGHT tile with both images; {len(missing):,} files are missing.",
            "Give the folder with pre-event, post-event and target, or the contest's dfc25_track2_trainval.",
        )
    return BrightIndex(root, layout, tuple(tiles), tuple(missing), tuple(strays))


def select_tiles(
    tiles: Iterable[BrightTile], *, disaster: str = "", excluded: Iterable[str] = (), limit: int | None = None
) -> list[BrightTile]:
    """Return a choice of tiles, in their order.

    Args:
        tiles: Tiles to choose from.
        disaster: Part of the id that is asked for, such as ``earthquake`` or ``la_palma``.
        excluded: Ids that are left out, such as those of a blacklist.
        limit: Number of tiles at most, counted after the other choices.

    Raises:
        DataError: No tile is left.
    """
    left_out = set(excluded)
    everything = list(tiles)
    chosen = [tile for tile in everything if disaster in tile.id and tile.id not in left_out][:limit]
    if not chosen:
        events = ", ".join(sorted({tile.event for tile in everything})) or "none"
        raise DataError(
            f"No tile is left of {len(everything):,}"
            + (f" for {disaster!r}" if disaster else "")
            + (f" without the {len(left_out):,} excluded ids." if left_out else "."),
            f"Events here: {events}.",
        )
    return chosen


def check_headers(tile: BrightTile) -> Grid:
    """Check bands, data type and size of a tile's files without reading pixels, and return the SAR image's grid.

    Raises:
        DataError: A file cannot be opened, is not 8 bit, has too few bands, or the files differ in size.
    """
    grids = {}
    for layer, path in _paths(tile).items():
        with _opened(path, layer) as source:
            grids[layer] = source.grid
    return _common_grid(tile, grids)


def read_layer(tile: BrightTile, layer: Layer, window: Window | None = None) -> tuple[NDArray[np.uint8], Grid]:
    """Read a window of one file of a tile.

    Args:
        tile: The tile.
        layer: Which of its files.
        window: Rows and columns, all when None.

    Returns:
        Values of shape (band, H, W) and their grid: three bands before, one after, one of classes.

    Raises:
        DataError: The file is missing, damaged or not as published; a label holds a value that is no class.
    """
    path = _paths(tile).get(layer)
    if path is None:
        raise DataError(f"Tile {tile.id} has no label file.", "Download the target folder, or leave the tile out.")
    with _opened(path, layer) as source:
        try:
            raster = source.read(window)
        except InputError as error:
            raise DataError(error.message, error.hint) from error
        values = raster.data.astype(np.uint8)
        if layer == "label":
            _check_classes(path, values)
            if source.nodata != 0:  # a file that calls background "no data" still means background
                values[:, ~raster.valid] = UNLABELLED
    return values, raster.grid


def read_tile(tile: BrightTile, window: Window | None = None) -> BrightPixels:
    """Read a tile, or a window of it.

    Raises:
        DataError: A file is damaged or not as published, or the files differ in size.
    """
    check_headers(tile)
    pre, _ = read_layer(tile, "pre", window)
    post, grid = read_layer(tile, "post", window)
    label = None if tile.label is None else read_layer(tile, "label", window)[0][0]
    return BrightPixels(pre, post, label, grid)


def colour_label(label: NDArray[np.uint8], palette: tuple[tuple[int, int, int], ...] = PALETTE) -> NDArray[np.uint8]:
    """Paint classes in colours; what is not labelled is grey.

    Args:
        label: Class or `UNLABELLED`, shape (H, W), uint8.
        palette: Colour of each of `CLASSES`.

    Returns:
        Red, green and blue, shape (H, W, 3), uint8.
    """
    table = np.full((256, 3), _UNLABELLED_COLOUR, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[label]


def tile_groups(tiles: Sequence[BrightTile], grids: Sequence[Grid]) -> list[str]:
    """Return for each tile the name of its group: tiles that touch or overlap on the ground, directly or by others.

    Only tiles of one event and one CRS are compared. A tile without a georeference stands alone.

    Args:
        tiles: The tiles.
        grids: Their grids, in the same order.

    Returns:
        For each tile the id of the first tile of its group.
    """
    alike: dict[tuple[str, str], list[int]] = {}
    for number, (tile, grid) in enumerate(zip(tiles, grids, strict=True)):
        if grid.crs is not None:
            alike.setdefault((tile.event, grid.crs), []).append(number)
    names = [tile.id for tile in tiles]
    for members in alike.values():
        for number, first in zip(members, _first_touching([grids[n] for n in members]), strict=True):
            names[number] = tiles[members[first]].id
    return names


def _first_touching(grids: Sequence[Grid]) -> list[int]:
    """Return for each grid the first one that it is connected to."""
    boxes = shapely.box(*np.array([grid.bounds for grid in grids]).T)
    reach = max(max(grid.pixel_size) for grid in grids) * _TOUCH
    here, there = shapely.STRtree(boxes).query(boxes, predicate="dwithin", distance=reach)
    links = coo_array((np.ones(len(here), dtype=np.int8), (here, there)), shape=(len(grids),) * 2)
    _, component = connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    return [int(number) for number in first[component]]


def _homes(root: Path) -> tuple[Literal["flat", "contest"], list[tuple[str, Path]]]:
    """Return the layout, and (part, folder that holds the layers) of each part that is there."""
    for base in (root, root / CONTEST_FOLDER):
        if _has_layers(base):
            return "flat", [("", base)]
        parts = [(part, base / part) for part in PARTS if _has_layers(base / part)]
        if parts:
            return "contest", parts
    raise DataError(
        f"{root} holds no folder pre-event or post-event, and no train or val with them.",
        "Give the folder with pre-event, post-event and target, or the contest's dfc25_track2_trainval.",
    )


def _has_layers(folder: Path) -> bool:
    return any((folder / FOLDERS[layer]).is_dir() for layer in ("pre", "post"))


def _ids(home: Path, layer: Layer, strays: list[Path]) -> set[str]:
    """Return the ids of the files of a layer; files of another name go to ``strays``, but for hidden ones."""
    ids = set()
    for path in sorted((home / FOLDERS[layer]).glob("[!.]*.tif")):
        image_id = path.name.removesuffix(SUFFIXES[layer])
        if path.name != image_id and is_tile_id(image_id):
            ids.add(image_id)
        else:
            strays.append(path)
    return ids


def _missing_line(file: MissingFile) -> str:
    line = f"{file.id}: no {_WORDS[file.layer]} file, {file.path} is missing."
    if file.layer == "pre" and event_of(file.id) in NOT_SHARED:
        line += " The optical images of this event may not be passed on; make them as BRIGHT's tutorial says."
    return line


def _paths(tile: BrightTile) -> dict[Layer, Path]:
    paths: dict[Layer, Path] = {"pre": tile.pre, "post": tile.post}
    return paths if tile.label is None else {**paths, "label": tile.label}


def _opened(path: Path, layer: Layer) -> RasterSource:
    """Open the published bands of a file."""
    try:
        source = RasterSource(path, _BANDS[layer])
    except InputError as error:
        raise DataError(error.message, error.hint) from error
    if source.dtype != "uint8":
        source.close()
        raise DataError(f"{path} holds {source.dtype}; BRIGHT's files are uint8.", "Restore the published file.")
    return source


def _common_grid(tile: BrightTile, grids: dict[Layer, Grid]) -> Grid:
    if len({grid.shape for grid in grids.values()}) > 1:
        sizes = ", ".join(f"{_WORDS[layer]} {grid.width} × {grid.height}" for layer, grid in grids.items())
        raise DataError(
            f"The files of tile {tile.id} differ in size: {sizes} px.",
            "Restore the published files, or put the id into the blacklist.",
        )
    return grids["post"]


def _check_classes(path: Path, values: NDArray[np.uint8]) -> None:
    outside = np.unique(values[values >= len(CLASSES)])
    if len(outside):
        shown = ", ".join(str(value) for value in outside[:5])
        count = int((values >= len(CLASSES)).sum())
        raise DataError(
            f"{path} holds {shown} in {count:,} pixels; labels are 0 to {len(CLASSES) - 1}.",
            "Restore the published file, or declare the value as nodata where it means that nothing is known.",
        )
