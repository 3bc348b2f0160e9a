"""How much of the disk the workspace takes, and clearing it of what can be made or fetched again."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from mmcd.config import Config
from mmcd.errors import InputError, StorageError, UsageError
from mmcd.geo.catalog import Scene
from mmcd.jobs import open_store
from mmcd.paths import schema_version, workspace, workspace_folder
from mmcd.services.runs import list_runs
from mmcd.services.scenes import forget_scene, list_scenes, own_scene

Part = Literal["runs", "scenes", "sources", "training", "exports", "assets", "other"]

PARTS: dict[Part, str] = {
    "runs": "Scores, masks and exports of runs",
    "scenes": "Catalog of your own scenes",
    "sources": "Downloaded and uploaded images",
    "training": "Training runs and their checkpoints",
    "exports": "Models converted for faster backends",
    "assets": "The map's scripts and coast lines",
    "other": "Jobs, logs and settings",
}
"""What the workspace holds, for people."""

Clearable = Literal["runs", "sources"]


@dataclass(frozen=True)
class PartSize:
    """Size of one part of the workspace.

    Attributes:
        name: The part.
        entries: Number of runs, scenes and so on: the entries of its folder.
        size: Bytes of its files.
    """

    name: Part
    entries: int
    size: int


@dataclass(frozen=True)
class Usage:
    """What the workspace takes.

    Attributes:
        folder: The workspace.
        schema: Version of its layout.
        parts: Its parts, largest first.
        free: Bytes free on its disk.
    """

    folder: Path
    schema: int
    parts: tuple[PartSize, ...]
    free: int

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.size for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the usage as JSON values."""
        parts = {part.name: {"entries": part.entries, "bytes": part.size} for part in self.parts}
        return {
            "folder": str(self.folder),
            "schema": self.schema,
            "parts": parts,
            "bytes": self.size,
            "free_bytes": self.free,
        }


@dataclass(frozen=True)
class Cleared:
    """What was removed.

    Attributes:
        entries: Number of runs or images.
        size: Bytes.
    """

    entries: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return asdict(self)


class ClearRequest(Config):
    """What to remove from the workspace.

    Attributes:
        what: Runs, or downloads and uploads that no scene uses.
        scene: Scene whose runs are removed; None removes all, half-finished ones too.
    """

    what: Clearable
    scene: str | None = None

    @classmethod
    def checked(cls, **values: Any) -> Self:
        """Build a request from a user's words.

        Raises:
            UsageError: A word is not one of the choices, or a scene is named for something that has none.
        """
        request = super().checked(**values)
        if request.scene is not None and request.what != "runs":
            raise UsageError("Only runs can be cleared by scene.", "Leave --scene out.")
        return request


def usage() -> Usage:
    """Return the size of the workspace by parts.

    Raises:
        StorageError: The workspace cannot be used.
    """
    folder = workspace()
    named: tuple[Part, ...] = ("runs", "scenes", "sources", "training", "exports", "assets")
    parts = [PartSize(name, *_measure(folder / name)) for name in named]
    rest = [path for path in folder.iterdir() if path.name not in named]
    parts.append(PartSize("other", len(rest), sum(_size(path) for path in rest)))
    largest_first = tuple(sorted(parts, key=lambda part: -part.size))
    return Usage(folder, schema_version(folder), largest_first, shutil.disk_usage(folder).free)


def clearable(request: ClearRequest) -> Cleared:
    """Return what :func:`clear` would remove."""
    folders = _folders(request)
    return Cleared(len(folders), sum(_size(folder) for folder in folders))


def clear(request: ClearRequest) -> Cleared:
    """Remove runs with their scores and masks, or downloads and uploads that no scene uses. Scenes stay.

    Raises:
        InputError: A job is writing there.
        StorageError: A file cannot be removed.
    """
    kind = "predict" if request.what == "runs" else "check_scene"
    for job in open_store(workspace()).active(kind):
        if request.scene in (None, job.request.get("scene")):
            raise InputError(
                "A run is being computed or waits." if request.what == "runs" else "Images are being fetched.",
                "Cancel it, or wait for its end, then clear.",
            )
    return _remove(_folders(request))


def removable(scene_id: str) -> Cleared:
    """Return the downloads and uploads that :func:`remove_scene` would remove: those that no other scene uses.

    Raises:
        InputError: There is no such scene, or it is a sample.
    """
    folders = _only_of(own_scene(scene_id))
    return Cleared(len(folders), sum(_size(folder) for folder in folders))


def words_on_runs(scene_id: str) -> str:
    """Return a sentence on what becomes of a scene's runs when it is removed; empty where there are none."""
    count = len(list_runs(scene_id))
    if not count:
        return ""
    runs = f"Its {count:,} runs stay" if count > 1 else "Its only run stays"
    return f"{runs} in the workspace and can then only be exported by id, without the scene's footprints."


def remove_scene(scene_id: str) -> Cleared:
    """Remove a scene that was added, with its downloads and uploads; files given by path stay.

    Its runs stay as well, but can only be exported by id. While they are there, no other scene can have this id.

    Returns:
        Number and bytes of the images that went with it.

    Raises:
        InputError: There is no such scene, it is a sample, or a job works on it.
        StorageError: A file cannot be removed.
    """
    folders = _only_of(own_scene(scene_id))
    for job in open_store(workspace()).active():
        if job.request.get("scene") == scene_id or (folders and job.kind == "check_scene"):
            what = "is being analysed" if job.kind == "predict" else "may share images that are being fetched"
            raise InputError(f"{scene_id!r} {what}.", "Cancel that job, or wait for its end, then remove the scene.")
    forget_scene(scene_id)
    return _remove(folders)


def _only_of(scene: Scene) -> list[Path]:
    """Return the folders of downloads and uploads that one scene uses and no other."""
    kept = {folder for other in list_scenes() if other.id != scene.id for folder in _source_folders(other)}
    return sorted(_source_folders(scene) - kept)


def _source_folders(scene: Scene) -> set[Path]:
    sources = workspace_folder("sources").resolve()
    folders = {file.resolve().parent for file in _files(scene)}
    return {folder for folder in folders if folder.parent == sources and folder.is_dir()}


def _folders(request: ClearRequest) -> list[Path]:
    return list(_run_folders(request.scene) if request.what == "runs" else _unused_sources())


def _run_folders(scene_id: str | None) -> Iterator[Path]:
    if scene_id is None:
        yield from (path for path in workspace_folder("runs").iterdir() if path.is_dir())
    else:
        yield from (run.folder for run in list_runs(scene_id))


def _unused_sources() -> Iterator[Path]:
    used = {file.resolve().parent for scene in list_scenes() for file in _files(scene)}
    yield from (path for path in workspace_folder("sources").iterdir() if path.resolve() not in used)


def _files(scene: Scene) -> list[Path]:
    return [file for file in (scene.pre, scene.post, scene.label, scene.footprints) if file is not None]


def _remove(folders: list[Path]) -> Cleared:
    size = 0
    for folder in folders:
        size += _size(folder)
        try:
            # First what makes it a run: half removed, it must not be taken for a finished one.
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        except OSError as error:
            action = "Close the programs that use it, then clear again."
            raise StorageError(f"{folder} cannot be removed: {error.strerror}.", action) from error
    return Cleared(len(folders), size)


def _measure(folder: Path) -> tuple[int, int]:
    entries = list(folder.iterdir()) if folder.is_dir() else []
    return sum(entry.is_dir() for entry in entries), sum(_size(entry) for entry in entries)


def _size(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder; what vanishes meanwhile, as a job ends, has none."""
    total = 0 if path.is_dir() else _bytes_of(path)
    for folder, folders, files in os.walk(path):
        total += sum(_bytes_of(Path(folder, name)) for name in (*folders, *files))
    return total


def _bytes_of(path: Path) -> int:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_size
