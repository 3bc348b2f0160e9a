"""Files for other people and programs: score, mask, graded buildings, a map that opens anywhere, or all of it."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from pydantic import Field

from mmcd import __version__
from mmcd.cards import file_sha256
from mmcd.config import Config
from mmcd.errors import InputError, UsageError
from mmcd.export import area_summary, count_scores, exported_asset, write_mask, write_vectors
from mmcd.geo.catalog import Scene
from mmcd.geo.cog import atomic_path, storage_errors
from mmcd.geo.grid import Grid
from mmcd.geo.raster import RasterSource
from mmcd.progress import Progress, silent
from mmcd.services.buildings import Vectors, graded_vectors, scene_of, used_footprints
from mmcd.services.model_choice import notice_of_run
from mmcd.services.runs import RUN_FILES, Run, load_run
from mmcd.services.standalone_map import standalone_map

What = Literal["score", "mask", "buildings", "map", "package"]
"""What can be exported; ``package`` is all of it with STAC item and manifest."""

EXPORTS: tuple[What, ...] = get_args(What)

_SUFFIXES: dict[What, tuple[str, ...]] = {
    "score": (".tif", ".tiff"),
    "mask": (".tif", ".tiff"),
    "buildings": (".gpkg", ".geojson"),
    "map": (".html",),
    "package": (".zip",),
}
_PACKED = (".tif",)  # compressed already


class ExportRequest(Config):
    """What a user asks to be written.

    Attributes:
        what: What to write.
        out: File with a fitting suffix, or a folder.
        threshold: Probability from which a pixel counts as changed; the run's when left out.
        footprints: Building outlines; the scene's own when left out, else the model's where it marks buildings.
    """

    what: What
    out: Path
    threshold: float | None = Field(None, ge=0, le=1)
    footprints: Path | None = None


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        what: What was asked for.
        threshold: Probability from which a pixel counts as changed.
        paths: The files.
        notes: What the reader of the files should know.
    """

    what: What
    threshold: float
    paths: tuple[Path, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        paths = [str(path) for path in self.paths]
        return {"what": self.what, "threshold": self.threshold, "paths": paths, "notes": list(self.notes)}


def one_of_run_and_data(run: str | None, dataset: str | None, root: Path | None, model: str | None) -> None:
    """Refuse what names neither a run nor a whole data set, or both.

    Raises:
        UsageError: Not exactly one of them is named, or a data set's folder or model is missing.
    """
    if (run is None) == (dataset is None):
        raise UsageError("Either a run or a data set must be given.", "Write RUN, or --dataset NAME.")
    if dataset is not None and (root is None or model is None):
        raise UsageError("A data set needs its folder and a model.", "Give --root DIR and --model NAME.")


def find_run(text: str) -> Run:
    """Return the run with an id, or the run in a folder that ``mmcd infer predict --out`` wrote.

    Raises:
        InputError: It is neither, or its manifest is damaged.
    """
    folder = Path(text)
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return load_run(text)
    values = _read_manifest(manifest)
    if not (folder / "score.tif").is_file() or "run_id" not in values:
        raise InputError(f"{folder} does not hold a finished run.", "Run the scene again.")
    return Run(values["run_id"], folder, values)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not the manifest of a run: {error}.", "Choose another folder.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not the manifest of a run.", "Choose another folder.")
    return values


def export_run(
    run_id: str | Run,
    what: What,
    out: Path,
    threshold: float | None = None,
    footprints: Path | None = None,
    progress: Progress = silent,
) -> ExportResult:
    """Write a part of a run, or all of it. Files get their final names only when all of them are whole.

    Args:
        run_id: Id of a finished run of the workspace, or the run.
        what: What to write.
        out: File with a fitting suffix, or a folder in which files get their usual names.
        threshold: Probability from which a pixel counts as changed; the run's when left out.
        footprints: Building outlines; the scene's own when left out, else the model's where it marks buildings. Without
            any, the outlines of change are written.
        progress: Called between the parts.

    Raises:
        UsageError: The suffix of the file does not fit what is asked for, or a run would be overwritten.
        InputError: There is no such run, the footprints cannot be used, or the folder holds a foreign manifest.
        StorageError: The disk is full or the place cannot be written.
        Cancelled: The progress callback asked to stop.
    """
    run = load_run(run_id) if isinstance(run_id, str) else run_id
    suffix = _file_suffix(what, out)
    parent = out.parent if suffix else out
    if parent.resolve() == run.folder.resolve():
        raise UsageError(f"{parent} is the folder of the run itself.", "Choose another --out: a run is never changed.")
    if suffix is None or out.name in RUN_FILES:
        _spare_other_runs(parent, run)
    with storage_errors(out):
        parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=parent) as scratch:
            used = run.manifest["threshold"] if threshold is None else threshold
            job = _Export(run, used, footprints, Path(scratch), progress)
            files = job.write(what, suffix)
            paths = _deliver(files, out, suffix, archive=what == "package")
    return ExportResult(what, used, paths, tuple(job.notes))


@dataclass
class _Export:
    """One export: writes files with their usual names into a folder of its own."""

    run: Run
    threshold: float
    footprints: Path | None
    folder: Path
    progress: Progress
    notes: list[str] = field(default_factory=list)

    def write(self, what: What, suffix: str | None) -> list[Path]:
        """Write what is asked for; of several formats only the one with the suffix, when there is one."""
        self.progress(what, 0, 1)
        said = [self.notice] if self.notice else []
        if what in ("score", "mask"):
            self.notes += said
            return [self._score() if what == "score" else self._mask()]
        self.notes += [*self.vectors.notes, *said]
        if what == "map":
            return [self._map()]
        if what == "buildings":
            return self._buildings((suffix,) if suffix else _SUFFIXES["buildings"])
        return self._package()

    @cached_property
    def grid(self) -> Grid:
        with RasterSource(self.run.score) as source:
            return source.grid

    @cached_property
    def notice(self) -> str | None:
        return notice_of_run(self.run.manifest["model"])

    @cached_property
    def scene(self) -> Scene | None:
        return scene_of(self.run)

    @cached_property
    def vectors(self) -> Vectors:
        return graded_vectors(self.run, self.threshold, self.footprints, self.progress)

    def _score(self) -> Path:
        return Path(copyfile(self.run.score, self.folder / "score.tif"))

    def _evidence(self) -> list[Path]:
        evidence = self.run.evidence
        return [] if evidence is None else [Path(copyfile(evidence, self.folder / evidence.name))]

    def _mask(self) -> Path:
        path = self.folder / "mask.tif"
        tags = {"MMCD_RUN": self.run.id, "MMCD_THRESHOLD": f"{self.threshold:.3f}"}
        write_mask(self.run.score, self.grid, self.threshold, path, tags)
        return path

    def _buildings(self, suffixes: tuple[str, ...]) -> list[Path]:
        vectors = self.vectors
        facts = {"model": self.run.manifest["model"]["name"], "threshold": f"{self.threshold:.3f}", "run": self.run.id}
        if self.scene is not None:
            facts |= {"scene": self.scene.id, "licence": self.scene.licence, "simulated": str(self.scene.simulated)}
        facts |= vectors.facts | ({"notice": self.notice} if self.notice else {})
        paths = []
        for suffix in suffixes:
            if suffix == ".geojson" and vectors.frame.crs is None:
                if suffixes == (suffix,):
                    raise InputError("GeoJSON holds degrees, and these images have no georeference.", "Write a .gpkg.")
                self.notes.append("There is no GeoJSON: it holds degrees, and these images have no georeference.")
                continue
            paths.append(self.folder / f"{vectors.layer}{suffix}")
            write_vectors(paths[-1], vectors.frame, vectors.layer, facts)
        return paths

    def _map(self) -> Path:
        path = self.folder / "map.html"
        path.write_text(standalone_map(self.run, self.scene, self.threshold, self.vectors), encoding="utf-8")
        return path

    def _package(self) -> list[Path]:
        parts: list[tuple[What, Callable[[], list[Path]]]] = [
            ("score", lambda: [self._score(), *self._evidence()]),
            ("mask", lambda: [self._mask()]),
            ("buildings", lambda: self._buildings(_SUFFIXES["buildings"])),
            ("map", lambda: [self._map()]),
        ]
        files: list[Path] = []
        for number, (name, write) in enumerate(parts):
            self.progress(name, number, len(parts))
            files += write()
        areas = area_summary(count_scores(self.run.score), self.threshold, self.grid.pixel_area_m2)
        return [*files, self._item(files, areas), self._manifest(files, areas)]

    def _item(self, files: list[Path], areas: dict[str, Any]) -> Path:
        item = json.loads((self.run.folder / "item.json").read_text(encoding="utf-8"))
        item["properties"] |= {"mmcd:threshold": self.threshold, "mmcd:changed_share": areas["changed_share"]}
        known = {asset["href"] for asset in item["assets"].values()}
        for path in files:
            if f"./{path.name}" not in known:
                item["assets"][path.name] = exported_asset(path)
        path = self.folder / "item.json"
        path.write_text(json.dumps(item, indent=2), encoding="utf-8")
        return path

    def _manifest(self, files: list[Path], areas: dict[str, Any]) -> Path:
        exported: dict[str, Any] = {
            "mmcd": __version__,
            "at": datetime.now(UTC).isoformat(),
            "threshold": self.threshold,
            "areas": areas,
            "files": {path.name: file_sha256(path) for path in files},
            "footprints": used_footprints(self.run, self.footprints) if self.vectors.layer == "buildings" else None,
            self.vectors.layer: self.vectors.totals,
            "notes": self.notes,
        }
        path = self.folder / "manifest.json"
        path.write_text(json.dumps(self.run.manifest | {"export": exported}, indent=2), encoding="utf-8")
        return path


def _file_suffix(what: What, out: Path) -> str | None:
    """Return the suffix when ``out`` is to be a file, None when it is to be a folder."""
    suffix = out.suffix.lower()
    if out.is_dir() or not suffix:
        return None
    if suffix in _SUFFIXES[what]:
        return suffix
    raise UsageError(
        f"{out.name} does not fit --what {what}.",
        f"Name a folder, or a file that ends in {' or '.join(_SUFFIXES[what])}.",
    )


def _spare_other_runs(folder: Path, run: Run) -> None:
    """Refuse a folder in which files of the usual names are not an earlier export of this run."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return
    values = _read_manifest(manifest)
    if "export" not in values or values.get("run_id") != run.id:
        raise UsageError(f"{folder} holds another run.", "Choose another --out: a run is never changed.")


def _deliver(files: list[Path], out: Path, suffix: str | None, *, archive: bool) -> tuple[Path, ...]:
    """Give the files their final names."""
    if suffix is None:
        return tuple(path.replace(out / path.name) for path in files)
    if not archive:
        return (files[0].replace(out),)
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for path in files:
            method = zipfile.ZIP_STORED if path.suffix in _PACKED else zipfile.ZIP_DEFLATED
            packed.write(path, path.name, method)
    return (out,)
