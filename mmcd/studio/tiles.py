"""Map tiles: 8-bit score values that the browser colours, and display images of scenes coloured here."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import xy
from rasterio.warp import transform
from rio_tiler.errors import TileOutsideBounds
from rio_tiler.models import ImageData
from rio_tiler.utils import render

from mmcd.errors import InputError
from mmcd.geo.catalog import Scene
from mmcd.geo.display import DisplayPlan, display_plan
from mmcd.score import NOT_ASSESSED
from mmcd.services.labels import changed_from
from mmcd.studio.readers import ReaderPool

Side = Literal["pre", "post", "label"]

TILE_SIZE = 256
OVERVIEW_SIZE = 512
SIDE_POINTS = 8

# Intact, damaged, destroyed: light to dark as well as blue to vermilion, so that they differ without colour too.
LABEL_COLOURS = ((0, 0, 0, 0), (86, 180, 233, 110), (230, 159, 0, 200), (160, 40, 0, 235))

pool = ReaderPool()


def value_tile(path: Path, z: int, x: int, y: int) -> bytes | None:
    """Return a tile of a score raster as opaque grey PNG, nearest-sampled; None outside the raster.

    Grey is the stored value: 0 not assessed, 1 to 255 probability. Opaque, because a browser that premultiplies
    alpha would change the values.

    Raises:
        InputError: The file is missing or damaged.
    """
    with pool.lend(path) as reader:
        try:
            image = reader.tile(x, y, z, tilesize=TILE_SIZE, resampling_method="nearest", reproject_method="nearest")
        except TileOutsideBounds:
            return None
    values = np.where(image.mask == 0, NOT_ASSESSED, image.array.data).astype(np.uint8)
    return render(values, img_format="PNG", zlevel=1)


def scene_tile(scene: Scene, side: Side, z: int, x: int, y: int) -> bytes | None:
    """Return a tile of a scene's image or labels as PNG, transparent where it has no data; None outside.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = side_path(scene, side)
    plan = None if side == "label" else display_plan(path)
    method = "nearest" if plan is None else "bilinear"
    with pool.lend(path) as reader:
        try:
            image = reader.tile(
                x,
                y,
                z,
                tilesize=TILE_SIZE,
                indexes=1 if plan is None else plan.indexes,
                resampling_method=method,
                reproject_method=method,
            )
        except TileOutsideBounds:
            return None
    return _label_png(image, changed_from(path)) if plan is None else _display_png(image, plan)


def overview(scene: Scene, side: Side = "pre") -> bytes:
    """Return a small image of the whole scene in Web Mercator as PNG.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = side_path(scene, side)
    plan = display_plan(path)
    with pool.lend(path) as reader:
        bounds = reader.get_geographic_bounds("EPSG:4326")
        image = reader.part(
            bounds, bounds_crs="EPSG:4326", dst_crs="EPSG:3857", indexes=plan.indexes, max_size=OVERVIEW_SIZE
        )
    return _display_png(image, plan)


def geographic_bounds(path: Path) -> tuple[float, float, float, float]:
    """Return west, south, east, north in degrees; of the stand-in place when the file has no georeference."""
    with pool.lend(path) as reader:
        west, south, east, north = reader.get_geographic_bounds("EPSG:4326")
    return west, south, east, north


def footprint(path: Path) -> list[tuple[float, float]]:
    """Return the outline of a raster as latitude and longitude in degrees, with points along the sides.

    A side that is straight in the file's projection is a curve on the map, and the raster's box on the map is larger
    than the raster.
    """
    with pool.lend(path) as reader:
        share = np.linspace(0, 1, SIDE_POINTS, endpoint=False)
        cols = np.concatenate([share, np.ones_like(share), 1 - share, np.zeros_like(share)]) * reader.width
        rows = np.concatenate([np.zeros_like(share), share, np.ones_like(share), 1 - share]) * reader.height
        xs, ys = xy(reader.transform, rows, cols, offset="ul")
        lons, lats = transform(reader.crs, "EPSG:4326", xs, ys)
    return list(zip(lats, lons, strict=True))


def native_zoom(path: Path) -> int:
    """Return the zoom at which a tile pixel is no larger than a pixel of the file."""
    with pool.lend(path) as reader:
        return int(reader.maxzoom)


def side_path(scene: Scene, side: Side) -> Path:
    """Return the file of one side of a scene.

    Raises:
        InputError: The scene has no labels.
    """
    if side == "label":
        if scene.label is None:
            raise InputError(f"Scene {scene.id} has no labels.")
        return scene.label
    return scene.pre if side == "pre" else scene.post


def _display_png(image: ImageData, plan: DisplayPlan) -> bytes:
    values = image.array.data
    known = ~np.ma.getmaskarray(image.array).all(axis=0) & np.isfinite(values).all(axis=0)
    grey = np.rint(plan.stretch.apply(values) * 255).astype(np.uint8)
    alpha = np.where(known & plan.stretch.measured(values), 255, 0).astype(np.uint8)
    return _png(grey, alpha)


def _label_png(image: ImageData, first_changed: int) -> bytes:
    palette = np.zeros((256, 4), dtype=np.uint8)
    palette[: len(LABEL_COLOURS)] = LABEL_COLOURS
    if first_changed == 1:
        palette[1:] = LABEL_COLOURS[-1]
    classes = image.array[0].filled(0).astype(np.uint8)
    rgba = np.moveaxis(palette[classes], -1, 0)  # (y, x, 4) -> (4, y, x)
    return _png(rgba[:3], rgba[3])


def _png(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> bytes:
    return render(colours, mask=alpha, img_format="PNG", zlevel=1)
