"""Scenes on disk: a static STAC catalog, one item a scene.

Beside STAC's own fields an item carries ``mmcd:`` properties (event, dates of both images, sensors, simulated or not).
Files inside the catalog's folder are referred to relatively, so the folder can be moved; others by absolute path.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Self

import pystac
from pystac.extensions.projection import ProjectionExtension

from mmcd.errors import InputError
from mmcd.geo.cog import atomic_path, storage_errors
from mmcd.geo.grid import Grid
from mmcd.geo.raster import RasterSource

_FILE = "catalog.json"
_KEPT = 4096  # parsed scenes in memory at most; each takes some kilobytes
_ROLES = {"pre": ["data"], "post": ["data"], "label": ["labels"], "footprints": ["labels"]}
_MEDIA = {
    ".tif": pystac.MediaType.GEOTIFF,
    ".tiff": pystac.MediaType.GEOTIFF,
    ".png": pystac.MediaType.PNG,
    ".jpg": pystac.MediaType.JPEG,
    ".geojson": pystac.MediaType.GEOJSON,
    ".gpkg": pystac.MediaType.GEOPACKAGE,
}
_STAC_ERRORS = (pystac.STACError, pystac.STACTypeError, KeyError, ValueError, TypeError)
_UNDATED = datetime(1970, 1, 1, tzinfo=UTC)  # STAC wants a time for every item; `mmcd:undated` says it means nothing.


@dataclass(frozen=True)
class Scene:
    """One place and event.

    Attributes:
        id: Short name, unique in its catalog.
        title: One line for people.
        event: Name of the event.
        event_type: Kind of event, such as ``flood``.
        place: Where it is, for people.
        pre: Image before.
        post: Image after.
        label: Raster of labels.
        footprints: Building polygons.
        pre_date: Day of the image before.
        post_date: Day of the image after.
        event_date: Day of the event.
        pre_sensor: Sensor of the image before.
        post_sensor: Sensor of the image after.
        gsd: Ground sample distance of post in metres; None without a georeference or a known unit.
        geometry: GeoJSON outline in EPSG:4326; None without a georeference.
        licence: Rights of the images.
        simulated: Whether the images were computed, not taken.
        properties: Whatever else is known, JSON values.
    """

    id: str
    title: str
    event: str
    event_type: str
    place: str
    pre: Path
    post: Path
    label: Path | None = None
    footprints: Path | None = None
    pre_date: date | None = None
    post_date: date | None = None
    event_date: date | None = None
    pre_sensor: str = ""
    post_sensor: str = ""
    gsd: float | None = None
    geometry: dict[str, Any] | None = None
    licence: str = ""
    simulated: bool = False
    properties: dict[str, Any] = field(default_factory=dict)


class Catalog:
    """A folder of scenes with a ``catalog.json``; made by :meth:`open` or :meth:`create`.

    Attributes:
        folder: The folder, absolute.
    """

    def __init__(self, folder: Path, catalog: pystac.Catalog) -> None:
        self.folder = folder
        self._catalog = catalog

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the catalog of a folder.

        Raises:
            InputError: There is none, or it is not STAC.
        """
        folder = folder.resolve()
        values = _read_json(folder / _FILE)
        try:
            catalog = pystac.Catalog.from_dict(values, href=str(folder / _FILE))
        except _STAC_ERRORS as error:
            raise InputError(f"{folder / _FILE} is not a STAC catalog: {error}.", "Restore it.") from error
        return cls(folder, catalog)

    @classmethod
    def create(cls, folder: Path, title: str = "Scenes") -> Self:
        """Make an empty catalog.

        Args:
            folder: Created when missing.
            title: One line for people.

        Raises:
            InputError: The folder holds a catalog already.
            StorageError: The folder cannot be written.
        """
        folder = folder.resolve()
        if (folder / _FILE).exists():
            raise InputError(f"{folder} holds a catalog already.", "Open it, or choose another folder.")
        catalog = pystac.Catalog(
            id=re.sub(r"\W+", "-", folder.name) or "scenes",
            description="Image pairs before and after disasters.",
            title=title,
            catalog_type=pystac.CatalogType.SELF_CONTAINED,
            href=str(folder / _FILE),
        )
        made = cls(folder, catalog)
        made._save()
        return made

    def scenes(self) -> list[Scene]:
        """Return all scenes in the order in which they were added.

        Raises:
            InputError: An item is missing or damaged.
        """
        return [_scene_at(path) for path in self._item_paths()]

    def get(self, scene_id: str) -> Scene:
        """Return one scene.

        Raises:
            InputError: There is none with this id.
        """
        path = self._item_path(scene_id)
        if path not in self._item_paths():
            raise InputError(f"There is no scene {scene_id[:80]!r} in {self.folder}.", "See `mmcd scenes list`.")
        return _scene_at(path)

    def add(self, scene: Scene) -> None:
        """Add a scene; its files stay where they are.

        Raises:
            InputError: The id is taken or not a plain name, or post cannot be read.
            StorageError: The folder cannot be written.
        """
        if not is_scene_id(scene.id):
            raise InputError(f"{scene.id!r} is not a scene id.", "Use letters, digits, '-', '_' and '.', no spaces.")
        path = self._item_path(scene.id)
        if path in self._item_paths():
            raise InputError(f"There is a scene {scene.id!r} already.", "Choose another id.")
        item = _item_of(scene, path, self.folder)
        item.set_root(None)
        values = item.to_dict(include_self_link=False, transform_hrefs=False)
        up = {"rel": "root", "href": f"../{_FILE}", "type": "application/json"}
        values["links"] = [up, {**up, "rel": "parent"}]
        _write_json(path, values)
        link = pystac.Link("item", f"./{scene.id}/{scene.id}.json", media_type=pystac.MediaType.GEOJSON)
        self._catalog.add_link(link)
        self._save()

    def holds(self, scene_id: str) -> bool:
        """Return whether there is a scene with this id."""
        return self._item_path(scene_id) in self._item_paths()

    def remove(self, scene_id: str) -> None:
        """Remove a scene; its files stay where they are.

        Raises:
            InputError: There is none with this id.
            StorageError: The folder cannot be written.
        """
        path = self._item_path(scene_id)
        links = zip(self._catalog.get_item_links(), self._item_paths(), strict=True)
        link = next((link for link, item in links if item == path), None)
        if link is None:
            raise InputError(f"There is no scene {scene_id[:80]!r} in {self.folder}.", "See `mmcd scenes list`.")
        self._catalog.links.remove(link)
        with storage_errors(path):
            self._save()  # first: a catalog that names what is gone could not be read
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # unless it holds the scene's images

    def _save(self) -> None:
        values = self._catalog.to_dict(include_self_link=False, transform_hrefs=False)
        values["links"] = [link for link in values["links"] if link["rel"] != "root"]
        values["links"].insert(0, {"rel": "root", "href": f"./{_FILE}", "type": "application/json"})
        _write_json(self.folder / _FILE, values)

    def _item_path(self, scene_id: str) -> Path:
        return self.folder / scene_id / f"{scene_id}.json"

    def _item_paths(self) -> list[Path]:
        hrefs: Iterable[str] = (link.get_href(transform_href=False) or "" for link in self._catalog.get_item_links())
        return [Path(os.path.normpath(self.folder / href)) for href in hrefs]


def is_scene_id(text: str) -> bool:
    """Return whether a text can name a scene: it becomes a folder and part of addresses."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", text) is not None


def _item_of(scene: Scene, path: Path, folder: Path) -> pystac.Item:
    taken = [datetime.combine(day, time(), UTC) for day in (scene.pre_date, scene.post_date) if day]
    box = _box(scene.geometry)
    item = pystac.Item(
        id=scene.id,
        geometry=scene.geometry,
        bbox=box,
        datetime=taken[-1] if taken else _UNDATED,
        properties={
            "title": scene.title,
            "license": scene.licence if re.fullmatch(r"[A-Za-z0-9.+-]+", scene.licence) else "other",
            **{f"mmcd:{key}": value for key, value in _own_properties(scene).items() if value not in (None, "", {})},
        },
    )
    if not taken:
        item.properties["mmcd:undated"] = True
    if scene.gsd is not None:
        item.common_metadata.gsd = scene.gsd
    for name, roles in _ROLES.items():
        file: Path | None = getattr(scene, name)
        if file is not None:
            media = _MEDIA.get(file.suffix.lower())
            item.add_asset(name, pystac.Asset(_href(file, path, folder), media_type=media, roles=roles))
    with RasterSource(scene.post) as source:
        _describe_projection(item, source.grid)
    return item


def _own_properties(scene: Scene) -> dict[str, Any]:
    days = {name: getattr(scene, name) for name in ("pre_date", "post_date", "event_date")}
    return {
        "event": scene.event,
        "event_type": scene.event_type,
        "place": scene.place,
        **{name: day.isoformat() if day else None for name, day in days.items()},
        "pre_sensor": scene.pre_sensor,
        "post_sensor": scene.post_sensor,
        "licence": scene.licence,
        "simulated": scene.simulated,
        "properties": scene.properties,
    }


def _describe_projection(item: pystac.Item, grid: Grid) -> None:
    if grid.crs is None:
        return
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    if re.fullmatch(r"[A-Z]+:\w+", grid.crs):
        projection.code = grid.crs
    else:
        projection.wkt2 = grid.crs
    projection.shape = list(grid.shape)
    projection.transform = list(grid.transform)[:6]


def _scene_at(path: Path) -> Scene:
    """Return the scene of an item, parsed again only once its file is another one: pages list all scenes often."""
    try:
        status = path.stat()
    except OSError:
        return _scene_of(path, _read_json(path))  # says what is wrong
    return _scene_then(path, (status.st_ino, status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=_KEPT)
def _scene_then(path: Path, state: tuple[int, int, int]) -> Scene:
    return _scene_of(path, _read_json(path))


def _scene_of(path: Path, values: dict[str, Any]) -> Scene:
    try:
        item = pystac.Item.from_dict(values, href=str(path))
        own = {key.removeprefix("mmcd:"): value for key, value in item.properties.items() if key.startswith("mmcd:")}
        return Scene(
            id=item.id,
            title=str(item.properties.get("title", item.id)),
            event=str(own.get("event", "")),
            event_type=str(own.get("event_type", "")),
            place=str(own.get("place", "")),
            pre=_file(item.assets["pre"], path),
            post=_file(item.assets["post"], path),
            label=_file(item.assets["label"], path) if "label" in item.assets else None,
            footprints=_file(item.assets["footprints"], path) if "footprints" in item.assets else None,
            pre_date=_day(own.get("pre_date")),
            post_date=_day(own.get("post_date")),
            event_date=_day(own.get("event_date")),
            pre_sensor=str(own.get("pre_sensor", "")),
            post_sensor=str(own.get("post_sensor", "")),
            gsd=item.common_metadata.gsd,
            geometry=item.geometry,
            licence=str(own.get("licence", "")),
            simulated=bool(own.get("simulated", False)),
            properties=dict(own.get("properties", {})),
        )
    except _STAC_ERRORS as error:
        raise InputError(f"{path} is not a STAC item of a scene: {error}.", "Restore it or add it again.") from error


def _file(asset: pystac.Asset, item: Path) -> Path:
    return Path(os.path.normpath(item.parent / asset.href))


def _day(text: str | None) -> date | None:
    return None if text is None else date.fromisoformat(text)


def _href(file: Path, item: Path, folder: Path) -> str:
    file = file.resolve()
    if file.is_relative_to(folder):
        return Path(os.path.relpath(file, item.parent)).as_posix()
    return file.as_posix()


def _box(geometry: dict[str, Any] | None) -> list[float] | None:
    if geometry is None:
        return None
    points = [point for ring in geometry["coordinates"] for point in ring]
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return [min(xs), min(ys), max(xs), max(ys)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the folder.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}.", "Restore it or add the scene again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object.", "Restore it or add the scene again.")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
