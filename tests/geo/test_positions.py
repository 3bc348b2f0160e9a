"""Where images are taken: distances from cities, evenness over land, shares of a mixture, and tables that are wrong."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Geod

from mmcd.errors import InputError, RegionError
from mmcd.geo.positions import Mixture, NearPoints, OverLand, read_land, read_points

CITIES = np.array([[10.0, 0.0], [-100.0, 65.0], [179.9, -40.0]])
COUNT = 6000


def drawn(sampler, count: int = COUNT, seed: int = 1) -> np.ndarray:
    return sampler.draw(count, np.random.default_rng(seed))


def metres_from(point: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres to the east and to the north of a point."""
    start = np.broadcast_to(point, positions.shape)
    bearing, _, metres = Geod(ellps="WGS84").inv(start[:, 0], start[:, 1], positions[:, 0], positions[:, 1])
    return metres * np.sin(np.radians(bearing)), metres * np.cos(np.radians(bearing))


@pytest.mark.parametrize("city", CITIES)
def test_the_way_from_a_city_is_normal_in_kilometres_at_every_latitude(city: np.ndarray) -> None:
    for spread in (50.0, 5.0):
        positions = drawn(NearPoints(city[None], spread))
        assert (np.abs(positions) <= (180, 90)).all()
        for along in metres_from(city, positions):
            assert along.std() == pytest.approx(1000 * spread, rel=0.04) and abs(along.mean()) < 50 * spread
            assert (np.abs(along) < 1000 * spread).mean() == pytest.approx(0.683, abs=0.02)
    assert np.allclose(drawn(NearPoints(city[None], 0.0), 3), city)


def test_every_city_is_as_likely() -> None:
    positions = drawn(NearPoints(CITIES))
    nearest = np.stack([np.hypot(*metres_from(city, positions)) for city in CITIES]).argmin(axis=0)
    assert np.bincount(nearest, minlength=3) / COUNT == pytest.approx(np.full(3, 1 / 3), abs=0.02)


def test_land_is_covered_evenly_by_area_and_not_by_degrees() -> None:
    tropics, north = shapely.box(0, 0, 10, 10), shapely.box(0, 60, 10, 70)
    triangle = shapely.Polygon([(-30, -10), (-10, -10), (-30, 10)])
    land = shapely.union_all([tropics, north, triangle])
    positions = drawn(OverLand(land))
    assert shapely.contains_xy(land, *positions.T).all()
    equal = [geopandas.GeoSeries([shapely.segmentize(part, 0.1)], crs=4326) for part in (tropics, north, triangle)]
    area = [float(part.to_crs("EPSG:6933").area.iloc[0]) for part in equal]
    found = [shapely.contains_xy(part, *positions.T).mean() for part in (tropics, north, triangle)]
    assert found == pytest.approx(np.array(area) / sum(area), abs=0.02) and found[1] < 0.25
    whole = drawn(OverLand(shapely.box(-180, -90, 180, 90)))
    assert (np.abs(whole[:, 1]) < 30).mean() == pytest.approx(0.5, abs=0.02), "half of the sphere lies below 30 degrees"


def test_a_mixture_takes_its_shares_and_is_shuffled() -> None:
    city, land = NearPoints(np.array([[-100.0, 0.0]]), 5.0), OverLand(shapely.box(0, 0, 10, 10))
    near = drawn(Mixture((city, land), (3, 1)))[:, 0] < -50
    assert near.mean() == pytest.approx(0.75, abs=0.02) and near[:200].mean() == pytest.approx(0.75, abs=0.12)
    assert (drawn(Mixture((city, land), (0, 1)))[:, 0] > 0).all()
    assert drawn(Mixture((city, land), (1, 1)), 0).shape == (0, 2)


@pytest.mark.parametrize(
    "sampler",
    [NearPoints(CITIES), OverLand(shapely.box(0, 0, 9, 9)), Mixture([NearPoints(CITIES), NearPoints(-CITIES)], (1, 1))],
)
def test_the_same_seed_draws_the_same_positions(sampler) -> None:
    assert np.array_equal(drawn(sampler, 50, 7), drawn(sampler, 50, 7))
    assert not np.array_equal(drawn(sampler, 50, 7), drawn(sampler, 50, 8))


def test_what_cannot_be_drawn_from_is_refused() -> None:
    city = NearPoints(CITIES)
    for make, words in (
        (lambda: NearPoints(CITIES[:0]), "no point"),
        (lambda: NearPoints(np.array([[0.0, 0.0], [40.0, 110.0]])), r"Point 2 of 2, \(40.0, 110.0\)"),
        (lambda: NearPoints(np.array([[np.nan, 0.0]])), "Point 1 of 1"),
        (lambda: NearPoints(CITIES, -1.0), "spread of -1 km"),
        (lambda: OverLand(shapely.Point(0, 0)), "no area"),
        (lambda: OverLand(shapely.box(400_000, 5_000_000, 500_000, 5_100_000)), "not in degrees"),
        (lambda: Mixture((city, city), (1,)), "how often each of 2"),
        (lambda: Mixture((city,), (0,)), "how often each of 1"),
        (lambda: Mixture((city, city), (-1, 2)), "how often"),
    ):
        with pytest.raises(InputError, match=words):
            make()
    sliver = shapely.Polygon([(0, 0), (60, 60), (60, 60 + 1e-9)])
    with pytest.raises(InputError, match="too thin"):
        drawn(OverLand(sliver), 1)


def test_points_are_read_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "cities.csv"
    path.write_text("name,Latitude,Longitude,population\na,1,10,5\nb,2,20,50\nc,3,30,500\n")
    assert read_points(path).tolist() == [[10, 1], [20, 2], [30, 3]]
    assert read_points(path, most=2).tolist() == [[30, 3], [20, 2]]
    for text, words in (
        ("name,lat\na,1\n", "no column lon, only name, lat"),
        ("lon,lat\n1,2\nx,3\n", "line 3 has no number in lon"),
        ("", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_points(path)
    path.write_text("lon,lat\n1,2\n")
    with pytest.raises(InputError, match="no column population"):
        read_points(path, most=1)
    with pytest.raises(InputError, match="No such file"):
        read_points(tmp_path / "none.csv")


def test_land_is_read_in_any_crs(tmp_path: Path) -> None:
    square = geopandas.GeoSeries([shapely.box(10, 45, 11, 46)], crs="EPSG:4326")
    square.to_crs("EPSG:32632").to_file(tmp_path / "land.gpkg")
    positions = drawn(OverLand(read_land(tmp_path / "land.gpkg")), 500)
    assert ((positions > (9.99, 44.99)) & (positions < (11.01, 46.01))).all() and np.ptp(positions, axis=0).min() > 0.9
    with pytest.raises(RegionError):
        read_land(tmp_path / "none.gpkg")
