"""Seasonal series: the layout, bands by name, halves, what is drawn, and every way a folder can be wrong."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch.utils.data import DataLoader

from mmcd.data.seasonal import DRAWS, OLDER_HALF, RECENT_HALF, WHOLE, SeasonalSeries, reflectance
from mmcd.data.seasonal_files import RGB, index_seasonal, read_acquisition
from mmcd.errors import ConfigError, DataError
from mmcd.geo.sensors import SENTINEL2_L2A

SIDE, PLACES, TIMES = 12, 3, 8
STEPS = dict.fromkeys(SENTINEL2_L2A, 2) | {"B1": 6, "B9": 6} | dict.fromkeys(("B2", "B3", "B4", "B8"), 1)


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"height": values.shape[0], "width": values.shape[1], "transform": Affine(10, 0, 0, 0, -10, 0)}
    with rasterio.open(path, "w", driver="GTiff", count=1, dtype=values.dtype, **shape) as file:
        file.write(values, 1)


def value(place: int, time: int, band: str) -> int:
    """The one value of a band: no two bands of the data set share it."""
    return 100 * place + 12 * time + SENTINEL2_L2A.index(band)


def write_place(root: Path, place: int, times: int = TIMES) -> None:
    for time in range(times):
        for band in SENTINEL2_L2A:
            side = SIDE // STEPS[band]
            values = np.full((side, side), value(place, time, band), np.uint16)
            write(root / f"{place:06d}" / f"20{16 + time}0101T0" / f"{band}.tif", values)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seasonal")
    for place in range(PLACES):
        write_place(folder, place)
    (folder / "notes.txt").write_text("no location")
    (folder / ".cache").mkdir()
    return folder


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copy"))


def test_locations_acquisitions_and_halves(root: Path) -> None:
    index = index_seasonal(root)
    assert index.warnings == () and [location.id for location in index.locations] == ["000000", "000001", "000002"]
    location = index.locations[1]
    assert [folder.name for folder in location.acquisitions] == [f"20{16 + t}0101T0" for t in range(TIMES)]
    assert location.halves() == (range(3), range(3, 8)) and location.halves(4) == (range(4), range(4, 8))
    assert location.halves(9) == (range(0), range(8))


def test_bands_come_by_name_in_the_order_asked_for(root: Path, copy: Path) -> None:
    for names in (SENTINEL2_L2A, SENTINEL2_L2A[::-1], RGB, ("B12", "B8A", "B1")):
        index = index_seasonal(root, names)
        image = read_acquisition(index.locations[2].files[5])
        assert image.dtype == np.uint16 and image.shape == (
            len(names),
            *(SIDE if set(names) & {"B2", "B4"} else 6,) * 2,
        )
        assert [band.flat[0] for band in image] == [value(2, 5, name) for name in names]
        assert all((band == band.flat[0]).all() for band in image)
    assert index_seasonal(root, ("red", "B03", "blue")).bands == RGB
    folder = copy / "000000" / "20160101T0"
    (folder / "B2.tif").rename(folder / "B02.TIF")
    assert index_seasonal(copy).locations[0].files[0][1] == folder / "B02.TIF"
    for names in (("B4", "VV"), ("B4", "red"), ()):
        with pytest.raises(ConfigError, match="does not name bands"):
            index_seasonal(root, names)


def test_coarser_bands_are_brought_to_the_finest_grid(tmp_path: Path) -> None:
    ramp = np.arange(36, dtype=np.uint8).repeat(36).reshape(36, 36)
    write(tmp_path / "B2.tif", ramp)
    write(tmp_path / "B5.tif", ramp.reshape(18, 2, 18, 2).mean(axis=(1, 3)).astype(np.uint8))
    write(tmp_path / "B1.tif", ramp.reshape(6, 6, 6, 6).mean(axis=(1, 3)).astype(np.uint8))
    files = [tmp_path / f"{name}.tif" for name in ("B2", "B5", "B1")]
    image = read_acquisition(files).astype(int)
    assert image.shape == (3, 36, 36) and (image[0] == ramp).all()
    inner = slice(3, -3)
    assert np.abs(image[1] - ramp)[inner].max() <= 1 and np.abs(image[2] - ramp)[inner].max() <= 1
    small = read_acquisition(files, size=12).astype(int)
    assert small.shape == (3, 12, 12) and np.abs(small[0, :, 0] - ramp[1::3, 0])[1:-1].max() <= 1


# --- what is drawn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", DRAWS)
def test_items_hold_what_the_method_needs(root: Path, method: str) -> None:
    data = SeasonalSeries(index_seasonal(root, RGB), method)  # type: ignore[arg-type]
    draw = DRAWS[method]  # type: ignore[index]
    assert len(data) == PLACES * (2 if draw.halves else 1) and data.warnings == ()
    repeated = set()
    for epoch in range(8):
        data.set_epoch(epoch)
        for index in range(len(data)):
            sample, numbers = data[index], data.drawn(index)
            place, half = divmod(index, 2) if draw.halves else (index, WHOLE)
            among = {WHOLE: range(8), OLDER_HALF: range(3), RECENT_HALF: range(3, 8)}[half]
            assert len(numbers) == draw.count and set(numbers) <= set(among)
            assert (int(sample["place"]), int(sample["half"]), int(sample["index"])) == (place, half, index)
            assert sample["images"].dtype == torch.int16 and sample["images"].shape == (draw.count, 3, SIDE, SIDE)
            expected = [[value(place, number, band) for band in RGB] for number in numbers]
            assert sample["images"][:, :, 0, 0].tolist() == expected
            repeated.add(len(set(numbers)) < draw.count)
    assert repeated == ({False, True} if draw.repeats else {False})


def test_draws_depend_on_seed_epoch_and_index_only(root: Path) -> None:
    index = index_seasonal(root, RGB)
    one, two, other = (SeasonalSeries(index, "caco", seed=seed) for seed in (4, 4, 5))
    drawn = {}
    for epoch in (0, 1):
        one.set_epoch(epoch)
        drawn[epoch] = [one.drawn(i) for i in range(len(one))]
    two.set_epoch(1)
    assert [two.drawn(i) for i in reversed(range(6))][::-1] == drawn[1] != drawn[0]
    assert [other.drawn(i) for i in range(6)] != drawn[0]


def test_loader_processes_see_the_epoch_and_share_the_budget(root: Path) -> None:
    data = SeasonalSeries(index_seasonal(root, RGB), "caco", cache_bytes=10**6)
    loader = DataLoader(data, batch_size=6, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 2):
        data.set_epoch(epoch)
        (batch,) = list(loader)
        numbers = [data.drawn(i) for i in range(6)]
        assert batch["images"].shape == (6, 3, 3, SIDE, SIDE) and batch["place"].tolist() == [0, 0, 1, 1, 2, 2]
        assert batch["images"][:, :, 0, 0, 0].tolist() == [
            [value(i // 2, number, "B4") for number in numbers[i]] for i in range(6)
        ]


def test_decoded_images_are_kept_within_the_budget(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, read = index_seasonal(root, RGB), []
    monkeypatch.setattr("mmcd.data.seasonal.read_acquisition", lambda *a: read.append(a) or read_acquisition(*a))
    each = 3 * SIDE * SIDE * 2
    for budget, more in ((each * PLACES * TIMES, False), (each * 4, True), (0, True)):
        data = SeasonalSeries(index, "seco", cache_bytes=budget)
        read.clear()
        for epoch in range(8):
            data.set_epoch(epoch)
            [data[i] for i in range(len(data))]
        assert (len(read) > PLACES * TIMES) == more
        assert data._cache.size <= budget
    assert not len(pickle.loads(pickle.dumps(data))._cache)


def test_reflectance_of_both_data_types(tmp_path: Path) -> None:
    assert reflectance(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert reflectance(torch.tensor([-1, 2000, 10_000, 30_000], dtype=torch.int16)).tolist() == pytest.approx(
        [0, 0.2, 1, 1]
    )
    for time in range(3):
        write(tmp_path / "a" / f"{time}" / "B4.tif", np.full((6, 6), 60_000, np.uint16))
        write(tmp_path / "b" / "c" / f"{time}" / "B4.tif", np.full((6, 6), 200, np.uint8))
    bright = SeasonalSeries(index_seasonal(tmp_path, ("B4",)), "seco")[0]["images"]
    assert bright.dtype == torch.int16 and (reflectance(bright) == 1).all()
    stored = SeasonalSeries(index_seasonal(tmp_path / "b", ("B4",)), "seco")[0]["images"]
    assert stored.dtype == torch.uint8 and (stored == 200).all()


# --- bad input ----------------------------------------------------------------------------------------------------


def test_what_lacks_a_band_or_acquisitions_is_named_and_left_out(copy: Path) -> None:
    (copy / "000000" / "20180101T0" / "B8A.tif").unlink()
    (copy / "000000" / "20180101T0" / "B1.tif").unlink()
    for time in range(2, TIMES):
        shutil.rmtree(copy / "000001" / f"20{16 + time}0101T0")
    shutil.copy(copy / "000002" / "20160101T0" / "B4.tif", copy / "000002" / "20160101T0" / "B04.tif")
    index = index_seasonal(copy)
    assert [location.id for location in index.locations] == ["000000", "000002"]
    assert len(index.locations[0].acquisitions) == TIMES - 1
    lacks, few, twice = sorted(index.warnings)
    assert lacks == "000000/20180101T0 is left out: no B1.tif, B8A.tif."
    assert "000001 is left out: 2 whole acquisitions, but 3 are needed; fetch it again" in few
    assert "B4.tif is not read, B04.tif is B4 too" in twice
    assert len(index_seasonal(copy, RGB).locations[0].acquisitions) == TIMES


def test_nothing_to_read_is_an_error_with_the_reason(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        index_seasonal(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no location.*LOCATION/ACQUISITION/B1\.tif"):
        index_seasonal(copy / "000000" / "20160101T0")
    with pytest.raises(DataError, match=r"first of 27 reasons: 000000/20160101T0 is left out: no B10\.tif"):
        index_seasonal(copy, ("B10",))


def test_short_halves_are_named_and_left_out(copy: Path) -> None:
    shutil.rmtree(copy / "000001" / "20160101T0")
    index = index_seasonal(copy, RGB)
    data = SeasonalSeries(index, "caco")
    assert [place.id for place in data.places] == ["000000", "000002"] and len(data) == 4
    assert data.warnings == ("000001 is left out: 2 older and 5 recent acquisitions, but caco needs 3 of each.",)
    assert int(data[2]["images"][0, 0, 0, 0]) >= value(2, 0, "B4"), "places are counted among those that are left"
    assert len(SeasonalSeries(index, "caco", recent=4).places) == 3
    assert len(SeasonalSeries(index, "seco")) == 3
    with pytest.raises(DataError, match=r"no location with two halves.*0 older and 8 recent.*shorter than 9.*seco"):
        SeasonalSeries(index, "teco", recent=9)


def test_truncated_files_are_named_and_all_faults_can_be_listed(copy: Path) -> None:
    paths = [copy / "000000" / "20160101T0" / "B4.tif", copy / "000002" / "20200101T0" / "B2.tif"]
    for path, kept in zip(paths, (0, 260), strict=True):
        path.write_bytes(path.read_bytes()[:kept])
    data = SeasonalSeries(index_seasonal(copy, RGB), "seco")
    heard: list[tuple[str, int, int]] = []
    faults = list(data.faults(lambda *news: heard.append(news)))
    assert len(faults) == 2 and heard[-1] == ("checking", 24, 24)
    for path, line in zip(paths, faults, strict=True):
        assert line.startswith(f"{path} cannot be read") and "copy or download it again" in line
    with pytest.raises(DataError, match=r"B4\.tif cannot be read"):
        for epoch in range(30):
            data.set_epoch(epoch)
            data[0]
    for time in range(TIMES):
        (copy / "000000" / f"20{16 + time}0101T0" / "B4.tif").write_bytes(b"")
    alone = index_seasonal(copy, RGB)
    with pytest.raises(DataError, match="cannot be read"):
        SeasonalSeries(type(alone)(alone.root, alone.bands, alone.locations[:1], ()), "seco")


def test_mixed_sizes_and_types_are_named(copy: Path) -> None:
    folder = copy / "000001" / "20190101T0"
    write(folder / "B3.tif", np.ones((7, SIDE), np.uint16))
    data = SeasonalSeries(index_seasonal(copy, RGB), "seco")
    (fault,) = data.faults()
    assert "B3.tif is 12 × 7 px, B4.tif beside it 12 × 12" in fault and "Cut the bands to one square" in fault
    for band in RGB:
        write(folder / f"{band}.tif", np.ones((10, 10), np.uint16))
    (fault,) = data.faults()
    assert f"{folder} is 10 × 10 px, others are 12 × 12. Set one size for all" in fault
    assert not list(SeasonalSeries(index_seasonal(copy, RGB), "seco", size=8).faults())
    for band in RGB:
        write(folder / f"{band}.tif", np.ones((SIDE, SIDE), np.uint8))
    (fault,) = data.faults()
    assert f"{folder} holds uint8, others hold uint16" in fault
    write(folder / "B2.tif", np.ones((SIDE, SIDE), np.float32))
    (fault,) = data.faults()
    assert "B2.tif holds float32" in fault and "uint8 (reflectance times 255) or uint16" in fault
