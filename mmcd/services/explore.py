"""What the explorers show of a picture: panels with a stretch that acts, facts of the files, patches of the label."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmcd.data.bright import CLASSES, UNLABELLED, colour_label
from mmcd.data.patch_index import PatchRules, PatchTable, tile_patches
from mmcd.errors import DataError
from mmcd.geo.display import display_plan
from mmcd.geo.grid import Window
from mmcd.geo.raster import Raster, RasterSource
from mmcd.geo.sensors import to_unit
from mmcd.services.collections import Collection, Picture
from mmcd.services.labels import changed_from

Side = Literal["pre", "post", "label"]
SIDES: tuple[Side, ...] = get_args(Side)

Which = Literal["all", "positive", "negative"]
WHICH: tuple[Which, ...] = get_args(Which)
"""Which patches are shown; *positive* means unchanged here, as in contrastive learning."""

Pixels = NDArray[np.uint8]

MAX_SIDE = 1024
"""Rows and columns of a panel at most; larger pictures are shown by every n-th pixel."""

PALETTE = ((255, 255, 255), (86, 180, 233), (230, 159, 0), (160, 40, 0))
"""Colours of BRIGHT's classes: its own green and red look alike to many; these differ in lightness too."""

KEPT_TABLES = 64
"""Patch tables that are kept; one of a tile of 1024 px takes about 200 kB."""


@dataclass(frozen=True)
class Panel:
    """One file of a picture, ready to be drawn.

    Attributes:
        pixels: Red, green and blue, shape (H, W, 3), uint8.
        step: Pixels of the file from one pixel of the panel to the next.
        shape: Rows and columns of what is shown, in pixels of the file.
    """

    pixels: Pixels
    step: int
    shape: tuple[int, int]


def image_panel(path: Path, limits: tuple[float, float], window: Window | None = None) -> Panel:
    """Return an image between two percentiles of its values, radar amplitude in decibels.

    Args:
        path: The file.
        limits: Percentiles of each band that become black and white, in [0, 100].
        window: Rows and columns; all when None. The percentiles are always those of the whole file.

    Raises:
        InputError: The file is missing or damaged.
    """
    plan = display_plan(path)
    with RasterSource(path, plan.indexes) as source:
        whole, shape = source.read_decimated(MAX_SIDE**2), source.grid.shape
        raster = whole if window is None else source.read(window)
    radiometry, unit = plan.stretch.radiometry, plan.stretch.unit
    known = to_unit(whole.data[:, whole.valid], radiometry, unit)
    shades = [
        _stretched(band, values[np.isfinite(values)], limits)
        for band, values in zip(to_unit(raster.data, radiometry, unit), known, strict=True)
    ]
    grey = np.where(raster.valid, np.stack(shades), 0).astype(np.uint8)
    pixels = np.moveaxis(grey if len(grey) == 3 else grey[[0, 0, 0]], 0, -1)
    return _panel(pixels, shape, window)


def label_panel(picture: Picture, window: Window | None = None) -> Panel | None:
    """Return a label in the colours of `PALETTE`; masks of change have its first and last. None without one.

    Raises:
        InputError: The file is missing or damaged.
    """
    if picture.label is None:
        return None
    with RasterSource(picture.label, [1]) as source:
        shape = source.grid.shape
        raster = source.read_decimated(MAX_SIDE**2) if window is None else source.read(window)
        classes = _classes(raster, source.nodata, is_graded(picture))
    return _panel(colour_label(classes, PALETTE), shape, window)


def is_graded(picture: Picture) -> bool:
    """Return whether a picture's label holds BRIGHT's classes and not a mask of change.

    Raises:
        InputError: The label is damaged.
    """
    if picture.graded is not None or picture.label is None:
        return bool(picture.graded)
    return changed_from(picture.label) > 1


def legend(picture: Picture) -> dict[str, tuple[int, int, int]]:
    """Return the colour of each class of a picture's label, by name."""
    if not is_graded(picture):
        return {"unchanged": PALETTE[0], "changed": PALETTE[-1]}
    return dict(zip(CLASSES, PALETTE, strict=True))


def file_facts(picture: Picture) -> list[dict[str, str]]:
    """Return what each file of a picture is: size, CRS, pixel size, bands, data type and nodata.

    Raises:
        InputError: A file is missing or damaged.
    """
    paths = {"Before": picture.pre, "After": picture.post, "Label": picture.label}
    return [{"File": name, **_facts(path)} for name, path in paths.items() if path is not None]


def _facts(path: Path) -> dict[str, str]:
    with RasterSource(path) as source:
        names = [name or str(index) for name, index in zip(source.band_names, source.indexes, strict=True)]
        return {
            "Size": f"{source.grid.width:,} × {source.grid.height:,} px",
            "CRS": source.grid.crs or "none",
            "Pixel": "–" if source.grid.gsd is None else f"{source.grid.gsd:.3g} m",
            "Bands": f"{source.count}: {', '.join(names)}",
            "Data type": source.dtype,
            "No data": "–" if source.nodata is None else f"{source.nodata:g}",
            "Path": str(path),
        }


def patches_of(picture: Picture, rules: PatchRules, which: Which = "all") -> PatchTable:
    """Return the patches of a picture's label, those of one kind or all; empty without a label.

    Of a mask of change every region counts, of BRIGHT's classes those with a building, as in reference system 0.

    Raises:
        InputError: The label is damaged.
    """
    if picture.label is None:
        table = tile_patches(picture.id, np.full((1, 1), UNLABELLED, np.uint8), rules)
    else:
        modified = picture.label.stat().st_mtime_ns
        table = _table(picture.id, picture.label, is_graded(picture), rules.model_dump_json(), modified)
    if which == "all":
        return table
    return table.take(np.flatnonzero(table.is_positive == (which == "positive")))


@functools.lru_cache(maxsize=KEPT_TABLES)
def _table(picture_id: str, label: Path, graded: bool, rules: str, modified: int) -> PatchTable:
    with RasterSource(label, [1]) as source:
        classes = _classes(source.read(), source.nodata, graded)
    if not graded:
        # Everything that is known of a mask is worth a look: unchanged becomes the class of intact buildings.
        classes = np.where(classes == 0, np.uint8(1), classes)
    return tile_patches(picture_id, classes, PatchRules.model_validate_json(rules))


def walk(
    collection: Collection, start: tuple[int, int], by: int, rules: PatchRules, which: Which
) -> tuple[int, int] | None:
    """Go some patches on or back, over the ends of pictures; stop at the first or last one of the collection.

    Pictures are read as they are passed, so a collection of any size is walked at once.

    Args:
        collection: The pictures.
        start: Picture and patch, from 0; the patch may lie beyond the end of its picture.
        by: Patches to go; negative goes back. 0 finds the nearest patch from the start on.
        rules: What makes a patch.
        which: Patches of which kind are counted.

    Returns:
        Picture and patch; None when there is no patch of this kind.
    """
    picture, patch = start[0], start[1] + by
    last: tuple[int, int] | None = None
    while 0 <= picture < len(collection.pictures):
        count = len(patches_of(collection.pictures[picture], rules, which))
        if 0 <= patch < count:
            return picture, patch
        if count:
            last = (picture, count - 1 if patch >= count else 0)
        if patch < 0:
            picture -= 1
            if picture >= 0:
                patch += len(patches_of(collection.pictures[picture], rules, which))
        else:
            patch -= count
            picture += 1
    if last is not None:
        return last
    # Nothing lay in this direction: the nearest patch the other way, if there is any.
    for other in range(start[0], -1, -1) if by >= 0 else range(start[0], len(collection.pictures)):
        count = len(patches_of(collection.pictures[other], rules, which))
        if count:
            return other, count - 1 if by >= 0 else 0
    return None


def context_window(table: PatchTable, number: int, rules: PatchRules) -> Window:
    """Return the context of a patch in its picture."""
    row, col = (int(value) - rules.pad for value in table.position[number])
    return Window(row, col, rules.context_patch_size, rules.context_patch_size)


def outlined(pixels: Pixels, rules: PatchRules) -> Pixels:
    """Return a context with its ROI in a frame of black and white, which is seen on any ground.

    Args:
        pixels: Shape (H, W, 3), uint8.
        rules: Sides of ROI and context.
    """
    framed = pixels.copy()
    for width, shade in ((2, 0), (1, 255)):
        low, high = rules.pad - width, rules.pad + rules.roi_patch_size + width
        if low < 0 or high > rules.context_patch_size:
            continue
        framed[[low, high - 1], low:high] = shade
        framed[low:high, [low, high - 1]] = shade
    return framed


def patch_facts(table: PatchTable, number: int) -> dict[str, Any]:
    """Return what is known of a patch: kind, damaged share, position and whether it holds a building."""
    row, col = (int(value) for value in table.position[number])
    return {
        "kind": "positive (unchanged)" if table.is_positive[number] else "negative (damaged or changed)",
        "damage_ratio": float(table.damage_ratio[number]),
        "row": row,
        "col": col,
        "has_building": bool(table.has_building[number]),
    }


def check_window(picture: Picture, window: Window) -> None:
    """Refuse a picture whose image does not reach where its label has a patch.

    Raises:
        DataError: The files differ in size.
    """
    for path in (picture.pre, picture.post):
        with RasterSource(path) as source:
            height, width = source.grid.shape
        if window.row + window.height > height or window.col + window.width > width:
            raise DataError(
                f"{path} is smaller than the label of {picture.id}.", "Look at it in the image explorer and flag it."
            )


def _stretched(band: NDArray[np.float32], known: NDArray[np.float32], limits: tuple[float, float]) -> Pixels:
    low, high = np.percentile(known, limits) if known.size else (0.0, 1.0)
    span = max(float(high - low), 1e-6)
    return np.rint(np.clip((np.nan_to_num(band) - low) / span, 0, 1) * 255).astype(np.uint8)


def _classes(raster: Raster, nodata: float | None, graded: bool) -> Pixels:
    """Return classes of BRIGHT, `UNLABELLED` where the file says nothing; of a mask 0 and the class of destroyed."""
    values = raster.data[0]
    if not graded:
        cut = 0 if values.max(initial=0) <= 1 else 127
        values = np.where(values > cut, len(CLASSES) - 1, 0)
    known = raster.valid | (nodata == 0)  # a file that calls background "no data" still means background
    return np.where(known, values, UNLABELLED).astype(np.uint8)


def _panel(pixels: Pixels, shape: tuple[int, int], window: Window | None) -> Panel:
    whole = shape if window is None else window.shape
    step = max(1, -(-whole[0] // max(pixels.shape[0], 1)))
    return Panel(np.ascontiguousarray(pixels), step, whole)
