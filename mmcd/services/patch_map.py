"""Score a pair by the reference's sliding window: the same outputs as the dense run, and the distances behind them."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcd import __version__
from mmcd.config import Config
from mmcd.data.bright import BrightTile, index_bright
from mmcd.data.patch_index import PatchRules
from mmcd.errors import DataError, InputError, UsageError
from mmcd.export import machine_facts
from mmcd.geo.catalog import Scene
from mmcd.geo.cog import SCORE_BAND, Band, CogWriter
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import output_grid
from mmcd.geo.vector import Region, parse_region
from mmcd.inference.patch_map import PairImages, PatchScorer, Places, Weighting, roi_weights, score_places, spread
from mmcd.inference.patch_model import LARGEST_DISTANCE, PatchModel, load_patch_model
from mmcd.progress import Progress, silent
from mmcd.score import encode_score
from mmcd.services.inference import RunResult
from mmcd.services.model_choice import notice_facts
from mmcd.services.patch_evaluation import Evaluation, check_label, evaluate_map
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
from mmcd.services.runs import DISTANCE_FILE, PICTURE_FILE, load_run, run_folder, run_id_of
from mmcd.services.scenes import get_scene

if TYPE_CHECKING:
    from mmcd.inference.engine import Journal
    from mmcd.inference.patch_map import Distances
    from mmcd.models.devices import Device, Precision

DISTANCE_BAND = Band(dtype="float32", names=("1 - cosine of the embeddings",), nodata=math.nan)
"""Distance in [0, 2], NaN where it was not assessed."""

_BLOCK = 512  # Side of what is spread and written at once.
_BYTES_A_PIXEL = 12  # Score, mask and distance, each with the working file that it is made from.


class PatchMapRequest(Config):
    """What to score by the sliding window.

    Attributes:
        pre: Optical image before; or give ``scene``, or ``root`` and ``image_id``.
        post: SAR amplitude after.
        scene: Id of a scene of the catalog.
        root: Folder of a BRIGHT data set.
        image_id: Id of a tile in it.
        split: Folder of the contest's layout that the tile lies in; any when left out.
        label: Raster of damage classes to measure the map against; a scene's or tile's own when left out.
        out: Folder for the results; the workspace's folder for this run when left out.
        model: A checkpoint in the reference's layout, or a card of a patch model or its name.
        region: ``W,S,E,N`` in degrees or a vector file; the whole scene when left out.
        threshold: Distance in [0, 2] from which change is reported; the card's cut when left out, 1 of a checkpoint.
        window: Weight of a place in its ROI.
        power: Power of the dome.
        stride: Pixels from one ROI to the next.
        roi_size: Side of the ROI in pixels.
        context_size: Side of the context in pixels; the model's own when left out.
        batch_size: Contexts at most that go through the network at once.
        device: Device to run on.
        precision: Arithmetic to run in; ``auto`` is fp32, the reference's.
    """

    pre: Path | None = None
    post: Path | None = None
    scene: str | None = None
    root: Path | None = None
    image_id: str | None = None
    split: Literal["train", "val", "test"] | None = None
    label: Path | None = None
    out: Path | None = None
    model: str
    region: str | None = None
    threshold: float | None = Field(None, ge=0, le=LARGEST_DISTANCE)
    window: Weighting = "classic"
    power: float = Field(2.0, gt=0, le=100)
    stride: int = Field(8, ge=1, le=256)
    roi_size: int = Field(16, ge=2, le=256)
    context_size: int | None = Field(None, ge=32, le=1024)
    batch_size: int = Field(64, ge=1, le=256)
    device: str = Field("auto", pattern="^(auto|cpu|cuda|mps)$")
    precision: str = Field("auto", pattern="^(auto|bf16|fp32)$")

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build a request from a user's words.

        Raises:
            UsageError: A word is not one of the choices, or not exactly one pair is named.
        """
        request = super().checked(**values)
        named = [(request.pre, request.post), (request.scene,), (request.root, request.image_id)]
        given = [all(part is not None for part in parts) for parts in named]
        touched = [any(part is not None for part in parts) for parts in named]
        if sum(given) != 1 or given != touched:
            raise UsageError(
                "Exactly one pair of images must be given.", "Write PRE POST, --scene ID, or --root DIR --image-id ID."
            )
        return request

    def rules(self, model: PatchModel) -> PatchRules:
        """Return the sides of ROI and context, and the stride.

        Raises:
            UsageError: No ROI lies in the middle of such a context, or no pixel of it has a weight.
        """
        context = self.context_size or model.network.context
        if (context - self.roi_size) % 2 or context < self.roi_size:
            raise UsageError(
                f"A context of {context} px must exceed --roi-size {self.roi_size} by an even number.",
                "Use --context-size 256 and --roi-size 16.",
            )
        if self.window == "dome" and self.roi_size == 2:
            raise UsageError(
                "A dome weighs the corners of an ROI by 0, and --roi-size 2 has only corners.",
                "Use --window classic or --roi-size 16.",
            )
        return PatchRules(roi_patch_size=self.roi_size, context_patch_size=context, patch_stride=self.stride)


class PatchMapResult(RunResult):
    """What a run of the patch method wrote."""

    def to_dict(self) -> dict[str, Any]:
        """Return the paths of the results and the manifest, as JSON values."""
        paths = {"distance_map": str(self.folder / DISTANCE_FILE), "picture_file": str(self.folder / PICTURE_FILE)}
        return super().to_dict() | paths

    def summary(self) -> dict[str, Any]:
        """Return the few lines a person wants to see."""
        facts = self.manifest["distance"]
        lines = super().summary() | {"threshold": f"{facts['threshold']:.3g} of the distance"}
        best = facts["evaluation"] and facts["evaluation"]["best_f1"]
        if best:
            lines["best F1"] = f"{best['f1']:.4f} at the distance {best['threshold']:g}"
        return lines


@dataclass(frozen=True)
class _Pair:
    """The two images, and what is known of them."""

    pre: Path
    post: Path
    label: Path | None
    scene: Scene | None = None


@dataclass(frozen=True)
class _Job:
    """Everything that decides the bytes of a run, resolved from a request."""

    pair: _Pair
    model: PatchModel
    grid: Grid
    places: Places
    region: Window
    polygon: Region | None
    distance: float
    bands: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def threshold(self) -> float:
        """Stored probability of the distance from which change is reported."""
        return self.model.probability_of(self.distance)

    @property
    def answer(self) -> Grid:
        """The grid of the results."""
        return self.grid.crop(self.region)


def predict_patches(request: PatchMapRequest, progress: Progress = silent) -> PatchMapResult:
    """Score a pair patch by patch and write the files of a run, ``distance.tif`` and ``change_prediction.png``.

    A border of `PatchRules.pad` pixels holds no ROI and is not assessed. With labels the manifest holds the
    reference's evaluation. A run that was stopped goes on when the same request comes again.

    Raises:
        UsageError: The folder that is asked for holds files of these names that no run wrote.
        InputError: An image cannot be used or is smaller than a context.
        DataError: The data set lacks the tile.
        RegionError: The region is empty or outside the scene.
        ModelError: The model is missing, damaged or no patch model.
        StorageError: The disk is full or the place cannot be written.
        Cancelled: The progress callback asked to stop.
    """
    started, clock = datetime.now(UTC), Clock()
    with clock.stage("prepare"):
        progress("prepare", 0, 1)
        job = _resolve(request)
        inputs = input_facts(job.pair.scene, job.pair.pre, job.pair.post)
        key = _content_key(job, inputs, request)
    run_id = run_id_of(key)
    folder = request.out or run_folder(run_id)
    if request.out is None and (folder / "manifest.json").is_file():
        return PatchMapResult(folder, load_run(run_id).manifest)
    if request.out is not None:
        spare_foreign_files(folder, [DISTANCE_FILE, PICTURE_FILE])
    work = work_folder(folder, _BYTES_A_PIXEL * job.region.height * job.region.width)
    products = _products(job, work, run_id)
    scored = _score(job, request, products, key, clock, progress)
    with clock.stage("mask"):
        areas = write_products(products)
    evaluation = _measure(job, request, work, clock, progress)
    manifest = {
        "mmcd": __version__,
        "run_id": run_id,
        "key": key,
        "started": started.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
        "inputs": inputs,
        "model": job.model.facts() | notice_facts(job.model.card),
        "region": request.region,
        "grid": grid_facts(job.answer),
        "threshold": job.threshold,
        "areas": areas,
        **scored,
        "distance": _distance_facts(job, request, evaluation),
        "picture": {"file": PICTURE_FILE},
        "warnings": [*job.model.notes, *place_notes(job.grid), *evaluation.notes],
        "seconds": clock.seconds,
        **machine_facts(),
    }
    (work / "manifest.json").write_text(json.dumps(manifest, indent=2))
    publish(work, folder)
    return PatchMapResult(folder, manifest)


def find_tile(root: Path, image_id: str, split: str | None = None) -> BrightTile:
    """Return a tile of a BRIGHT data set by its id; of two with one id, the one with a label.

    Raises:
        DataError: There is none.
    """
    tiles = [tile for tile in index_bright(root).tiles if tile.id == image_id and split in (None, tile.part)]
    if not tiles:
        where = f"the {split} folder of {root}" if split else root
        raise DataError(f"There is no tile {image_id} with both images in {where}.", "See mmcd data tiles.")
    return max(tiles, key=lambda tile: tile.label is not None)


def _resolve(request: PatchMapRequest) -> _Job:
    pair = _pair(request)
    model = load_patch_model(request.model)
    grid = output_grid(pair.pre, pair.post, model.card.gsd.nominal if model.card else None)
    rules = request.rules(model)
    places = Places(grid.shape, rules)
    if not all(places.shape):
        raise InputError(
            f"The pair of {grid.width} × {grid.height} px is smaller than a context of {rules.context_patch_size} px.",
            "Use --method dense, or a smaller --context-size than the model was trained with.",
        )
    region = parse_region(request.region) if request.region else None
    window = region.window(grid) if region else grid.window
    if pair.label is not None:
        check_label(pair.label, grid)
    distance = model.distance_threshold if request.threshold is None else request.threshold
    bands = model.bands(pair.pre, pair.post)
    return _Job(pair, model, grid, places, window, outline_of(region), distance, bands)


def _pair(request: PatchMapRequest) -> _Pair:
    if request.scene is not None:
        scene = get_scene(request.scene)
        return _Pair(scene.pre, scene.post, request.label or scene.label, scene)
    if request.root is not None and request.image_id is not None:
        tile = find_tile(request.root, request.image_id, request.split)
        return _Pair(tile.pre, tile.post, request.label or tile.label)
    if request.pre is None or request.post is None:
        raise UsageError("Exactly one pair of images must be given.", "Write PRE POST, or --scene ID.")
    return _Pair(request.pre, request.post, request.label)


def _content_key(job: _Job, inputs: dict[str, Any], request: PatchMapRequest) -> str:
    """Return a hash of all that decides the bytes of score and distance; the threshold does not."""
    parts = [
        __version__,
        "patch",
        inputs["pre"]["sha256"],
        inputs["post"]["sha256"],
        inputs["scene"],
        job.model.sha256,
        job.model.facts()["calibration"],
        job.bands,
        request.model_dump(include={"window", "power", "device", "precision", "batch_size"}),
        job.places.rules.model_dump(),
        asdict(job.region),
        job.polygon.polygon.wkb_hex if job.polygon else None,
        grid_facts(job.grid),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _products(job: _Job, work: Path, run_id: str) -> Products:
    model = f"{job.model.name} {job.model.version}".strip()
    more = {DISTANCE_FILE.removesuffix(".tif"): "Distance of the embeddings, 1 - cosine, in [0, 2]"}
    return Products(work, run_id, job.answer, job.threshold, model, job.pair.scene, more)


def _score(
    job: _Job, request: PatchMapRequest, products: Products, key: str, clock: Clock, progress: Progress
) -> dict[str, Any]:
    """Write distance and score into the work folder; return what the manifest says of it."""
    device, precision = cast("Device", request.device), cast("Precision", request.precision)
    scorer = PatchScorer(job.model.network, device, precision)
    arithmetic = scorer.arithmetic
    distances, journal = _begun(products.folder, job.places, f"{key} {arithmetic}")
    resumed = journal.started
    with PairImages(job.pair.pre, job.pair.post, job.grid, *job.bands) as images:
        with clock.stage("score"):
            score_places(images, job.places, job.region, scorer, distances, journal, request.batch_size, progress)
        with clock.stage("write"):
            progress("write", 0, 1)
            weights = roi_weights(request.window, request.power, request.roi_size)
            _write_maps(job, products, _mapped(job, images, distances, weights))
    near = job.places.touching(job.region)
    return {"arithmetic": vars(arithmetic), "resumed": resumed, "patches": near.height * near.width}


def _begun(work: Path, places: Places, key: str) -> tuple["Distances", "Journal"]:
    """Return the distances of all places and the journal of a run, an interrupted one's where it is the same run."""
    from mmcd.inference.engine import Journal

    path = work / "distances.npy"
    journal = Journal(work / "patches", key)
    if not (journal.started and path.exists()):
        shutil.rmtree(work)  # another run, dense perhaps, may have left its files
        work.mkdir()
        journal = Journal(work / "patches", key)
        fresh = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=places.shape)
        fresh[:] = np.nan
        return fresh, journal
    return np.lib.format.open_memmap(path, mode="r+"), journal


def _mapped(
    job: _Job, images: PairImages, distances: "Distances", weights: NDArray[np.float64]
) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Yield the distance map of the region block by block, NaN where it is not assessed."""
    for window in blocks(job.answer.shape, _BLOCK):
        part = window.shifted(job.region.row, job.region.col)
        values = spread(distances, job.places, part, weights)
        assessed = images.measured(part)
        if job.polygon is not None:
            assessed &= job.polygon.mask(job.grid.crop(part))
        yield window, np.where(assessed, values, np.float32(np.nan))


def _write_maps(job: _Job, products: Products, maps: Iterator[tuple[Window, NDArray[np.float32]]]) -> None:
    folder, tags = products.folder, products.tags
    with (
        CogWriter(folder / DISTANCE_FILE, job.answer, DISTANCE_BAND, tags) as distance,
        CogWriter(folder / "score.tif", job.answer, SCORE_BAND, tags) as score,
    ):
        for window, values in maps:
            distance.write(window, values)
            score.write(window, encode_score(job.model.probability(values), np.isfinite(values)))
        distance.commit()
        score.commit()


def _measure(job: _Job, request: PatchMapRequest, work: Path, clock: Clock, progress: Progress) -> Evaluation:
    """Measure the map against the label, where there is one, and draw it."""
    from mmcd.services.figures import draw_change_map

    progress("evaluate", 0, 1)
    with clock.stage("evaluate"):
        evaluation = evaluate_map(work / DISTANCE_FILE, job.pair.label, job.grid, job.places, job.region)
    with clock.stage("draw"):
        draw_change_map(work / PICTURE_FILE, evaluation, request.image_id or job.pair.post.stem)
    return evaluation


def _distance_facts(job: _Job, request: PatchMapRequest, evaluation: Evaluation) -> dict[str, Any]:
    """Return what the manifest says of the sliding window."""
    return {
        "file": DISTANCE_FILE,
        "method": "patch",
        "window": request.window,
        "power": request.power if request.window == "dome" else None,
        "stride": request.stride,
        "roi_size": request.roi_size,
        "context_size": job.places.rules.context_patch_size,
        "batch_size": request.batch_size,
        "border_px": job.places.rules.pad,
        "threshold": job.distance,
        "evaluation": evaluation.to_dict(),
    }
