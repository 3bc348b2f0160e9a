"""Regions: the part of a scene to analyse, given as four numbers or as a vector file in any CRS."""

import math
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import pyogrio.errors
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError
from rasterio.features import geometry_mask

from mmcd.errors import RegionError
from mmcd.geo.grid import Grid, Window

WGS84 = "EPSG:4326"

_EDGE_POINTS = 32  # A straight edge on one map is a curve on another: each is followed by this many points.


@dataclass(frozen=True)
class Region:
    """A part of the ground.

    Attributes:
        polygon: Polygon or multipolygon in ``crs``, not empty.
        crs: CRS of the polygon, as ``EPSG:code`` or WKT.
        name: What the user gave, for messages.
    """

    polygon: shapely.Geometry
    crs: str
    name: str

    def polygon_in(self, crs: str) -> shapely.Geometry:
        """Return the polygon in another CRS.

        Raises:
            RegionError: The region lies where the other CRS is not defined.
        """
        west, south, east, north = self.polygon.bounds
        dense = shapely.segmentize(self.polygon, max(east - west, north - south) / _EDGE_POINTS)
        try:
            moved = geopandas.GeoSeries([dense], crs=self.crs).to_crs(crs).iloc[0]
        except (CRSError, ProjError) as error:
            raise RegionError(f"The region {self.name} has no place in the scene's CRS: {error}.") from error
        if moved.is_empty or not all(map(math.isfinite, moved.bounds)):
            raise RegionError(f"The region {self.name} has no place in the scene's CRS.", "Check its CRS.")
        return moved

    def window(self, grid: Grid) -> Window:
        """Return the pixels of a grid around the region, cut at the grid's edge.

        Raises:
            RegionError: The region lies outside, or the grid is in pixel space.
        """
        if grid.crs is None:
            raise RegionError(
                "The scene has no georeference, so a region cannot be found in it.", "Analyse the whole scene."
            )
        window = grid.window_of(self.polygon_in(grid.crs).bounds).intersection(grid.window)
        if window.empty:
            west, south, east, north = grid.geographic_bounds()
            raise RegionError(
                f"The region {self.name} lies outside the scene.",
                f"The scene covers {west:.5f},{south:.5f},{east:.5f},{north:.5f} (W,S,E,N in degrees).",
            )
        return window

    def mask(self, grid: Grid) -> NDArray[np.bool_]:
        """Return which pixel centres of a grid lie inside, shape (H, W).

        Raises:
            RegionError: The region has no place in the grid's CRS.
        """
        polygon = self.polygon_in(str(grid.crs))
        return np.asarray(geometry_mask([polygon], grid.shape, grid.transform, invert=True), dtype=np.bool_)


def parse_region(text: str) -> Region:
    """Read a region.

    Args:
        text: ``W,S,E,N`` in degrees (EPSG:4326), or the path of a GeoJSON, GeoPackage or other vector file with
            polygons in any CRS, which are taken together.

    Raises:
        RegionError: The text is neither, the region is empty, or the file cannot be read or has no CRS.
    """
    numbers = _numbers(text)
    if numbers is not None:
        return _box_region(numbers, text)
    path = Path(text)
    if not path.exists():
        raise RegionError(
            f"{text!r} is neither W,S,E,N nor a file.", "Write for example --region 4.34,51.88,4.35,51.89."
        )
    return _file_region(path)


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _box_region(numbers: list[float], text: str) -> Region:
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise RegionError(f"The region {text} is not four numbers.", "Write W,S,E,N in degrees.")
    west, south, east, north = numbers
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise RegionError(
            f"The region {text} is empty or not in degrees.",
            "Write W,S,E,N in degrees, west below east, south below north.",
        )
    return Region(shapely.box(west, south, east, north), WGS84, text)


def _file_region(path: Path) -> Region:
    try:
        frame = geopandas.read_file(path)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError) as error:
        reason = str(error).split(";")[0].strip(". ")
        raise RegionError(f"{path} is not a vector file: {reason}.", "Give a GeoJSON or GeoPackage.") from error
    shapes = getattr(frame, "geometry", None) if isinstance(frame, geopandas.GeoDataFrame) else None
    areas = [] if shapes is None else [shape for shape in shapes if shape is not None and shape.area > 0]
    if not areas:
        raise RegionError(f"{path} holds no polygon.", "Draw an area and save it again.")
    if frame.crs is None:
        raise RegionError(f"{path} has no CRS.", "Save it with one, or give W,S,E,N in degrees.")
    merged = shapely.union_all([shapely.make_valid(shape) for shape in areas])
    return Region(merged, frame.crs.to_string(), str(path))
