"""Tiles, downloads and files as a browser gets them, from a real server with real threads."""

import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import morecantile
import numpy as np
import pytest
import rasterio
import uvicorn
from rasterio.io import MemoryFile
from rio_cogeo import cog_validate
from starlette.applications import Starlette

from mmcd.errors import MmcdError
from mmcd.score import threshold_value
from mmcd.studio import routes, tiles
from mmcd.studio.layers import scene_url
from mmcd.studio.routes import STATIC, error_response, raster_routes

GRID_OF_TILES = morecantile.tms.get("WebMercatorQuad")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """Sends paths exactly as given: no library tidies ``..`` away."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest("GET", path, skip_host=False)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def client(shared_workspace) -> Iterator[Client]:
    app = Starlette(routes=raster_routes(), exception_handlers={MmcdError: error_response})
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(shared_workspace.folder))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Client(server.servers[0].sockets[0].getsockname()[1])
        server.should_exit = True
        thread.join()


def png(answer: Answer) -> np.ndarray:
    """Return (band, y, x) of a PNG answer."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "image/png"
    with MemoryFile(answer.body) as memory, memory.open() as image:
        return image.read()


def tile_over(path: Path, zoom: int) -> tuple[int, int, int]:
    west, south, east, north = tiles.geographic_bounds(path)
    tile = GRID_OF_TILES.tile((west + east) / 2, (south + north) / 2, zoom)
    return tile.z, tile.x, tile.y


def run_score(prepared) -> Path:
    return prepared.folder / "runs" / prepared.run_id / "score.tif"


def test_a_score_tile_is_the_stored_values_and_nothing_between_them(client, prepared):
    z, x, y = tile_over(run_score(prepared), 14)
    grey = png(client.get(f"/mmcd/runs/{prepared.run_id}/tiles/{z}/{x}/{y}.png"))
    assert grey.shape == (1, 256, 256)
    assert set(np.unique(grey)) <= set(np.unique(prepared.stored))
    # The probability grows to the east: a tile that was interpolated or flipped would not be monotonous.
    middle = grey[0, 128].astype(int)
    inside = middle[middle > 0]
    assert inside.size > 100
    assert (np.diff(inside) >= 0).all()


def test_overviews_are_nearest_sampled_too(client, prepared):
    z, x, y = tile_over(run_score(prepared), 9)
    grey = png(client.get(f"/mmcd/runs/{prepared.run_id}/tiles/{z}/{x}/{y}.png"))
    assert grey.any()
    assert set(np.unique(grey)) <= set(np.unique(prepared.stored))


def test_tiles_outside_are_empty_and_impossible_ones_are_not_found(client, prepared):
    base = f"/mmcd/runs/{prepared.run_id}/tiles"
    assert client.get(f"{base}/14/0/0.png").status == 204
    assert client.get(f"{base}/2/4/0.png").status == 404
    assert client.get(f"{base}/31/0/0.png").status == 404
    assert client.get(f"{base}/a/0/0.png").status == 404


def test_tiles_of_a_run_may_be_kept_by_the_browser(client, prepared):
    z, x, y = tile_over(run_score(prepared), 12)
    answer = client.get(f"/mmcd/runs/{prepared.run_id}/tiles/{z}/{x}/{y}.png")
    assert "immutable" in answer.headers["cache-control"]


def test_optical_is_shown_in_three_colours_and_radar_in_grey_decibels(client, prepared):
    z, x, y = tile_over(prepared.placed.pre, 14)
    optical, radar = (
        png(client.get(f"/mmcd/scenes/{prepared.placed.id}/{side}/tiles/{z}/{x}/{y}.png")) for side in ("pre", "post")
    )
    assert optical.shape[0] == 4  # with alpha
    assert optical[3].all()
    assert radar.shape[0] == 2
    assert 90 < np.median(radar[0]) < 190  # linear amplitude would be mostly dark
    stretch = tiles.display_plan(prepared.placed.post).stretch
    assert stretch.unit == "db"
    assert 10 < stretch.high[0] - stretch.low[0] < 60


def test_labels_are_coloured_where_something_is_damaged(client, prepared):
    z, x, y = tile_over(prepared.placed.label, 12)
    image = png(client.get(f"/mmcd/scenes/{prepared.placed.id}/label/tiles/{z}/{x}/{y}.png"))
    colours = {tuple(colour) for colour in image.reshape(4, -1).T}
    assert colours == {tiles.LABEL_COLOURS[0], tiles.LABEL_COLOURS[3]}
    assert client.get(f"/mmcd/scenes/{prepared.loose.id}/label/tiles/{z}/{x}/{y}.png").status == 404


def test_a_scene_without_georeference_lies_where_no_scene_is(client, prepared):
    west, south, east, north = tiles.geographic_bounds(prepared.loose.pre)
    assert (west, north) == (0, pytest.approx(0))
    assert east < 0.01
    assert south > -0.01
    z, x, y = tile_over(prepared.loose.pre, 17)
    assert png(client.get(f"/mmcd/scenes/{prepared.loose.id}/pre/tiles/{z}/{x}/{y}.png"))[-1].any()


def test_an_overview_is_small(client, prepared):
    image = png(client.get(f"/mmcd/scenes/{prepared.placed.id}/pre/overview.png"))
    assert max(image.shape[1:]) <= tiles.OVERVIEW_SIZE


def test_another_image_under_the_same_id_has_another_address(prepared, tmp_path):
    copy = Path(shutil.copy(prepared.placed.pre, tmp_path / "pre.tif"))
    scene = replace(prepared.placed, pre=copy)
    first = scene_url(scene, "pre", "overview.png")
    assert first == scene_url(scene, "pre", "overview.png")
    assert first.startswith(f"/mmcd/scenes/{scene.id}/pre/overview.png?v=")
    copy.write_bytes(prepared.placed.post.read_bytes())
    assert scene_url(scene, "pre", "overview.png") != first


def test_the_score_downloads_as_the_file_itself_and_in_ranges(client, prepared):
    path = f"/mmcd/runs/{prepared.run_id}/score.tif"
    whole = client.get(path)
    assert whole.body == run_score(prepared).read_bytes()
    assert whole.headers["content-disposition"].startswith("attachment")
    part = client.get(path, Range="bytes=100-199")
    assert (part.status, part.body) == (206, whole.body[100:200])


@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.9])
def test_the_mask_downloads_at_any_threshold(client, prepared, tmp_path, threshold):
    answer = client.get(f"/mmcd/runs/{prepared.run_id}/mask.tif?threshold={threshold}")
    path = tmp_path / "mask.tif"
    path.write_bytes(answer.body)
    assert cog_validate(path)[0]
    with rasterio.open(path) as file:
        mask = file.read(1)
    expected = np.where(prepared.stored == 0, 255, prepared.stored >= threshold_value(threshold))
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("threshold", ["2", "-1", "nan", "high", "1e999"])
def test_a_threshold_that_is_none_is_refused(client, prepared, threshold):
    answer = client.get(f"/mmcd/runs/{prepared.run_id}/mask.tif?threshold={threshold}")
    assert answer.status == 404
    assert "between 0 and 1" in json.loads(answer.body)["hint"]


@pytest.mark.parametrize(
    "path",
    [
        "/mmcd/runs/../../secret/score.tif",
        "/mmcd/runs/..%2f..%2fsecret/score.tif",
        "/mmcd/runs/%2e%2e/score.tif",
        "/mmcd/runs/{run}/..%2f..%2f..%2fsecret",
        "/mmcd/runs/{run}/buildings",
        "/mmcd/runs/{run}/masks",
        "/mmcd/assets/../secret",
        "/mmcd/assets/..%2fsecret",
        "/mmcd/assets/%2e%2e/jobs.sqlite",
        "/mmcd/static/../routes.py",
        "/mmcd/static/..%2froutes.py",
        "/mmcd/scenes/..%2f..%2fsecret/pre/overview.png",
        "/mmcd/scenes/valley-flood/..%2fpost/overview.png",
        "/mmcd/runs/00000000000000000000000000000000/score.tif",
    ],
)
def test_nothing_but_the_files_of_the_map_is_served(client, prepared, path):
    answer = client.get(path.format(run=prepared.run_id))
    assert answer.status in (400, 404)
    assert (prepared.folder / "secret").read_bytes() not in answer.body


def test_errors_are_cause_and_next_step_without_a_traceback(client):
    answer = client.get("/mmcd/scenes/nowhere/pre/overview.png")
    assert answer.status == 404
    assert set(json.loads(answer.body)) == {"message", "hint"}
    assert b"Traceback" not in answer.body


def test_a_damaged_image_is_reported_with_its_name(client, prepared, tmp_path):
    broken = tmp_path / "broken.tif"
    broken.write_bytes(prepared.placed.post.read_bytes()[:400])
    with pytest.raises(MmcdError, match=r"broken\.tif"):
        tiles.value_tile(broken, 0, 0, 0)


def test_many_threads_get_the_same_bytes(client, prepared):
    z, x, y = tile_over(run_score(prepared), 13)
    paths = [f"/mmcd/runs/{prepared.run_id}/tiles/{z}/{x + dx}/{y + dy}.png" for dx in (0, 1) for dy in (0, 1)]
    alone = [client.get(path) for path in paths]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(client.get, paths * 20))
    assert [answer.body for answer in together] == [answer.body for answer in alone] * 20


def test_open_files_are_bounded(prepared):
    pool = tiles.ReaderPool(max_idle=2, max_lent=3)
    paths = [prepared.placed.pre, prepared.placed.post, prepared.placed.label, prepared.loose.pre]
    for path in paths * 2:
        with pool.lend(path) as reader:
            assert reader.read(indexes=1).array.any() or path == prepared.placed.label
        assert len(pool._idle) <= 2
    pool.close()
    assert not pool._idle


def test_a_file_that_was_written_again_is_read_again(tmp_path, prepared):
    path = tmp_path / "changing.tif"
    path.write_bytes(prepared.placed.post.read_bytes())
    pool = tiles.ReaderPool()
    with pool.lend(path) as reader:
        before = reader.read(indexes=1).array.max()
    time.sleep(0.01)
    path.write_bytes(prepared.placed.label.read_bytes())
    with pool.lend(path) as reader:
        assert reader.read(indexes=1).array.max() != before


def test_the_maps_own_files_are_served(client):
    answer = client.get("/mmcd/static/map.js?v=0")
    assert answer.body == (STATIC / "map.js").read_bytes()


def test_a_base_path_comes_before_every_route():
    assert all(route.path.startswith("/tools/damage/mmcd/") for route in raster_routes("/tools/damage/"))


def test_outlines_carry_what_grades_a_building_at_any_threshold(client, prepared):
    answer = client.get(f"/mmcd/runs/{prepared.run_id}/outlines.geojson")
    assert answer.headers["content-type"].startswith("application/geo+json")
    found = {feature["properties"]["id"]: feature["properties"] for feature in json.loads(answer.body)["features"]}
    assert set(found) == {"north-west", *(f"house-{col}" for col in (40, 140, 240, 340, 440))}
    assert found["north-west"]["cuts"] is None  # it stands where nothing was assessed
    # A house lies across 20 of 512 steps of probability: from its first column on down to its last.
    least, _, most = found["house-340"]["cuts"]
    assert threshold_value(340 / 511) < most <= least <= threshold_value(360 / 511)


def test_shares_are_those_of_the_threshold_asked_for(client, prepared):
    base = f"/mmcd/runs/{prepared.run_id}/shares.json"
    shares = json.loads(client.get(f"{base}?value={threshold_value(250 / 511)}").body)
    assert shares["north-west"] is None
    assert (shares["house-140"], shares["house-340"]) == (0, 1)
    assert shares["house-240"] == pytest.approx(0.5, abs=0.05)
    for wrong in ("", "0", "256", "1.5", "-1", "x"):
        assert client.get(f"{base}?value={wrong}").status == 404


@pytest.mark.parametrize("name", ["buildings.geojson", "buildings.gpkg", "map.html", "package.zip"])
def test_exports_are_written_at_the_threshold_asked_for(client, prepared, name):
    answer = client.get(f"/mmcd/runs/{prepared.run_id}/{name}?threshold=0.8")
    assert answer.status == 200
    assert f"_{name.split('.')[0]}_0.8" in answer.headers["content-disposition"]
    if name == "buildings.geojson":
        grades = {f["properties"]["id"]: f["properties"]["grade"] for f in json.loads(answer.body)["features"]}
        assert (grades["house-340"], grades["house-440"]) == ("intact", "destroyed")
    assert client.get(f"/mmcd/runs/{prepared.run_id}/{name}").status == 404  # an export says its threshold


def test_footprints_that_change_are_graded_anew_and_few_thresholds_stay(prepared, tmp_path, monkeypatch):
    footprints = tmp_path / "footprints.geojson"
    shutil.copy(prepared.placed.footprints, footprints)
    monkeypatch.setattr("mmcd.services.buildings.footprints_file", lambda run: footprints)
    first = routes._at_threshold(prepared.run_id, "buildings.geojson", 0.7)
    assert routes._at_threshold(prepared.run_id, "buildings.geojson", 0.7) == first
    assert "house-40" in json.loads(routes._shares(prepared.run_id, 128))
    footprints.write_text(footprints.read_text().replace("house-", "home-"))
    second = routes._at_threshold(prepared.run_id, "buildings.geojson", 0.7)
    assert "home-40" in second.read_text()
    assert "home-40" in json.loads(routes._shares(prepared.run_id, 128))
    for threshold in (0.6, 0.65, 0.75):
        routes._at_threshold(prepared.run_id, "buildings.geojson", threshold)
    assert not first.exists()
    assert second.is_file()
    assert len(list(second.parent.parent.iterdir())) == routes.KEPT_EXPORTS


def test_a_run_hands_out_its_own_description(client, prepared):
    for name in ("item.json", "manifest.json"):
        assert prepared.run_id in client.get(f"/mmcd/runs/{prepared.run_id}/{name}").body.decode()
