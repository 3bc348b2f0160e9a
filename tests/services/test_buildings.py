"""Buildings of a run: counted once a file, kept beside the score, and ready for the map."""

import json
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely

from mmcd.buildings import GRADES
from mmcd.errors import InputError
from mmcd.score import threshold_value
from mmcd.services.buildings import (
    OWN_OUTLINES,
    buildings_of,
    draws_buildings,
    footprints_file,
    geojson_of,
    graded_vectors,
    grading_key,
    outline_source,
    used_footprints,
)

from .conftest import SampleRun, add_evidence, write_run


def test_the_scene_brings_its_footprints(sample_run: SampleRun) -> None:
    run = sample_run.run
    assert footprints_file(run) == sample_run.scene.footprints
    totals = buildings_of(run).at(0.5).totals()["grades"]
    truth = geopandas.read_file(sample_run.scene.footprints)["damage"]
    number = {grade: facts["buildings"] for grade, facts in totals.items()}
    assert 0 < number["not assessed"] < 5, "some lie at the edge that was not assessed"
    assert number["destroyed"] + number["damaged"] == (truth != "intact").sum()
    assert sum(number.values()) == len(truth)


def test_counts_are_kept_until_the_file_changes(sample_run: SampleRun, tmp_path: Path) -> None:
    run, own = sample_run.run, tmp_path / "own.geojson"
    shutil.copy(sample_run.scene.footprints, own)
    first = buildings_of(run, own)
    kept = {path: path.stat().st_mtime_ns for path in (run.folder / "buildings").iterdir()}
    again = buildings_of(run, own)
    np.testing.assert_array_equal(again.counts, first.counts)
    assert {path: path.stat().st_mtime_ns for path in (run.folder / "buildings").iterdir()} == kept
    frame = geopandas.read_file(own).head(5)
    frame.to_file(own)
    assert len(buildings_of(run, own)) == 5


def test_the_map_gets_degrees_and_three_bytes_for_every_threshold(sample_run: SampleRun) -> None:
    run = sample_run.run
    path = geojson_of(run)
    assert geojson_of(run) == path
    features = json.loads(path.read_text())["features"]
    frame = buildings_of(run).at(0.37).frame.set_index("id")
    assert [feature["id"] for feature in features] == frame.index.tolist()
    byte = threshold_value(0.37)
    for feature in features:
        facts, row = feature["properties"], frame.loc[feature["id"]]
        if facts["cuts"] is None:
            assert row["grade"] == "not assessed" and facts["reason"] == row["reason"]
            continue
        assert GRADES[sum(cut >= byte for cut in facts["cuts"])] == row["grade"]
        assert facts["area"] == pytest.approx(row["area_m2"], abs=0.06)
        assert (facts["mean"], facts["max"]) == pytest.approx((row["mean_score"], row["max_score"]), abs=6e-4)
    shown = geopandas.read_file(path)
    truth = geopandas.read_file(sample_run.scene.footprints)
    np.testing.assert_allclose(shown.total_bounds, truth.total_bounds, atol=2e-7)


def test_without_footprints_there_are_outlines_of_change_and_no_buildings(bare_run: SampleRun) -> None:
    with pytest.raises(InputError, match="no building footprints for this run, and the model 'synthetic' marks change"):
        buildings_of(bare_run.run)
    vectors = graded_vectors(bare_run.run, 0.5)
    assert vectors.layer == "changes"
    assert "at least 16 pixels (4 m²), at full resolution" in vectors.notes[0]
    assert (vectors.frame["area_px"] >= 16).all()
    assert vectors.frame["area_m2"].sum() == pytest.approx(vectors.totals["area_px"] * 0.25)


def test_a_scene_in_pixels_lies_where_the_map_shows_it(pixel_run: SampleRun, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="crs"):
        geopandas.GeoDataFrame({"id": ["a"]}, geometry=[shapely.box(10, 20, 40, 60)]).to_file(tmp_path / "b.gpkg")
    counts = buildings_of(pixel_run.run, tmp_path / "b.gpkg")
    assert counts.counts.sum() == 30 * 40
    west, south, east, north = geopandas.read_file(geojson_of(pixel_run.run, tmp_path / "b.gpkg")).total_bounds
    metres = geopandas.GeoSeries([shapely.box(west, south, east, north)], crs="EPSG:4326").to_crs("EPSG:3857")
    np.testing.assert_allclose(metres.total_bounds, (10, -60, 40, -20), atol=0.02)
    with pytest.raises(InputError, match="images have no georeference"):
        shutil.copy(pixel_run.scene.footprints, tmp_path / "degrees.geojson")
        buildings_of(pixel_run.run, tmp_path / "degrees.geojson")


def test_a_file_that_is_gone(sample_run: SampleRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        buildings_of(sample_run.run, tmp_path / "gone.gpkg")


def test_without_footprints_the_outlines_are_the_model_s_own_and_it_is_said(model_run: SampleRun) -> None:
    run = model_run.run
    vectors = graded_vectors(run, 0.5)
    assert vectors.layer == "buildings"
    assert vectors.notes[0] == OWN_OUTLINES == vectors.facts["outlines"]
    assert set(vectors.frame["outlines"]) == {"model"}
    truth = geopandas.read_file(model_run.scene.footprints)
    assert 0.8 * len(truth) < len(vectors.frame) <= len(truth), "those that touch are one"
    assert vectors.frame["id"].str.fullmatch(r"b-\d+-\d+").all()
    surveyed = shapely.union_all(truth.to_crs(vectors.frame.crs).geometry)
    drawn = shapely.union_all(vectors.frame.geometry)
    assert drawn.intersection(surveyed).area > 0.9 * drawn.union(surveyed).area
    destroyed = vectors.totals["grades"]["destroyed"]["buildings"]
    assert destroyed >= 0.8 * (truth["damage"] == "destroyed").sum() > 0
    assert used_footprints(run, None) == {
        "path": str(run.folder / "building_probability.tif"),
        "sha256": run.manifest["evidence"]["sha256"],
        "origin": "model",
        "note": OWN_OUTLINES,
    }
    features = json.loads(geojson_of(run).read_text())["features"]
    assert [feature["id"] for feature in features] == vectors.frame["id"].tolist()


def test_a_file_comes_before_the_scene_and_the_scene_before_the_model(sample_run: SampleRun, tmp_path: Path) -> None:
    surveyed = sample_run.scene.footprints
    marked = add_evidence(sample_run)
    given = shutil.copy(surveyed, tmp_path / "own.geojson")
    for footprints, origin, path in ((None, "scene", surveyed), (given, "file", given)):
        source = outline_source(marked.run, footprints)
        assert source is not None and (source.origin, source.path) == (origin, path)
    vectors = graded_vectors(marked.run, 0.5)
    assert OWN_OUTLINES not in vectors.notes and not vectors.facts
    assert "outlines" not in vectors.frame


def test_another_evidence_is_graded_anew(model_run: SampleRun) -> None:
    first, key = len(buildings_of(model_run.run)), grading_key(model_run.run)
    fewer = add_evidence(model_run, smallest=2)
    assert grading_key(fewer.run) != key
    assert 0 < len(buildings_of(fewer.run)) < first


def test_a_model_that_sees_no_building_says_so(bare_run: SampleRun) -> None:
    empty = add_evidence(bare_run, smallest=9)
    with pytest.raises(InputError, match="the model sees no building here"):
        buildings_of(empty.run)
    assert json.loads(geojson_of(empty.run).read_text()) == {"type": "FeatureCollection", "features": []}
    assert not draws_buildings(empty.run)
    vectors = graded_vectors(empty.run, 0.5)
    assert vectors.layer == "changes"
    assert "and the model sees no building here: outlines of change of at least 16 pixels" in vectors.notes[0]


def test_evidence_that_is_gone_is_none(model_run: SampleRun) -> None:
    assert draws_buildings(model_run.run)
    (model_run.run.folder / "building_probability.tif").unlink()
    assert not draws_buildings(model_run.run)
    assert outline_source(model_run.run) is None
    with pytest.raises(InputError, match="marks change, not buildings"):
        geojson_of(model_run.run)


def test_the_model_s_own_outlines_in_pixels(pixel_run: SampleRun) -> None:
    vectors = graded_vectors(add_evidence(pixel_run).run, 0.5)
    assert vectors.layer == "buildings" and vectors.frame.crs is None
    assert vectors.frame["area_px"].min() >= 20


@pytest.mark.usefixtures("workspace")
def test_a_run_of_a_removed_scene_says_why_it_has_no_footprints() -> None:
    run = write_run("removed", "removed-scene", {}, georeferenced=True).run
    vectors = graded_vectors(run, 0.5)
    assert vectors.notes[0].startswith("The scene of this run was removed, there are no building footprints: outlines")
