"""The scenes a user can choose from: the sample catalog and the workspace's own."""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from mmcd.config import Config
from mmcd.errors import InputError
from mmcd.geo.catalog import Catalog, Scene, is_scene_id
from mmcd.geo.check import CheckReport, Finding, check_pair
from mmcd.geo.footprints import read_footprints
from mmcd.geo.raster import RasterSource
from mmcd.locks import ATTENDED_SECONDS, turn
from mmcd.paths import sample_data_dir, workspace_folder
from mmcd.progress import Progress, silent
from mmcd.services.runs import list_runs
from mmcd.services.sources import local_file

Event = Literal["earthquake", "explosion", "wildfire", "hurricane", "flood", "volcano", "conflict"]
EVENTS: tuple[Event, ...] = get_args(Event)
"""Kinds of event that have a marker of their own; any other word is taken as well."""


class AddSceneRequest(Config):
    """A pair of images to add to the workspace.

    Attributes:
        pre: Optical image before: path, or http or https address.
        post: Radar or optical image after, likewise.
        id: Short name: letters, digits, ``-``, ``_`` and ``.``.
        title: One line for people.
        event_type: Kind of event.
        place: Where it is, for people.
        pre_date: Day of the image before.
        post_date: Day of the image after.
        pre_sensor: Sensor of the image before.
        post_sensor: Sensor of the image after.
        label: Raster of labels, path or address.
        footprints: Building polygons, path or address.
        licence: Rights of the images.
    """

    pre: str
    post: str
    id: str
    title: str = ""
    event_type: str = "unknown"
    place: str = ""
    pre_date: str | None = None
    post_date: str | None = None
    pre_sensor: str = ""
    post_sensor: str = ""
    label: str | None = None
    footprints: str | None = None
    licence: str = ""


@dataclass(frozen=True)
class CheckedScene:
    """A pair that was fetched and checked, not added yet.

    Attributes:
        request: What was asked, with the paths of the local files.
        report: What the ingest check found.
    """

    request: AddSceneRequest
    report: CheckReport

    def to_dict(self) -> dict[str, Any]:
        """Return both as JSON values."""
        return {"request": self.request.model_dump(mode="json"), "report": self.report.to_dict()}


@dataclass(frozen=True)
class AddedScene:
    """A scene that was added, and what the ingest check found in it."""

    scene: Scene
    report: CheckReport


def list_scenes() -> list[Scene]:
    """Return all scenes, those of the workspace first."""
    catalog = _workspace_catalog()
    own = catalog.scenes() if catalog else []
    names = {scene.id for scene in own}
    return own + [scene for scene in _sample_scenes() if scene.id not in names]


def get_scene(scene_id: str) -> Scene:
    """Return one scene.

    Raises:
        InputError: There is none with this id.
    """
    for scene in list_scenes():
        if scene.id == scene_id:
            return scene
    raise InputError(f"There is no scene {scene_id[:80]!r}.", "See `mmcd scenes list` or the Scenes page.")


def check_scene(request: AddSceneRequest, progress: Progress = silent) -> CheckedScene:
    """Fetch a pair of images and what belongs to it where it is not here yet, and check it. Adds nothing.

    Raises:
        InputError: The id is taken, by a scene or by runs of a removed one, or is none; or a day is none. What is wrong
            with the files is in the report instead.
        NetworkError: A file cannot be fetched.
        StorageError: There is no space for it.
    """
    _check_id(request.id)
    days = _days(request)
    local = {
        name: str(local_file(source, progress, "outlines" if name == "footprints" else "image"))
        for name in ("pre", "post", "label", "footprints")
        if (source := getattr(request, name))
    }
    progress("checking the images", 0, 1)
    report = check_pair(Path(local["pre"]), Path(local["post"]), **days)
    if unusable := tuple(_about_references(local)):
        report = replace(report, findings=(*unusable, *report.findings), grid=None, offset=None)
    return CheckedScene(request.model_copy(update=local), report)


def keep_scene(request: AddSceneRequest) -> Scene:
    """Add a pair that :func:`check_scene` did not refuse to the workspace; the images stay where they are.

    Args:
        request: The request that the check returned, whose sources are local files.

    Raises:
        InputError: The id is taken, or an image cannot be read any more.
        StorageError: The workspace cannot be written.
    """
    scene = _scene_of(request)
    with _catalog_to_change() as catalog:
        _check_id(request.id)
        catalog.add(scene)
    return scene


def is_own(scene_id: str) -> bool:
    """Return whether a scene was added by the user, so that it can be removed; samples belong to mmcd."""
    catalog = _workspace_catalog()
    return catalog is not None and catalog.holds(scene_id)


def own_scene(scene_id: str) -> Scene:
    """Return a scene that was added by the user.

    Raises:
        InputError: There is none with this id, or it is a sample.
    """
    scene = get_scene(scene_id)
    if not is_own(scene_id):
        raise InputError(f"{scene_id!r} is a sample and belongs to mmcd.", "Only scenes that you added can be removed.")
    return scene


def forget_scene(scene_id: str) -> None:
    """Take a scene out of the workspace's catalog; its files and its runs stay.

    Raises:
        InputError: There is none with this id in it.
        StorageError: The workspace cannot be written.
    """
    with _catalog_to_change() as catalog:
        catalog.remove(scene_id)


def add_scene(request: AddSceneRequest, progress: Progress = silent) -> AddedScene:
    """Fetch, check and add a pair of images in one go.

    Raises:
        InputError: The check refused the pair, or the id is taken.
        NetworkError: An image cannot be fetched.
        StorageError: There is no space for it.
    """
    checked = check_scene(request, progress)
    if checked.report.refused:
        first = next(finding for finding in checked.report.findings if finding.severity == "refuse")
        raise InputError(f"{first.message} The scene was not added.", first.action)
    return AddedScene(keep_scene(checked.request), checked.report)


def free_id(title: str) -> str:
    """Return an id for a new scene: its title in plain letters, numbered when there is a scene or a run of one."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60] or "scene"
    taken = {scene.id for scene in list_scenes()} | {run.scene_id for run in list_runs()}
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in taken)


def scene_facts(scene: Scene) -> dict[str, Any]:
    """Return what a list of scenes shows, as JSON values."""
    return {
        "id": scene.id,
        "title": scene.title,
        "event": scene.event,
        "event_type": scene.event_type,
        "place": scene.place,
        "pre": str(scene.pre),
        "post": str(scene.post),
        "pre_date": scene.pre_date.isoformat() if scene.pre_date else None,
        "post_date": scene.post_date.isoformat() if scene.post_date else None,
        "sensors": f"{scene.pre_sensor} / {scene.post_sensor}",
        "gsd": scene.gsd,
        "licence": scene.licence,
        "labelled": scene.label is not None,
        "simulated": scene.simulated,
        "geometry": scene.geometry,
    }


def _check_id(scene_id: str) -> None:
    if not is_scene_id(scene_id):
        raise InputError(f"{scene_id!r} is not a scene id.", "Use letters, digits, '-', '_' and '.', no spaces.")
    if any(scene.id == scene_id for scene in list_scenes()):
        raise InputError(f"There is a scene {scene_id!r} already.", "Choose another id.")
    if list_runs(scene_id):  # they would be shown over other images, as runs of the new scene
        raise InputError(
            f"There are runs of a scene {scene_id!r} that was removed.",
            f"Clear them first (`mmcd workspace clear runs --scene {scene_id}`), or choose another id.",
        )


def _about_references(local: dict[str, str]) -> Iterator[Finding]:
    """Refuse labels and building polygons that cannot be read; the pages draw both, and fail on what is not there."""
    if "label" in local:
        try:
            RasterSource(local["label"]).close()
        except InputError as error:
            yield Finding("refuse", "label", "not_labels", error.message, error.hint)
    if "footprints" in local:
        try:
            read_footprints(Path(local["footprints"]))
        except InputError as error:
            yield Finding("refuse", "footprints", "not_footprints", error.message, error.hint)


def _scene_of(request: AddSceneRequest) -> Scene:
    with RasterSource(request.post) as source:
        grid = source.grid
    days = _days(request)
    return Scene(
        id=request.id,
        title=request.title or request.id,
        event=request.title or request.id,
        event_type=request.event_type,
        place=request.place,
        pre=Path(request.pre),
        post=Path(request.post),
        label=Path(request.label) if request.label else None,
        footprints=Path(request.footprints) if request.footprints else None,
        pre_date=days["pre_date"],
        post_date=days["post_date"],
        pre_sensor=request.pre_sensor,
        post_sensor=request.post_sensor,
        gsd=grid.gsd,
        geometry=grid.geographic_footprint(),
        licence=request.licence,
    )


@contextmanager
def _catalog_to_change() -> Iterator[Catalog]:
    """Open the workspace's catalog while no other process writes it: the last one would undo what the first did."""
    with turn(workspace_folder("locks") / "scenes.lock", ATTENDED_SECONDS):
        yield _workspace_catalog() or Catalog.create(workspace_folder("scenes"))


def _workspace_catalog() -> Catalog | None:
    """Open the workspace's catalog; None before the first scene: readers, who hold no lock, must not write one."""
    folder = workspace_folder("scenes")
    return Catalog.open(folder) if (folder / "catalog.json").exists() else None


def _sample_scenes() -> list[Scene]:
    folder = sample_data_dir()
    return Catalog.open(folder).scenes() if (folder / "catalog.json").exists() else []


def _days(request: AddSceneRequest) -> dict[str, date | None]:
    return {"pre_date": _day(request.pre_date), "post_date": _day(request.post_date)}


def _day(text: str | None) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{text!r} is not a day.", "Write YYYY-MM-DD.") from error
