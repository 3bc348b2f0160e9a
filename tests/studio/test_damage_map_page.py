"""The Damage map page as its script draws it; what moves in the browser is tested there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from streamlit.testing.v1 import AppTest

from mmcd.cards import file_sha256
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid
from mmcd.geo.outlines import EVIDENCE_BAND
from mmcd.jobs import open_store
from mmcd.score import encode_score
from mmcd.services.buildings import OWN_OUTLINES, geojson_of
from mmcd.services.runs import load_run, run_id_of
from mmcd.studio.routes import _shares, run_path
from mmcd.studio.scene_map import scene_map

from .conftest import SIZE

PAGE = Path(__file__).resolve().parents[2] / "pages" / "damage_map.py"

pytestmark = pytest.mark.usefixtures("fresh_caches")


def opened(**address: str) -> AppTest:
    page = AppTest.from_file(PAGE, default_timeout=60)
    page.query_params.update(address)
    return page.run()


def downloads(folder: str) -> None:
    """The downloads of the run in a folder."""
    from pathlib import Path

    from mmcd.services.runs import Run
    from mmcd.studio import result_panel

    result_panel._downloads(Run("0" * 32, Path(folder), {}), "0.5", footprints=False)


@pytest.fixture
def form(prepared) -> AppTest:
    """The page of a scene without a run."""
    return opened(scene=prepared.placed.id)


def captions(page: AppTest) -> str:
    return " ".join(caption.value for caption in page.caption)


def test_before_a_run_its_time_and_disk_are_said(form):
    assert not form.exception
    said = captions(form)
    assert "0.3 megapixels" in said
    assert "by a speed test of this machine" in said
    assert "free disk" in said
    assert not form.button("run").disabled


def test_the_options_are_part_of_the_time_that_is_said(prepared, monkeypatch):
    monkeypatch.setattr("mmcd.services.estimates.matrix_speed", lambda: 1e9)
    form = opened(scene=prepared.placed.id)
    said = {captions(form)}
    for option in ("align", "adapt"):
        form.checkbox(f"{option}-{prepared.placed.id}").check().run()
        assert not form.exception
        said.add(captions(form))
    assert len(said) == 3


def test_a_typed_region_goes_into_the_address_and_makes_the_run_smaller(form, prepared):
    key = f"region-{prepared.placed.id}"
    west, south, east, north = 171.01, -44.28, 171.03, -44.26
    form.text_input(key).input(f"{west}, {south}, {east}, {north}").run()
    assert form.query_params["region"] == f"{west},{south},{east},{north}"
    assert not form.error
    assert " pixels: " in captions(form)
    form.button("whole_scene").click().run()
    assert "region" not in form.query_params
    assert "0.3 megapixels" in captions(form)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("1,2,3", "not four numbers"),
        ("/etc/passwd", "not four numbers"),
        ("3,2,1,4", "empty or not in degrees"),
        ("0,0,1,1", "outside the scene"),
    ],
)
def test_a_wrong_region_is_explained_and_cannot_be_run(prepared, typed, said):
    page = opened(scene=prepared.placed.id, region=typed)
    assert not page.exception
    assert said in page.error[0].proto.title
    assert page.button("run").disabled


def test_a_scene_in_pixel_space_has_no_region(prepared):
    page = opened(scene=prepared.loose.id)
    assert not page.exception
    assert not page.text_input
    assert "no georeference" in captions(page)


def test_a_run_offers_its_buildings_first_and_then_its_files(prepared):
    page = opened(scene=prepared.placed.id, run=prepared.run_id, threshold="0.25")
    assert not page.exception
    parts = page.segmented_control("result-part-buildings")
    assert parts.value == "Buildings"
    parts.set_value("Download").run()
    links = {link.proto.label: link.proto.url for link in page.get("link_button")}
    base = f"/mmcd/runs/{prepared.run_id}"
    assert links["Mask at 0.25 (COG)"] == f"{base}/mask.tif?threshold=0.25"
    assert links["Buildings (GeoPackage)"] == f"{base}/buildings.gpkg?threshold=0.25"
    assert links["Buildings (GeoJSON)"] == f"{base}/buildings.geojson?threshold=0.25"
    assert links["Manifest"] == f"{base}/manifest.json"


@pytest.fixture
def marked(prepared, tmp_path, monkeypatch) -> str:
    """A run of the scene without footprints, by a model that marks two buildings; in a workspace of its own."""
    folder = tmp_path / "workspace"
    shutil.copytree(prepared.folder, folder)
    monkeypatch.setenv("MMCD_WORKSPACE", str(folder))
    grid, run_id = Grid.in_pixels(SIZE, SIZE), run_id_of("a run that marks buildings")
    run = folder / "runs" / run_id
    shutil.copytree(folder / "runs" / prepared.run_id, run)
    probability = np.zeros((SIZE, SIZE))
    probability[100:120, 50:80] = probability[300:340, 400:420] = 0.9
    write_cog(run / "score.tif", encode_score(probability, probability < 2), grid)
    write_cog(run / "building_probability.tif", encode_score(probability, probability < 2), grid, EVIDENCE_BAND)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["inputs"]["scene"] = prepared.loose.id
    manifest["evidence"] = {"sha256": file_sha256(run / "building_probability.tif"), "origin": [0, 0]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run_id


def test_buildings_that_a_model_marks_are_shown_and_said_to_be_its_own(prepared, marked):
    page = opened(scene=prepared.loose.id, run=marked)
    assert not page.exception
    parts = page.segmented_control("result-part-buildings")
    assert parts.value == "Buildings"
    assert OWN_OUTLINES in captions(page)
    canvas = scene_map(prepared.loose, load_run(marked), "channel", dark=False, basemap=None)
    assert f"/mmcd/runs/{marked}/outlines.geojson" in canvas.get_root().render()
    features = json.loads(geojson_of(load_run(marked)).read_text())["features"]
    assert [feature["id"] for feature in features] == ["b-100-50", "b-300-400"]
    assert run_path(marked, "building_probability.tif").is_file()
    parts.set_value("Download").run()
    links = {link.proto.label: link.proto.url for link in page.get("link_button")}
    assert links["Building probability (COG)"] == f"/mmcd/runs/{marked}/building_probability.tif"
    assert "Buildings (GeoPackage)" in links


def test_what_a_card_says_of_it_names_the_model(prepared, marked):
    path = run_path(marked, "manifest.json")
    manifest = json.loads(path.read_text())
    manifest["model"]["notice"] = "It learned from simulated scenes only."
    path.write_text(json.dumps(manifest))
    page = opened(scene=prepared.loose.id, run=marked)
    assert not page.exception
    assert any("ramp 1 learned from simulated scenes only." in part.value for part in page.markdown)


def test_a_model_that_sees_no_building_is_no_error(prepared, marked):
    run = load_run(marked)
    with rasterio.open(run.evidence, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.write(np.ones((1, SIZE, SIZE), np.uint8))
    manifest = run.manifest | {"evidence": run.manifest["evidence"] | {"sha256": file_sha256(run.evidence)}}
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    assert json.loads(geojson_of(load_run(marked)).read_text())["features"] == []
    assert _shares(marked, 128) == "{}"
    page = opened(scene=prepared.loose.id, run=marked)
    assert not page.exception and OWN_OUTLINES not in captions(page)
    page.segmented_control("result-part-buildings").set_value("Download").run()
    labels = [link.proto.label for link in page.get("link_button")]
    assert "Changed areas (GeoPackage)" in labels and "Buildings (GeoPackage)" not in labels


def test_surveyed_buildings_are_not_called_the_model_s_own(prepared):
    page = opened(scene=prepared.placed.id, run=prepared.run_id)
    assert page.segmented_control("result-part-buildings").value == "Buildings"
    assert OWN_OUTLINES not in captions(page)


def test_geojson_is_not_offered_of_a_run_in_pixels(prepared, tmp_path):
    shutil.copy(prepared.loose.post, tmp_path / "score.tif")
    page = AppTest.from_function(downloads, args=(str(tmp_path),), default_timeout=60).run()
    assert not page.exception
    labels = [link.proto.label for link in page.get("link_button")]
    assert "Changed areas (GeoPackage)" in labels
    assert not any("GeoJSON" in label for label in labels)


def test_starting_a_run_keeps_the_region_and_forgets_the_run_before(prepared, monkeypatch):
    monkeypatch.setattr("mmcd.studio.job_panel.ensure_worker", lambda workspace: None)
    region = "171.01,-44.28,171.03,-44.26"
    page = opened(scene=prepared.placed.id, run=prepared.run_id, region=region, building="house-40")
    page.segmented_control("result-part-buildings").set_value("Run again").run()
    page.checkbox(f"align-{prepared.placed.id}").check()
    page.button("run").click().run()
    assert page.query_params["region"] == region
    assert "run" not in page.query_params
    assert "building" not in page.query_params
    store = open_store(prepared.folder)
    job = page.query_params["job"]
    request = store.get(job).request
    assert (request["region"], request["align"], request["adapt"]) == (region, True, False)
    store.cancel(job)
