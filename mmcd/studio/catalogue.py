"""The Scenes page's parts: filter, table, world map, and the removal of a scene."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

import folium
import pandas as pd
import shapely
import streamlit as st

from mmcd.geo.catalog import Scene
from mmcd.services.runs import Run
from mmcd.services.scenes import is_own
from mmcd.services.storage import removable, remove_scene, words_on_runs
from mmcd.studio import loaders
from mmcd.studio.layers import MapCall, View, land_url, new_map, scene_url
from mmcd.studio.loaders import size
from mmcd.studio.messages import day, disk, metres, pixel_size, utc

_SIMULATED = re.compile(r"^simulated\W+|\s*\(simulated\)$", re.IGNORECASE)
_REMOVED = "mmcd_removed"
WORLD = (-165.0, -56.0, 178.0, 72.0)


@dataclass(frozen=True)
class Mark:
    """How an event type is marked: letter and shape tell it without the colour.

    Attributes:
        letter: Letter inside the marker.
        shape: Shape of the marker, a key of ``SHAPES`` in ``static/world.js``.
        colour: Fill, dark enough for a white letter.
    """

    letter: str
    shape: str
    colour: str


MARKS = {
    "earthquake": Mark("E", "triangle", "#8f4a00"),
    "explosion": Mark("X", "diamond", "#a8321a"),
    "wildfire": Mark("W", "pentagon", "#b3450c"),
    "hurricane": Mark("H", "hexagon", "#6a3d7c"),
    "flood": Mark("F", "drop", "#0067a3"),
    "volcano": Mark("V", "square", "#5c4433"),
    "conflict": Mark("C", "circle", "#3d4a57"),
}
OTHER = Mark("?", "circle", "#4d5761")

COLUMNS = (
    "Event", "Type", "Place", "Before", "After", "Sensors", "Pixel", "Size", "Labels", "Last run", "Images", "Licence",
    "Scene",
)  # fmt: skip
WIDTHS = {"Event": 200, "Type": 100, "Place": 150, "Sensors": 150, "Size": 120, "Last run": 150}


def event_types(scenes: Sequence[Scene]) -> list[str]:
    """Return the event types that occur, sorted."""
    return sorted({scene.event_type for scene in scenes})


def mark_of(event_type: str) -> Mark:
    """Return the marker of an event type; also of longer names such as ``volcano eruption``."""
    return next((mark for name, mark in MARKS.items() if name in event_type.lower()), OTHER)


def filter_scenes(scenes: Sequence[Scene], text: str, types: Sequence[str], days: Sequence[date] = ()) -> list[Scene]:
    """Return the scenes that hold every word of the text, are of these types and were imaged in these days.

    Args:
        scenes: What to choose from.
        text: Words of title, event, type, place or id.
        types: Event types; all when empty.
        days: First and last day of the image after, either may be missing from the end; all when empty. A scene
            without a day is in no span.
    """
    words = text.lower().split()
    return [
        scene
        for scene in scenes
        if (not types or scene.event_type in types) and _holds(scene, words) and _within(scene.post_date, days)
    ]


def scene_rows(scenes: Sequence[Scene], runs: Sequence[Run]) -> pd.DataFrame:
    """Return the table of scenes, one row a scene in the same order.

    Args:
        scenes: What to list.
        runs: Finished runs, newest first.
    """
    last: dict[str | None, str] = {}
    for run in runs:
        last.setdefault(run.scene_id, finished(run))
    rows = [
        (
            event_name(scene),
            scene.event_type,
            short_place(scene),
            day(scene.pre_date),
            day(scene.post_date),
            sensors(scene),
            metres(scene.gsd),
            size(scene.pre),
            "yes" if scene.label else "no",
            last.get(scene.id, "–"),
            "simulated" if scene.simulated else "real",
            scene.licence or "not stated",
            scene.id,
        )
        for scene in scenes
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def event_name(scene: Scene) -> str:
    """Return a scene's title without saying that it is simulated: a column or a badge of its own says so."""
    name = scene.title or scene.event or scene.id
    if scene.simulated:
        name = _SIMULATED.sub("", name)
    return name[:1].upper() + name[1:]


def short_place(scene: Scene) -> str:
    """Return where a scene is, without remarks in brackets."""
    return scene.place.split(" (")[0] or "–"


def sensors(scene: Scene) -> str:
    """Return the sensors before and after, without saying that they are simulated."""
    pair = (scene.pre_sensor or "optical", scene.post_sensor or loaders.sensor_kind(scene.post))
    return " → ".join(_SIMULATED.sub("", name) if scene.simulated else name for name in pair)


def finished(run: Run) -> str:
    """Return when a run ended, such as ``2026-05-04 13:30 UTC``."""
    return utc(datetime.fromisoformat(str(run.manifest["finished"])))


def scene_card(scene: Scene) -> None:
    """Draw what matters of one scene before it is analysed."""
    st.subheader(event_name(scene))
    if scene.simulated:
        st.badge("Simulated: nothing here is real", icon=":material/science:", color="orange")
    before, after = sensors(scene).split(" → ")
    st.markdown(
        f"**{_event_words(scene)}**, {scene.place or 'place unknown'} · before {day(scene.pre_date)}"
        f" ({before}) · after {day(scene.post_date)} ({after})"
        f" · {pixel_size(scene.gsd)}, {size(scene.pre)}"
    )
    if not scene.geometry:
        st.caption("No georeference: not on the map, analysed in pixel space.")


def remove_button(scene: Scene) -> None:
    """Draw the removal of a scene that was added, behind a question; nothing for a sample."""
    if not is_own(scene.id):
        return
    with st.popover("Remove this scene", icon=":material/delete:", width="stretch"):
        found = removable(scene.id)
        freed = f"Frees **{disk(found.size)}** that were downloaded or uploaded for it." if found.entries else ""
        st.markdown(f"{freed} {words_on_runs(scene.id)} Images that were given by path stay.")
        if st.button("Yes, remove it for good", type="primary", width="stretch", key=f"remove-{scene.id}"):
            remove_scene(scene.id)
            for cached in (loaders.scenes, loaders.scene):
                cached.clear()
            st.session_state[_REMOVED] = f"{event_name(scene)} was removed."
            st.query_params.pop("scene", None)
            st.rerun()


def removed_note() -> None:
    """Say once which scene was just removed."""
    if said := st.session_state.pop(_REMOVED, None):
        st.success(said, icon=":material/check:")


def world_map(scenes: Sequence[Scene], channel: str, dark: bool, basemap: str | None) -> folium.Map:
    """Return the map of all scenes that have a place; the same for the same scenes, whatever is selected."""
    placed = [scene for scene in scenes if scene.geometry]
    canvas = new_map(View(f"World map of {len(placed):,} scenes", WORLD, dark, basemap, whole_world=True))
    coast = land_url()
    if coast is not None and basemap is None:
        canvas.add_child(MapCall("land", url=coast))
    canvas.add_child(MapCall("scenes", scenes=[_item(scene) for scene in placed], channel=channel))
    return canvas


def _item(scene: Scene) -> dict[str, object]:
    shape = shapely.geometry.shape(scene.geometry)
    mark = mark_of(scene.event_type)
    return {
        "id": scene.id,
        "text": f"{scene.title or scene.id}, {scene.event_type}{', simulated' if scene.simulated else ''}",
        "lon": shape.centroid.x,
        "lat": shape.centroid.y,
        "bounds": shape.bounds,
        "letter": mark.letter,
        "shape": mark.shape,
        "colour": mark.colour,
        "overview": scene_url(scene, "pre", "overview.png"),
    }


def _event_words(scene: Scene) -> str:
    return "Event type unknown" if scene.event_type in ("", "unknown") else scene.event_type.capitalize()


def _holds(scene: Scene, words: Sequence[str]) -> bool:
    text = " ".join((scene.id, scene.title, scene.event, scene.event_type, scene.place)).lower()
    return all(word in text for word in words)


def _within(day: date | None, days: Sequence[date]) -> bool:
    first, last = (*days, None, None)[:2]
    return first is None or (day is not None and first <= day and (last is None or day <= last))
