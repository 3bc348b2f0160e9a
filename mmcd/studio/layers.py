"""The map's own layers as folium elements: each is one call of a function in ``static/``.

Nothing that changes while the map is looked at (threshold, colours, selection) is part of these calls: streamlit-folium
identifies a map by its script, and a changed script would start a new map and lose the view.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import folium
import streamlit as st
from branca.element import MacroElement
from folium.elements import JSCSSMixin
from jinja2 import Template

from mmcd.geo.catalog import Scene
from mmcd.services.assets import DRAW_CSS, DRAW_JS, LAND, LEAFLET_CSS, LEAFLET_JS, Asset, missing_assets
from mmcd.studio.routes import PREFIX, STATIC
from mmcd.studio.tiles import Side, side_path

Function = Literal[
    "frame", "score", "swipe", "labels", "graticule", "land", "scenes", "note", "home", "region", "buildings", "patches"
]
Bounds = tuple[float, float, float, float]

MAX_ZOOM = 24
BASEMAPS = {"Esri satellite (internet)": "Esri.WorldImagery", "OpenStreetMap (internet)": "OpenStreetMap"}


class MapCall(MacroElement):
    """One call ``mmcd.<function>(map, options)`` in the map's script.

    Args:
        function: Name of the function in ``static/map.js``, ``static/world.js`` or ``static/damage.js``.
        options: Its options, JSON values.
    """

    _template = Template(
        "{% macro script(this, kwargs) %}"
        "mmcd.{{ this.function }}({{ this._parent.get_name() }}, {{ this.options | tojson }});"
        "{% endmacro %}"
    )

    def __init__(self, function: Function, **options: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = "MapCall"
        self.function = function
        self.options = options


class _MapCode(JSCSSMixin, MacroElement):
    """Loads our own scripts and styles into the map's frame: ``static/map.js``, ``static/map.css`` and so on."""

    _template = Template("{% macro script(this, kwargs) %}{% endmacro %}")

    def __init__(self, *names: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = "MapCode"
        self.default_js = [(f"mmcd_{name}", _static(f"{name}.js")) for name in names]
        self.default_css = [
            (f"mmcd_{name}", _static(f"{name}.css")) for name in names if (STATIC / f"{name}.css").is_file()
        ]


@dataclass(frozen=True)
class View:
    """Where a new map looks and how it is framed.

    Attributes:
        label: What the map shows, for assistive technology.
        bounds: West, south, east, north in degrees.
        dark: Colours of the empty parts.
        basemap: A key of ``BASEMAPS``, or None for the graticule that needs no internet.
        georeferenced: Draw meridians, parallels and a scale bar.
        whole_world: Fit the globe closely instead of stopping at whole zoom levels, and keep to it.
    """

    label: str
    bounds: Bounds
    dark: bool = False
    basemap: str | None = None
    georeferenced: bool = True
    whole_world: bool = False


def new_map(view: View) -> folium.Map:
    """Return an empty map that loads nothing but Leaflet and our own code."""
    from leafmap import foliumap  # a second of import time, paid by the first page that shows a map

    canvas = foliumap.Map(
        tiles=None,
        max_zoom=MAX_ZOOM,
        fullscreen_control=False,
        layers_control=False,
        scale_control=view.georeferenced,
        zoom_snap=0.25 if view.whole_world else 1,
        max_bounds=view.whole_world,
    )
    # folium would also load jQuery, Bootstrap and two icon fonts from four hosts.
    canvas.default_js = [("leaflet", asset_url(LEAFLET_JS))]
    canvas.default_css = [("leaflet_css", asset_url(LEAFLET_CSS))]
    if not view.whole_world:
        canvas.default_js.append(("leaflet_draw", asset_url(DRAW_JS)))
        canvas.default_css.append(("leaflet_draw_css", asset_url(DRAW_CSS)))
    canvas.add_child(_MapCode("map", *(("world",) if view.whole_world else ("damage", "patches"))))
    if view.basemap is not None:
        canvas.add_basemap(BASEMAPS[view.basemap])
    canvas.add_child(MapCall("frame", label=view.label, dark=view.dark))
    if view.georeferenced:
        canvas.add_child(MapCall("graticule"))
    west, south, east, north = view.bounds
    canvas.fit_bounds([[south, west], [north, east]])
    map_object: folium.Map = canvas
    return map_object


def choose_basemap() -> str | None:
    """Draw the choice of base map; None is the one that needs no internet."""
    return st.selectbox("Base map", [None, *BASEMAPS], format_func=lambda name: name or "Offline", width=230)


def is_dark() -> bool:
    """Return whether the browser shows the dark theme."""
    return st.context.theme.type == "dark"


def url(path: str) -> str:
    """Return the address of one of our routes."""
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}{PREFIX}/{path}" if base else f"{PREFIX}/{path}"


def scene_url(scene: Scene, side: Side, name: str) -> str:
    """Return the address of an image of a scene; another one when the scene's file is another.

    Browsers keep these images, and an id can be given to a new scene after the old one was removed.
    """
    path = side_path(scene, side)
    try:
        state = path.stat()
        version = hashlib.sha256(f"{path} {state.st_mtime_ns} {state.st_size}".encode()).hexdigest()[:12]
    except OSError:  # the image's own route says what is missing
        version = "missing"
    return f"{url(f'scenes/{scene.id}/{side}/{name}')}?v={version}"


def asset_url(asset: Asset) -> str:
    """Return where the browser finds a third-party file: here when it was fetched, else on the delivery network."""
    return asset.url if asset in _missing() else url(f"assets/{asset.path}")


def land_url() -> str | None:
    """Return the address of the coast lines; None when they were not fetched."""
    return None if LAND in _missing() else url(f"assets/{LAND.path}")


@st.cache_data(ttl=60, max_entries=1, show_spinner=False)
def _missing() -> tuple[Asset, ...]:
    return missing_assets()


def _static(name: str) -> str:
    # The content's hash in the address lets the browser keep the file and still see a new version at once.
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return url(f"static/{name}?v={digest}")
