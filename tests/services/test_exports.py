"""Everything that leaves a run: read back with other libraries, and refused in one sentence where it cannot be."""

import json
import zipfile
from dataclasses import replace
from html import escape
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pystac
import pytest
import rasterio
import shapely
from rio_cogeo.cogeo import cog_validate

from mmcd.buildings import GRADE_LOOKS
from mmcd.cards import file_sha256
from mmcd.errors import Cancelled, InputError, StorageError, UsageError
from mmcd.score import threshold_value
from mmcd.services.buildings import OWN_OUTLINES, buildings_of
from mmcd.services.exports import EXPORTS, ExportRequest, export_run, find_run

from .conftest import SampleRun, add_evidence

PARTS = {"score.tif", "mask.tif", "item.json", "manifest.json", "map.html"}


def test_score_and_mask_at_any_threshold(sample_run: SampleRun, tmp_path: Path) -> None:
    score = export_run(sample_run.run.id, "score", tmp_path / "mine.tif")
    assert score.paths == (tmp_path / "mine.tif",)
    assert score.paths[0].read_bytes() == sample_run.run.score.read_bytes()
    for threshold in (0.05, 0.5, 0.9):
        mask = export_run(sample_run.run.id, "mask", tmp_path / "masks", threshold).paths[0]
        assert mask == tmp_path / "masks" / "mask.tif"
        assert cog_validate(mask, strict=True)[0]
        with rasterio.open(mask) as file:
            expected = (sample_run.stored >= threshold_value(threshold)).astype(np.uint8)
            np.testing.assert_array_equal(file.read(1), np.where(sample_run.stored == 0, 255, expected))
            assert file.tags()["MMCD_THRESHOLD"] == f"{threshold:.3f}"


def test_buildings_in_both_formats_hold_the_table(sample_run: SampleRun, tmp_path: Path) -> None:
    paths = export_run(sample_run.run.id, "buildings", tmp_path, 0.6).paths
    assert [path.name for path in paths] == ["buildings.gpkg", "buildings.geojson"]
    table = buildings_of(sample_run.run).at(0.6).frame
    for path in paths:
        frame = geopandas.read_file(path)
        assert frame["id"].tolist() == table["id"].tolist()
        assert frame["grade"].tolist() == table["grade"].tolist()
        np.testing.assert_allclose(frame["changed_share"], table["changed_share"], atol=1e-9)
        assert set(frame["threshold"]) == {0.6}
        assert frame.crs.to_epsg() == 4326
        truth = geopandas.read_file(sample_run.scene.footprints)
        pairs = [shapely.normalize(np.array(shapes.geometry, dtype=object)) for shapes in (frame, truth)]
        assert shapely.equals_exact(*pairs, tolerance=1e-6).all()


def test_one_format_when_a_file_is_named(sample_run: SampleRun, tmp_path: Path) -> None:
    result = export_run(sample_run.run.id, "buildings", tmp_path / "grades.geojson")
    assert result.paths == (tmp_path / "grades.geojson",)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["grades.geojson"]


def test_outlines_of_change_where_there_are_no_footprints(bare_run: SampleRun, tmp_path: Path) -> None:
    result = export_run(bare_run.run.id, "buildings", tmp_path / "out")
    assert [path.name for path in result.paths] == ["changes.gpkg", "changes.geojson"]
    assert "no building footprints" in result.notes[0]
    frame = geopandas.read_file(result.paths[0], layer="changes")
    assert frame.crs.to_epsg() == 32640
    changed = (bare_run.stored >= threshold_value(0.5)).sum() * 0.25
    assert changed * 0.98 < frame.area.sum() <= changed
    np.testing.assert_allclose(frame["area_m2"], frame.area, rtol=1e-9)
    assert (frame["mean_score"] > 0.79).all(), "only changed pixels lie inside"


def test_a_package_without_buildings_names_no_outlines_of_them(bare_run: SampleRun, tmp_path: Path) -> None:
    empty = add_evidence(bare_run, smallest=9)
    result = export_run(empty.run, "package", tmp_path / "out")
    assert "the model sees no building here" in result.notes[0]
    exported = json.loads((tmp_path / "out" / "manifest.json").read_text())["export"]
    assert exported["footprints"] is None
    assert "changes" in exported and OWN_OUTLINES not in json.dumps(exported)


def test_own_footprints_before_the_scene_s(bare_run: SampleRun, tmp_path: Path) -> None:
    result = export_run(bare_run.run, "buildings", tmp_path / "b.gpkg", footprints=bare_run.scene.footprints)
    assert len(geopandas.read_file(result.paths[0], layer="buildings")) == 155


def test_a_package_agrees_with_itself(sample_run: SampleRun, tmp_path: Path) -> None:
    stages: list[str] = []
    folder = tmp_path / "folder"
    export_run(sample_run.run.id, "package", folder, 0.85, progress=lambda stage, *_: stages.append(stage))
    assert {path.name for path in folder.iterdir()} == PARTS | {"buildings.gpkg", "buildings.geojson"}
    assert {"score", "mask", "buildings", "map"} <= set(stages)

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["run_id"] == sample_run.run.id and manifest["threshold"] == 0.5
    exported = manifest["export"]
    assert exported["threshold"] == 0.85 and exported["areas"]["changed_px"] == 0
    assert exported["footprints"]["sha256"] == file_sha256(sample_run.scene.footprints)
    assert exported["buildings"]["grades"]["destroyed"]["buildings"] == 0
    assert all(file_sha256(folder / file) == digest for file, digest in exported["files"].items())

    item = pystac.Item.from_file(folder / "item.json")
    assert item.properties["mmcd:threshold"] == 0.85
    assert all((folder / asset.href).exists() for asset in item.assets.values())
    assert set(item.assets) == {"score", "mask", "manifest", "buildings.gpkg", "buildings.geojson", "map.html"}
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_outlines_of_the_model_s_own_are_named_so_in_every_file(model_run: SampleRun, tmp_path: Path) -> None:
    result = export_run(model_run.run.id, "package", tmp_path / "out")
    names = {path.name for path in result.paths}
    assert names == PARTS | {"building_probability.tif", "buildings.gpkg", "buildings.geojson"}
    assert OWN_OUTLINES in result.notes
    folder = tmp_path / "out"
    assert pyogrio.read_info(folder / "buildings.gpkg", layer="buildings")["layer_metadata"]["outlines"] == OWN_OUTLINES
    assert set(geopandas.read_file(folder / "buildings.geojson")["outlines"]) == {"model"}
    exported = json.loads((folder / "manifest.json").read_text())["export"]
    assert (exported["footprints"]["origin"], exported["footprints"]["note"]) == ("model", OWN_OUTLINES)
    assert OWN_OUTLINES in exported["notes"]
    assert escape(OWN_OUTLINES) in (folder / "map.html").read_text(encoding="utf-8")
    item = pystac.Item.from_file(folder / "item.json")
    assert {"building_probability", "buildings.gpkg", "buildings.geojson"} < set(item.assets)
    assert all((folder / asset.href).exists() for asset in item.assets.values())


def test_a_model_that_never_saw_a_real_image_says_so_in_every_file(bare_run: SampleRun, tmp_path: Path) -> None:
    said = "It learned from towns that were never built."
    run = replace(bare_run.run, manifest=bare_run.run.manifest | {"model": {"name": "mine", "notice": said}})
    result = export_run(run, "package", tmp_path / "out")
    assert said in result.notes
    folder = tmp_path / "out"
    assert pyogrio.read_info(folder / "changes.gpkg", layer="changes")["layer_metadata"]["notice"] == said
    manifest = json.loads((folder / "manifest.json").read_text())
    assert said in manifest["export"]["notes"] and manifest["model"]["notice"] == said
    assert (folder / "map.html").read_text(encoding="utf-8").count(said) == 1
    assert said in export_run(run, "mask", tmp_path / "mask.tif").notes


def test_the_map_is_one_small_file_that_says_what_it_shows(sample_run: SampleRun, tmp_path: Path) -> None:
    path = export_run(sample_run.run.id, "map", tmp_path / "map.html").paths[0]
    assert all(look.colour in path.read_text() for look in GRADE_LOOKS)
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 5_000_000
    assert page.count("data:image/png;base64,") == 3
    for words in ("Simulated scene: nothing of this happened.", "CC0-1.0", "Image before", "Image after", "of change"):
        assert words in page
    assert "Painted from &lt;labels&gt;." in page and "<labels>" not in page
    assert "destroyed: 28" in page
    assert "jquery" not in page.lower()


def test_texts_of_files_cannot_become_code(bare_run: SampleRun, tmp_path: Path) -> None:
    frame = geopandas.read_file(bare_run.scene.footprints).head(3)
    frame["id"] = ["<img src=x onerror=alert(1)>", "</script>", "b"]
    frame.to_file(tmp_path / "evil.gpkg")
    page = (
        export_run(bare_run.run, "map", tmp_path / "map.html", footprints=tmp_path / "evil.gpkg").paths[0].read_text()
    )
    assert "onerror=alert" in page, "the id is shown"
    assert "<img src=x" not in page and "\\u003cimg" not in page
    assert page.count("</script>") == page.count("<script")


def test_a_run_in_pixels_has_no_geojson_and_a_map_all_the_same(pixel_run: SampleRun, tmp_path: Path) -> None:
    result = export_run(pixel_run.run.id, "package", tmp_path / "out")
    assert {path.name for path in result.paths} == PARTS | {"changes.gpkg"}
    assert any("no GeoJSON" in note for note in result.notes)
    packed = export_run(pixel_run.run.id, "package", tmp_path / "all.zip")
    assert packed.paths == (tmp_path / "all.zip",)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert set(archive.namelist()) == PARTS | {"changes.gpkg"}
        assert archive.read("score.tif") == pixel_run.run.score.read_bytes()
    assert geopandas.read_file(tmp_path / "out" / "changes.gpkg").crs is None
    page = (tmp_path / "out" / "map.html").read_text()
    assert "L.CRS.Simple" in page and "is no longer where it was" in page
    with pytest.raises(InputError, match="GeoJSON holds degrees"):
        export_run(pixel_run.run.id, "buildings", tmp_path / "b.geojson")
    assert not (tmp_path / "b.geojson").exists()


def test_a_folder_that_predict_wrote_is_a_run(sample_run: SampleRun, tmp_path: Path) -> None:
    assert find_run(str(sample_run.run.folder)).manifest == sample_run.run.manifest
    assert find_run(sample_run.run.id).folder == sample_run.run.folder
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="does not hold a finished run"):
        find_run(str(tmp_path))
    for foreign in ("[]", "not JSON", "\udcff"):
        (tmp_path / "manifest.json").write_text(foreign, errors="surrogateescape")
        with pytest.raises(InputError, match="not the manifest of a run"):
            find_run(str(tmp_path))
    with pytest.raises(InputError, match="not the id of a run"):
        find_run("nowhere")


@pytest.mark.parametrize(("what", "name"), [("score", "a.png"), ("buildings", "a.tif"), ("package", "a.gpkg")])
def test_a_suffix_that_does_not_fit(sample_run: SampleRun, tmp_path: Path, what: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} does not fit --what {what}"):
        export_run(sample_run.run.id, what, tmp_path / name)
    assert not list(tmp_path.glob("a.*"))


def test_a_run_is_never_overwritten(sample_run: SampleRun) -> None:
    before = sample_run.run.mask.read_bytes()
    for out in (sample_run.run.folder, sample_run.run.folder / "mask.tif"):
        with pytest.raises(UsageError, match="folder of the run itself"):
            export_run(sample_run.run.id, "mask", out, 0.9)
    assert sample_run.run.mask.read_bytes() == before


def test_another_run_is_never_overwritten_and_an_earlier_export_is(
    sample_run: SampleRun, bare_run: SampleRun, tmp_path: Path
) -> None:
    before = bare_run.run.mask.read_bytes()
    for out in (bare_run.run.folder, bare_run.run.folder / "mask.tif"):
        with pytest.raises(UsageError, match="holds another run"):
            export_run(sample_run.run.id, "mask", out, 0.9)
    assert bare_run.run.mask.read_bytes() == before
    (tmp_path / "manifest.json").write_text(json.dumps(sample_run.run.manifest | {"export": {}}))
    assert len({export_run(sample_run.run.id, "mask", tmp_path, cut).paths for cut in (0.5, 0.9)}) == 1
    with pytest.raises(UsageError, match="holds another run"):
        export_run(bare_run.run.id, "mask", tmp_path)


def test_words_of_the_user_are_checked(tmp_path: Path) -> None:
    assert set(EXPORTS) == {"score", "mask", "buildings", "map", "package"}
    with pytest.raises(UsageError, match="--what 'scores'"):
        ExportRequest.checked(what="scores", out=tmp_path)
    with pytest.raises(UsageError, match="--threshold 2"):
        ExportRequest.checked(what="score", out=tmp_path, threshold=2)


def test_a_stopped_export_leaves_nothing(sample_run: SampleRun, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "map":
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        export_run(sample_run.run.id, "package", tmp_path / "out", progress=stop)
    assert not list((tmp_path / "out").iterdir())


def test_a_place_that_cannot_be_written(sample_run: SampleRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        export_run(sample_run.run.id, "score", tmp_path / "file" / "score.tif")
