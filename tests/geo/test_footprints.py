"""Each building once, with a name that outlives the order of its file."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine

from mmcd.errors import InputError
from mmcd.geo.footprints import Footprints, read_footprints
from mmcd.geo.grid import Grid

UTM31 = "EPSG:32631"
SQUARES = [shapely.box(500_000 + 30 * i, 5_700_000, 500_010 + 30 * i, 5_700_010) for i in range(6)]

pytestmark = pytest.mark.filterwarnings("ignore:'crs' was not provided")


def frame(shapes: list[shapely.Geometry] = SQUARES, crs: str | None = UTM31, **columns: list) -> geopandas.GeoDataFrame:
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs)


def write(folder: Path, values: geopandas.GeoDataFrame, name: str = "b.gpkg") -> Path:
    path = folder / name
    if path.suffix == ".parquet":
        values.to_parquet(path)
    else:
        values.to_file(path)
    return path


@pytest.mark.parametrize("name", ["b.gpkg", "b.geojson", "b.shp", "b.parquet"])
@pytest.mark.parametrize("crs", [UTM31, "EPSG:4326"])
def test_every_format_gives_the_same_buildings(tmp_path: Path, name: str, crs: str) -> None:
    found = read_footprints(write(tmp_path, frame(uid=[f"u{i}" for i in range(6)]).to_crs(crs), name))
    assert found.ids == tuple(f"u{i}" for i in range(6))
    assert found.notes == ()
    np.testing.assert_allclose(shapely.bounds(found.in_crs(UTM31)), shapely.bounds(np.array(SQUARES)), atol=0.02)


@pytest.mark.parametrize("name", ["b.gpkg", "b.shp", "b.parquet"])
def test_without_a_crs_coordinates_are_pixels(tmp_path: Path, name: str) -> None:
    found = read_footprints(write(tmp_path, frame([shapely.box(1, 2, 3, 5)], None), name))
    assert found.crs is None
    assert found.in_pixels_of(Grid.in_pixels(10, 10))[0].bounds == (1, 2, 3, 5)
    with pytest.raises(InputError, match="no CRS, the images have one"):
        found.in_pixels_of(Grid(UTM31, Affine.identity(), 10, 10))
    with pytest.raises(InputError, match="images have no georeference"):
        Footprints(("a",), np.array(SQUARES[:1]), UTM31).in_pixels_of(Grid.in_pixels(10, 10))


def test_ids_of_outlines_do_not_depend_on_the_order_or_on_where_a_ring_begins(tmp_path: Path) -> None:
    first = read_footprints(write(tmp_path, frame(), "a.gpkg"))
    turned = [shapely.Polygon(np.roll(shapely.get_coordinates(s)[:-1], 1, axis=0)[::-1]) for s in SQUARES[::-1]]
    second = read_footprints(write(tmp_path, frame(turned), "b.gpkg"))
    assert len(set(first.ids)) == 6
    assert first.ids == second.ids[::-1]
    assert not set(first.ids) & {str(i) for i in range(7)}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"Osm_ID": [7.0, 8, 9, 10, 11, np.nan]}, ("7", "8", "9", "10", "11")),
        ({"fid": [11, 12, 13, 14, 15, 16], "uid": list("abcdef")}, tuple("abcdef")),
    ],
)
def test_the_id_column(tmp_path: Path, columns: dict, expected: tuple[str, ...]) -> None:
    ids = read_footprints(write(tmp_path, frame(**columns), "b.parquet")).ids
    assert ids[: len(expected)] == expected
    assert len(set(ids)) == 6


def test_a_column_of_classes_is_no_id(tmp_path: Path) -> None:
    ids = read_footprints(write(tmp_path, frame(id=["house"] * 4 + ["shed"] * 2))).ids
    assert len(set(ids)) == 6 and not any(name.startswith(("house", "shed")) for name in ids)


def test_equal_outlines_are_one_building_whatever_their_order(tmp_path: Path) -> None:
    values = frame([*SQUARES, SQUARES[2].reverse(), SQUARES[4]], uid=[*"abcdef", "B", "z"])
    found = read_footprints(write(tmp_path, values))
    assert found.ids == ("a", "b", "d", "e", "f", "B")  # of equal outlines the smallest id stays
    assert read_footprints(write(tmp_path, values[::-1], "r.gpkg")).ids == found.ids[::-1]
    assert found.notes == ("2 outlines came twice and are counted once.",)


def test_a_building_cut_at_a_sheet_border_is_joined_and_strangers_of_one_id_are_told_apart(tmp_path: Path) -> None:
    left, right = shapely.box(0, 0, 4, 3), shapely.box(4, 0, 10, 3)
    far = shapely.box(50, 0, 52, 2)
    found = read_footprints(write(tmp_path, frame([left, far, right, *SQUARES[:4]], uid=list("aaabcde"))))
    joined = dict(zip(found.ids, found.geometry, strict=True))
    assert len(found) == 6
    assert {name for name in joined if len(name) == 1} == set("bcde")
    assert sorted(shape.area for name, shape in joined.items() if name.startswith("a-")) == [4, 30]
    assert "1 outlines were parts" in found.notes[0]


def test_what_is_no_area_is_reported_and_what_is_broken_is_mended(tmp_path: Path) -> None:
    bow_tie = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    found = read_footprints(write(tmp_path, frame([bow_tie, shapely.Point(1, 1), SQUARES[0]]), "b.parquet"))
    assert sorted(np.round(shapely.area(found.geometry))) == [8, 100]
    assert shapely.is_valid(found.geometry).all()
    assert [note[:20] for note in found.notes] == ["1 outlines crossed t", "1 of 3 features are "]


def test_a_file_of_several_layers(tmp_path: Path) -> None:
    path = tmp_path / "b.gpkg"
    frame(SQUARES[:2]).to_file(path, layer="roads")
    frame(SQUARES[:5]).to_file(path, layer="buildings")
    assert len(read_footprints(path)) == 5
    assert "'buildings' was read; the file also holds roads" in read_footprints(path).notes[0]
    assert len(read_footprints(path, "roads")) == 2


def test_files_that_hold_no_buildings(tmp_path: Path) -> None:
    (tmp_path / "text.gpkg").write_text("hello")
    (tmp_path / "text.parquet").write_text("hello")
    frame([shapely.Point(3, 51)]).to_file(tmp_path / "point.gpkg")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "null.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": None}]})
    )
    reasons = {
        "text.gpkg": "cannot be read as building footprints",
        "text.parquet": "cannot be read as building footprints",
        "point.gpkg": "no polygon",
        "table.csv": "no geometry",
        "null.geojson": "no polygon|no geometry",
        "gone.gpkg": "does not exist",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            read_footprints(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read as building footprints"):
        read_footprints(tmp_path / "point.gpkg", "nowhere")
