"""The embeddings of a run: what is written beside its score, and making them for a run that has none."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Card, file_sha256
from mmcd.embedding_table import EmbeddingTable, TableTile, read_table, write_table
from mmcd.errors import InputError
from mmcd.geo.cog import atomic_path
from mmcd.geo.grid import LATTICE, Grid, Window
from mmcd.geo.raster import RasterSource
from mmcd.inference.roi import SEED, Origins, Vectors
from mmcd.progress import Progress, silent
from mmcd.score import NOT_ASSESSED, decode_score
from mmcd.services.labels import changed_from
from mmcd.services.runs import EMBEDDINGS_FILE, Run

VECTOR_FILE = "embeddings.part"
"""Working file of the vectors while a run grows."""

_EXPORTED = "Exported models hold no embeddings: use --backend torch, or compute them on the Embeddings page."
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
_REDO = ".embeddings"  # Folder below a run in which it is scored again for its embeddings.


@dataclass(frozen=True)
class Sources:
    """What the patch pairs of a run are read from.

    Attributes:
        score: The score.
        evidence: Probability of buildings; None of a model that marks none.
        label: Raster of classes; None without labels.
    """

    score: Path
    evidence: Path | None = None
    label: Path | None = None


def why_none(card: Card, exported: bool, pairs: int) -> str | None:
    """Return why a run has no embeddings; None when it has."""
    if not card.has_embeddings:
        return f"{card.name} compares no embeddings: choose a pseudo-siamese model to see them."
    if exported:
        return _EXPORTED
    return None if pairs else f"The region holds no whole square of {LATTICE} px."


def measured_table(
    origins: Origins, vectors: Vectors, tile: TableTile, sources: Sources, facts: dict[str, Any]
) -> EmbeddingTable:
    """Return the table of the ROIs of a score that were assessed in every pixel.

    Args:
        origins: First row and column of each ROI in the score, shape (N, 2).
        vectors: Unit vectors of both branches, shape (2, N, D).
        tile: The scene or files.
        sources: What is read.
        facts: See `EmbeddingTable`.

    Raises:
        InputError: A file is damaged.
    """
    with RasterSource(sources.score) as source:
        grid = source.grid
        stored = np.zeros((len(origins), LATTICE, LATTICE), np.uint8)
        for rows, values, _ in _rois(_plain(source), origins):
            stored[rows] = values
    chosen = np.flatnonzero((stored != NOT_ASSESSED).all(axis=(1, 2)))
    origins = np.ascontiguousarray(origins[chosen])
    label, built = label_shares(sources.label, grid, origins)
    return EmbeddingTable(
        tile=np.zeros(len(origins), np.int32),
        row=origins[:, 0].astype(np.int32),
        col=origins[:, 1].astype(np.int32),
        **places(grid, origins),
        score=decode_score(stored[chosen]).mean(axis=(1, 2)).astype(np.float32),
        label=label,
        building=_evidence(sources.evidence, origins),
        built=built,
        vectors={"optical": vectors[0][chosen], "sar": vectors[1][chosen]},
        tiles=(tile,),
        facts={"roi": LATTICE, "crs": grid.crs, **facts},
    )


def places(grid: Grid, origins: Origins) -> dict[str, NDArray[np.float64]]:
    """Return the centres of ROIs as ``x``, ``y`` in the grid's CRS and ``lon``, ``lat``, each of shape (N,).

    Args:
        grid: The raster.
        origins: First row and column of each ROI, shape (N, 2).
    """
    centre = origins + LATTICE / 2
    t = grid.transform
    x = t.a * centre[:, 1] + t.b * centre[:, 0] + t.c
    y = t.d * centre[:, 1] + t.e * centre[:, 0] + t.f
    nowhere = np.full(len(origins), np.nan)
    if grid.crs is None:
        return {"x": x, "y": y, "lon": nowhere, "lat": nowhere.copy()}
    ground = geopandas.GeoSeries.from_xy(x, y, crs=grid.crs).to_crs("EPSG:4326")
    return {"x": x, "y": y, "lon": ground.x.to_numpy(), "lat": ground.y.to_numpy()}


def label_shares(label: Path | None, grid: Grid, origins: Origins) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the share of changed and of building pixels among the labelled ones of each ROI, both of shape (N,).

    NaN where nothing is labelled; the share of buildings also where the labels do not know buildings.

    Raises:
        InputError: The label is damaged or has another place or size.
    """
    changed, built = (np.full(len(origins), np.nan, np.float32) for _ in range(2))
    if label is None:
        return changed, built
    first = changed_from(label)
    with RasterSource(label, [1]) as source:
        aligned = source.aligned(grid, "nearest")

        def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            raster = aligned.read(window)
            return raster.data[0], raster.valid

        for rows, values, valid in _rois(read, origins):
            changed[rows] = _share(values >= first, valid)
            if first > 1:
                built[rows] = _share(values > 0, valid)
    return changed, built


def write_run_table(table: EmbeddingTable, folder: Path, total: int) -> dict[str, Any]:
    """Write the table of a run into its folder, whole or not at all; return what the manifest says of it.

    Args:
        table: The table.
        folder: The run's folder, or the one in which it grows.
        total: ROIs that were chosen, those included that were not assessed.

    Raises:
        StorageError: The disk is full.
    """
    path = folder / EMBEDDINGS_FILE
    with atomic_path(path) as temporary:
        write_table(table, temporary)
    length = table.vectors["sar"].shape[1]
    facts = {"pairs": len(table), "chosen": total, "roi_px": LATTICE, "length": length, "seed": SEED}
    return {"file": EMBEDDINGS_FILE, "sha256": file_sha256(path), **facts}


def add_embeddings(run: Run, label: Path | None, progress: Progress = silent) -> Run:
    """Give a finished run the embeddings that it lacks: its scene is compared again, in torch, resumable as any run.

    Score and areas of the run stay as they are; the table holds the means of the run's own score.

    Raises:
        InputError: The images are not there any more or were changed, or the run is of the patch method.
        ModelError: The model is gone, was changed, or has no embeddings.
        StorageError: The disk is full.
        Cancelled: The progress callback asked to stop.
    """
    from mmcd.services.inference import predict

    if run.embeddings is not None:
        return run
    request = _request_of(run)
    again = predict(request, progress)
    facts = again.manifest.get("embeddings")
    if facts is None:
        raise InputError(str(again.manifest.get("no_embeddings", "The model has no embeddings.")), "Choose another.")
    made = read_table(again.folder / EMBEDDINGS_FILE)
    vectors = np.stack([made.vectors["optical"], made.vectors["sar"]])
    origins = np.stack([made.row, made.col], axis=1)
    known = {name: made.facts[name] for name in ("title", "model")} | {"threshold": run.manifest["threshold"]}
    sources = Sources(run.score, run.evidence, label)
    table = measured_table(origins, vectors, made.tiles[0], sources, known)
    manifest = run.manifest | {"embeddings": write_run_table(table, run.folder, int(facts["chosen"]))}
    manifest.pop("no_embeddings", None)
    with atomic_path(run.folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2))
    shutil.rmtree(again.folder)
    return replace(run, manifest=manifest)


def _request_of(run: Run) -> Any:
    """Return the request that scores the scene of a run again.

    Raises:
        InputError: It cannot be scored again.
    """
    from mmcd.services.inference import PredictRequest

    facts = run.manifest
    if "distance" in facts:
        raise InputError("A run of the patch method has no embeddings yet.", "Run the scene with a dense model.")
    if "arithmetic" not in facts or any("sha256" not in facts["inputs"].get(side, {}) for side in ("pre", "post")):
        raise InputError("The manifest of this run does not say how it was made.", "Run the scene again.")
    for side in ("pre", "post"):
        path = Path(facts["inputs"][side]["path"])
        if not path.is_file() or file_sha256(path) != facts["inputs"][side]["sha256"]:
            raise InputError(f"{path} is not the image of this run any more.", "Run the scene again.")
    adapted = facts.get("adapt")
    scene = facts["inputs"].get("scene")
    files = {side: facts["inputs"][side]["path"] for side in ("pre", "post")}
    return PredictRequest.checked(
        **({"scene": scene} if scene else files),
        out=run.folder / _REDO,
        model=facts["model"].get("card") or facts["model"]["name"],
        region=facts["region"],
        threshold=facts["threshold"],
        precision=_PRECISIONS.get(facts["arithmetic"]["dtype"], "auto"),
        backend="torch",
        align=bool(facts.get("align")),
        adapt=bool(adapted),
        **({"adapt_weight": round(1 - adapted["alpha"], 6)} if adapted else {}),
    )


_Read = Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]]


def _plain(source: RasterSource) -> _Read:
    """Return a reader of stored bytes, whatever the file declares to be without data."""

    def read(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        raster = source.read(window)
        values = np.where(raster.valid, raster.data[0], NOT_ASSESSED).astype(np.uint8)
        return values, raster.valid

    return read


def _rois(read: _Read, origins: Origins) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.bool_]]]:
    """Yield the ROIs of each row of the lattice: which they are, their pixels and validity, both (n, 16, 16)."""
    for row in np.unique(origins[:, 0]):
        members = np.flatnonzero(origins[:, 0] == row)
        first, last = origins[members, 1].min(), origins[members, 1].max() + LATTICE
        values, valid = read(Window(int(row), int(first), LATTICE, int(last - first)))
        cols = (origins[members, 1] - first)[:, None] + np.arange(LATTICE)  # (n, 16)
        yield members, values[:, cols].transpose(1, 0, 2), valid[:, cols].transpose(1, 0, 2)


def _share(true: NDArray[np.bool_], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the share of true among valid pixels of each ROI, NaN without any, shape (n,)."""
    count = valid.sum(axis=(1, 2))
    found = (true & valid).sum(axis=(1, 2))
    share = np.divide(found, count, out=np.full(len(count), np.nan), where=count > 0)
    return np.asarray(share, np.float32)


def _evidence(path: Path | None, origins: Origins) -> NDArray[np.float32]:
    means = np.full(len(origins), np.nan, np.float32)
    if path is not None:
        with RasterSource(path) as source:
            for rows, values, _ in _rois(_plain(source), origins):
                means[rows] = decode_score(values).mean(axis=(1, 2))
    return means
