"""One HTML file with a run on a map: to be sent by e-mail and opened in any browser, without mmcd."""

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import folium
import numpy as np
import shapely
from branca.colormap import LinearColormap, linear
from branca.element import Element
from folium.utilities import JsCode
from numpy.typing import NDArray
from rio_tiler.utils import render

from mmcd.buildings import GRADE_LOOKS, GradeLook
from mmcd.export import area_summary, count_scores
from mmcd.geo.catalog import Scene
from mmcd.geo.display import WEB_MERCATOR, picture, score_picture
from mmcd.geo.grid import Grid, transform_bounds
from mmcd.geo.raster import RasterSource
from mmcd.geo.vector import WGS84
from mmcd.score import decode_score, threshold_value
from mmcd.services.assets import ASSETS, LEAFLET, LEAFLET_CSS, LEAFLET_JS, Asset, assets_folder, missing_assets
from mmcd.services.buildings import Vectors
from mmcd.services.model_choice import notice_of_run
from mmcd.services.runs import Run

_IMAGE_BYTES = 3_200_000  # With polygons and Leaflet the page stays below 5 MB, which mail servers take.
_SIZES = (768, 512, 384, 256)  # Sides in pixels that the images may have, the first that fits.
_SCORE = "Probability of change"
_MAX_SHAPES = 4000  # Polygons drawn: about 1 MB; of more, those with the highest scores.
_SHADES: LinearColormap = getattr(linear, "magma")  # noqa: B009 - branca makes its maps when it is loaded
_FILL = 0.1  # Opacity of the inside of a building for each pixel of line beyond the first: the worse, the fuller.
_CHANGE_STYLE = {"color": "#a02800", "weight": 1.5, "fillOpacity": 0.25}
_CSS = """
#mmcd-legend {position: fixed; left: 10px; bottom: 64px; z-index: 1000; max-width: 320px; max-height: 70%;
  overflow: auto; padding: 8px 12px; border-radius: 6px; background: #fff; color: #1a1a1a;
  font: 13px/1.4 system-ui, sans-serif; box-shadow: 0 1px 5px rgba(0, 0, 0, .4)}
#mmcd-legend summary {font-weight: 600; cursor: pointer}
#mmcd-legend p {margin: 6px 0}
#mmcd-legend .bar {height: 10px; border: 1px solid #555}
#mmcd-legend .ends {display: flex; justify-content: space-between}
#mmcd-legend .key {display: inline-block; width: 14px; height: 10px; margin-right: 6px; border: 1px solid}
"""


def standalone_map(run: Run, scene: Scene | None, threshold: float, vectors: Vectors) -> str:
    """Return a map of a run as one HTML page.

    It shows the images before and after, the score from the threshold on, and the buildings or the outlines of change.
    Leaflet is part of the page where ``mmcd assets`` fetched it, and comes from a delivery network otherwise.

    Args:
        run: A finished run.
        scene: The scene that was scored, when it is known.
        threshold: Probability from which a pixel counts as changed.
        vectors: Graded buildings or outlines of change at the same threshold.

    Raises:
        InputError: An image cannot be read.
    """
    with RasterSource(run.score) as source:
        grid = source.grid
    said = notice_of_run(run.manifest["model"])
    notes = [*run.manifest.get("warnings", ()), *vectors.notes, *([said] if said else [])]
    canvas = _canvas(grid)
    for layer in _image_layers(run, scene, grid, threshold, notes):
        layer.add_to(canvas)
    if grid.crs is not None:
        osm = folium.TileLayer("OpenStreetMap", name="OpenStreetMap (internet)", show=False, max_native_zoom=19)
        osm.add_to(canvas)
    _add_shapes(canvas, vectors, notes)
    folium.LayerControl(collapsed=False).add_to(canvas)
    canvas.fit_bounds(_bounds(grid))
    root: Any = canvas.get_root()
    root.title = escape(_title(run, scene))
    root.header.add_child(Element(f"<style>{_CSS}</style>"))
    root.html.add_child(Element(_legend(run, scene, threshold, grid, vectors, notes)))
    return str(root.render())


def _canvas(grid: Grid) -> folium.Map:
    canvas = folium.Map(
        tiles=None,
        crs="EPSG3857" if grid.crs else "Simple",
        max_zoom=24,
        min_zoom=-6,
        control_scale=grid.crs is not None,
        prefer_canvas=True,
        zoom_snap=0.25,
    )
    # folium would also load jQuery, Bootstrap and two icon fonts from four hosts.
    canvas.default_js = [("leaflet", _embedded(LEAFLET_JS, "text/javascript"))]
    canvas.default_css = [("leaflet_css", _embedded(LEAFLET_CSS, "text/css"))]
    return canvas


def _image_layers(
    run: Run, scene: Scene | None, grid: Grid, threshold: float, notes: list[str]
) -> list[folium.raster_layers.ImageOverlay]:
    """Return the images and the score as layers, as large as the file may hold them."""
    files = {}
    for side, title in (("pre", "Image before"), ("post", "Image after")):
        path = getattr(scene, side) if scene else Path(run.manifest["inputs"].get(side, {}).get("path", ""))
        if path.is_file():
            files[title] = path
        else:
            notes.append(f"The {title.lower()} is no longer where it was and is not shown.")
    images: dict[str, str] = {}
    for size in _SIZES:
        images = {title: _picture_url(path, grid, size) for title, path in files.items()}
        images[_SCORE] = _score_url(run.score, threshold, size)
        if sum(map(len, images.values())) <= _IMAGE_BYTES:
            break
    return [
        folium.raster_layers.ImageOverlay(
            image,
            _bounds(grid),
            alt=f"{title}: {_title(run, scene)}",
            name=title,
            overlay=title == _SCORE,
            show=title != "Image before",
            pixelated=False,
            opacity=0.7 if title == _SCORE else 1,
        )
        for title, image in images.items()
    ]


def _picture_url(path: Path, grid: Grid, size: int) -> str:
    pixels = picture(path, grid, size).pixels
    return _data_url(render(pixels[:-1], mask=pixels[-1], img_format="PNG"), "image/png")


def _score_url(score: Path, threshold: float, size: int) -> str:
    """Draw the score from the threshold on."""
    values, _ = score_picture(score, size)
    probabilities = np.nan_to_num(decode_score(np.arange(256, dtype=np.uint8)))
    colours = np.array([_SHADES.rgba_bytes_tuple(float(p))[:3] for p in probabilities], np.uint8)
    alpha = np.where(values >= threshold_value(threshold), 255, 0).astype(np.uint8)
    picked: NDArray[np.uint8] = np.moveaxis(colours[values], -1, 0)  # (y, x, 3) -> (3, y, x)
    return _data_url(render(picked, mask=alpha, img_format="PNG"), "image/png")


def _add_shapes(canvas: folium.Map, vectors: Vectors, notes: list[str]) -> None:
    frame = vectors.frame.sort_values("max_score", ascending=False, kind="stable", na_position="last")
    if len(frame) > _MAX_SHAPES:
        notes.append(f"Drawn are the {_MAX_SHAPES:,} {vectors.layer} with the highest scores of {len(frame):,}.")
        frame = frame.head(_MAX_SHAPES)
    features = _features(vectors, frame)
    if not features:
        return
    styles_json = json.dumps({**{look.name: _style(look) for look in GRADE_LOOKS}, "change": _CHANGE_STYLE})
    styler = JsCode(f"function(feature, layer) {{layer.setStyle({styles_json}[feature.properties.grade]);}}")
    folium.GeoJson(
        {"type": "FeatureCollection", "features": features},
        name=vectors.layer.capitalize(),
        on_each_feature=styler,
        popup=folium.GeoJsonPopup(list(features[0]["properties"])),
    ).add_to(canvas)


def _style(look: GradeLook) -> dict[str, Any]:
    """Return how Leaflet draws the buildings of a grade."""
    fill = round(_FILL * (look.weight - 1), 2)
    return {"color": look.colour, "weight": look.weight, "dashArray": look.dash, "fillOpacity": fill}


def _features(vectors: Vectors, frame: Any) -> list[dict[str, Any]]:
    """Return GeoJSON features with the values of a table as short texts; texts of the user's files are escaped."""
    shapes = _outlines(frame)
    features = []
    for shape, row in zip(shapes, frame.drop(columns="geometry").to_dict("records"), strict=True):
        if shape is None:
            continue
        values = {
            "id": escape(str(row["id"])),
            "grade": row["grade"] if vectors.layer == "buildings" else "change",
            "area": f"{row['area_px']:,.0f} px" if np.isnan(row["area_m2"]) else f"{row['area_m2']:,.0f} m²",
            "mean score": _decimal(row["mean_score"]),
            "max score": _decimal(row["max_score"]),
        }
        if vectors.layer == "buildings":
            values |= {"changed": _percent(row["changed_share"]), "note": escape(row["reason"] or "–")}
        features.append({"type": "Feature", "properties": values, "geometry": shape})
    return features


def _decimal(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.0%}"


def _outlines(frame: Any) -> list[dict[str, Any] | None]:
    """Return geometries in degrees, or in pixel space with y upwards; None where an outline has no place."""
    geometry = np.asarray(frame.geometry.array, dtype=object)
    if frame.crs is None:
        placed, digits = shapely.transform(geometry, lambda points: points * (1.0, -1.0)), 2
    else:
        placed, digits = np.asarray(frame.geometry.to_crs("EPSG:4326").array, dtype=object), 7
    finite = np.isfinite(shapely.bounds(placed)).all(axis=1)
    rounded = shapely.transform(placed, lambda points: np.round(points, digits))
    return [
        json.loads(text) if known else None for text, known in zip(shapely.to_geojson(rounded), finite, strict=True)
    ]


def _bounds(grid: Grid) -> list[list[float]]:
    """Return south-west and north-east as Leaflet wants them; in pixel space rows count downwards from zero."""
    if grid.crs is None:
        return [[-float(grid.height), 0.0], [0.0, float(grid.width)]]
    west, south, east, north = transform_bounds(grid.bounds_in(WEB_MERCATOR), WEB_MERCATOR, WGS84)
    return [[south, west], [north, east]]


def _title(run: Run, scene: Scene | None) -> str:
    return f"Change found: {scene.title if scene else run.id[:8]}"


def _legend(run: Run, scene: Scene | None, threshold: float, grid: Grid, vectors: Vectors, notes: list[str]) -> str:
    areas = area_summary(count_scores(run.score), threshold, grid.pixel_area_m2)
    stops = ", ".join(_SHADES(p) for p in np.linspace(threshold, 1, 8))
    lines = [
        *_facts(run, scene),
        _changed(areas),
        f"<div class='bar' role='img' aria-label='Colours from {threshold:.2f} to 1' "
        f"style='background: linear-gradient(to right, {stops})'></div>"
        f"<div class='ends'><span>{threshold:.2f}</span><span>probability of change</span><span>1</span></div>",
        *_grades(vectors),
        *(f"Note: {escape(note)}" for note in notes),
    ]
    body = "".join(f"<p>{line}</p>" for line in lines)
    return f"<details open id='mmcd-legend'><summary>{escape(_title(run, scene))}</summary>{body}</details>"


def _facts(run: Run, scene: Scene | None) -> list[str]:
    model = f"Model {escape(run.manifest['model']['name'])} {escape(str(run.manifest['model'].get('version', '')))}"
    if scene is None:
        return [model]
    days = [f"{name} {day:%d %B %Y}" for name, day in (("before", scene.pre_date), ("after", scene.post_date)) if day]
    facts = [escape(", ".join([scene.event_type, scene.place, *days])), model]
    if scene.simulated:
        facts.append("<strong>Simulated scene: nothing of this happened.</strong>")
    return [*facts, f"Licence of the images: {escape(scene.licence or 'not stated')}"]


def _changed(areas: dict[str, float | None]) -> str:
    share = areas["changed_share"]
    if share is None:
        return "Nothing was assessed."
    size = f"{areas['changed_px']:,} px" if areas["changed_km2"] is None else f"{areas['changed_km2']:,.3f} km²"
    return f"Changed: {size}, {share:.2%} of the assessed area"


def _grades(vectors: Vectors) -> list[str]:
    if vectors.layer == "changes":
        return [f"{len(vectors.frame):,} outlines of change"]
    lines, looks = [], {look.name: look for look in GRADE_LOOKS}
    for grade, facts in vectors.totals["grades"].items():
        look = looks[grade]
        border = f"border: {look.weight}px {'dashed' if look.dash else 'solid'} {look.colour}"
        lines.append(f"<span class='key' style='{border}'></span>{grade}: {facts['buildings']:,}")
    return ["<br>".join(lines)]


def _embedded(asset: Asset, media_type: str) -> str:
    """Return a file as a data address when it was fetched, else its address on the delivery network."""
    if asset in missing_assets():
        return asset.url
    content = (assets_folder() / asset.path).read_bytes()
    for image in ASSETS:
        if image.path.startswith(f"{LEAFLET}/dist/images/") and image not in missing_assets():
            name = image.path.removeprefix(f"{LEAFLET}/dist/")
            address = _data_url((assets_folder() / image.path).read_bytes(), "image/png")
            content = content.replace(f"url({name})".encode(), f"url({address})".encode())
    return _data_url(content, media_type)


def _data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
