"""Export a card's network for the faster engines on a processor, and say which exports there are."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pydantic import Field

from mmcd.cards import Branch, Card, file_sha256, find_card, known_cards
from mmcd.config import Config
from mmcd.errors import DataError, UsageError
from mmcd.geo.catalog import Catalog
from mmcd.geo.grid import LATTICE, Grid, Window
from mmcd.geo.raster import output_grid
from mmcd.geo.sensors import standard_name
from mmcd.inference.backends import Backend, TorchBackend, open_export
from mmcd.inference.exported import (
    ExportBackend,
    ExportedModel,
    ExportPrecision,
    export_path,
    list_exports,
    require_installed,
    save_record,
)
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import change_probability, normalise
from mmcd.progress import Progress, silent
from mmcd.services.model_choice import image_facts, model_fit
from mmcd.services.scenes import list_scenes

if TYPE_CHECKING:
    from mmcd.inference.convert import Pair

SIMULATED, SCENES = "simulated", "scenes"
"""Words for ``calibration`` besides a folder."""

_SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
_DEFAULT_PRECISION: dict[ExportBackend, ExportPrecision] = {"onnx": "fp32", "openvino": "int8"}
_MADE_WITH = ("mmcd", "torch", "onnx")

_CALIBRATION_BLOCK = 256
"""Side of a calibration block in pixels; with its halo it is the size at which the network was trained, or above."""

_SIMULATED_SCENES = 16
_SIMULATED_SIDE = 512
_SIMULATED_GSD = (0.2, 2.0)
_FIRST_SEED = 70_000
"""Seed of the first simulated calibration scene, away from those of the shipped configurations."""

_GAIN = (0.7, 3.0)
"""Standard deviations that stand-in bands are given, in units of the model's."""

_COMPARED = 4
"""Calibration blocks on which the export is compared with torch."""


class ExportRequest(Config):
    """What to export.

    Attributes:
        model: Name of a model or path of a card.
        backend: Runtime to write for.
        out: File to write: ``.onnx``, or ``.xml`` for OpenVINO; the workspace's place when left out. Either way
            ``--backend`` finds it there.
        precision: Arithmetic; when left out int8 for OpenVINO, fp32 for ONNX Runtime.
        calibration: Images to measure the ranges of 8-bit values on: ``simulated``, ``scenes`` (those of the catalogs
            that suit the model) or a folder with a STAC catalog or OMBRIA's layout.
        images: Number of calibration blocks.
    """

    model: str
    backend: ExportBackend
    out: Path | None = None
    precision: ExportPrecision | None = None
    calibration: str = SIMULATED
    images: int = Field(16, ge=1, le=1000)


@dataclass(frozen=True)
class _Source:
    """Pairs to calibrate on.

    Attributes:
        pairs: Files before and after.
        words: What they are, for the record.
        stand_in: Their bands are not the model's and are brought to the range of the model's inputs.
    """

    pairs: Sequence[tuple[Path, Path]]
    words: str
    stand_in: bool = False


def export_weights(request: ExportRequest, progress: Progress = silent) -> ExportedModel:
    """Write a card's network for one runtime and note it in the workspace, where ``--backend`` finds it.

    Raises:
        ConfigError: The extra ``fast`` is not installed.
        DataError: The calibration images cannot be used.
        ModelError: The weights are missing or damaged.
        StorageError: The files cannot be written.
        UsageError: The file's name does not end as the runtime wants it.
    """
    require_installed(request.backend)
    from mmcd.inference.convert import convert
    from mmcd.models import zoo

    card_path, _ = find_card(request.model)
    precision = request.precision or _DEFAULT_PRECISION[request.backend]
    card, model = zoo.load(card_path)
    path = _target(request, card, precision)
    reference = TorchBackend(model, "cpu", "fp32")
    blocks = request.images if precision == "int8" else min(request.images, _COMPARED)
    with tempfile.TemporaryDirectory(prefix="mmcd-calibration-") as folder:
        source = _source(request, card, Path(folder), blocks, progress)
        samples = _samples(source, card, reference.halo, blocks)
    files = convert(model, card, request.backend, precision, path, samples, progress)
    quantised = {"images": source.words, "blocks": len(samples), "stand_in": source.stand_in}
    record = ExportedModel(
        model=card.name,
        version=card.version,
        weights_sha256=card.sha256,
        settings=card.settings,
        backend=request.backend,
        precision=precision,
        files={str(file): file_sha256(file) for file in files},
        halo=reference.halo,
        has_classes=reference.has_classes,
        calibration=quantised if precision == "int8" else {},
        versions={name: version(name) for name in (*_MADE_WITH, *(("nncf",) if precision == "int8" else ()))},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    record = record.model_copy(update={"agreement": _agreement(record, reference, samples[:_COMPARED], card)})
    save_record(card, record)
    return record


def exports_of_models() -> dict[str, tuple[ExportedModel, ...]]:
    """Return the exports of every shipped model by its name."""
    return {card.name: list_exports(card) for _, card in reversed(known_cards())}


def export_facts(record: ExportedModel) -> dict[str, Any]:
    """Return an export as JSON values."""
    return {"path": str(record.path), **record.model_dump(mode="json")}


def export_summary(record: ExportedModel) -> dict[str, Any]:
    """Return the few lines a person wants to see of an export."""
    lines = {"backend": f"{record.backend} {record.precision}", "file": str(record.path)}
    if record.calibration:
        lines["calibrated on"] = f"{record.calibration['blocks']} blocks of {record.calibration['images']}"
    apart = record.agreement
    return lines | {"probability differs from torch by": f"{apart['mean']:.2g} on average, {apart['max']:.2g} at most"}


def _target(request: ExportRequest, card: Card, precision: ExportPrecision) -> Path:
    if request.out is None:
        return export_path(card, request.backend, precision)
    suffix = _SUFFIX[request.backend]
    if request.out.suffix != suffix:
        raise UsageError(f"--out {request.out}: {request.backend} wants a file {suffix}.", "See --help.")
    return request.out.resolve()


def _source(request: ExportRequest, card: Card, folder: Path, blocks: int, progress: Progress) -> _Source:
    """Return the pairs that a request names.

    Raises:
        DataError: There are none.
    """
    if request.calibration == SIMULATED:
        return _simulated(card, folder, min(blocks, _SIMULATED_SCENES), progress)
    if request.calibration == SCENES:
        pairs = [
            (scene.pre, scene.post)
            for scene in list_scenes()
            if not model_fit(card, image_facts(scene.pre), image_facts(scene.post)).reasons
        ]
        if not pairs:
            raise DataError(f"No scene suits {card.name}.", "Give --calibration simulated or a folder.")
        return _Source(pairs, f"{len(pairs)} scenes")
    root = Path(request.calibration)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", "Give --calibration simulated, scenes or a folder.")
    if (root / "catalog.json").is_file():
        pairs = [(scene.pre, scene.post) for scene in Catalog.open(root).scenes()]
        if not pairs:
            raise DataError(f"The catalog of {root} holds no scene.", "Give --calibration simulated or another folder.")
        return _Source(pairs, f"{len(pairs)} scenes of {root.name}")
    from mmcd.data.ombria import index_ombria

    tiles = index_ombria(root).tiles
    chosen = tiles[:: -(-len(tiles) // blocks)]
    return _Source([(tile.pre, tile.post) for tile in chosen], f"{len(chosen)} tiles of {root.name}")


def _simulated(card: Card, folder: Path, scenes: int, progress: Progress) -> _Source:
    """Write simulated scenes of all families as files, so that they go the way of a user's images."""
    from mmcd.data.simulated import BANDS_POST, BANDS_PRE, SceneSet
    from mmcd.services.simulate import PLACES, write_scene
    from mmcd.simulate import simulate_scene

    gsd = float(np.clip(card.gsd.nominal, *_SIMULATED_GSD))
    if card.compares_optical:
        stand_in = not {standard_name(name) for name in card.pre.bands + card.post.bands} <= set(BANDS_PRE)
        grown = [_grown(folder, number, gsd, scenes, progress) for number in range(scenes)]
        return _Source(grown, f"{scenes} simulated towns at {gsd:g} m", stand_in)
    pairs = []
    for number, spec in enumerate(SceneSet(scenes=scenes, seed=_FIRST_SEED).specs(_SIMULATED_SIDE, gsd)):
        progress("simulate", number, scenes)
        scene = write_scene(folder, f"calibration-{number}", PLACES[0], simulate_scene(spec))
        pairs.append((scene.pre, scene.post))
    stand_in = not (set(card.pre.bands) <= set(BANDS_PRE) and set(card.post.bands) <= set(BANDS_POST))
    return _Source(pairs, f"{scenes} simulated scenes at {gsd:g} m", stand_in)


def _grown(folder: Path, number: int, gsd: float, towns: int, progress: Progress) -> tuple[Path, Path]:
    """Write two simulated optical images of one town, as files."""
    from mmcd.data.simulated import BANDS_PRE
    from mmcd.geo.cog import Band, write_cog
    from mmcd.simulate import GrowthSpec, simulate_growth
    from mmcd.simulate.layouts import LAYOUTS
    from mmcd.simulate.palettes import PALETTES

    progress("simulate", number, towns)
    layout, palette = LAYOUTS[number % len(LAYOUTS)], PALETTES[number % len(PALETTES)]
    town = simulate_growth(GrowthSpec(_SIMULATED_SIDE, gsd, _FIRST_SEED + number, layout, palette))
    grid = Grid("EPSG:32631", Affine(gsd, 0, 500_000, 0, -gsd, 4_500_000), *town.label.shape)
    names = Band(names=BANDS_PRE)
    before, after = (folder / f"town-{number}-{when}.tif" for when in ("pre", "post"))
    return write_cog(before, town.pre, grid, names), write_cog(after, town.post, grid, names)


def _samples(source: _Source, card: Card, halo: int, images: int) -> "list[Pair]":
    """Return normalised blocks with their halo, as the network meets them, in turn from all pairs."""
    random = np.random.default_rng(0)
    samples: list[Pair] = []
    shares = np.full(len(source.pairs), images // len(source.pairs)) + (
        np.arange(len(source.pairs)) < images % len(source.pairs)
    )
    for (pre, post), share in zip(source.pairs, shares, strict=True):
        if not share:
            continue
        grid = output_grid(pre, post, card.gsd.nominal)
        with PairReader(pre, post, card, grid, substitute=source.stand_in) as reader:
            for window in _windows(grid, int(share), random):
                block = reader.read(window.padded(halo))
                before = normalise(block.pre, block.pre_valid, card.pre)
                after = normalise(block.post, block.post_valid, card.post)
                if source.stand_in:
                    before, after = _spread(before, card.pre, random), _spread(after, card.post, random)
                samples.append((before, after))
    return samples


def _windows(grid: Grid, number: int, random: np.random.Generator) -> Iterator[Window]:
    """Yield blocks at random places of the network's lattice."""
    side = _CALIBRATION_BLOCK
    for _ in range(number):
        row, col = (int(random.integers(0, max(size - side, 0) // LATTICE + 1)) * LATTICE for size in grid.shape)
        yield Window(row, col, side, side)


def _spread(values: NDArray[np.float32], branch: Branch, random: np.random.Generator) -> NDArray[np.float32]:
    """Return stand-in bands over the range in which the model's own inputs lie.

    Each band gets mean 0 and a standard deviation of 0.7 to 3, where the model's own have 1 on average, and is cut
    at what stretched values of 0 and 1 become: a cloud or a wall echo is far from the mean.
    """
    mean, spread = values.mean(axis=(1, 2), keepdims=True), values.std(axis=(1, 2), keepdims=True)
    gain = np.exp(random.uniform(*np.log(_GAIN)))
    low, high = ((limit - np.array(branch.mean)) / np.array(branch.std) for limit in (0, 1))
    wide = gain * (values - mean) / np.maximum(spread, 1e-3)
    limited: NDArray[np.float32] = wide.clip(low[:, None, None], high[:, None, None]).astype(np.float32)
    return limited


def _agreement(record: ExportedModel, reference: Backend, samples: "Sequence[Pair]", card: Card) -> dict[str, float]:
    """Return how far probabilities of the export are from torch's."""
    engines = open_export(record), reference
    answers = [[engine.run(*pair) for engine in engines] for pair in samples]
    scored = [[change_probability(one.logit, one.distance, card.decision) for one in both] for both in answers]
    apart = [np.abs(exported - exact) for exported, exact in scored]
    return {"mean": float(np.mean(apart)), "max": float(np.max(apart))}
