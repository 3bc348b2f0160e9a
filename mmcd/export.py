"""What leaves a run: change mask, polygons, STAC item and manifest beside the score."""

import json
import platform
import resource
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyogrio.errors
import pystac
from numpy.typing import NDArray
from pyproj import CRS

from mmcd.errors import InputError, StorageError
from mmcd.geo.cog import MASK_BAND, atomic_path, write_cog
from mmcd.geo.footprints import Footprints, build_footprints
from mmcd.geo.grid import Grid, Window
from mmcd.geo.outlines import outline_patches, placed, stored_values
from mmcd.geo.raster import RasterSource
from mmcd.score import NOT_ASSESSED, score_counts, threshold_value

MASK_UNCHANGED, MASK_CHANGED, MASK_NOT_ASSESSED = 0, 1, 255

MIN_CHANGE_PIXELS = 16
"""Smallest patch of change that becomes a polygon: below 4 × 4 pixels speckle is likelier than an object."""

MAX_CHANGES = 100_000
"""Most patches of change that become polygons: their histograms take 100 MB, and more of them are speckle."""

_STRIP = 1024
_EXPORTED = {
    ".gpkg": ("polygons with their values", pystac.MediaType.GEOPACKAGE),
    ".geojson": ("polygons with their values", pystac.MediaType.GEOJSON),
    ".html": ("opens in a browser", pystac.MediaType.HTML),
}
_COG = pystac.MediaType.COG
_VERSIONED = ("mmcd", "torch", "rasterio", "numpy", "rio-cogeo")


def stored_scores(score: Path) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Yield the bytes of a score COG block by block."""
    yield from stored_values(score, _STRIP)


def count_scores(score: Path) -> NDArray[np.int64]:
    """Return how often each byte occurs in a score COG, shape (256,)."""
    counts = np.zeros(256, np.int64)
    for _, values in stored_scores(score):
        counts += score_counts(values)
    return counts


def write_mask(score: Path, grid: Grid, threshold: float, path: Path, tags: dict[str, str]) -> None:
    """Write the change mask of a score: 0 unchanged, 1 changed, 255 not assessed.

    Args:
        score: Score COG.
        grid: Its grid.
        threshold: Probability from which a pixel counts as changed.
        path: COG to write.
        tags: Metadata of the file.

    Raises:
        StorageError: The disk is full or the place cannot be written.
    """
    cut = threshold_value(threshold)

    def masks() -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        for window, values in stored_scores(score):
            mask = np.where(values >= cut, np.uint8(MASK_CHANGED), np.uint8(MASK_UNCHANGED))
            yield window, np.where(values == NOT_ASSESSED, np.uint8(MASK_NOT_ASSESSED), mask)

    write_cog(path, masks(), grid, MASK_BAND, tags)


def change_polygons(score: Path, threshold: float, min_pixels: int = MIN_CHANGE_PIXELS) -> Footprints:
    """Return the outlines of connected changed pixels, at full resolution whatever the size of the score.

    The score is read block by block; patches that the border of a block cuts are joined, so the result does not depend
    on the blocks. Pixels that touch only at a corner are not connected.

    Args:
        score: Score COG.
        threshold: Probability from which a pixel counts as changed.
        min_pixels: Patches of fewer pixels are left out.

    Returns:
        Polygons in the CRS of the score, in pixels without one; ids are hashes of the outlines.

    Raises:
        InputError: The score cannot be read, or there are more than `MAX_CHANGES` patches.
    """
    cut = threshold_value(threshold)
    masks = ((window, values >= cut) for window, values in stored_scores(score))
    outlines = outline_patches(masks, min_pixels, MAX_CHANGES)
    if outlines is None:
        raise InputError(
            f"There are more than {MAX_CHANGES:,} patches of change at the threshold {threshold:.3g}.",
            "Raise the threshold or the minimum area.",
        )
    with RasterSource(score) as source:
        grid = source.grid
    return build_footprints(placed(outlines, grid), None, grid.crs)


def write_vectors(path: Path, frame: geopandas.GeoDataFrame, layer: str, facts: dict[str, str]) -> None:
    """Write polygons with their values as GeoPackage or GeoJSON, at its final name only when whole.

    Args:
        path: File to write; ``.geojson`` is written in EPSG:4326 as RFC 7946 asks, anything else as GeoPackage.
        frame: Polygons and their values; a frame without a CRS is written without one.
        layer: Name of the layer.
        facts: Metadata of the layer of a GeoPackage, such as model and threshold.

    Raises:
        StorageError: The disk is full or the place cannot be written.
    """
    geojson = path.suffix.lower() == ".geojson"
    options: dict[str, Any] = {"driver": "GeoJSON", "RFC7946": True} if geojson else {"driver": "GPKG"}
    if not geojson:
        options["layer_metadata"] = facts
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # pixel space is a case of its own here
        try:
            pyogrio.write_dataframe(frame, temporary, layer=layer, geometry_type="Unknown", **options)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError, pyogrio.errors.GeometryError) as error:
            raise StorageError(f"{path} cannot be written: {error}.", "Free some space.") from error


def area_summary(counts: NDArray[np.int64], threshold: float, pixel_area_m2: float | None) -> dict[str, float | None]:
    """Return the areas that a threshold gives.

    Args:
        counts: How often each stored byte occurs, shape (256,).
        threshold: Probability from which a pixel counts as changed.
        pixel_area_m2: Ground area of a pixel; None in pixel space, where only shares and pixel counts are known.
    """
    assessed = int(counts[1:].sum())
    changed = int(counts[threshold_value(threshold) :].sum())
    missing = int(counts[NOT_ASSESSED])
    to_km2 = pixel_area_m2 / 1e6 if pixel_area_m2 is not None else None
    return {
        "changed_px": changed,
        "assessed_px": assessed,
        "not_assessed_px": missing,
        "changed_share": changed / assessed if assessed else None,
        "changed_km2": changed * to_km2 if to_km2 is not None else None,
        "assessed_km2": assessed * to_km2 if to_km2 is not None else None,
        "not_assessed_km2": missing * to_km2 if to_km2 is not None else None,
    }


def write_item(
    folder: Path,
    run_id: str,
    grid: Grid,
    taken: datetime | None,
    properties: dict[str, Any],
    more: dict[str, str] | None = None,
) -> Path:
    """Write ``item.json``, the STAC item of a run's score and mask.

    Args:
        folder: Folder of the run; assets are referred to relative to it.
        run_id: Id of the item.
        grid: Grid of the score.
        taken: Time of the image after; the time of writing when unknown.
        properties: More properties, such as model and threshold.
        more: Title of each further raster by its name, without suffix.
    """
    item = pystac.Item(
        id=run_id,
        geometry=grid.geographic_footprint(),
        bbox=list(grid.geographic_bounds()) if grid.crs else None,
        datetime=taken or datetime.now(UTC),
        properties={"title": "Change between an optical image before and a radar image after", **properties},
    )
    if grid.crs:
        code = CRS.from_user_input(grid.crs).to_epsg()
        item.properties |= {
            "proj:code": f"EPSG:{code}" if code else None,
            "proj:shape": list(grid.shape),
            "proj:transform": list(grid.transform)[:6],
        }
        item.stac_extensions.append("https://stac-extensions.github.io/projection/v2.0.0/schema.json")
    rasters = {"score": "Probability of change", "mask": "Change at the threshold", **(more or {})}
    for name, title in rasters.items():
        item.add_asset(name, pystac.Asset(f"./{name}.tif", title=title, media_type=_COG, roles=["data"]))
    item.add_asset("manifest", pystac.Asset("./manifest.json", media_type=pystac.MediaType.JSON, roles=["metadata"]))
    path = folder / "item.json"
    path.write_text(json.dumps(item.to_dict(include_self_link=False), indent=2))
    return path


def exported_asset(path: Path) -> dict[str, Any]:
    """Return the STAC asset of an exported file that lies beside the item."""
    title, media = _EXPORTED[path.suffix.lower()]
    asset = pystac.Asset(f"./{path.name}", title=f"{path.stem.capitalize()}: {title}", media_type=media, roles=["data"])
    return asset.to_dict()


def machine_facts() -> dict[str, Any]:
    """Return versions, machine and peak memory, for the manifest."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "versions": {name: version(name) for name in _VERSIONED},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "peak_memory_mb": round(peak / (2**20 if sys.platform == "darwin" else 1024), 1),
    }
