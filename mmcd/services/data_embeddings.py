"""Embeddings of patch pairs sampled over the tiles of a labelled data set: OMBRIA, or a tree in BRIGHT's layout."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Card, find_card
from mmcd.config import Config
from mmcd.data.bright import DAMAGED, UNLABELLED, BrightTile
from mmcd.data.bright import read_tile as read_bright
from mmcd.data.ombria import OmbriaTile
from mmcd.data.ombria import read_tile as read_ombria
from mmcd.embedding_table import EmbeddingTable, TableTile, VectorName
from mmcd.errors import DataError, ModelError
from mmcd.geo.grid import LATTICE, Grid, Window
from mmcd.geo.raster import output_grid
from mmcd.inference.engine import embedded_whole
from mmcd.inference.pair import PairReader
from mmcd.inference.patch_map import PatchScorer
from mmcd.inference.patch_model import PatchModel, is_checkpoint, load_patch_model
from mmcd.inference.predictor import Predictor
from mmcd.inference.roi import Origins, choose_rois
from mmcd.models.devices import Device
from mmcd.progress import Progress
from mmcd.score import NOT_ASSESSED, decode_score
from mmcd.services.embeddings import EmbedDataset
from mmcd.services.evaluate_bright import array_pair, chosen_tiles
from mmcd.services.evaluate_ombria import open_index, select_tiles, tile_stretches
from mmcd.services.evaluate_request import EvaluateRequest, SplitName
from mmcd.services.run_embeddings import places

Tile = OmbriaTile | BrightTile

_BATCH = 64


class DataEmbedRequest(Config):
    """Which patch pairs of which data set.

    Attributes:
        dataset: Name of the data set.
        root: Its folder.
        model: Name or card of a model; for BRIGHT also a checkpoint of the reference, ``.pth``.
        event: One event; all when left out.
        split: Part of the data set; all when left out.
        tiles: Tiles at most, as many of each event as there are.
        pairs: Patch pairs at most, as many of each tile.
        device: Device to run on.
    """

    dataset: EmbedDataset
    root: Path
    model: str
    event: str | None = None
    split: SplitName | None = None
    tiles: int = 200
    pairs: int = 10_000
    device: Device = "auto"


@dataclass(frozen=True)
class _Found:
    """What is known of the chosen ROIs of one tile: `EmbeddingTable`'s columns, and the tile's grid."""

    origins: Origins
    vectors: dict[VectorName, NDArray[np.float16]]
    score: NDArray[np.float32]
    label: NDArray[np.float32]
    built: NDArray[np.float32]
    grid: Grid


def _asked(request: DataEmbedRequest) -> EvaluateRequest:
    return EvaluateRequest.checked(
        model=request.model, dataset=request.dataset, root=request.root, event=request.event, split=request.split
    )


def tiles_of(request: DataEmbedRequest) -> list[Tile]:
    """Return the tiles that are sampled, evenly over the events.

    Raises:
        DataError: There are none.
    """
    asked = _asked(request)
    if request.dataset == "bright":
        return _spread(chosen_tiles(asked).tiles, request.tiles)
    return _spread(select_tiles(asked, open_index(asked)), request.tiles)


def files_of(tile: Tile) -> list[Path]:
    """Return the files that the patch pairs of a tile are made from: both images and the label, where there is one."""
    label = tile.mask if isinstance(tile, OmbriaTile) else tile.label
    return [tile.pre, tile.post, *([] if label is None else [label])]


def data_table(request: DataEmbedRequest, tiles: Sequence[Tile], progress: Progress) -> EmbeddingTable:
    """Return the patch pairs of some tiles with their embeddings.

    Args:
        request: What was asked.
        tiles: See `tiles_of`.
        progress: Told of the tiles done; may raise to stop.

    Raises:
        DataError: A tile is damaged, or none holds a patch pair.
        ModelError: The model is missing, damaged, or has no embeddings.
        Cancelled: The progress callback asked to stop.
    """
    progress("load model", 0, 1)
    name, threshold, look = _looker(request, tiles)
    most = max(1, -(-request.pairs // len(tiles)))
    progress("embed tiles", 0, len(tiles))
    found = []
    for number, tile in enumerate(tiles):
        found.append(look(tile, most, number))
        progress("embed tiles", number + 1, len(tiles))
    if not sum(len(one.origins) for one in found):
        raise DataError(f"No tile of {request.root} holds a whole patch pair.", "Choose larger tiles.")
    title = f"{request.dataset.upper()}, {len(tiles):,} tiles{f' of {request.event}' if request.event else ''}"
    facts = {
        **{"title": title, "model": name, "threshold": threshold, "roi": LATTICE},
        "request": request.model_dump(mode="json"),
    }
    return _joined(found, tiles, facts)


def _joined(found: Sequence[_Found], tiles: Sequence[Tile], facts: dict[str, Any]) -> EmbeddingTable:
    placed = [places(one.grid, one.origins) for one in found]
    origins = np.concatenate([one.origins for one in found])
    columns = {name: np.concatenate([place[name] for place in placed]) for name in ("x", "y", "lon", "lat")}
    columns |= {name: np.concatenate([getattr(one, name) for one in found]) for name in ("score", "label", "built")}
    names = found[0].vectors.keys()
    return EmbeddingTable(
        tile=np.repeat(np.arange(len(found)), [len(one.origins) for one in found]).astype(np.int32),
        row=origins[:, 0].astype(np.int32),
        col=origins[:, 1].astype(np.int32),
        building=np.full(len(origins), np.nan, np.float32),
        **columns,
        vectors={name: np.concatenate([one.vectors[name] for one in found]) for name in names},
        tiles=tuple(TableTile(tile.id, tile.event, str(tile.pre), str(tile.post)) for tile in tiles),
        facts=facts,
    )


Look = Callable[[Any, int, int], _Found]


def _looker(request: DataEmbedRequest, tiles: Sequence[Tile]) -> tuple[str, float, Look]:
    """Return name and threshold of the model, and what embeds a tile: tile, pairs at most and seed in.

    Raises:
        ModelError: The model has no embeddings, or does not take such tiles.
    """
    if is_checkpoint(request.model) or _is_patch_card(find_card(request.model)[1]):
        if request.dataset != "bright":
            raise ModelError("A patch model takes contexts of 256 px of BRIGHT's tiles.", "Give --dataset bright.")
        model = load_patch_model(request.model)
        scorer = PatchScorer(model.network, request.device)
        threshold = model.probability_of(model.distance_threshold)
        return model.name, threshold, lambda tile, most, seed: _by_patches(tile, model, scorer, most, seed)
    path, card = find_card(request.model)
    if not card.has_embeddings:
        raise ModelError(f"{card.name} compares no embeddings.", "Choose a pseudo-siamese model.")
    predictor = Predictor.load(path, request.device)
    if request.dataset == "bright":
        return card.name, card.decision.threshold, lambda tile, most, seed: _bright(tile, card, predictor, most, seed)
    stretches = tile_stretches(open_index(_asked(request)), cast("list[OmbriaTile]", list(tiles)), card)

    def ombria(tile: OmbriaTile, most: int, seed: int) -> _Found:
        changed = read_ombria(tile).changed
        grid = output_grid(tile.pre, tile.post, card.gsd.nominal)
        origins = choose_rois(grid.window, most, seed)
        with PairReader(tile.pre, tile.post, card, grid, stretch=stretches[tile.group]) as reader:
            score, vectors = embedded_whole(reader, predictor, origins)
        known = np.ones(changed.shape, np.bool_)
        return _found(origins, grid, score, vectors, changed, known, None)

    return card.name, card.decision.threshold, ombria


def _is_patch_card(card: Card) -> bool:
    return "patch" in (card.pre.scaling, card.post.scaling)


def _bright(tile: BrightTile, card: Card, predictor: Predictor, most: int, seed: int) -> _Found:
    pixels = read_bright(tile)
    label = np.full(pixels.grid.shape, UNLABELLED, np.uint8) if pixels.label is None else pixels.label
    origins = choose_rois(pixels.grid.window, most, seed)
    score, vectors = embedded_whole(array_pair(pixels, card), predictor, origins)
    known = label != UNLABELLED
    return _found(origins, pixels.grid, score, vectors, label >= DAMAGED, known, label > 0)


def _by_patches(tile: BrightTile, model: PatchModel, scorer: PatchScorer, most: int, seed: int) -> _Found:
    """Embed ROIs one context at a time, as the reference does, with the features of its encoders."""
    import torch

    from mmcd.data.patches import standardise_optical, standardise_sar

    pixels = read_bright(tile)
    label = np.full(pixels.grid.shape, UNLABELLED, np.uint8) if pixels.label is None else pixels.label
    side = model.network.context
    pad = (side - LATTICE) // 2
    height, width = pixels.grid.shape
    origins = choose_rois(Window(pad, pad, max(height - 2 * pad, 0), max(width - 2 * pad, 0)), most, seed)
    parts = []
    for first in range(0, len(origins), _BATCH):
        cut = [
            torch.from_numpy(
                np.stack([image[:, r - pad : r - pad + side, c - pad : c - pad + side] for r, c in batch])
            ).float()
            for image in (pixels.pre, pixels.post)
            for batch in (origins[first : first + _BATCH],)
        ]
        parts.append(scorer.compare(standardise_optical(cut[0]), standardise_sar(cut[1])))
    names = {"optical": "pre", "sar": "post", "optical_features": "pre_features", "sar_features": "post_features"}
    vectors = {
        cast("VectorName", name): np.concatenate([getattr(part, field) for part in parts] or [np.zeros((0, 1))])
        for name, field in names.items()
    }
    distance = np.concatenate([part.distance for part in parts] or [np.zeros(0, np.float32)])
    shares = _shares(origins, label >= DAMAGED, label != UNLABELLED, label > 0)
    half = {name: values.astype(np.float16) for name, values in vectors.items()}
    return _Found(origins, half, model.probability(distance), *shares, pixels.grid)


def _found(
    origins: Origins,
    grid: Grid,
    score: NDArray[np.uint8],
    vectors: NDArray[np.float16],
    changed: NDArray[np.bool_],
    known: NDArray[np.bool_],
    built: NDArray[np.bool_] | None,
) -> _Found:
    """Return what is known of the ROIs that were assessed in every pixel."""
    rois = [score[row : row + LATTICE, col : col + LATTICE] for row, col in origins]
    stored = np.stack(rois) if rois else np.zeros((0, LATTICE, LATTICE), np.uint8)
    kept = np.flatnonzero((stored != NOT_ASSESSED).all(axis=(1, 2)))
    origins = np.ascontiguousarray(origins[kept])
    mean = decode_score(stored[kept]).mean(axis=(1, 2)).astype(np.float32)
    both: dict[VectorName, NDArray[np.float16]] = {"optical": vectors[0][kept], "sar": vectors[1][kept]}
    return _Found(origins, both, mean, *_shares(origins, changed, known, built), grid)


def _shares(
    origins: Origins, changed: NDArray[np.bool_], known: NDArray[np.bool_], built: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the share of changed and of building pixels among the labelled ones of each ROI, NaN without any."""
    label, house = (np.full(len(origins), np.nan, np.float32) for _ in range(2))
    for number, (row, col) in enumerate(origins):
        roi = np.s_[row : row + LATTICE, col : col + LATTICE]
        if known[roi].any():
            label[number] = changed[roi][known[roi]].mean()
            if built is not None:
                house[number] = built[roi][known[roi]].mean()
    return label, house


def _spread(tiles: Sequence[Tile], most: int) -> list[Tile]:
    """Return at most so many tiles, one of each event in turn, evenly over each event's list."""
    if len(tiles) <= most:
        return list(tiles)
    return sorted(_in_turn(tiles, most), key=lambda tile: (tile.event, tile.id))


def _in_turn(tiles: Sequence[Tile], most: int) -> Iterator[Tile]:
    events: dict[str, list[Tile]] = {}
    for tile in tiles:
        events.setdefault(tile.event, []).append(tile)
    share = dict.fromkeys(events, 0)
    left = most
    while left:  # what a small event cannot give goes to the others
        for event in events:
            if left and share[event] < len(events[event]):
                share[event] += 1
                left -= 1
    for event, members in events.items():
        yield from (members[number * len(members) // share[event]] for number in range(share[event]))
