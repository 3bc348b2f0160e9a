"""Grids are pure arithmetic: properties are checked on generated ones, distances against geodesy."""

import math

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod

from mmcd.errors import InputError
from mmcd.geo.grid import LATTICE, Grid, Window, blocks, common_grid, overlap, same_crs, transform_bounds, utm_crs

UTM31 = "EPSG:32631"
UNKNOWN_UNIT = 'LOCAL_CS["arbitrary",UNIT["unknown",1]]'

sides = st.integers(1, 3000)
places = st.integers(-500, 3000)
windows = st.builds(Window, places, places, sides, sides)
grids = st.builds(
    lambda size, x, y, height, width: Grid(UTM31, Affine(size, 0, x, 0, -size, y), height, width),
    st.sampled_from([0.3, 0.5, 4.4997, 10.0, 30.0]),
    st.floats(2e5, 8e5),
    st.floats(1e5, 9e6),
    sides,
    sides,
)


def utm_grid(size: float, west: float = 5e5, north: float = 5.7e6, height: int = 320, width: int = 320) -> Grid:
    return Grid(UTM31, Affine(size, 0, west, 0, -size, north), height, width)


@given(grids, windows)
def test_bounds_of_a_crop_lead_back_to_its_window(grid: Grid, window: Window) -> None:
    assert grid.window_of(grid.crop(window).bounds) == window


@given(grids, windows)
def test_a_crop_shares_the_lattice_of_its_grid(grid: Grid, window: Window) -> None:
    assert grid.crop(window).offset_in(grid) == (window.row, window.col)


@given(st.tuples(st.integers(1, 150), st.integers(1, 150)), st.integers(5, 200))
def test_blocks_cover_each_pixel_once(shape: tuple[int, int], block: int) -> None:
    seen = np.zeros(shape, np.uint8)
    for window in blocks(shape, block):
        assert window.row % block == 0 and window.col % block == 0
        seen[window.slices] += 1
    assert (seen == 1).all()


@given(st.tuples(st.integers(1, 700), st.integers(1, 700)), st.integers(16, 300), windows)
def test_blocks_of_a_region_are_those_of_the_whole_that_touch_it(
    shape: tuple[int, int], block: int, region: Window
) -> None:
    touching = [window for window in blocks(shape, block) if not window.intersection(region).empty]
    assert list(blocks(shape, block, within=region)) == touching


@given(windows)
def test_snapping_grows_to_the_lattice_by_less_than_a_cell(window: Window) -> None:
    snapped = window.snapped()
    assert snapped.intersection(window) == window
    assert all(value % LATTICE == 0 for value in (snapped.row, snapped.col, snapped.height, snapped.width))
    assert snapped.height - window.height < 2 * LATTICE and snapped.width - window.width < 2 * LATTICE
    assert snapped.snapped() == snapped


@given(windows, st.integers(0, 200))
def test_a_halo_is_added_on_each_side(window: Window, halo: int) -> None:
    padded = window.padded(halo)
    assert padded.shape == (window.height + 2 * halo, window.width + 2 * halo)
    assert padded.intersection(window) == window
    rasterio_window = padded.to_rasterio()
    assert (rasterio_window.row_off, rasterio_window.col_off) == (padded.row, padded.col)


def test_windows_apart_share_nothing() -> None:
    assert Window(0, 0, 5, 5).intersection(Window(5, 0, 5, 5)).empty


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326", "EPSG:3857", "EPSG:2263"])
def test_gsd_is_the_geodesic_length_of_a_pixel(crs: str) -> None:
    """Degrees, feet and Mercator's stretched metres all end as metres on the ground."""
    west, south, _, _ = transform_bounds((-73.99, 40.70, -73.98, 40.71), "EPSG:4326", crs)
    if crs == "EPSG:32631":  # A zone of its own: UTM 31 is not defined well over New York.
        west, south = 5e5, 4.5e6
    step = 1e-5 if crs == "EPSG:4326" else 1.0
    grid = Grid(crs, Affine(step, 0, west, 0, -step, south), 100, 100)
    lon_w, lat_s, lon_e, lat_n = grid.geographic_bounds()
    lat, lon = (lat_s + lat_n) / 2, (lon_w + lon_e) / 2
    geod = Geod(ellps="WGS84")
    across = geod.line_length([lon_w, lon_e], [lat, lat]) / 100
    down = geod.line_length([lon, lon], [lat_s, lat_n]) / 100
    assert grid.gsd == pytest.approx((across + down) / 2, rel=0.01)


def test_area_is_ground_area_even_in_mercator() -> None:
    """At 60 degrees north a Mercator pixel shows a quarter of its nominal area."""
    grid = Grid("EPSG:3857", Affine(10, 0, 0, 0, -10, 8_399_737), 100, 100)
    assert grid.pixel_area_m2 == pytest.approx(25, rel=0.01)
    assert utm_grid(0.5).pixel_area_m2 == 0.25
    foot = 1200 / 3937
    assert Grid("EPSG:2263", Affine(1, 0, 1e6, 0, -1, 2e5), 9, 9).pixel_area_m2 == pytest.approx(foot**2)


def test_areas_are_never_taken_from_degrees_or_unknown_units() -> None:
    assert Grid("EPSG:4326", Affine(1e-4, 0, 4, 0, -1e-4, 52), 9, 9).pixel_area_m2 is None
    assert Grid.in_pixels(9, 9).pixel_area_m2 is None
    unknown = Grid(UNKNOWN_UNIT, Affine(1, 0, 0, 0, -1, 0), 9, 9)
    assert unknown.gsd is None and unknown.pixel_area_m2 is None


@pytest.mark.parametrize(
    ("lon", "lat", "crs"),
    [
        (4.35, 51.9, "EPSG:32631"),
        (-179.9, 0, "EPSG:32601"),
        (179.9, -1, "EPSG:32760"),
        (180, 10, "EPSG:32601"),
        (10, 85, "EPSG:32661"),
        (10, -85, "EPSG:32761"),
    ],
)
def test_utm_zones(lon: float, lat: float, crs: str) -> None:
    assert utm_crs(lon, lat) == crs


def test_crs_texts_are_compared_by_meaning() -> None:
    assert same_crs("EPSG:4326", "OGC:CRS84") is False
    assert same_crs("EPSG:32631", "epsg:32631")
    assert not same_crs(None, "EPSG:4326") and same_crs(None, None)


def test_post_keeps_its_lattice() -> None:
    pre, post = utm_grid(0.5, 500_003.2), utm_grid(4.4997, 499_000.3, 5_700_500.7)
    grid = common_grid(pre, post, card_gsd=10)
    row, col = grid.offset_in(post) or (-1, -1)
    assert row % LATTICE == 0 and col % LATTICE == 0
    assert grid.transform.a == post.transform.a


def test_the_common_grid_holds_the_intersection_but_never_leaves_post() -> None:
    pre, post = utm_grid(10, 5e5 + 995, 5.7e6 - 995), utm_grid(10, height=210, width=200)
    grid = common_grid(pre, post)
    assert grid.offset_in(post) == (96, 96)
    assert grid.shape == (210 - 96, 200 - 96)


@pytest.mark.parametrize("card_gsd", [5.0, 8.0])
def test_a_finer_card_makes_a_new_lattice_on_round_origins(card_gsd: float) -> None:
    pre, post = utm_grid(0.5, width=3000, height=3000), utm_grid(10, 5e5 + 3.3, 5.7e6 - 7.7)
    grid = common_grid(pre, post, card_gsd)
    cell = LATTICE * card_gsd
    assert grid.transform.a == card_gsd and grid.crs == UTM31
    assert grid.transform.c % cell == 0 and grid.transform.f % cell == 0
    assert grid.height % LATTICE == 0 and grid.width % LATTICE == 0
    shared = (post.bounds[0], pre.bounds[1], pre.bounds[2], post.bounds[3])
    assert grid.bounds[0] <= shared[0] and grid.bounds[1] <= shared[1]
    assert grid.bounds[2] >= shared[2] and grid.bounds[3] >= shared[3]


def test_a_card_of_nearly_the_same_gsd_does_not_resample() -> None:
    grid = utm_grid(10.02)
    assert common_grid(grid, grid, card_gsd=10).transform == grid.transform


def test_degrees_become_the_utm_zone() -> None:
    grid = Grid("EPSG:4326", Affine(9e-5, 0, -0.78, 0, -9e-5, 38.12), 512, 512)
    common = common_grid(grid, grid)
    assert common.crs == "EPSG:32630"
    assert common.gsd == pytest.approx(grid.gsd)
    first, second = common.geographic_bounds(), grid.geographic_bounds()
    assert first[0] <= second[0] and first[1] <= second[1] and first[2] >= second[2] and first[3] >= second[3]


def test_an_unknown_unit_is_no_reason_to_refuse() -> None:
    grid = Grid(UNKNOWN_UNIT, Affine(1, 0, 0, 0, -1, 0), 64, 64)
    assert common_grid(grid, grid, card_gsd=10) == grid
    rotated = Grid(UNKNOWN_UNIT, Affine.rotation(30) @ Affine.scale(2, -2), 64, 64)
    assert common_grid(rotated, rotated).north_up


def test_without_georeference_sizes_must_agree() -> None:
    pixels = Grid.in_pixels(100, 120)
    assert common_grid(pixels, pixels) == pixels
    with pytest.raises(InputError, match=r"120 × 100 px.*90 × 90"):
        common_grid(pixels, Grid.in_pixels(90, 90))


def test_images_of_two_places_have_no_common_grid() -> None:
    with pytest.raises(InputError, match="do not overlap"):
        common_grid(utm_grid(10), utm_grid(10, west=6e5))
    assert overlap(utm_grid(10), utm_grid(10, west=6e5)) == 0


def test_overlap_is_the_share_of_the_smaller() -> None:
    large, small = utm_grid(10), utm_grid(10, 5e5 + 2400, height=160, width=160)
    assert overlap(large, small) == pytest.approx(0.5)


def test_footprint_is_a_closed_ring_in_degrees() -> None:
    ring = (utm_grid(10).geographic_footprint() or {})["coordinates"][0]
    assert ring[0] == ring[-1] and len(ring) == 5
    assert all(math.isclose(lon, 3, abs_tol=0.1) for lon, _ in ring)
    assert Grid.in_pixels(5, 5).geographic_footprint() is None


def test_an_unknown_crs_is_an_input_error() -> None:
    with pytest.raises(InputError, match="not a known coordinate reference system"):
        transform_bounds((0, 0, 1, 1), "EPSG:4326", "EPSG:999999")
