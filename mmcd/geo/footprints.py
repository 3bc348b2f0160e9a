"""Building footprints: polygons with ids that do not change when a file is sorted, cut or written again."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas
import pyogrio
import pyogrio.errors
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError, ProjError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmcd.errors import InputError
from mmcd.geo.grid import Grid, same_crs

Geometries = NDArray[np.object_]

ID_COLUMNS = (
    "id",
    "uid",
    "uuid",
    "building_id",
    "bldg_id",
    "osm_id",
    "full_id",
    "globalid",
    "gml_id",
    "full_plus_code",
    "identifier",
    "objectid",
    "fid",
)
"""Columns that hold an id, whatever their case; the first that is there is used."""

LAYERS = ("buildings", "building", "footprints")
"""The layer that is read of a file with several, before any other with polygons."""

_PARQUET = (".parquet", ".geoparquet", ".pq")
_DISTINCT = 0.5  # A column whose values mostly repeat names classes or tiles, not buildings.
_DIGITS_DEGREES, _DIGITS_UNITS = 7, 2  # One centimetre: two outlines closer than this are one.
_HASH_BYTES = 8  # A million outlines share a hash of this length once in forty million files.
_POLYGONS = (3, 6)  # Polygon and multipolygon, as shapely numbers types.
_READ_ERRORS = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError)


@dataclass(frozen=True)
class Footprints:
    """Buildings, each of them once.

    Attributes:
        ids: Unique names, from the file or from the outlines, never from the order.
        geometry: Valid polygons and multipolygons in ``crs``, two-dimensional, shape (N,).
        crs: CRS as ``EPSG:code`` or WKT; None for pixel coordinates, x to the right and y down.
        notes: What had to be mended, merged or left out, one sentence each.
    """

    ids: tuple[str, ...]
    geometry: Geometries
    crs: str | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def in_crs(self, crs: str) -> Geometries:
        """Return the polygons in another CRS, shape (N,); coordinates are infinite where it is not defined.

        Raises:
            InputError: The footprints are in pixels.
        """
        if self.crs is None:
            raise InputError("Footprints in pixel coordinates have no place on the ground.", "Give them a CRS.")
        if same_crs(self.crs, crs):
            return self.geometry
        try:
            moved = geopandas.GeoSeries(self.geometry, crs=self.crs).to_crs(crs)
        except (CRSError, ProjError) as error:
            raise InputError(f"The footprints cannot be brought to {crs[:40]}: {error}.", "Check their CRS.") from error
        return np.asarray(moved.array, dtype=object)

    def in_pixels_of(self, grid: Grid) -> Geometries:
        """Return the polygons in columns and rows of a grid, shape (N,); pixel (0, 0) is the square from 0 to 1.

        Raises:
            InputError: Only one of the two has a georeference.
        """
        if grid.crs is None and self.crs is None:
            return self.geometry
        if grid.crs is None:
            raise InputError(
                "The footprints have a CRS, the images have no georeference: nobody knows where they meet.",
                "Georeference the images, or give footprints in pixel coordinates (a GeoPackage without a CRS).",
            )
        if self.crs is None:
            raise InputError(
                "The footprints have no CRS, the images have one.",
                "Write the CRS into the file, for example with ogr2ogr -a_srs EPSG:4326.",
            )
        inverse = ~grid.transform
        a, b, c, d, e, f = tuple(inverse)[:6]

        def to_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
            x, y = np.where(np.isfinite(points).all(axis=1), points.T, 0)
            moved = np.column_stack([a * x + b * y + c, d * x + e * y + f])
            moved[~np.isfinite(points).all(axis=1)] = np.inf  # not NaN, which would leave a ring open
            return moved

        placed: Geometries = shapely.transform(self.in_crs(grid.crs), to_pixels)
        return placed


def read_footprints(path: Path, layer: str | None = None) -> Footprints:
    """Read building polygons of a GeoPackage, GeoJSON, GeoParquet, Shapefile or another vector file.

    Each building comes once: equal outlines are one building, and outlines of one id that touch (a building cut at the
    border of two map sheets) are joined. Outlines of one id that lie apart are buildings of their own and the id is
    made distinct by the outline.

    Args:
        path: Vector file. Without a CRS its coordinates are pixels of the image after, x to the right and y down.
        layer: Layer to read; see `LAYERS` for the default.

    Raises:
        InputError: The file cannot be read or holds no polygon.
    """
    frame, notes = _read_frame(path, layer)
    shapes = shapely.force_2d(np.asarray(frame.geometry.array, dtype=object))
    column = _id_column(frame)
    names = None if column is None else frame[column].to_numpy()
    crs = None if frame.crs is None else str(frame.crs.to_string())
    kept, shapes, found = _polygons(shapes)
    if not len(shapes):
        raise InputError(f"{path.name} holds no polygon.", "Give the outlines of buildings.")
    geographic = frame.crs is not None and frame.crs.is_geographic
    footprints = build_footprints(shapes, None if names is None else names[kept], crs, geographic)
    return Footprints(footprints.ids, footprints.geometry, crs, (*notes, *found, *footprints.notes))


def build_footprints(
    geometry: Geometries, names: NDArray[Any] | None, crs: str | None, geographic: bool = False
) -> Footprints:
    """Give polygons ids and make each building one.

    Args:
        geometry: Valid polygons, shape (N,).
        names: Ids, missing ones allowed, shape (N,); None takes a hash of each outline.
        crs: CRS of the polygons; None for pixels.
        geographic: Whether coordinates are degrees.
    """
    hashes = _outline_hashes(geometry, _DIGITS_DEGREES if geographic else _DIGITS_UNITS)
    ids = hashes if names is None else _texts(names, hashes)
    order = np.lexsort((ids, hashes))  # Of equal outlines the smallest id stays, wherever it stands in the file.
    first = np.ones(len(order), bool)
    first[1:] = hashes[order][1:] != hashes[order][:-1]
    kept = np.sort(order[first])
    notes = []
    if len(kept) < len(ids):
        notes.append(f"{len(ids) - len(kept):,} outlines came twice and are counted once.")
    ids, geometry, joined = _join_parts(ids[kept], geometry[kept], hashes[kept])
    if joined:
        notes.append(f"{joined:,} outlines were parts of a building that is cut in the file and were joined.")
    return Footprints(tuple(str(name) for name in ids), geometry, crs, tuple(notes))


def _read_frame(path: Path, layer: str | None) -> tuple[geopandas.GeoDataFrame, list[str]]:
    if not path.exists():
        raise InputError(f"{path} does not exist.", "Check the path of the footprints.")
    notes: list[str] = []
    try:
        if path.suffix.lower() in _PARQUET:
            return geopandas.read_parquet(path), notes
        layer, others = (layer, ()) if layer is not None else _layer_of(path)
        if others:
            notes.append(f"Layer {layer!r} was read; the file also holds {', '.join(others)}.")
        frame = pyogrio.read_dataframe(path, layer=layer)
    except _READ_ERRORS as error:
        reason = str(error).split(";")[0].strip(". ")
        raise InputError(
            f"{path.name} cannot be read as building footprints: {reason}.",
            "Give a GeoPackage, GeoJSON, GeoParquet or Shapefile with polygons.",
        ) from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{path.name} holds no geometry.", "Give the outlines of buildings.")
    return frame, notes


def _layer_of(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """Return the layer to read and the other layers with areas."""
    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is None or "Point" not in kind]
    if len(layers) < 2:
        return (layers[0] if layers else None), ()
    known = [name for name in layers if name.lower() in LAYERS]
    chosen = (known or layers)[0]
    return chosen, tuple(name for name in layers if name != chosen)


def _id_column(frame: geopandas.GeoDataFrame) -> str | None:
    columns = {str(column).lower(): column for column in frame.columns if column != frame.geometry.name}
    for name in ID_COLUMNS:
        column = columns.get(name)
        if column is not None and frame[column].nunique() > _DISTINCT * len(frame):
            return str(column)
    return None


def _polygons(shapes: Geometries) -> tuple[NDArray[np.intp], Geometries, list[str]]:
    """Return which rows hold an area, their valid polygons, and what was done."""
    kept = np.flatnonzero(np.isin(shapely.get_type_id(shapes), _POLYGONS))
    polygons = shapes[kept]
    broken = ~shapely.is_valid(polygons)
    polygons[broken] = shapely.make_valid(polygons[broken], method="structure", keep_collapsed=False)
    whole = np.isin(shapely.get_type_id(polygons), _POLYGONS) & (shapely.area(polygons) > 0)
    kept, polygons, mended = kept[whole], polygons[whole], int((broken & whole).sum())
    notes = [f"{mended:,} outlines crossed themselves and were mended."] if mended else []
    if len(kept) < len(shapes):
        notes.append(f"{len(shapes) - len(kept):,} of {len(shapes):,} features are no areas and were left out.")
    return kept, polygons, notes


def _outline_hashes(geometry: Geometries, digits: int) -> NDArray[np.str_]:
    """Return a text a polygon that depends on its outline alone, not on where its rings begin or how they turn."""
    rounded = shapely.transform(geometry, lambda points: np.round(points, digits) + 0.0)  # + 0.0 turns -0 into 0
    outlines = shapely.to_wkb(shapely.normalize(rounded), byte_order=1)
    return np.array([hashlib.blake2b(outline, digest_size=_HASH_BYTES).hexdigest() for outline in outlines])


def _texts(names: NDArray[Any], hashes: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return ids as texts; a missing one is replaced by the outline's hash, and 7.0 (a column with gaps) is 7."""
    missing = pandas.isna(names)
    texts = [
        str(hash_) if absent else str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)
        for name, hash_, absent in zip(names, hashes, missing, strict=True)
    ]
    return np.array(texts)


def _join_parts(
    ids: NDArray[np.str_], geometry: Geometries, hashes: NDArray[np.str_]
) -> tuple[NDArray[np.str_], Geometries, int]:
    """Join touching outlines of one id; make the ids of outlines that lie apart distinct. Return how many vanished."""
    _, number, times = np.unique(ids, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(times[number] > 1)
    if not len(shared):
        return ids, geometry, 0
    group = _touching(geometry[shared], number[shared])
    keep, names, shapes = np.ones(len(ids), bool), ids.astype(object), geometry.copy()
    for members in (shared[group == value] for value in range(group.max() + 1)):
        main = members[np.argmin(hashes[members])]
        shapes[main] = shapely.union_all(geometry[members]) if len(members) > 1 else geometry[main]
        keep[members] = members == main
        if len(members) < times[number[main]]:
            names[main] = f"{ids[main]}-{hashes[main][:6]}"
    return names[keep].astype(str), shapes[keep], int((~keep).sum())


def _touching(geometry: Geometries, number: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return for each outline the group of touching outlines of the same number that it belongs to, shape (N,)."""
    left, right = shapely.STRtree(geometry).query(geometry, predicate="intersects")
    same = number[left] == number[right]
    pairs = coo_array((np.ones(same.sum(), bool), (left[same], right[same])), shape=(len(geometry),) * 2)
    groups: NDArray[np.intp] = connected_components(pairs, directed=False)[1]
    return groups
