import json
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from mmcd.data.pastis import BANDS, CLASSES, PastisImages, index_pastis, read_norm
from mmcd.data.segments import class_counts
from mmcd.errors import ConfigError, DataError


@pytest.fixture
def copied(pastis, tmp_path) -> Path:
    return Path(shutil.copytree(pastis, tmp_path / "PASTIS-R")).parent


def refused(words: str, root: Path, error=DataError, **options) -> None:
    with pytest.raises(error) as said:
        data = PastisImages(root, (1,), **options)
        data[0]
    assert words in str(said.value) and "\n" not in str(said.value)


def test_every_date_is_a_sample_of_its_patch(pastis):
    data = PastisImages(pastis, (2, 1))
    assert data.ids[:3] == ["10001/2018-09-02", "10001/2018-10-05", "10001/2019-01-01"] and len(data) == 6
    assert data.groups == ["10001"] * 3 + ["10002"] * 3
    assert [patch.fold for patch in index_pastis(pastis)] == [1, 2, 3, 4, 5]
    sample = data[4]
    assert sample["image"].shape == (10, 32, 32) and sample["index"] == 4


def test_one_date_is_the_nearest_to_a_day(pastis):
    assert PastisImages(pastis, (3,), mono_date=date(2018, 9, 30)).ids == ["10003/2018-10-05"]
    assert PastisImages(pastis, (3,), mono_date=date(2020, 1, 1)).ids == ["10003/2019-01-01"]


def test_bands_by_name_normalised_by_the_mean_of_the_folds(pastis):
    mean, spread = read_norm(pastis, (1, 2, 3))
    np.testing.assert_allclose(mean, 2000 + np.arange(10))
    np.testing.assert_allclose(spread, 500)
    stored = np.load(pastis / "DATA_S2" / "S2_10005.npy")
    data = PastisImages(pastis, (5,), ["red", "B8A", "B02"])
    assert data.bands == ("B4", "B8A", "B2")
    places = [BANDS.index(band) for band in data.bands]
    expected = (stored[1][places] - mean[places, None, None]) / 500
    np.testing.assert_allclose(data[1]["image"], expected, rtol=1e-5)
    own = PastisImages(pastis, (5,), ["B2"], norm_folds=(5,))
    np.testing.assert_allclose(own[1]["image"][0], (stored[1, 0] - 5000) / 500, rtol=1e-5)


def test_unlabelled_pixels_and_ignored_classes_enter_no_loss(pastis):
    stored = np.load(pastis / "ANNOTATIONS" / "TARGET_10001.npy")[0]
    plain, strict = (PastisImages(pastis, (1,), ignored=ignored)[0] for ignored in ((), (0, 19)))
    target = plain["target"].numpy()
    assert target[0, 0] == -1 and (target == np.where(stored == 255, -1, stored)).all()
    assert (plain["valid"].numpy() == (stored != 255)).all()
    assert (strict["valid"].numpy() == ~np.isin(stored, (0, 19, 255))).all()
    assert (strict["target"] == plain["target"]).all()
    counts = class_counts(PastisImages(pastis, (1,)))
    assert counts.tolist() == [3 * int((stored == number).sum()) for number in range(len(CLASSES))]


def test_faults_are_told_in_one_line(copied, tmp_path):
    home = copied / "PASTIS-R"
    assert len(PastisImages(copied, (1,))) == 3
    refused("holds no metadata.geojson", tmp_path / "elsewhere")
    refused("no band 'B10'", copied, ConfigError, bands=["B2", "B10"])
    refused("no mean and std of folds (7,)", copied, norm_folds=(7,))
    with pytest.raises(DataError, match="no patch of fold 8"):
        PastisImages(copied, (8,))
    target = home / "ANNOTATIONS" / "TARGET_10001.npy"
    layers = np.load(target)
    np.save(target, np.where(layers == 19, 21, layers))
    refused("no class of 0 to 19", copied)
    np.save(target, layers[:, :16])
    refused("another size", copied)
    series = home / "DATA_S2" / "S2_10001.npy"
    whole = series.read_bytes()
    series.write_bytes(whole[:2000])
    refused(f"{series} cannot be read", copied)
    np.save(series, np.zeros((2, 10, 32, 32), np.int16))
    refused("expected 3 dates of 10 bands", copied)
    series.unlink()
    refused("is not here", copied)


def test_a_damaged_table_is_told(copied):
    table = copied / "PASTIS-R" / "metadata.geojson"
    found = json.loads(table.read_text())
    del found["features"][0]["properties"]["Fold"]
    table.write_text(json.dumps(found))
    refused("without ID_PATCH, Fold or dates-S2", copied)
    table.write_text("{")
    refused("not the published table", copied)


def test_dates_may_be_written_as_text(copied):
    table = copied / "PASTIS-R" / "metadata.geojson"
    found = json.loads(table.read_text())
    for entry in found["features"]:
        entry["properties"]["dates-S2"] = json.dumps(entry["properties"]["dates-S2"])
    table.write_text(json.dumps(found))
    assert PastisImages(copied, (1,)).ids[0] == "10001/2018-09-02"
