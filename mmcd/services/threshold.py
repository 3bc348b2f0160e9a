"""Searches the distance at which a patch model tells damaged patches from unchanged ones best."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcd.config import Config
from mmcd.data.bright import event_of
from mmcd.data.patch_files import SUMMARY, read_patches, read_rules
from mmcd.data.patch_index import PatchRules, PatchTable
from mmcd.errors import ModelError
from mmcd.geo.cog import atomic_path
from mmcd.inference.patch_map import Compared, PatchScorer
from mmcd.inference.patch_model import PatchModel, load_patch_model
from mmcd.models.devices import Device, Precision
from mmcd.progress import Progress, silent
from mmcd.services.figures import draw_precision_recall, draw_thresholds
from mmcd.services.run_output import refuse_full_disk
from mmcd.thresholds import GRID, OPTIMISED, PairedWins, ThresholdCurve, check_classes

if TYPE_CHECKING:
    from mmcd.data.patches import PatchPairs

_FEWEST_EVENTS = 3  # Resampling two of them says nothing of a third.


class ThresholdRequest(Config):
    """Whose threshold is searched on what.

    Attributes:
        model: A checkpoint in the reference's layout, or a card of a patch model or its name.
        root: Folder of the data set.
        metadata: Folder of its patch metadata, made by ``mmcd data index`` or by the reference.
        dataset: Kind of data set.
        split: Split of the metadata.
        out: Folder of the results; only the figures are returned when left out.
        limit: Patches at most, drawn at random.
        seed: Seed of that draw and of the resampling.
        resamples: Draws of events behind the interval.
        batch_size: Patches that go through the network at once.
        device: Device to run on.
        precision: Arithmetic to run in; ``auto`` is fp32, the reference's.
    """

    model: str
    root: Path
    metadata: Path
    dataset: Literal["bright"] = "bright"
    split: Literal["train", "val"] = "val"
    out: Path | None = None
    limit: int | None = Field(None, ge=2)
    seed: int = Field(42, ge=0)
    resamples: int = Field(1000, ge=10)
    batch_size: int = Field(64, ge=1, le=1024)
    device: Device = "auto"
    precision: Precision = "auto"


@dataclass(frozen=True)
class ThresholdResult:
    """What was found.

    Attributes:
        values: Figures by name, those of the reference's ``summary.json`` among them.
        grid: All metrics at the 21 thresholds of the reference.
        folder: Where the files are; None when none were asked for.
    """

    values: dict[str, Any]
    grid: list[dict[str, float]]
    folder: Path | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the figures."""
        return tuple(self.values["warnings"])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**self.values, "thresholds": self.grid, "folder": None if self.folder is None else str(self.folder)}

    def summary(self) -> dict[str, Any]:
        """Return the few lines a person wants to see."""
        found, interval = self.values, self.values["auc_interval"]
        lines = {"patches": f"{found['num_samples']:,} of {found['images']:,} tiles, {found['events']:,} events"}
        lines["damaged"] = f"{found['damage_share']:.2%}"
        for name in OPTIMISED:
            cut, value = found[f"best_{name}_threshold"], found[f"best_{name}"]
            lines[f"best {name.replace('_', ' ')}"] = f"{value:.4f} from the distance {cut:.4f} on"
        between = f", {interval['low']:.4f} to {interval['high']:.4f} by {interval['unit']}" if interval else ""
        lines["AUC"] = f"{found['auc']:.4f}{between}"
        return lines if self.folder is None else lines | {"folder": str(self.folder)}


@dataclass(frozen=True)
class _Scores:
    """Distance of every patch, and what is known of it."""

    distance: NDArray[np.float32]
    table: PatchTable

    @property
    def damaged(self) -> NDArray[np.bool_]:
        """True for a damaged patch: the positive class of all metrics."""
        return ~self.table.is_positive


def search_threshold(request: ThresholdRequest, progress: Progress = silent) -> ThresholdResult:
    """Score the patches of a split, find the best thresholds and the area under the ROC curve with its interval.

    The folder gets ``summary.json``, ``threshold_metrics.json`` (the reference's 21 thresholds), ``curves.npz`` (every
    distinct score), ``change_scores.npy``, ``is_positive_labels.npy``, ``optical_features.npy`` and
    ``sar_features.npy`` (vectors of the encoders, shape (N, 512)), ``optical_projected.npy`` and ``sar_projected.npy``
    (unit vectors, shape (N, D)), ``threshold_analysis.png`` and ``precision_recall_curve.png``.

    Raises:
        DataError: The metadata are missing or do not belong to the data set, or hold one class only.
        ModelError: The model is missing, damaged, no patch model or one of other bands.
        StorageError: The disk is full or the folder cannot be written.
        Cancelled: The progress callback asked to stop.
    """
    from mmcd.data.patches import PatchPairs

    table = _drawn(read_patches(request.metadata, request.split), request)
    check_classes(~table.is_positive)
    rules = read_rules(request.metadata)
    pairs = PatchPairs(request.root, table, rules)
    model = load_patch_model(request.model)
    _check_bands(model)
    scorer = PatchScorer(model.network, request.device, request.precision)
    scores = _Scores(_scored(pairs, scorer, request, progress), table)
    progress("search", 0, 1)
    curve = ThresholdCurve.of(scores.distance, scores.damaged)
    grid = ThresholdCurve.of(scores.distance, scores.damaged, GRID)
    interval, notes = _interval(scores, request)
    values = {
        "model": model.facts(),
        "dataset": request.dataset,
        "split": request.split,
        **_facts_of(table, request),
        **_best(curve),
        "auc": curve.roc_auc(),
        "auc_interval": interval,
        "auc_grid": grid.roc_auc(),
        "average_precision": curve.average_precision(),
        "arithmetic": vars(scorer.arithmetic),
        "warnings": [*notes, *_leaks(request), *_other_context(model, rules)],
    }
    if request.out is not None:
        _write(request.out, values, scores, curve, grid)
    return ThresholdResult(values, grid.rows(), request.out)


def _drawn(table: PatchTable, request: ThresholdRequest) -> PatchTable:
    """Return the patches to score, tile by tile, so that a tile is read once."""
    chosen = np.arange(len(table))
    if request.limit is not None and request.limit < len(table):
        chosen = np.sort(np.random.default_rng(request.seed).permutation(len(table))[: request.limit])
    return table.take(chosen[np.argsort(table.image[chosen], kind="stable")])


def _scored(
    pairs: "PatchPairs", scorer: PatchScorer, request: ThresholdRequest, progress: Progress
) -> NDArray[np.float32]:
    """Return the distance of every patch, shape (N,); the embeddings go to the folder batch by batch."""
    distance = np.empty(len(pairs), np.float32)
    done = 0
    progress("score patches", done, len(pairs))
    with ExitStack() as stack:
        kept: list[BinaryIO] = []
        for batch in _batches(pairs, scorer, request.batch_size):
            vectors = {
                "optical_features": batch.pre_features,
                "sar_features": batch.post_features,
                "optical_projected": batch.pre,
                "sar_projected": batch.post,
            }
            if request.out is not None and not kept:
                sides = {name: values.shape[1] for name, values in vectors.items()}
                kept = [_begun(stack, request.out / f"{name}.npy", (len(pairs), n)) for name, n in sides.items()]
                refuse_full_disk(request.out, 4 * len(pairs) * sum(sides.values()))
            part = slice(done, done + len(batch.distance))
            distance[part] = batch.distance
            for file, values in zip(kept, vectors.values(), strict=bool(kept)):
                file.write(np.ascontiguousarray(values, "<f4").data)
            done = part.stop
            progress("score patches", done, len(pairs))
    return distance


def _batches(pairs: "PatchPairs", scorer: PatchScorer, batch_size: int) -> Iterator[Compared]:
    from torch.utils.data import DataLoader

    for batch in DataLoader(pairs, batch_size=batch_size):
        yield scorer.compare(batch["optical"], batch["sar"])


def _begun(stack: ExitStack, path: Path, shape: tuple[int, int]) -> BinaryIO:
    """Return a file of float32 rows that follow; it takes its name when the stack is left without an error.

    Rows are written and not mapped into memory: where a disk is full, a map would end the process without a word.
    """
    file = stack.enter_context(stack.enter_context(atomic_path(path)).open("wb"))
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file


def _facts_of(table: PatchTable, request: ThresholdRequest) -> dict[str, Any]:
    used = [table.image_ids[number] for number in np.unique(table.image)]
    return {
        "num_samples": len(table),
        "positive_ratio": float(table.is_positive.mean()),
        "damage_share": float(1 - table.is_positive.mean()),
        "images": len(used),
        "events": len({event_of(image_id) for image_id in used}),
        "limit": request.limit,
        "seed": request.seed,
        "unit": "patches, positive class: damage",
    }


def _best(curve: ThresholdCurve) -> dict[str, float]:
    found = {name: curve.best(name) for name in OPTIMISED}
    cuts = {f"best_{name}_threshold": cut for name, (cut, _) in found.items()}
    return cuts | {f"best_{name}": value for name, (_, value) in found.items()}


def _interval(scores: _Scores, request: ThresholdRequest) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the interval of the AUC by event, or by image where there are too few events, and what to know of it."""
    table = scores.table
    events, event = np.unique([event_of(image_id) for image_id in table.image_ids], return_inverse=True)
    present = np.unique(event[table.image])
    unit, notes = "event", list[str]()
    members: NDArray[np.integer] = event[table.image]
    if len(present) < _FEWEST_EVENTS:
        named = ", ".join(str(events[number]) for number in present)
        unit, members = "image", table.image
        notes = [
            f"{len(present)} event{'s' if len(present) > 1 else ''} ({named}): the interval is by image, so it tells "
            "nothing of another event."
        ]
    _, group = np.unique(members, return_inverse=True)
    found = PairedWins.of(scores.distance, scores.damaged, group).interval(request.resamples, request.seed)
    if found is None:
        return None, [*notes, "One image alone has no interval."]
    return {**found, "unit": unit, "groups": int(group.max()) + 1}, notes


def _leaks(request: ThresholdRequest) -> list[str]:
    """Warn of patches that a model may have learned from, or seen the surroundings of as the reference's has."""
    by = json.loads((request.metadata / SUMMARY).read_text()).get("split_by")
    if request.split == "train":
        return ["A model of these metadata has learned from their train split, so figures are too good."]
    if by == "patch" or by is None:
        return ["The metadata are split by patch: validation shares context with training, so figures are too good."]
    return []


def _check_bands(model: PatchModel) -> None:
    """Refuse a model of other images.

    Raises:
        ModelError: It takes other numbers of bands than a patch has.
    """
    encoders = model.network.optical_encoder, model.network.sar_encoder
    optical, sar = (encoder.conv1.in_channels for encoder in encoders)
    if (optical, sar) != (3, 1):
        raise ModelError(
            f"{model.name} takes {optical} optical and {sar} SAR bands, a patch has 3 and 1.",
            "Give a model that was trained on such patches.",
        )


def _other_context(model: PatchModel, rules: PatchRules) -> list[str]:
    """Warn where a card tells another context than the metadata; the reference's checkpoints tell none."""
    learned, given = model.network.context, rules.context_patch_size
    if model.card is None or learned == given:
        return []
    return [f"The metadata have contexts of {given} px, {model.name} learned from {learned} px."]


def _write(
    folder: Path, values: Mapping[str, Any], scores: _Scores, curve: ThresholdCurve, grid: ThresholdCurve
) -> None:
    for name, array in (("change_scores", scores.distance), ("is_positive_labels", scores.table.is_positive)):
        with atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, array, allow_pickle=False)
    curves = {"threshold": curve.threshold}
    curves |= {name: curve.metric(name) for name in ("tpr", "fpr", "precision", "recall")}
    with atomic_path(folder / "curves.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **curves)  # type: ignore[arg-type]  # numpy's stub takes them for its flag
    draw_thresholds(folder / "threshold_analysis.png", curve, scores.distance, scores.damaged)
    draw_precision_recall(folder / "precision_recall_curve.png", curve)
    for name, content in (("threshold_metrics", grid.rows()), ("summary", values)):
        with atomic_path(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
