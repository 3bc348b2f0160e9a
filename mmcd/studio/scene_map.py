"""The Damage map page's map: images before and after under a divider, score above them."""

from collections.abc import Sequence

import folium

from mmcd.geo.catalog import Scene
from mmcd.services.runs import Run
from mmcd.studio import loaders
from mmcd.studio.bridge import grades
from mmcd.studio.layers import Bounds, MapCall, View, new_map, scene_url, url
from mmcd.studio.messages import day
from mmcd.studio.result_panel import has_buildings
from mmcd.studio.tiles import Side


def map_key(scene: Scene, run: Run | None, dark: bool, basemap: str | None) -> str:
    """Return what tells one map of this page from another."""
    return f"scene-{scene.id}-{run.id if run else 'none'}-{dark}-{basemap}"


def scene_map(
    scene: Scene, run: Run | None, channel: str, dark: bool, basemap: str | None, region: bool = True
) -> folium.Map:
    """Return the map of a scene; the same for the same scene and run, whatever the threshold.

    Args:
        scene: The scene.
        run: Finished run to lay over it, if any.
        channel: Where the threshold panel speaks.
        dark: Colours of the empty parts.
        basemap: Base map from the internet, if any.
        region: Offer to draw the region to analyse.
    """
    georeferenced = loaders.placed(scene.post)
    extent = _union([loaders.extent(scene.pre), loaders.extent(scene.post)])
    label = (
        f"Map of {scene.title or scene.id}: images before and after{' with the probability of change' if run else ''}"
    )
    canvas = new_map(View(label, extent, dark, basemap if georeferenced else None, georeferenced=georeferenced))
    canvas.add_child(MapCall("home", extent=extent))
    if georeferenced and region:
        canvas.add_child(MapCall("region", channel=channel))
    for text in _notes(scene, georeferenced):
        canvas.add_child(MapCall("note", text=text))
    after = scene.post_sensor or loaders.sensor_kind(scene.post)
    canvas.add_child(
        MapCall(
            "swipe",
            before=_image(scene, "pre", f"Before · {day(scene.pre_date)} · {scene.pre_sensor or 'optical'}"),
            after=_image(scene, "post", f"After · {day(scene.post_date)} · {after}"),
            extent=extent,
            attribution=_attribution(scene),
        )
    )
    if scene.label is not None:
        canvas.add_child(
            MapCall(
                "labels",
                url=scene_url(scene, "label", "tiles/{z}/{x}/{y}.png"),
                extent=loaders.extent(scene.label),
                maxNativeZoom=loaders.native_zoom(scene.label),
                name="Reference labels",
            )
        )
    if run is not None:
        canvas.add_child(_score(scene, run, channel))
    if run is not None and has_buildings(scene, run):
        outlines = url(f"runs/{run.id}/outlines.geojson")
        canvas.add_child(MapCall("buildings", url=outlines, channel=channel, grades=grades()))
    return canvas


def _score(scene: Scene, run: Run, channel: str) -> MapCall:
    return MapCall(
        "score",
        url=url(f"runs/{run.id}/tiles/{{z}}/{{x}}/{{y}}.png"),
        footprint=loaders.footprint(run.score),
        maxNativeZoom=loaders.native_zoom(run.score),
        channel=channel,
        unassessed=bool(loaders.table(run.id, scene.label).counts[0]),
        attribution="Probability of change: mmcd",
    )


def _image(scene: Scene, side: Side, label: str) -> dict[str, object]:
    path = scene.pre if side == "pre" else scene.post
    return {
        "url": scene_url(scene, side, "tiles/{z}/{x}/{y}.png"),
        "maxNativeZoom": loaders.native_zoom(path),
        "label": label,
    }


def _notes(scene: Scene, georeferenced: bool) -> Sequence[str]:
    notes = []
    if scene.simulated:
        notes.append("Simulated scene: nothing here is real")
    if not georeferenced:
        notes.append("No georeference: shown in pixel space, not at its place on Earth")
    return notes


def _attribution(scene: Scene) -> str:
    # Leaflet takes attributions as HTML; a scene's licence is text that somebody wrote.
    licence = (scene.licence or "rights not stated").replace("&", "&amp;").replace("<", "&lt;")
    return f"Images: {licence}"


def _union(boxes: Sequence[Bounds]) -> Bounds:
    west, south, east, north = zip(*boxes, strict=True)
    return min(west), min(south), max(east), max(north)
