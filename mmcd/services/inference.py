"""Score a pair of images: from two files or a scene to score, mask, STAC item and manifest.

Nothing here loads torch before a model has to run, so pages may import it.
"""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from pydantic import Field

from mmcd import __version__
from mmcd.cards import Card, file_sha256, verify_weights
from mmcd.config import Config
from mmcd.embedding_table import TableTile
from mmcd.errors import InputError, UsageError
from mmcd.export import machine_facts
from mmcd.geo.catalog import Scene
from mmcd.geo.cog import SCORE_BAND, Band, CogWriter
from mmcd.geo.grid import Grid, Window
from mmcd.geo.outlines import EVIDENCE_BAND
from mmcd.geo.raster import output_grid
from mmcd.geo.vector import Region, parse_region
from mmcd.inference.exported import BackendChoice, ExportedModel, choose_export
from mmcd.inference.roi import Origins, VectorFile, choose_rois
from mmcd.progress import Progress, silent
from mmcd.services.model_choice import Choice, choose_model, notice_facts
from mmcd.services.run_embeddings import VECTOR_FILE, Sources, measured_table, why_none, write_run_table
from mmcd.services.run_output import (
    Clock,
    Products,
    grid_facts,
    input_facts,
    outline_of,
    place_notes,
    publish,
    spare_foreign_files,
    work_folder,
    write_products,
)
from mmcd.services.runs import EMBEDDINGS_FILE, EVIDENCE_FILE, bytes_a_pixel, load_run, run_folder, run_id_of
from mmcd.services.scenes import get_scene

if TYPE_CHECKING:
    from mmcd.inference.adaptation import Adaptation
    from mmcd.inference.alignment import Alignment
    from mmcd.inference.pair import PairReader
    from mmcd.inference.predictor import Predictor
    from mmcd.models.devices import Device, Precision


ADAPT_WEIGHT = 0.1
"""Weight of a scene's own statistics when a model is adapted to it, ``1 - alpha``: small, so that a scene which is like
the training set stays as it is. On four simulated test scenes it raised the average precision of damage-vhr-sim 1.0 by
0.002 to 0.012 under seven looks of the radar image (as trained, darker, another gamma or offset, 1 and 16 looks, 20
degrees of incidence) and lowered it by 0.005 at 60 degrees; 0.3 did by up to 0.021 and 0.017
(``benchmarks/robustness.py adapt``).
"""

_EVIDENCE = EVIDENCE_FILE.removesuffix(".tif")


class PredictRequest(Config):
    """What to score.

    Attributes:
        pre: Optical image before; or give ``scene``.
        post: Radar or optical image after.
        scene: Id of a scene of the catalog.
        out: Folder for the results; the workspace's folder for this run when left out.
        model: Name of a model or path of a card; chosen by bands, GSD and sensor when left out.
        region: ``W,S,E,N`` in degrees or a vector file; the whole scene when left out.
        tile: Side in pixels of what is worked on between two saves; never changes the result.
        threshold: Probability from which change is reported; the card's when left out.
        device: Device to run on.
        precision: Arithmetic to run in.
        backend: Engine to run in; ``auto`` takes an int8 export of the model where one was made, else torch.
        align: Move the image after back where it is clearly displaced, see `mmcd.inference.alignment`.
        adapt: Mix the scene's own statistics into the model's, see `mmcd.inference.adaptation`; only in torch.
        adapt_weight: Weight of the scene's own statistics in [0, 1]; 0 changes nothing.
    """

    pre: Path | None = None
    post: Path | None = None
    scene: str | None = None
    out: Path | None = None
    model: str | None = None
    region: str | None = None
    tile: int = Field(2048, ge=16)
    threshold: float | None = Field(None, ge=0, le=1)
    device: str = Field("auto", pattern="^(auto|cpu|cuda|mps)$")
    precision: str = Field("auto", pattern="^(auto|bf16|fp32)$")
    backend: BackendChoice = "auto"
    align: bool = False
    adapt: bool = False
    adapt_weight: float = Field(ADAPT_WEIGHT, ge=0, le=1)

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build a request from a user's words.

        Raises:
            UsageError: A word is not one of the choices, or neither two files nor a scene are given.
        """
        request = super().checked(**values)
        if (request.scene is None) != (request.pre is not None and request.post is not None):
            raise UsageError(
                "Either two files or a scene must be given.", "Write PRE POST, or --scene ID (see `mmcd scenes list`)."
            )
        return request


@dataclass(frozen=True)
class RunResult:
    """What a run wrote.

    Attributes:
        folder: Where it is.
        manifest: The manifest.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the result."""
        return tuple(self.manifest["warnings"])

    def to_dict(self) -> dict[str, Any]:
        """Return the paths of the results and the manifest, as JSON values."""
        paths = {name: str(self.folder / f"{name}.tif") for name in ("score", "mask")}
        paths |= {name: str(self.folder / f"{name}.json") for name in ("item", "manifest")}
        if "evidence" in self.manifest:
            paths[_EVIDENCE] = str(self.folder / EVIDENCE_FILE)
        if "embeddings" in self.manifest:
            paths["embeddings_file"] = str(self.folder / EMBEDDINGS_FILE)
        return {"run_id": self.manifest["run_id"], **paths, **self.manifest}

    def summary(self) -> dict[str, Any]:
        """Return the few lines a person wants to see."""
        areas = self.manifest["areas"]
        share = areas["changed_share"]
        lines = {
            "model": self.manifest["model"]["name"],
            "threshold": self.manifest["threshold"],
            "changed": "nothing was assessed" if share is None else f"{share:.2%} of the assessed area",
        }
        if areas["changed_km2"] is not None:
            lines["changed area"] = f"{areas['changed_km2']:,.3f} km² of {areas['assessed_km2']:,.3f} km²"
            lines["not assessed"] = f"{areas['not_assessed_km2']:,.3f} km²"
        else:
            lines["changed area"] = f"{areas['changed_px']:,} px of {areas['assessed_px']:,} px (no georeference)"
        return lines | {"folder": str(self.folder)}


@dataclass(frozen=True)
class _Job:
    """Everything that decides the bytes of a run, resolved from a request."""

    pre: Path
    post: Path
    scene: Scene | None
    choice: Choice
    grid: Grid
    region: Window
    polygon: Region | None
    threshold: float
    export: ExportedModel | None

    @property
    def card(self) -> Card:
        """The card of the chosen model."""
        return self.choice.card

    @property
    def marks_buildings(self) -> bool:
        """Whether the run also writes where buildings are; an export may lack the output of a card's classes."""
        return self.card.marks_buildings and (self.export is None or self.export.has_classes)

    @property
    def rois(self) -> Origins:
        """The patch pairs whose embeddings are kept, in the scene; none of an export or a model without embeddings."""
        found = choose_rois(self.region)
        return found[:0] if why_none(self.card, self.export is not None, len(found)) else found

    @property
    def answer(self) -> Grid:
        """The grid of the results."""
        return self.grid.crop(self.region)


def predict(request: PredictRequest, progress: Progress = silent) -> RunResult:
    """Score a pair and write ``score.tif``, ``mask.tif``, ``item.json`` and ``manifest.json``.

    A model that marks buildings also writes ``building_probability.tif``, the probability that a building stands or
    stood in a pixel; one that compares embeddings writes those of up to ten thousand patch pairs as
    ``embeddings.parquet``. Nothing appears at the final names before all of them are whole. A run that was stopped
    goes on from its last finished tile when the same request comes again.

    Raises:
        UsageError: The folder that is asked for holds files of these names that no run wrote.
        InputError: An image cannot be used.
        RegionError: The region is empty or outside the scene.
        ModelError: The model is missing, damaged or does not fit the images.
        UsageError: The images are to be aligned by a model without embeddings.
        StorageError: The disk is full or the place cannot be written.
        Cancelled: The progress callback asked to stop.
    """
    started, clock = datetime.now(UTC), Clock()
    with clock.stage("prepare"):
        progress("prepare", 0, 1)
        job = _resolve(request)
        inputs = _input_facts(job)
        key = _content_key(job, inputs, request)
    run_id = run_id_of(key)
    folder = request.out or run_folder(run_id)
    if request.out is None and (folder / "manifest.json").is_file():
        return RunResult(folder, load_run(run_id).manifest)
    if request.out is not None:
        _spare_foreign_files(folder, job)
    needed = bytes_a_pixel(job.marks_buildings) * job.region.height * job.region.width
    work = work_folder(folder, needed)
    scored = _score(job, request, work, key, clock, progress)
    progress("write", 0, 1)
    with clock.stage("mask"):
        areas = _write_products(job, work, run_id)
    with clock.stage("embeddings"):
        embeddings = _write_embeddings(job, work)
    manifest = {
        "mmcd": __version__,
        "run_id": run_id,
        "key": key,
        "started": started.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
        "inputs": inputs,
        "model": _model_facts(job),
        "region": request.region,
        "grid": grid_facts(job.answer),
        "threshold": job.threshold,
        "areas": areas,
        **scored,
        **embeddings,
        "seconds": clock.seconds,
        **machine_facts(),
    }
    if job.marks_buildings:
        manifest["evidence"] = _evidence_facts(job, work)
    (work / "manifest.json").write_text(json.dumps(manifest, indent=2))
    publish(work, folder)
    return RunResult(folder, manifest)


def _resolve(request: PredictRequest) -> _Job:
    scene = get_scene(request.scene) if request.scene else None
    pre, post = (scene.pre, scene.post) if scene else (request.pre, request.post)
    if pre is None or post is None:
        raise UsageError("Either two files or a scene must be given.", "Write PRE POST, or --scene ID.")
    choice = choose_model(pre, post, request.model, scene)
    card = choice.card
    if request.align and not card.has_embeddings:
        raise UsageError(f"{card.name} has no embeddings to align with.", "Leave --align out.")
    verify_weights(choice.card_path, card)
    grid = output_grid(pre, post, card.gsd.nominal)
    region = parse_region(request.region) if request.region else None
    window = region.window(grid) if region else grid.window
    threshold = card.decision.threshold if request.threshold is None else request.threshold
    export = choose_export(card, _engine(request), request.device, request.precision)
    return _Job(pre, post, scene, choice, grid, window, outline_of(region), threshold, export)


def _engine(request: PredictRequest) -> BackendChoice:
    """Return the engine to look for: adapting a model needs the statistics that an export has folded away."""
    if not request.adapt or request.backend == "torch":
        return request.backend
    if request.backend != "auto":
        raise UsageError(
            f"A model exported for {request.backend} cannot be adapted to a scene.",
            "Use --backend torch, or leave --adapt out.",
        )
    return "torch"


def _model_facts(job: _Job) -> dict[str, str]:
    card = job.card
    facts = {"name": card.name, "version": card.version, "sha256": card.sha256, "why": job.choice.reason}
    facts["card"] = str(job.choice.card_path)
    return facts | notice_facts(card)


def _evidence_facts(job: _Job, work: Path) -> dict[str, Any]:
    """Return what the manifest says of the raster of buildings; the origin places its first pixel in the scene."""
    return {
        "file": EVIDENCE_FILE,
        "sha256": file_sha256(work / EVIDENCE_FILE),
        "classes": list(job.card.classes),
        "origin": [job.region.row, job.region.col],
    }


def _input_facts(job: _Job) -> dict[str, Any]:
    return input_facts(job.scene, job.pre, job.post)


def _content_key(job: _Job, inputs: dict[str, Any], request: PredictRequest) -> str:
    """Return a hash of all that decides the score's bytes; tile and threshold do not."""
    parts = [
        __version__,
        inputs["pre"]["sha256"],
        inputs["post"]["sha256"],
        inputs["scene"],
        job.card.model_dump(mode="json", include={"sha256", "pre", "post", "decision", "settings"}),
        asdict(job.region),
        job.polygon.polygon.wkb_hex if job.polygon else None,
        grid_facts(job.grid),
        request.device,
        request.precision,
        *([job.export.backend, job.export.sha256] if job.export else []),
        *(["align"] if request.align else []),
        *(["adapt", request.adapt_weight] if request.adapt else []),
        *([EVIDENCE_FILE] if job.marks_buildings else []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _score(
    job: _Job, request: PredictRequest, work: Path, key: str, clock: Clock, progress: Progress
) -> dict[str, Any]:
    """Write the score, and the evidence of buildings, into ``work``; return what the manifest says of it."""
    from mmcd.inference.engine import Journal, plan_blocks, score_region
    from mmcd.inference.pair import PairReader

    progress("load model", 0, 1)
    with clock.stage("load model"):
        predictor = _predictor(job.choice.card_path, job.card.sha256, request.device, request.precision, job.export)
    bands = _bands(job)
    rois = job.rois
    if not _begun(work, tuple(bands), rois, predictor.embedding_dim):
        (work / "journal").unlink(missing_ok=True)
    journal = Journal(work / "journal", f"{key} {predictor.arithmetic}")
    resumed = journal.started
    if not resumed:
        for name in bands:
            (work / f"{name}.part").unlink(missing_ok=True)
            (work / f"{name}.tif").unlink(missing_ok=True)
        (work / VECTOR_FILE).unlink(missing_ok=True)
    plan = plan_blocks(job.grid, job.region, request.tile, job.polygon)
    with PairReader(job.pre, job.post, job.card, job.grid, job.choice.substitute) as reader:
        predictor, fitted = _fit_to_scene(job, request, reader, predictor, clock, progress)
        if not (work / "score.tif").exists():
            with ExitStack() as opened:
                writers = {
                    name: opened.enter_context(_writer(work, name, job, band, key))
                    for name, band in bands.items()
                    if not (work / f"{name}.tif").exists()
                }
                with clock.stage("score"):
                    score, buildings = writers["score"], writers.get(_EVIDENCE)
                    vectors = VectorFile(work / VECTOR_FILE, rois, predictor.embedding_dim) if len(rois) else None
                    score_region(plan, reader, predictor, score, journal, progress, buildings, vectors)
                with clock.stage("write"):
                    progress("write", 0, 1)
                    for writer in writers.values():
                        writer.commit()
        notes, stretches = reader.notes, reader.stretches
    return {
        "stretch": stretches,
        "arithmetic": vars(predictor.arithmetic),
        "block": {"size": plan.block, "halo": predictor.halo, "count": plan.block_count},
        "resumed": resumed,
        **{name: result and result.to_dict() for name, result in fitted.items()},
        "warnings": [*job.choice.warnings, *notes, *place_notes(job.grid), *_building_notes(job), *_fit_notes(fitted)],
    }


def _bands(job: _Job) -> dict[str, Band]:
    """Return what a run stores by the name of its raster; the score is made last, so that it stands for all."""
    buildings = {_EVIDENCE: EVIDENCE_BAND} if job.marks_buildings else {}
    return {**buildings, "score": SCORE_BAND}


def _begun(work: Path, names: tuple[str, ...], rois: Origins, length: int) -> bool:
    """Return whether all that an interrupted run had is still there; the last raster is made last."""
    if len(rois) and not VectorFile.holds(work / VECTOR_FILE, rois, length):
        return False
    made = [(work / f"{name}.tif").exists() for name in names]
    kept = [(work / f"{name}.part").exists() for name in names]
    return all(made) or (kept[-1] and not made[-1] and all(map(any, zip(made, kept, strict=True))))


def _writer(work: Path, name: str, job: _Job, band: Band, key: str) -> CogWriter:
    return CogWriter(work / f"{name}.tif", job.answer, band, _tags(job, run_id_of(key)), work / f"{name}.part")


def _fit_to_scene(
    job: _Job,
    request: PredictRequest,
    reader: "PairReader",
    predictor: "Predictor",
    clock: Clock,
    progress: Progress,
) -> tuple["Predictor", dict[str, "Alignment | Adaptation | None"]]:
    """Move the image after back and adapt the model, as far as was asked for; return the model and what was found."""
    from mmcd.inference.adaptation import adapt
    from mmcd.inference.alignment import find_alignment
    from mmcd.inference.predictor import Predictor

    fitted: dict[str, Alignment | Adaptation | None] = {"align": None, "adapt": None}
    if request.align:
        with clock.stage("align"):
            eyes = predictor
            if job.export:  # exports have no embeddings
                device, precision = cast("Device", request.device), cast("Precision", request.precision)
                eyes = Predictor.load(job.choice.card_path, device, precision)
            alignment = find_alignment(eyes, reader, progress)
        reader.shift, fitted["align"] = alignment.shift, alignment
    if request.adapt:
        with clock.stage("adapt"):
            progress("adapt", 0, 1)
            predictor, fitted["adapt"] = adapt(predictor, reader, 1 - request.adapt_weight)
    return predictor, fitted


def _fit_notes(fitted: dict[str, "Alignment | Adaptation | None"]) -> list[str]:
    return [note for result in fitted.values() if result for note in result.notes]


@lru_cache(maxsize=1)
def _predictor(card_path: Path, sha256: str, device: Any, precision: Any, export: ExportedModel | None) -> "Predictor":
    """Keep the last model: a worker that scores scene after scene loads it once. The hashes are part of the key."""
    from mmcd.inference.predictor import Predictor

    return Predictor.load(card_path, device, precision, export)


def _tags(job: _Job, run_id: str) -> dict[str, str]:
    return {"MMCD_RUN": run_id, "MMCD_MODEL": f"{job.card.name} {job.card.version}"}


def _building_notes(job: _Job) -> tuple[str, ...]:
    if job.marks_buildings or not job.card.marks_buildings:
        return ()
    return ("This export of the model does not say where buildings are: export it again, or use --backend torch.",)


def _write_products(job: _Job, work: Path, run_id: str) -> dict[str, Any]:
    """Write mask and STAC item beside the score; return the areas."""
    more = {_EVIDENCE: "Probability that a building stands or stood there"} if job.marks_buildings else None
    model = f"{job.card.name} {job.card.version}"
    optical = job.card.compares_optical
    return write_products(Products(work, run_id, job.answer, job.threshold, model, job.scene, more, optical))


def _write_embeddings(job: _Job, work: Path) -> dict[str, Any]:
    """Write the table of patch pairs beside the score; return what the manifest says of it, or why there is none."""
    rois, label = job.rois, job.scene.label if job.scene else None
    if not len(rois):
        return {"no_embeddings": why_none(job.card, job.export is not None, 0)}
    vectors = VectorFile(work / VECTOR_FILE, rois, 0).read()
    title = (job.scene.title or job.scene.id) if job.scene else f"{job.pre.stem} and {job.post.stem}"
    event = (job.scene.event or job.scene.event_type) if job.scene else ""
    tile = TableTile(job.scene.id if job.scene else job.post.stem, event, str(job.pre), str(job.post))
    facts = {"title": title, "model": job.card.name, "threshold": job.threshold}
    sources = Sources(work / "score.tif", work / EVIDENCE_FILE if job.marks_buildings else None, label)
    origins = rois - np.array((job.region.row, job.region.col), np.int32)
    unread = {}
    try:
        table = measured_table(origins, vectors, tile, sources, facts)
    except InputError as error:  # labels decide nothing of a run, so they must not stop it
        if label is None:
            raise
        unread = {"label": f"not read: {error}"}
        table = measured_table(origins, vectors, tile, replace(sources, label=None), facts)
    return {"embeddings": write_run_table(table, work, len(rois)) | unread}


def _spare_foreign_files(folder: Path, job: _Job) -> None:
    more = [EVIDENCE_FILE] if job.marks_buildings else []
    spare_foreign_files(folder, [*more, *([EMBEDDINGS_FILE] if len(job.rois) else [])])
