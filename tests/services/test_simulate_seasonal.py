"""Simulated seasonal series in SeCo's and CACo's layout: what is written, and that change and season are as told."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.data.seasonal_files import index_seasonal, read_acquisition
from mmcd.errors import Cancelled, ConfigError, InputError, UsageError
from mmcd.geo.sensors import SENTINEL2_L2A
from mmcd.services.simulate import PLACES, SimulateRequest
from mmcd.services.simulate_seasonal import simulate_seasonal
from mmcd.simulate.spectral import CHANGE_KINDS, Cover, SeriesSpec, at_own_resolution, greenness, simulate_series

SIDE = 36


def request(out: Path, **options: object) -> SimulateRequest:
    return SimulateRequest(**{"out": out, "scenes": 4, "size": SIDE, "gsd": 10, "layout": "seasonal", **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seasonal") / "set"
    heard: list[tuple[str, int, int]] = []
    result = simulate_seasonal(request(root, changed_share=0.75), lambda *news: heard.append(news))
    assert heard[-1] == ("simulating", 4, 4) and result.catalog == root
    assert result.scenes == tuple(location.id for location in index_seasonal(root).locations)
    return root


def truth(root: Path) -> list[dict[str, str]]:
    with (root / "changed.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_layout_is_that_of_seco_and_caco(made: Path) -> None:
    index = index_seasonal(made)
    assert index.warnings == () and {len(location.acquisitions) for location in index.locations} == {10}
    sides = {"B1": 6, "B2": 36, "B3": 36, "B4": 36, "B8": 36, "B9": 6}
    for name, path in zip(SENTINEL2_L2A, index.locations[0].files[0], strict=True):
        with rasterio.open(path) as file:
            assert path.name == f"{name}.tif" and file.dtypes == ("uint16",) and file.crs.is_geographic
            assert file.shape == (sides.get(name, 18),) * 2 and file.tags()["simulated"] == "true"
            west, south, east, north = file.bounds
            assert (north - south) * 111_320 == pytest.approx(360, rel=1e-3)
            assert (east - west) * 111_320 * np.cos(np.radians(north)) == pytest.approx(360, rel=1e-3)


def test_the_truth_says_which_locations_changed_and_where_they_lie(made: Path) -> None:
    rows = truth(made)
    assert [row["location"] for row in rows] == [location.id for location in index_seasonal(made).locations]
    changed = [row for row in rows if row["changed"] == "1"]
    assert len(changed) == 3 and {row["kind"] for row in changed} == set(CHANGE_KINDS)
    assert all((float(row["changed_share"]) > 0.05) == (row["changed"] == "1") for row in rows)
    for row in rows:
        near = [np.hypot(place.lon - float(row["lon"]), place.lat - float(row["lat"])) for place in PLACES]
        assert 0 < min(near) < 3
    notes = json.loads((made / "simulated.json").read_text())
    assert notes["simulated"] and len(notes["locations"]) == 4
    assert all(path.name.startswith(("simulated", "changed.csv")) for path in made.iterdir())


def test_files_hold_what_was_simulated(made: Path) -> None:
    row, location = truth(made)[0], index_seasonal(made).locations[0]
    spec = SeriesSpec(size=SIDE, seed=0, change=row["kind"] or None, south=float(row["lat"]) < 0)  # type: ignore[arg-type]
    series = simulate_series(spec)
    read = read_acquisition(location.files[3])
    own = at_own_resolution(series.images[3])
    for number, name in enumerate(SENTINEL2_L2A):
        if own[name].shape == (SIDE, SIDE):
            assert np.array_equal(read[number], own[name]) and np.array_equal(own[name], series.images[3, number])
        else:
            step = SIDE // len(own[name])
            mean = series.images[3, number].reshape(len(own[name]), step, -1, step).mean(axis=(1, 3))
            assert np.abs(own[name] - mean).max() <= 0.5
            assert abs(read[number].mean() - mean.mean()) < 0.05 * mean.mean()


@pytest.mark.parametrize("change", CHANGE_KINDS)
def test_changed_ground_differs_more_between_halves_than_between_seasons(change: str) -> None:
    series = simulate_series(SeriesSpec(size=60, seed=3, change=change))  # type: ignore[arg-type]
    still = simulate_series(SeriesSpec(size=60, seed=3))
    assert 0.1 < series.changed.mean() < 0.45 and not still.changed.any()
    assert np.array_equal(series.images[:5], still.images[:5]), "the older half does not know of the change"
    unchanged = ~series.changed
    assert np.array_equal(series.images[:, :, unchanged], still.images[:, :, unchanged])
    values = np.log(series.images.astype(float))
    older, recent = values[:5].mean(axis=0), values[5:].mean(axis=0)
    long = np.abs(recent - older).mean(axis=0)
    assert long[series.changed].mean() > 2 * long[unchanged].mean()
    assert values[:5, :, unchanged].std(axis=0).mean() > 0.1, "the seasons can be seen"


def test_halves_lie_years_apart_and_acquisitions_a_season() -> None:
    dates = simulate_series(SeriesSpec(size=30, seed=8)).dates
    steps = np.diff([day.toordinal() for day in dates])
    assert steps[4] > 3 * 365 and all(60 <= step <= 122 for step in np.delete(steps, 4))


def test_leaves_come_and_go_with_the_season_of_the_hemisphere() -> None:
    dates = simulate_series(SeriesSpec(size=30)).dates
    july, january = dates[0].replace(month=7, day=15), dates[0].replace(month=1, day=15)
    assert greenness(Cover.FOREST, july) > 0.9 > 0.4 > greenness(Cover.FOREST, january)
    assert greenness(Cover.FOREST, january, south=True) > 0.9
    assert greenness(Cover.CEREAL, july.replace(month=5)) > 0.8 > 0.5 > greenness(Cover.CEREAL, july.replace(month=8))
    image = simulate_series(SeriesSpec(size=30)).images
    near, red = image[:, 7].astype(float), image[:, 3].astype(float)
    index = ((near - red) / (near + red)).mean(axis=(1, 2))
    assert index.max() > index.min() + 0.1


def test_what_cannot_be_made_is_refused_and_writes_nothing(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    for options, words in (
        ({"size": 64}, r"64 px of 10 m.* multiple of 6, such as 66"),
        ({"size": 12}, "such as 30"),
        ({"gsd": 0.5}, "pixels of 10 m, not 0.5"),
        ({"event": "flood"}, "no event"),
    ):
        with pytest.raises(ConfigError, match=words):
            simulate_seasonal(request(out, **options))
    with pytest.raises(ConfigError, match="2 acquisitions are too few"):
        simulate_series(SeriesSpec(acquisitions=2))
    assert not out.exists()
    with pytest.raises(InputError, match="holds files already"):
        simulate_seasonal(request(made))


def test_a_stopped_run_leaves_whole_locations_and_their_truth(tmp_path: Path) -> None:
    def stop(_: str, done: int, __: int) -> None:
        if done == 1:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        simulate_seasonal(request(tmp_path), stop)
    assert len(index_seasonal(tmp_path).locations) == len(truth(tmp_path)) == 1
    assert not list(tmp_path.glob(".*"))


def test_command(tmp_path: Path) -> None:
    words = ["data", "simulate", str(tmp_path / "set"), "--layout", "seasonal", "--scenes", "1", "--size", "30"]
    done = CliRunner().invoke(app, [*words, "--changed-share", "1"])
    assert done.exit_code == 0 and "1 locations in" in done.output
    assert [row["changed"] for row in truth(tmp_path / "set")] == ["1"]
    refused = CliRunner().invoke(app, [*words, "--changed-share", "2"])
    assert isinstance(refused.exception, UsageError) and "--changed-share" in str(refused.exception)
