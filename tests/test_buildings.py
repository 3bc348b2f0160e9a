"""Histograms and grades of buildings: against GDAL's own rasterisation, simulated truth and real damage polygons."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import geometry_mask, rasterize

from mmcd.buildings import GRADES, RULES, BuildingCounts, Footprints, GradeRules, count_buildings, read_footprints
from mmcd.errors import Cancelled, InputError
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid
from mmcd.paths import sample_data_dir
from mmcd.score import encode_score, threshold_value

GRID = Grid("EPSG:32631", Affine(0.5, 0, 500_000, 0, -0.5, 5_700_000), 300, 400)
XBD_GRADES = {
    "no-damage": "intact",
    "un-classified": "intact",
    "minor-damage": "possibly damaged",
    "major-damage": "damaged",
    "destroyed": "destroyed",
}
SHARES = {"intact": 0.02, "possibly damaged": 0.2, "damaged": 0.5, "destroyed": 0.95}


def box(col: float, row: float, width: float, height: float) -> shapely.Geometry:
    """A building by its pixels."""
    x, y = GRID.transform @ (col, row)
    return shapely.box(x, y - height * 0.5, x + width * 0.5, y)


def buildings(*shapes: shapely.Geometry, crs: str | None = GRID.crs) -> Footprints:
    return Footprints(tuple("abcdefgh"[: len(shapes)]), np.array(shapes, dtype=object), crs)


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Noise in every byte, with a hole that was not assessed at rows 100 to 200, columns 100 to 200."""
    stored = np.random.default_rng(0).integers(1, 256, GRID.shape).astype(np.uint8)
    stored[100:200, 100:200] = 0
    return write_cog(tmp_path_factory.mktemp("score") / "score.tif", stored, GRID), stored


def test_each_building_has_the_histogram_of_its_own_pixels(score: tuple[Path, np.ndarray]) -> None:
    path, stored = score
    rng = np.random.default_rng(2)
    centres = rng.uniform((500_010, 5_699_860), (500_190, 5_699_990), (60, 2))
    shapes = [shapely.Point(x, y).buffer(rng.uniform(0.5, 8), quad_segs=2) for x, y in centres]  # many overlap
    found = count_buildings(path, Footprints(tuple(map(str, range(60))), np.array(shapes, dtype=object), GRID.crs))
    for row, shape in zip(found.counts, shapes, strict=True):
        inside = geometry_mask([shape], GRID.shape, GRID.transform, invert=True)
        np.testing.assert_array_equal(row, np.bincount(stored[inside], minlength=256))
    np.testing.assert_allclose(found.area_m2, shapely.area(np.array(shapes)), rtol=1e-6)


@pytest.mark.parametrize("block", [16, 37, 150, 4096])
def test_the_window_size_and_the_order_change_nothing(score: tuple[Path, np.ndarray], block: int) -> None:
    shapes = [box(90, 90, 120, 50), box(-5, 20, 30.3, 10), box(15.2, 15.2, 0.2, 0.2), box(390, 290, 90, 90)]
    whole = count_buildings(score[0], buildings(*shapes))
    parts = count_buildings(score[0], buildings(*shapes[::-1]), block=block)
    for name in ("counts", "area_px", "beyond", "tiny"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name)[::-1])


def test_every_building_has_an_answer_or_a_reason(score: tuple[Path, np.ndarray]) -> None:
    path, stored = score
    lost = shapely.box(1e9, 1e9, 1e9 + 5, 1e9 + 5)
    shapes = [
        box(10, 10, 20, 20),  # a plain one
        box(95, 120, 10, 10),  # half of it not assessed
        box(96, 120, 10, 10),  # six tenths of it not assessed
        box(120, 120, 10, 10),  # none of it assessed
        box(30.1, 40.1, 0.2, 0.2),  # between the centres of pixels
        box(-8, 10, 10, 10),  # mostly beyond the edge
        box(500, 10, 10, 10),  # beyond the edge
        lost,
    ]
    frame = count_buildings(path, buildings(*shapes)).at(0.5).frame
    assert frame["id"].tolist() == list("abcdefgh")
    np.testing.assert_allclose(frame["assessed_share"], [1, 0.5, 0.4, 0, 1, 0.2, 0, 0], atol=1e-9)
    reasons = ["", "", "Only 40%", "Nothing was", "Smaller than a pixel", "Only 20%", "Lies outside", "Lies outside"]
    assert all(found.startswith(reason) for found, reason in zip(frame["reason"], reasons, strict=True))
    none = frame["grade"] == "not assessed"
    assert none.tolist() == [False, False, True, True, False, True, True, True]
    assert (frame["reason"][none] != "").all()
    assert frame["max_score"][4] == pytest.approx((stored[40, 30] - 1) / 254)
    assert frame[["changed_share", "mean_score", "max_score"]].loc[3].isna().all()


def test_footprints_the_projection_cannot_place_say_so(score: tuple[Path, np.ndarray]) -> None:
    nowhere = Footprints(("a",), np.array([shapely.box(400, 95, 401, 96)]), "EPSG:4326")
    frame = count_buildings(score[0], nowhere).at(0.5).frame
    assert frame["grade"][0] == "not assessed"
    assert "no place" in frame["reason"][0]


def test_values_at_a_threshold(score: tuple[Path, np.ndarray]) -> None:
    path, stored = score
    found = count_buildings(path, buildings(box(20, 30, 40, 50), box(150, 100, 60, 40)))
    pixels = [stored[30:80, 20:60].ravel(), stored[100:140, 150:210].ravel()]
    for threshold in (0.0, 0.3, 0.77, 1.0):
        frame = found.at(threshold).frame
        for row, values in enumerate(pixels):
            known = values[values > 0]
            assert frame["changed_share"][row] == pytest.approx((known >= threshold_value(threshold)).mean())
            assert frame["mean_score"][row] == pytest.approx(((known - 1.0) / 254).mean())
            assert frame["max_score"][row] == pytest.approx((known.max() - 1) / 254)
            assert frame["assessed_share"][row] == pytest.approx(known.size / values.size)


def test_grades_follow_the_changed_share_and_three_bytes_hold_them_all() -> None:
    rng = np.random.default_rng(5)
    counts = rng.poisson(rng.gamma(0.3, 2, (200, 256))).astype(np.uint32)
    counts[:, 0] = rng.integers(0, 60, 200)
    counts[7, 1:] = 0
    counts[7, 0] = 1
    found = BuildingCounts(
        tuple(map(str, range(200))), counts, np.ones(200), 0.25, np.zeros(200, np.uint32), np.zeros(200, bool)
    )
    cuts = found.grade_cuts()
    for byte in (1, 2, 40, 128, 200, 254, 255):
        threshold = (byte - 1) / 254
        frame = found.at(threshold).frame
        graded = frame["assessed_share"] >= RULES.min_assessed
        expected = np.array(GRADES[:4], dtype=object)[(cuts >= byte).sum(axis=1)]
        assert (frame["grade"][graded] == expected[graded]).all()
        assert (frame["grade"][~graded] == "not assessed").all()
        share = frame["changed_share"]
        assert ((frame["grade"] == "destroyed") == (graded & (share >= RULES.destroyed))).all()
    assert graded.sum() > 100 and not graded[7]


def test_totals_and_own_rules(score: tuple[Path, np.ndarray]) -> None:
    found = count_buildings(score[0], buildings(box(10, 10, 20, 20), box(40, 10, 20, 20), box(120, 120, 10, 10)))
    totals = found.at(0.5).totals()
    assert totals["buildings"] == 3 == sum(grade["buildings"] for grade in totals["grades"].values())
    assert totals["grades"]["damaged"] == {"buildings": 2, "area_m2": pytest.approx(200), "area_px": pytest.approx(800)}
    strict = found.at(0.5, GradeRules(possibly_damaged=0.9, damaged=0.95, destroyed=1.0)).totals()
    assert strict["grades"]["intact"]["buildings"] == 2


def test_counts_survive_a_file(score: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    found = count_buildings(score[0], buildings(box(10, 10, 20, 20), box(-5, 10, 8, 8), box(15.1, 15.1, 0.2, 0.2)))
    found.save(tmp_path / "counts.npz")
    again = BuildingCounts.load(tmp_path / "counts.npz")
    assert (again.ids, again.pixel_area_m2) == (found.ids, found.pixel_area_m2)
    for name in ("counts", "area_px", "beyond", "tiny"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    whole = (tmp_path / "counts.npz").read_bytes()
    for broken in (b"PK not an archive", whole[: len(whole) // 2], b""):
        (tmp_path / "counts.npz").write_bytes(broken)
        with pytest.raises(InputError, match="damaged"):
            BuildingCounts.load(tmp_path / "counts.npz")


def test_counting_can_be_stopped(score: tuple[Path, np.ndarray]) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise Cancelled(f"{stage} {done} of {total}")

    with pytest.raises(Cancelled, match="buildings 1 of 12"):
        count_buildings(score[0], buildings(box(10, 10, 20, 20)), block=100, progress=stop)


@pytest.mark.parametrize("scene", sorted(path.parent.name for path in sample_data_dir().glob("*/footprints.geojson")))
def test_a_perfect_score_of_a_sample_scene_gives_its_grades(scene: str, tmp_path: Path) -> None:
    folder = sample_data_dir() / scene
    with rasterio.open(folder / "label.tif") as label:
        classes = label.read(1)
        grid = Grid(label.crs.to_string(), label.transform, *label.shape)
    path = write_cog(tmp_path / "score.tif", encode_score((classes >= 2).astype(float), classes < 9), grid)
    footprints = read_footprints(folder / "footprints.geojson")
    truth = geopandas.read_file(folder / "footprints.geojson").set_index("id")["damage"]
    assert footprints.ids == tuple(truth.index.astype(str))
    frame = count_buildings(path, footprints).at(0.5).frame.set_index("id")
    damaged = truth.to_numpy() != "intact"
    called = frame["grade"].isin(["damaged", "destroyed"]).to_numpy()
    assert (frame["grade"] != "not assessed").all()
    assert (called == damaged).mean() > 0.99
    assert (frame["changed_share"].to_numpy()[damaged] > 0.9).mean() > 0.95


@pytest.mark.real_data
def test_the_486_buildings_of_joplin_come_once_with_the_grade_that_was_painted(
    shared_data: Path, tmp_path: Path
) -> None:
    """The polygons of three real image pairs; each building is painted changed for the share of its true grade."""
    names: list[str] = []
    for file in sorted((shared_data / "xbd_joplin" / "labels").glob("*post_disaster.json")):
        features = json.loads(file.read_text())["features"]["xy"]
        shapes = shapely.from_wkt([feature["wkt"] for feature in features])
        facts = [feature["properties"] for feature in features]
        truth = [XBD_GRADES[fact["subtype"]] for fact in facts]
        path = tmp_path / f"{file.stem}.gpkg"
        with pytest.warns(UserWarning, match="crs"):
            frame = geopandas.GeoDataFrame({"uid": [fact["uid"] for fact in facts]}, geometry=shapes)
            frame.sample(frac=1, random_state=0).to_file(path)
        score = write_cog(tmp_path / f"{file.stem}.tif", _painted(shapes, truth), Grid.in_pixels(1024, 1024))
        found = count_buildings(score, read_footprints(path))
        table = found.at(0.5).frame.set_index("id")
        assert found.pixel_area_m2 is None and table["area_m2"].isna().all()
        np.testing.assert_allclose(table["area_px"].loc[frame["uid"]], shapely.area(shapes), rtol=1e-9)
        assert (table["grade"].loc[frame["uid"]].to_numpy() == np.array(truth)).mean() > 0.97
        names += table.index.tolist()
    assert len(names) == len(set(names)) == 486


def _painted(shapes: np.ndarray, grades: list[str]) -> np.ndarray:
    """A score in which the upper part of each building is changed, as large as its grade says."""
    stored = np.full((1024, 1024), 20, np.uint8)
    for shape, grade in zip(shapes, grades, strict=True):
        left, top, right, bottom = np.floor(shape.bounds).astype(int)
        corner = Affine.translation(left, top)
        rows, cols = np.nonzero(rasterize([shape], (bottom - top + 1, right - left + 1), transform=corner))
        order = np.argsort(rows, kind="stable")[: round(SHARES[grade] * len(rows))]
        stored[rows[order] + top, cols[order] + left] = 240
    return stored


@pytest.mark.real_data
def test_joplin_in_degrees_read_from_overlapping_sheets(shared_data: Path, tmp_path: Path) -> None:
    sheets = []
    for file in sorted((shared_data / "xbd_joplin" / "labels").glob("*post_disaster.json")):
        features = json.loads(file.read_text())["features"]["lng_lat"]
        shapes = shapely.from_wkt([feature["wkt"] for feature in features])
        uids = [feature["properties"]["uid"] for feature in features]
        sheets.append(geopandas.GeoDataFrame({"uid": uids}, geometry=shapes, crs="EPSG:4326"))
    pd.concat([*sheets, sheets[1]]).to_file(tmp_path / "all.geojson")
    found = read_footprints(tmp_path / "all.geojson")
    assert set(found.ids) == set(pd.concat(sheets)["uid"])
    assert len(found) == 486
    assert found.notes == ("198 outlines came twice and are counted once.",)
