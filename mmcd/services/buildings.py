"""The buildings of a run: counted once, kept in the run's folder, looked up at any threshold.

Their outlines are those of a file that is given, else the scene's own footprints, else the model's where it marks
buildings.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import geopandas
import numpy as np
import shapely

from mmcd import __version__
from mmcd.buildings import RULES, BuildingCounts, Footprints, count_buildings, read_footprints
from mmcd.cards import file_sha256
from mmcd.errors import InputError
from mmcd.export import MIN_CHANGE_PIXELS, change_polygons, write_vectors
from mmcd.geo.catalog import Scene
from mmcd.geo.cog import atomic_path
from mmcd.geo.footprints import Geometries
from mmcd.geo.outlines import EVIDENCE_THRESHOLD, MIN_BUILDING_AREA, evidence_footprints
from mmcd.geo.vector import WGS84
from mmcd.progress import Progress, silent
from mmcd.services.runs import Run
from mmcd.services.scenes import list_scenes

_FORMAT = 1  # Part of the names of kept files: raise it when what they hold changes.
_DIGITS = 7  # One centimetre, in degrees.
_PIXEL_SPACE_CRS = "EPSG:3857"  # Where the map shows pairs without a georeference: a pixel a metre, from 0° N 0° E.
_CHANGE_COLUMNS = ["id", "area_m2", "area_px", "mean_score", "max_score"]  # All of a patch of change is changed.
_LAYER = "buildings"

OWN_OUTLINES = (
    "The outlines of the buildings are the model's own, drawn where it sees a building with a probability of"
    f" {EVIDENCE_THRESHOLD:g} or more; they were not surveyed."
)
"""What is said wherever buildings are shown whose outlines come from the model."""


class NoBuildingError(InputError):
    """A model that marks buildings sees none."""


_NO_FEATURES = '{"type":"FeatureCollection","features":[]}\n'
_SHAPEFILE_PARTS = (".shp", ".dbf", ".prj", ".cpg")


@dataclass(frozen=True)
class Vectors:
    """Polygons of a run at one threshold.

    Attributes:
        layer: ``buildings``, or ``changes`` where there are no footprints.
        frame: Polygons with their values in the CRS of the footprints or the score; without one they are in pixels.
        totals: Numbers and areas.
        notes: What the reader should know, one sentence each.
        facts: Metadata of the layer in a file.
    """

    layer: Literal["buildings", "changes"]
    frame: geopandas.GeoDataFrame
    totals: dict[str, Any]
    notes: tuple[str, ...]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutlineSource:
    """Where the outlines of a run's buildings come from.

    Attributes:
        path: Vector file, or the evidence of buildings that a model wrote.
        origin: ``file`` that was given, footprints of the ``scene``, or the ``model``.
        content: Hashes of all that decides the outlines.
    """

    path: Path
    origin: Literal["file", "scene", "model"]
    content: str


def scene_of(run: Run) -> Scene | None:
    """Return the scene that was scored; None when two files were given or the scene is no longer listed."""
    return next((scene for scene in list_scenes() if scene.id == run.scene_id), None)


def used_footprints(run: Run, footprints: Path | None) -> dict[str, str] | None:
    """Return path, hash and origin of the footprints that count for a run, for a manifest; None when there are none."""
    source = outline_source(run, footprints)
    if source is None:
        return None
    facts = {"path": str(source.path), "sha256": file_sha256(source.path), "origin": source.origin}
    return facts | ({"note": OWN_OUTLINES} if source.origin == "model" else {})


def outline_source(run: Run, footprints: Path | None = None) -> OutlineSource | None:
    """Return where a run's buildings come from: the file that is given, else the scene, else the model; else None.

    Raises:
        InputError: The file is gone.
    """
    if footprints is not None:
        return OutlineSource(footprints, "file", _content(footprints))
    own = footprints_file(run)
    if own is not None:
        return OutlineSource(own, "scene", _content(own))
    if run.evidence is None:
        return None
    made = run.manifest["evidence"]
    content = f"{made['sha256']} {made['origin']} {EVIDENCE_THRESHOLD} {MIN_BUILDING_AREA}"
    return OutlineSource(run.evidence, "model", content)


def footprints_file(run: Run) -> Path | None:
    """Return the building footprints of the scene that was scored; None when there are none."""
    scene = scene_of(run)
    return scene.footprints if scene else None


def grading_key(run: Run, footprints: Path | None = None) -> str:
    """Return 16 hexadecimal digits that change with whatever grades the buildings of a run beside the threshold.

    That is what decides the outlines, the rules and the version of mmcd, which may look at a score otherwise.

    Args:
        run: A finished run.
        footprints: Vector file of building outlines; see `outline_source` for what counts when it is left out.

    Raises:
        InputError: The file of the footprints is gone.
    """
    source = outline_source(run, footprints)
    content = ("" if source is None else source.content) + repr(RULES) + __version__
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def draws_buildings(run: Run) -> bool:
    """Return whether there are outlines of buildings; a model may mark buildings and see none in a run.

    Raises:
        InputError: The file of the footprints is gone, or what the model drew cannot be read.
        StorageError: The run's folder cannot be written.
    """
    source = outline_source(run)
    return source is not None and (source.origin != "model" or len(_outlines(run, source)) > 0)


def buildings_of(run: Run, footprints: Path | None = None, progress: Progress = silent) -> BuildingCounts:
    """Return the histogram of scores in each building, counted at the first call for these footprints.

    Args:
        run: A finished run.
        footprints: Vector file of building outlines; see `outline_source` for what counts when it is left out.
        progress: Called while counting.

    Raises:
        NoBuildingError: The model sees no building, and nothing else says where one is.
        InputError: Nothing says where buildings are, the file cannot be read, or it does not fit the images.
        StorageError: The run's folder cannot be written.
        Cancelled: The progress callback asked to stop.
    """
    source = _chosen(run, footprints)
    kept = _kept(run, source, ".npz")
    if kept.is_file():
        return BuildingCounts.load(kept)
    outlines = _outlines(run, source)
    if not len(outlines):
        raise NoBuildingError(
            "There are no building footprints for this run, and the model sees no building here.",
            "Give a file of footprints, for example from OpenStreetMap.",
        )
    counts = count_buildings(run.score, outlines, progress=progress)
    with atomic_path(kept) as temporary:
        counts.save(temporary)
    return counts


def geojson_of(run: Run, footprints: Path | None = None) -> Path:
    """Return a GeoJSON file of the buildings in EPSG:4326, written at the first call for these footprints.

    It holds no threshold: the properties of a building are ``id``; ``area`` in m², or in pixels without a
    georeference; ``assessed`` share, ``mean`` and ``max`` probability in [0, 1]; ``cuts``, three stored bytes that give
    its grade at every threshold (see `mmcd.buildings.BuildingCounts.grade_cuts`), null when it was not assessed; and
    ``reason``, only where there is one. A scene without a georeference is placed as the map places it, a pixel a metre
    from 0° N 0° E. Where the model sees no building, the file holds none.

    Args:
        run: A finished run.
        footprints: Vector file of building outlines; see `outline_source` for what counts when it is left out.

    Raises:
        InputError: Nothing says where buildings are, the file cannot be read, or it does not fit the images.
        StorageError: The run's folder cannot be written.
    """
    source = _chosen(run, footprints)
    kept = _kept(run, source, ".geojson")
    if not kept.is_file():
        outlines = _outlines(run, source)
        text = _geojson(buildings_of(run, footprints), outlines) if len(outlines) else _NO_FEATURES
        with atomic_path(kept) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return kept


def graded_vectors(run: Run, threshold: float, footprints: Path | None = None, progress: Progress = silent) -> Vectors:
    """Return the graded buildings of a run, or the outlines of change where there are no footprints.

    Args:
        run: A finished run.
        threshold: Probability from which a pixel counts as changed.
        footprints: Vector file of building outlines; see `outline_source` for what counts when it is left out.
        progress: Called while counting.

    Raises:
        InputError: The footprints cannot be read or do not fit the images.
        StorageError: The run's folder cannot be written.
        Cancelled: The progress callback asked to stop.
    """
    source = outline_source(run, footprints)
    if source is None:
        return _changes(run, threshold, _no_footprints(run))
    outlines = _outlines(run, source)
    if not len(outlines):
        return _changes(run, threshold, f"{_no_footprints(run)}, and the model sees no building here")
    table = buildings_of(run, footprints, progress).at(threshold)
    values = table.frame.assign(threshold=threshold)
    notes, facts = outlines.notes, {}
    if source.origin == "model":
        values, notes, facts = values.assign(outlines="model"), (OWN_OUTLINES, *notes), {"outlines": OWN_OUTLINES}
    frame = geopandas.GeoDataFrame(values, geometry=outlines.geometry, crs=outlines.crs)
    return Vectors("buildings", frame, table.totals(), notes, facts)


def _no_footprints(run: Run) -> str:
    removed = "The scene of this run was removed, there are" if run.scene_id and scene_of(run) is None else "There are"
    return f"{removed} no building footprints"


def _changes(run: Run, threshold: float, why: str) -> Vectors:
    outlines = change_polygons(run.score, threshold)
    counts = count_buildings(run.score, outlines)
    values = counts.at(threshold).frame[_CHANGE_COLUMNS].assign(threshold=threshold)
    frame = geopandas.GeoDataFrame(values, geometry=outlines.geometry, crs=outlines.crs)
    least = f"{MIN_CHANGE_PIXELS} pixels"
    if counts.pixel_area_m2 is not None:
        least += f" ({MIN_CHANGE_PIXELS * counts.pixel_area_m2:,.0f} m²)"
    note = f"{why}: outlines of change of at least {least}, at full resolution, stand instead."
    totals = {"changes": len(outlines), "area_px": float(counts.area_px.sum()), "smallest_px": MIN_CHANGE_PIXELS}
    return Vectors("changes", frame, totals, (note,))


def _chosen(run: Run, footprints: Path | None) -> OutlineSource:
    source = outline_source(run, footprints)
    if source is not None:
        return source
    model = run.manifest["model"]["name"]
    raise InputError(
        f"There are no building footprints for this run, and the model {model!r} marks change, not buildings.",
        "Give a file of footprints, for example from OpenStreetMap.",
    )


def _outlines(run: Run, source: OutlineSource) -> Footprints:
    """Read the outlines of buildings; those of a model are drawn at the first call and kept as a vector file."""
    if source.origin != "model":
        return read_footprints(source.path)
    kept, none = _kept(run, source, ".gpkg"), _kept(run, source, ".none")
    if none.is_file():
        return Footprints((), np.empty(0, object), None)
    if not kept.is_file():
        drawn = evidence_footprints(source.path, tuple(run.manifest["evidence"]["origin"]))
        if not len(drawn):
            with atomic_path(none) as temporary:
                temporary.touch()
            return drawn
        frame = geopandas.GeoDataFrame({"id": drawn.ids}, geometry=drawn.geometry, crs=drawn.crs)
        write_vectors(kept, frame, _LAYER, {"outlines": OWN_OUTLINES})
    return read_footprints(kept, _LAYER)


def _kept(run: Run, source: OutlineSource, suffix: str) -> Path:
    """Return the name under which what was computed from outlines is kept; it changes with them."""
    content = source.content + repr(RULES) + str(_FORMAT)
    return run.folder / "buildings" / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}{suffix}"


def _content(path: Path) -> str:
    """Return the hashes of a footprint file and of those that belong to it."""
    if not path.is_file():
        raise InputError(f"{path} is not a file.", "Check the path of the footprints.")
    parts = [path]
    if path.suffix.lower() == ".shp":
        parts = [found for part in _SHAPEFILE_PARTS if (found := path.with_suffix(part)).is_file()]
    return "".join(file_sha256(part) for part in parts)


def _in_degrees(footprints: Footprints) -> Geometries:
    """Return the outlines in EPSG:4326, those in pixels where the map shows them, shape (N,)."""
    if footprints.crs is not None:
        return footprints.in_crs(WGS84)
    upward = shapely.transform(footprints.geometry, lambda points: points * (1.0, -1.0))
    return Footprints(footprints.ids, upward, _PIXEL_SPACE_CRS).in_crs(WGS84)


def _geojson(counts: BuildingCounts, footprints: Footprints) -> str:
    rounded = shapely.transform(_in_degrees(footprints), lambda points: np.round(points, _DIGITS))
    placed = np.isfinite(shapely.bounds(rounded)).all(axis=1)
    shapes = shapely.to_geojson(rounded[placed])
    rows = np.flatnonzero(placed)
    features = (
        f'{{"type":"Feature","id":{json.dumps(facts["id"])},"properties":{json.dumps(facts)},"geometry":{shape}}}'
        for shape, facts in zip(shapes, _facts(counts, rows), strict=True)
    )
    return '{"type":"FeatureCollection","features":[\n' + ",\n".join(features) + "\n]}\n"


def _facts(counts: BuildingCounts, rows: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    area = counts.area_px if counts.pixel_area_m2 is None else counts.area_m2
    assessed, mean, largest, reasons = counts.assessed_share, counts.mean_score, counts.max_score, counts.reasons()
    cuts = counts.grade_cuts()
    return [
        {
            "id": counts.ids[row],
            "area": round(float(area[row]), 1),
            "assessed": round(float(assessed[row]), 3),
            "mean": _number(mean[row]),
            "max": _number(largest[row]),
            "cuts": cuts[row].tolist() if assessed[row] >= RULES.min_assessed else None,
            **({"reason": reasons[row]} if reasons[row] else {}),
        }
        for row in rows.tolist()
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 3)
