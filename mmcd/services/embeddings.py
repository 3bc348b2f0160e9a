"""Pictures of embeddings: laid out once, kept by the hash of what they are made from, exported with their places."""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self
from zipfile import BadZipFile

import geopandas
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcd.cards import file_sha256, find_card
from mmcd.embedding_table import COLUMNS, EmbeddingTable, read_facts, read_table, write_table
from mmcd.embeddings import Layout, Measures, Points, lay_out, measure, stacked_vectors
from mmcd.errors import InputError, MmcdError, UsageError
from mmcd.geo.cog import atomic_path
from mmcd.inference.patch_model import is_checkpoint
from mmcd.paths import workspace_folder
from mmcd.progress import Progress, silent
from mmcd.services.exports import find_run, one_of_run_and_data
from mmcd.services.run_embeddings import add_embeddings
from mmcd.services.runs import Run
from mmcd.services.scenes import get_scene

EmbedDataset = Literal["ombria", "bright"]

FOLDER = "embeddings"
KEPT_SELECTIONS = 200
"""Sets of patch pairs that the workspace remembers for links; the oldest go first."""

_LIBRARIES = {"pca": "scikit-learn", "umap": "umap-learn", "tsne": "openTSNE"}


class EmbedRequest(Layout):
    """What to lay out, and how, see `mmcd.embeddings.Layout`.

    Attributes:
        run: Id or folder of a run; or give ``dataset``.
        dataset: Name of a data set.
        root: Its folder.
        model: Model for the data set.
        event: One event of it; all when left out.
        split: Part of it; all when left out.
        tiles: Tiles of it at most.
        pairs: Patch pairs of it at most.
        device: Device for the data set's tiles.
        out: GeoParquet file to write.
    """

    run: str | None = None
    dataset: EmbedDataset | None = None
    root: Path | None = None
    model: str | None = None
    event: str | None = None
    split: str | None = None
    tiles: int = Field(200, ge=1, le=10_000)
    pairs: int = Field(10_000, ge=10, le=20_000)
    device: str = Field("auto", pattern="^(auto|cpu|cuda|mps)$")
    out: Path | None = None

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build a request from a user's words.

        Raises:
            UsageError: A word is not one of the choices, or not exactly one of a run and a data set is named.
        """
        request = super().checked(**values)
        one_of_run_and_data(request.run, request.dataset, request.root, request.model)
        if request.out is not None and request.out.suffix != ".parquet":
            raise UsageError(f"{request.out} is not a .parquet file.", "Give --out a name that ends in .parquet.")
        return request

    @property
    def layout(self) -> Layout:
        """How to lay out."""
        return Layout(**{name: getattr(self, name) for name in Layout.model_fields})


@dataclass(frozen=True)
class View:
    """A picture: patch pairs and where each of their points lies.

    Attributes:
        table: The patch pairs.
        layout: How they were laid out.
        points: Coordinates, shape (M, 2), float32.
        pair: Pair of each point, shape (M,), int32.
        branch: Branch of each point, 0 optical, 1 SAR, shape (M,), int8.
        measures: What the picture keeps.
        cached: Whether it was made before.
    """

    table: EmbeddingTable
    layout: Layout
    points: Points
    pair: NDArray[np.int32]
    branch: NDArray[np.int8]
    measures: Measures
    cached: bool

    def facts(self) -> dict[str, Any]:
        """Return what was found, as JSON values."""
        return {
            "title": self.table.facts["title"],
            "model": self.table.facts["model"],
            "pairs": len(self.table),
            "points": len(self.points),
            "cached": self.cached,
            **self.layout.model_dump(mode="json"),
            **self.measures.to_dict(),
        }


def embed(request: EmbedRequest, progress: Progress = silent) -> View:
    """Lay out the patch pairs of a run or a data set, from the disk where the same was laid out before.

    A run without embeddings gets them first. With ``out`` the points are written with their places.

    Raises:
        InputError: The run does not exist or cannot have embeddings, or holds too few patch pairs.
        DataError: The data set is not as published.
        ModelError: The model is missing, damaged or has no embeddings.
        StorageError: The disk is full.
        Cancelled: The progress callback asked to stop.
    """
    path = table_path(request, progress)
    view = find_view(path, request.layout) or _made(path, request.layout, progress)
    if request.out is not None:
        progress("write", 0, 1)
        export_points(view, request.out)
    return view


def table_path(request: EmbedRequest, progress: Progress = silent) -> Path:
    """Return the file of the patch pairs of a request; they are embedded first where they are not there yet."""
    if request.run is not None:
        run = find_run(request.run)
        run = run if run.embeddings is not None else add_embeddings(run, label_of(run), progress)
        return run.embeddings or run.folder
    return _data_path(request, progress)


def _data_path(request: EmbedRequest, progress: Progress) -> Path:
    from mmcd.services.data_embeddings import DataEmbedRequest, data_table, files_of, tiles_of

    asked = DataEmbedRequest.checked(**request.model_dump(include=set(DataEmbedRequest.model_fields)))
    progress("find tiles", 0, 1)
    tiles = tiles_of(asked)
    states = [(path, path.stat()) for tile in tiles for path in files_of(tile)]
    files = [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]
    sha = file_sha256(Path(asked.model)) if is_checkpoint(asked.model) else find_card(asked.model)[1].sha256
    known = asked.model_dump(mode="json", exclude={"device", "model"})
    path = workspace_folder(FOLDER) / f"data-{_hash([known, files, sha])}.parquet"
    if not path.is_file():
        table = data_table(asked, tiles, progress)
        with atomic_path(path) as temporary:
            write_table(table, temporary)
    return path


def label_of(run: Run) -> Path | None:
    """Return the labels of the scene of a run; None of a run of two files, or of a scene that is gone."""
    try:
        return get_scene(run.scene_id).label if run.scene_id else None
    except MmcdError:
        return None


def data_tables() -> dict[str, dict[str, Any]]:
    """Return what is known of the data sets that were embedded in this workspace, by name, newest first."""
    paths = sorted(workspace_folder(FOLDER).glob("data-*.parquet"), key=lambda path: -path.stat().st_mtime_ns)
    return {path.stem: read_facts(path) for path in paths}


def data_table_path(name: str) -> Path:
    """Return the file of an embedded data set.

    Raises:
        InputError: There is none of this name.
    """
    path = workspace_folder(FOLDER) / f"{name}.parquet"
    if not (name.startswith("data-") and name.removeprefix("data-").isalnum() and path.is_file()):
        raise InputError("There is no such embedded data set in this workspace.", "Choose it again.")
    return path


def find_view(path: Path, layout: Layout) -> View | None:
    """Return the picture of a table when it was made before.

    Raises:
        InputError: The table is damaged.
    """
    kept = view_path(path, layout)
    try:
        with np.load(kept, allow_pickle=False) as found:
            points, measures = found["points"], json.loads(str(found["measures"]))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # not there, or damaged: it is made anew
        return None
    return _view(read_table(path), layout, points, Measures(**measures | {"events": tuple(measures["events"])}), True)


def view_path(path: Path, layout: Layout) -> Path:
    """Return where the picture of a table is or will be: named by the hash of all that decides it."""
    library = _LIBRARIES[layout.method]
    key = _hash([file_sha256(path), layout.model_dump(mode="json"), library, version(library)])
    return workspace_folder(FOLDER) / f"view-{key}.npz"


def _made(path: Path, layout: Layout, progress: Progress) -> View:
    table = read_table(path)
    vectors, _, _ = stacked_vectors(table, layout.what)
    points = lay_out(vectors, layout, progress)
    progress("measure", 0, 1)
    measures = measure(table, layout, points)
    with atomic_path(view_path(path, layout)) as temporary, temporary.open("wb") as file:
        np.savez(file, points=points, measures=np.array(json.dumps(measures.to_dict())))
    return _view(table, layout, points, measures, False)


def _view(table: EmbeddingTable, layout: Layout, points: Points, measures: Measures, cached: bool) -> View:
    _, pair, branch = stacked_vectors(table, layout.what)
    return View(table, layout, points, pair, branch, measures, cached)


def export_points(view: View, out: Path) -> None:
    """Write the points of a picture as GeoParquet: a row each with its place, columns and coordinates.

    Places are ROI centres in WGS 84, or in pixels without a CRS where the images have no georeference.

    Args:
        view: The picture.
        out: The file.

    Raises:
        StorageError: It cannot be written.
    """
    table, pair = view.table, view.pair
    columns = {name: getattr(table, name)[pair] for name in COLUMNS if name != "tile"}
    ids = np.array([tile.id for tile in table.tiles])[table.tile]
    columns |= {"tile": ids[pair], "event": table.events[pair], "pair": pair}
    columns |= {"branch": np.where(view.branch == 0, "optical", "sar")}
    columns |= {f"{view.layout.method}_{axis + 1}": view.points[:, axis] for axis in (0, 1)}
    placed = bool(np.isfinite(table.lon).all())
    x, y = ("lon", "lat") if placed else ("x", "y")
    shapes = geopandas.points_from_xy(columns[x], columns[y])
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs="EPSG:4326" if placed else None)
    with atomic_path(out) as temporary:
        frame.to_parquet(temporary)


def keep_selection(name: str, pairs: NDArray[np.integer]) -> str:
    """Remember a set of patch pairs; return the id that a link carries.

    Args:
        name: What they are of: the id of a run, or the name of an embedded data set.
        pairs: Their numbers in its table.
    """
    text = json.dumps({"of": name, "pairs": np.unique(pairs).tolist()})
    chosen = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = workspace_folder(FOLDER)
    with atomic_path(folder / f"pairs-{chosen}.json") as temporary:
        temporary.write_text(text)
    by_age = sorted(folder.glob("pairs-*.json"), key=lambda path: -path.stat().st_mtime_ns)
    for old in by_age[KEPT_SELECTIONS:]:
        old.unlink(missing_ok=True)
    return chosen


def selection(chosen: str) -> tuple[str, NDArray[np.int64]]:
    """Return what a set of patch pairs is of, and their numbers, see `keep_selection`.

    Raises:
        InputError: There is none with this id, or no more.
    """
    path = workspace_folder(FOLDER) / f"pairs-{chosen}.json"
    if not chosen.isalnum() or not path.is_file():
        raise InputError("This selection of patches is not in the workspace any more.", "Select the patches again.")
    found = json.loads(path.read_text())
    return str(found["of"]), np.asarray(found["pairs"], np.int64)


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]
