"""Collections of image pairs to look through: folders of data sets, and the scenes of the catalogs.

A folder is known to the app by a key, which the workspace keeps: an address names the key and never a path, so that no
link reads a folder that the user of this workspace has not opened.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import model_validator

from mmcd.config import Config
from mmcd.data.bright import index_bright
from mmcd.data.levir_files import index_levir
from mmcd.data.ombria import index_ombria
from mmcd.errors import DataError, InputError
from mmcd.geo.cog import atomic_path
from mmcd.locks import turn
from mmcd.paths import workspace, workspace_folder
from mmcd.services.index import BLACKLIST
from mmcd.services.scenes import list_scenes

Layout = Literal["bright", "ombria", "levir"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
NAMES: dict[Layout, str] = {"bright": "BRIGHT", "ombria": "OMBRIA", "levir": "LEVIR-CD"}

CATALOG = "catalog"
"""Key of the collection of all scenes."""

_FILE = "collections.json"


class OpenRequest(Config):
    """What `mmcd explore` is to open.

    Attributes:
        root: Folder of a data set; None for the scenes.
        dataset: Its layout; found out when left out.
    """

    root: Path | None = None
    dataset: Layout | None = None

    @model_validator(mode="after")
    def _folder_of_a_layout(self) -> Self:
        if self.dataset is not None and self.root is None:
            raise ValueError("--dataset says how a folder is laid out: give the folder with --root")
        return self


@dataclass(frozen=True)
class Picture:
    """A pair of images and its label.

    Attributes:
        id: Its name in the collection.
        event: What it shows.
        pre: Image before.
        post: Image after.
        label: Raster of labels; None where there is none.
        graded: Whether the label holds BRIGHT's classes; False of a mask of change, None where only the file can tell.
    """

    id: str
    event: str
    pre: Path
    post: Path
    label: Path | None
    graded: bool | None = None


@dataclass(frozen=True)
class Collection:
    """Pairs of images in their order.

    Attributes:
        key: What an address calls it.
        title: One line for people.
        pictures: The pairs; never empty.
        flags: File that takes which of them are cloudy or shifted, as `mmcd data index` reads it.
    """

    key: str
    title: str
    pictures: tuple[Picture, ...]
    flags: Path

    def number_of(self, picture_id: str) -> int | None:
        """Return the position of a picture, from 0; None when there is none of this id."""
        return next((number for number, picture in enumerate(self.pictures) if picture.id == picture_id), None)


def register(root: Path, layout: Layout | None = None) -> str:
    """Note a folder in the workspace and return its key.

    Args:
        root: Folder of a data set.
        layout: How it is laid out; found out when left out.

    Raises:
        DataError: It is no folder or holds no pair in that layout.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", "Give the folder of a data set, see `mmcd explore --help`.")
    found = _layout_of(root) if layout is None else layout
    _READERS[found](root)
    path = root.resolve()
    key = f"{found}-{hashlib.sha256(str(path).encode()).hexdigest()[:10]}"
    with turn(workspace() / f"{_FILE}.lock", 60), atomic_path(workspace() / _FILE) as temporary:
        temporary.write_text(json.dumps({**_known(), key: {"layout": found, "root": str(path)}}, indent=2))
    return key


def registered() -> dict[str, str]:
    """Return the title of each folder that was opened in this workspace and is still there, by key, the last first."""
    return {
        key: f"{NAMES[entry['layout']]}: {entry['root']}"  # type: ignore[index]
        for key, entry in reversed(_known().items())
        if Path(entry["root"]).is_dir()
    }


def open_collection(key: str) -> Collection:
    """Return a collection.

    Raises:
        InputError: No folder of this key was opened in this workspace.
        DataError: The folder is gone or holds no pair any more.
    """
    if key == CATALOG:
        return _catalog()
    entry = _known().get(key)
    if entry is None or entry["layout"] not in LAYOUTS:
        raise InputError("This workspace knows no such data set.", "Open its folder on the Explorer page.")
    root, layout = Path(entry["root"]), next(name for name in LAYOUTS if name == entry["layout"])
    if not root.is_dir():
        raise DataError(f"{root} is not there any more.", "Open the folder where it is now.")
    pictures = _READERS[layout](root)
    return Collection(key, f"{NAMES[layout]}, {len(pictures):,} pairs in {root}", pictures, root / BLACKLIST)


def _catalog() -> Collection:
    scenes = list_scenes()
    if not scenes:
        raise DataError("There is no scene yet.", "Add one on the Scenes page, or `mmcd data simulate` some.")
    pictures = tuple(Picture(scene.id, scene.title or scene.id, scene.pre, scene.post, scene.label) for scene in scenes)
    return Collection(CATALOG, f"{len(pictures):,} scenes", pictures, workspace_folder("flags") / BLACKLIST)


def _layout_of(root: Path) -> Layout:
    """Return the first layout in which a folder holds pairs."""
    for layout in LAYOUTS:
        try:
            _READERS[layout](root)
        except DataError:
            continue
        return layout
    raise DataError(
        f"{root} holds no pairs of BRIGHT, OMBRIA or LEVIR-CD.",
        "Give a folder in one of these layouts, see the README.",
    )


def _of_bright(root: Path) -> tuple[Picture, ...]:
    return tuple(
        Picture(tile.id, tile.event, tile.pre, tile.post, tile.label, True) for tile in index_bright(root).tiles
    )


def _of_ombria(root: Path) -> tuple[Picture, ...]:
    return tuple(
        Picture(tile.id, tile.event, tile.pre, tile.post, tile.mask, False) for tile in index_ombria(root).tiles
    )


def _of_levir(root: Path) -> tuple[Picture, ...]:
    return tuple(
        Picture(pair.id, pair.group, pair.pre, pair.post, pair.label, False) for pair in index_levir(root).pairs
    )


_READERS: dict[Layout, Callable[[Path], tuple[Picture, ...]]] = {
    "bright": _of_bright,
    "ombria": _of_ombria,
    "levir": _of_levir,
}


def _known() -> dict[str, dict[str, str]]:
    path = workspace() / _FILE
    if not path.is_file():
        return {}
    try:
        known: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}.", "Delete it and open the folders again.") from error
    return known
