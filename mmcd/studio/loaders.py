"""What pages read again and again, cached with a bound. Only called from a page's script."""

import functools
from pathlib import Path

import streamlit as st

from mmcd.cards import Card, card_reference, known_cards
from mmcd.errors import InputError
from mmcd.geo.catalog import Scene
from mmcd.geo.raster import RasterSource
from mmcd.jobs import JobStore, open_store
from mmcd.paths import workspace
from mmcd.services import buildings
from mmcd.services.estimates import Estimate, estimate_run
from mmcd.services.labels import changed_from
from mmcd.services.model_choice import Fit, image_facts, model_fit
from mmcd.services.runs import Run, list_runs, load_run
from mmcd.services.scenes import get_scene, list_scenes
from mmcd.services.scores import ScoreTable, score_table
from mmcd.studio import tiles
from mmcd.studio.layers import Bounds

FRESH_SECONDS = 10  # a scene or run made elsewhere, on the command line say, appears after this time


@st.cache_data(ttl=FRESH_SECONDS, max_entries=1, show_spinner="Reading the scene catalog …")
def scenes() -> list[Scene]:
    """Return all scenes."""
    return list_scenes()


@st.cache_data(ttl=FRESH_SECONDS, max_entries=256, show_spinner=False)
def scene(scene_id: str) -> Scene:
    """Return one scene."""
    return get_scene(scene_id)


@st.cache_data(ttl=FRESH_SECONDS, max_entries=64, show_spinner=False)
def runs(scene_id: str | None = None) -> list[Run]:
    """Return finished runs, newest first, all or those of one scene."""
    return list_runs(scene_id)


@st.cache_data(max_entries=64, show_spinner=False)
def run(run_id: str) -> Run:
    """Return a finished run."""
    return load_run(run_id)


@st.cache_data(ttl=FRESH_SECONDS, max_entries=32, show_spinner="Looking for buildings …")
def draws_buildings(run_id: str) -> bool:
    """Return whether there are outlines of buildings of a run; what is wrong with them is said where they are shown."""
    try:
        return buildings.draws_buildings(load_run(run_id))
    except InputError:
        return True


@st.cache_data(max_entries=32, show_spinner="Counting the score …")
def table(run_id: str, label: Path | None) -> ScoreTable:
    """Return the counts of a run's score, by class where there is a label."""
    return score_table(load_run(run_id).score, label, changed_from(label) if label else 1)


@st.cache_data(ttl=FRESH_SECONDS, max_entries=1, show_spinner=False)
def cards() -> list[Card]:
    """Return the cards of the models that are here, shipped ones first."""
    return [card for _, card in known_cards()]


@st.cache_data(ttl=FRESH_SECONDS, max_entries=1, show_spinner=False)
def models() -> dict[str, Card]:
    """Return the cards of the models that are here by the word that names exactly one, `card_reference`."""
    return {card_reference(card): card for card in cards()}


@st.cache_data(max_entries=256, show_spinner="Looking at the images …")
def fit(card: Card, scene: Scene) -> Fit:
    """Return how a model suits a scene."""
    return model_fit(card, image_facts(scene.pre), image_facts(scene.post), scene.event_type)


@st.cache_data(ttl=60, max_entries=64, show_spinner=False)
def estimate(card: Card, scene: Scene, region: str | None, align: bool, adapt: bool) -> Estimate:
    """Return what a run is expected to need."""
    return estimate_run(card, scene, region, align, adapt)


@functools.lru_cache(maxsize=2048)  # of hundreds of rows a page: Streamlit's cache takes a millisecond each
def size(path: Path) -> str:
    """Return the size of a raster in pixels, for people; what is wrong when it cannot be read."""
    try:
        with RasterSource(path) as source:
            return f"{source.grid.width:,} × {source.grid.height:,} px"
    except InputError:
        return "not readable"


@functools.lru_cache(maxsize=2048)
def sensor_kind(path: Path) -> str:
    """Return the kind of an image's sensor, for people: SAR where it cannot be told or read, as after most events."""
    try:
        return "optical" if image_facts(path).modality == "optical" else "SAR"
    except InputError:
        return "SAR"


@st.cache_data(max_entries=512, show_spinner=False)
def placed(path: Path) -> bool:
    """Return whether a raster has a georeference."""
    with RasterSource(path) as source:
        return source.georeference != "none"


@st.cache_data(max_entries=512, show_spinner=False)
def extent(path: Path) -> Bounds:
    """Return west, south, east, north of a raster in degrees, of its stand-in place when it has no georeference."""
    return tiles.geographic_bounds(path)


@st.cache_data(max_entries=512, show_spinner=False)
def footprint(path: Path) -> list[tuple[float, float]]:
    """Return the outline of a raster as latitude and longitude in degrees."""
    return tiles.footprint(path)


@st.cache_data(max_entries=512, show_spinner=False)
def native_zoom(path: Path) -> int:
    """Return the deepest zoom that shows more of a raster."""
    return tiles.native_zoom(path)


@st.cache_resource(show_spinner=False)
def jobs() -> JobStore:
    """Return the job store of the workspace."""
    return open_store(workspace())
