"""Regions in any CRS end as the pixels around them, or as one clear sentence."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine

from mmcd.errors import RegionError
from mmcd.geo.grid import Grid, Window, transform_bounds
from mmcd.geo.vector import parse_region

from .conftest import CORNER, UTM31

GRID = Grid(UTM31, CORNER, 300, 400)
INSIDE = (500_500.0, 5_698_000.0, 501_500.0, 5_699_000.0)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32631", "EPSG:32632", "EPSG:3857"])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_file_in_any_crs(tmp_path: Path, crs: str, suffix: str) -> None:
    path = tmp_path / f"area{suffix}"
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(*INSIDE)], crs=UTM31).to_crs(crs)
    frame.to_file(path)
    window = parse_region(str(path)).window(GRID)
    exact = Window(100, 50, 100, 100)
    assert window.intersection(exact) == exact
    assert window.height <= 104 and window.width <= 104


def test_four_numbers_in_degrees() -> None:
    west, south, east, north = transform_bounds(INSIDE, UTM31, "EPSG:4326")
    window = parse_region(f"{west},{south}, {east},{north}").window(GRID)
    exact = Window(100, 50, 100, 100)
    assert window.intersection(exact) == exact and window.height < 115


def test_a_region_is_cut_at_the_scene() -> None:
    assert parse_region("-10,40,20,60").window(GRID) == GRID.window


def test_several_polygons_are_one_region_and_have_a_mask(tmp_path: Path) -> None:
    corners = [(500_000, 5_700_000), (501_000, 5_699_000)]
    shapes = [shapely.box(x, y - 500, x + 500, y) for x, y in corners]
    geopandas.GeoDataFrame(geometry=shapes, crs=UTM31).to_file(tmp_path / "areas.gpkg")
    region = parse_region(str(tmp_path / "areas.gpkg"))
    window = region.window(GRID)
    assert window == Window(0, 0, 150, 150)
    mask = region.mask(GRID.crop(window))
    assert mask.sum() == 2 * 50 * 50 and mask[:50, :50].all() and mask[100:, 100:].all()
    assert mask.dtype == np.bool_


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10,50,11,51", "outside the scene"),
        ("4,52,3,53", "empty or not in degrees"),
        ("500000,5690000,501000,5700000", "not in degrees"),
        ("1,2,3", "not four numbers"),
        ("1,2,3,nan", "not four numbers"),
        ("nowhere.gpkg", "neither W,S,E,N nor a file"),
    ],
)
def test_what_cannot_be_a_region(text: str, reason: str) -> None:
    with pytest.raises(RegionError, match=reason):
        parse_region(text).window(GRID)


def test_files_that_hold_no_region(tmp_path: Path) -> None:
    (tmp_path / "text.geojson").write_text("hello")
    geopandas.GeoDataFrame(geometry=[shapely.Point(3, 51)], crs="EPSG:4326").to_file(tmp_path / "point.gpkg")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.warns(UserWarning, match="crs"):
        geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]).to_file(tmp_path / "bare.gpkg")
    reasons = {"text.geojson": "not a vector file", "point.gpkg": "no polygon", "table.csv": "no polygon"}
    for name, reason in {**reasons, "bare.gpkg": "no CRS"}.items():
        with pytest.raises(RegionError, match=reason):
            parse_region(str(tmp_path / name))


def test_pixel_space_has_no_regions() -> None:
    with pytest.raises(RegionError, match="no georeference"):
        parse_region("3,51,4,52").window(Grid.in_pixels(10, 10))


def test_a_region_where_the_scene_crs_ends() -> None:
    polar = Grid("EPSG:3413", Affine(100, 0, 0, 0, -100, 0), 50, 50)
    with pytest.raises(RegionError):
        parse_region("10,-89,11,-88").window(polar)
