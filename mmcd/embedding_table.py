"""The table of patch pairs that a run or a data set holds: where each lies, what is known of it, and its embeddings.

A patch pair is a region of interest (ROI) of 16 px in both images; its embeddings are the unit vectors that the two
branches of a model have for it. One Parquet file, which any data frame library opens.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmcd.errors import InputError

VectorName = Literal["optical", "sar", "optical_features", "sar_features"]
"""The embeddings of the image before and after, and what they are projected from in the reference's networks."""

VECTORS: tuple[VectorName, ...] = get_args(VectorName)
_FACTS = b"mmcd"


@dataclass(frozen=True)
class TableTile:
    """One raster that patch pairs were cut from.

    Attributes:
        id: Its name: of a scene, of a tile of a data set, or of a file.
        event: The event that it shows; empty when it is not known.
        pre: Image before.
        post: Image after.
    """

    id: str
    event: str
    pre: str
    post: str


@dataclass(frozen=True)
class EmbeddingTable:
    """Patch pairs with their embeddings, at most some ten thousand.

    Attributes:
        tile: Raster of each pair, an index into ``tiles``, shape (N,), int32.
        row: First row of the ROI in its raster, for a run in its score, shape (N,), int32.
        col: First column, shape (N,), int32.
        x: East coordinate of the ROI's centre in the raster's CRS, its column in pixel space, shape (N,), float64.
        y: North coordinate, its row in pixel space, shape (N,), float64.
        lon: Longitude of the centre in degrees, NaN in pixel space, shape (N,), float64.
        lat: Latitude in degrees, shape (N,), float64.
        score: Mean probability of change in [0, 1], shape (N,), float32.
        label: Share of the labelled pixels that changed, NaN without labels, shape (N,), float32.
        building: Mean probability of buildings by the model, NaN of a model that marks none, shape (N,), float32.
        built: Share of the labelled pixels that are building, NaN without labels of buildings, shape (N,), float32.
        vectors: Unit vectors by name, each of shape (N, D), float16.
        tiles: The rasters.
        facts: ``title``, ``model``, ``threshold`` (probability), ``roi`` (side in pixels) and what else is known;
            JSON values.
    """

    tile: NDArray[np.int32]
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    score: NDArray[np.float32]
    label: NDArray[np.float32]
    building: NDArray[np.float32]
    built: NDArray[np.float32]
    vectors: dict[VectorName, NDArray[np.float16]]
    tiles: tuple[TableTile, ...]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def events(self) -> NDArray[np.str_]:
        """The event of each pair, shape (N,)."""
        return np.array([tile.event for tile in self.tiles] or [""])[self.tile]

    @property
    def has_label(self) -> NDArray[np.bool_]:
        """Pairs whose label is known, shape (N,)."""
        return np.isfinite(self.label)

    @property
    def threshold(self) -> float:
        """Probability from which the model reports change."""
        return float(self.facts["threshold"])

    @property
    def buildings(self) -> NDArray[np.float32]:
        """Building presence in [0, 1]: by labels where they say it, else by the model; NaN where neither does."""
        return np.where(np.isfinite(self.built), self.built, self.building)


COLUMNS = ("tile", "row", "col", "x", "y", "lon", "lat", "score", "label", "building", "built")


def write_table(table: EmbeddingTable, path: Path) -> None:
    """Write a table as Parquet; the same table gives the same bytes."""
    columns: dict[str, Any] = {name: pa.array(getattr(table, name)) for name in COLUMNS}
    for name, vectors in table.vectors.items():
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    facts = {**table.facts, "tiles": [vars(tile) for tile in table.tiles]}
    found = pa.table(columns).replace_schema_metadata({_FACTS: json.dumps(facts, sort_keys=True).encode()})
    pq.write_table(found, path, compression="zstd")


def read_table(path: Path) -> EmbeddingTable:
    """Read a table.

    Raises:
        InputError: The file is missing, damaged or of something else.
    """
    try:
        found = pq.read_table(path)
        facts = json.loads(found.schema.metadata[_FACTS])
        tiles = tuple(TableTile(**values) for values in facts.pop("tiles"))
        columns = {name: found[name].to_numpy() for name in COLUMNS}
        vectors: dict[VectorName, NDArray[np.float16]] = {}
        for name in VECTORS:
            if name in found.column_names:
                stored = found[name].combine_chunks()
                vectors[name] = stored.flatten().to_numpy(zero_copy_only=False).reshape(len(stored), -1)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no embeddings: {error}.", "Compute the embeddings again.") from error
    return EmbeddingTable(**columns, vectors=vectors, tiles=tiles, facts=facts)


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a table says of itself, without its columns.

    Raises:
        InputError: The file is missing, damaged or of something else.
    """
    try:
        facts: dict[str, Any] = json.loads(pq.read_schema(path).metadata[_FACTS])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no embeddings: {error}.", "Compute the embeddings again.") from error
    return facts
