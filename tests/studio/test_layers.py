"""The map's script: it asks no other host for anything, and stays the same while nothing but the view changes."""

import itertools
import json
import re
from dataclasses import replace

import folium
import pytest
from streamlit_folium import _get_header, generate_js_hash, generate_leaflet_string

from mmcd.buildings import GRADE_LOOKS, GRADES
from mmcd.services.assets import ASSETS
from mmcd.services.runs import load_run
from mmcd.studio import layers
from mmcd.studio.catalogue import filter_scenes, mark_of, scene_rows, world_map
from mmcd.studio.palettes import PALETTES, score_colours
from mmcd.studio.scene_map import scene_map


@pytest.fixture
def fetched(monkeypatch):
    """As if every asset had been fetched."""
    monkeypatch.setattr(layers, "_missing", tuple)


def links(canvas: folium.Map) -> list[str]:
    found = []
    for element in [canvas, *canvas._children.values()]:
        for name in ("default_js", "default_css"):
            found += [address for _, address in getattr(element, name, [])]
    return found


def script(canvas: folium.Map) -> str:
    canvas.get_root().render()
    return generate_leaflet_string(canvas)


def test_a_map_loads_leaflet_and_our_own_code_only(prepared, fetched):
    addresses = links(scene_map(prepared.placed, None, "c", False, None))
    assert sorted(address.split("?")[0] for address in addresses) == [
        "/mmcd/assets/leaflet-draw@1.0.4/dist/leaflet.draw.css",
        "/mmcd/assets/leaflet-draw@1.0.4/dist/leaflet.draw.js",
        "/mmcd/assets/leaflet@1.9.4/dist/leaflet.css",
        "/mmcd/assets/leaflet@1.9.4/dist/leaflet.js",
        "/mmcd/static/damage.css",
        "/mmcd/static/damage.js",
        "/mmcd/static/map.css",
        "/mmcd/static/map.js",
        "/mmcd/static/patches.js",
    ]


def test_without_assets_leaflet_comes_from_the_delivery_network(prepared, monkeypatch):
    monkeypatch.setattr(layers, "_missing", lambda: ASSETS)
    addresses = links(scene_map(prepared.placed, None, "c", False, None))
    assert "https://cdn.jsdelivr.net/npm/leaflet@1.9.4/dist/leaflet.js" in addresses
    assert layers.land_url() is None


def test_a_map_names_no_other_host(prepared, fetched):
    canvas = world_map([prepared.placed], "c", True, None)
    text = script(canvas) + _get_header(canvas)
    assert set(re.findall(r"https?://[^\"' /]+", text)) <= {"http://www.w3.org"}


def test_the_script_is_the_same_each_time(prepared, fetched):
    """streamlit-folium would start a new map otherwise, and the view would be lost at each rerun."""
    hashes = {generate_js_hash(script(scene_map(prepared.placed, None, "c", False, None)), "key") for _ in range(3)}
    assert len(hashes) == 1


def test_the_address_follows_the_base_path(fetched, monkeypatch):
    monkeypatch.setattr(layers.st, "get_option", lambda name: "tools/" if name == "server.baseUrlPath" else None)
    assert layers.url("x") == "/tools/mmcd/x"


def test_a_title_cannot_smuggle_a_script_into_the_map(prepared, fetched):

    hostile = replace(
        prepared.placed, title="</script><script>alert(1)</script>", licence="<img src=x onerror=alert(1)>"
    )
    for canvas in (world_map([hostile], "c", False, None), scene_map(hostile, None, "c", False, None)):
        assert "<script>" not in script(canvas)
        assert "<img" not in script(canvas)


def test_a_scene_in_pixel_space_says_so_and_has_no_degrees(prepared, fetched):
    text = script(scene_map(prepared.loose, None, "c", False, "Esri satellite (internet)"))
    assert "No georeference: shown in pixel space" in text
    assert "mmcd.graticule" not in text
    assert "arcgisonline" not in text


def test_a_simulated_scene_says_so_on_both_maps(prepared, fetched):
    assert "Simulated scene" in script(scene_map(prepared.placed, None, "c", False, None))
    assert "Valley flood, flood, simulated" in script(world_map([prepared.placed], "c", False, None))


def test_buildings_come_from_a_route_and_not_with_the_script(prepared, fetched):
    text = script(scene_map(prepared.placed, load_run(prepared.run_id), "c", False, None))
    assert f"/mmcd/runs/{prepared.run_id}/outlines.geojson" in text
    assert "house-340" not in text
    assert "mmcd.buildings" not in script(scene_map(prepared.placed, None, "c", False, None))


def test_a_region_can_be_drawn_where_there_are_degrees(prepared, fetched):
    assert "mmcd.region" in script(scene_map(prepared.placed, None, "c", False, None))
    assert "mmcd.region" not in script(scene_map(prepared.loose, None, "c", False, None))


def test_scenes_without_a_place_are_in_the_table_only(prepared, fetched):
    both = [prepared.placed, prepared.loose]
    items = json.loads(re.search(r'"scenes": (\[.*\])', script(world_map(both, "c", False, None))).group(1))
    assert [item["id"] for item in items] == [prepared.placed.id]
    assert list(scene_rows(both, [])["Scene"]) == [scene.id for scene in both]


def test_rows_tell_what_a_user_must_know(prepared):
    row = scene_rows([prepared.placed], [])
    assert (row["Event"][0], row["Images"][0]) == ("Valley flood", "simulated")
    assert row["Size"][0] == "512 × 512 px"
    assert row["Pixel"][0] == "10 m"
    assert row["Labels"][0] == "yes"


def test_filters_combine(prepared):
    both = [prepared.placed, prepared.loose]
    assert filter_scenes(both, "", []) == both
    assert filter_scenes(both, "VALLEY flood", []) == [prepared.placed]
    assert filter_scenes(both, "valley", ["earthquake"]) == []
    assert filter_scenes(both, "", ["earthquake"]) == [prepared.loose]


def test_event_types_differ_by_letter_and_shape_not_only_by_colour():
    kinds = ["earthquake", "explosion", "wildfire", "hurricane", "flood", "volcano", "conflict"]
    assert len({(mark_of(kind).letter, mark_of(kind).shape) for kind in kinds}) == len(kinds)
    assert mark_of("volcano eruption") == mark_of("volcano")
    assert mark_of("meteor").letter == "?"


@pytest.mark.parametrize("name", PALETTES)
def test_palettes_grow_lighter_with_the_probability(name):
    colours = score_colours(name)
    assert len(colours) == 256
    light = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in colours[1:]]
    assert all(later >= earlier - 0.5 for earlier, later in itertools.pairwise(light))
    assert light[-1] - light[0] > 120


def test_every_grade_has_a_line_of_its_own_beside_its_colour():
    assert {look.name for look in GRADE_LOOKS} == set(GRADES)
    # The browser counts cuts: none not assessed, then one grade for each that is reached.
    assert [look.name for look in GRADE_LOOKS[1:]] == list(GRADES[:4])
    assert len({(look.weight, look.dash, look.crossed) for look in GRADE_LOOKS}) == len(GRADES)
