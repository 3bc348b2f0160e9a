import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcd.data.oscd import OscdPatches, Ranges, band_ranges, hold_out_cities, read_cities
from mmcd.data.oscd_files import PUBLISHED, index_oscd, read_city
from mmcd.errors import ConfigError, DataError
from mmcd.geo.sensors import SENTINEL2_L1C

ARCHIVE = "Onera Satellite Change Detection dataset - "


@pytest.fixture
def copied(oscd, tmp_path) -> Path:
    return Path(shutil.copytree(oscd, tmp_path / "oscd"))


def refused(*words: str, root: Path, bands=("B4", "B3", "B2"), error=DataError) -> None:
    """Check that reading a tree is refused in one line that says all the words."""
    with pytest.raises(error) as said:
        for cities in index_oscd(root, bands).cities.values():
            read_cities(cities)
    assert "\n" not in str(said.value)
    for word in words:
        assert word in str(said.value)


# --- layouts ---


def test_bands_are_found_by_name_however_the_files_were_written(tmp_path, write_city):
    changed = write_city(tmp_path / "paris", tmp_path / "labels" / "paris" / "cm" / "cm.png", 1)
    index = index_oscd(tmp_path)
    (paris,) = index.cities["train"]
    assert index.bands == SENTINEL2_L1C
    assert [path.stem for path in paris.before][:2] == ["B01", "B02"] and paris.after[8].name == "B8A.tif"
    before, after, found = read_city(paris)
    assert before.shape == after.shape == (13, 40, 70) and (found == changed).all()
    assert (after[:, changed] == 3000).all() and (before[:, ~changed] == after[:, ~changed]).all()
    red, blue = (read_city(index_oscd(tmp_path, [name]).cities["train"][0])[0][0] for name in ("red", "B02"))
    assert (red == before[3]).all() and (blue == before[1]).all() and (red != blue).any()


def test_layout_of_seco_with_lists_and_bands_of_their_own_resolution(tmp_path, write_city):
    for seed, city in enumerate(("nantes", "rio")):
        home = tmp_path / city
        write_city(home, home / "cm" / "cm.png", seed, (60, 72), ("B04", "B03"), "imgs_{}/S2A_OPER_T30_{}.tif")
        write_city(home, home / "cm" / "coarse.png", seed, (30, 36), ("B11",), "imgs_{}/S2A_OPER_T30_{}.tif")
        write_city(home, home / "cm" / "coarser.png", seed, (10, 12), ("B09",), "imgs_{}/S2A_OPER_T30_{}.tif")
    (tmp_path / "train.txt").write_text("Rio,\n")
    (tmp_path / "test.txt").write_text("nantes,berlin")
    index = index_oscd(tmp_path, ["B9", "B11", "B4"])
    assert [city.id for city in index.cities["train"]] == ["rio"]
    assert [city.id for city in index.cities["test"]] == ["nantes"]
    assert index.warnings == ("berlin of the test part is not here.",)
    before, _, changed = read_city(index.cities["test"][0])
    assert before.shape == (3, 60, 72) and changed.shape == (60, 72)


def test_layout_of_the_published_archives_and_rectified_images_first(tmp_path, write_city):
    images, labels = tmp_path / f"{ARCHIVE}Images", tmp_path / f"{ARCHIVE}Test Labels"
    label = labels / "valencia" / "cm" / "cm.png"
    write_city(images / "valencia", label, 5, (30, 30), ("B04",), "imgs_{}/x_{}.tif")
    write_city(images / "valencia", label, 6, (40, 40), ("B04",))
    (city,) = index_oscd(tmp_path, ["B4"]).cities["test"]
    assert city.before[0].parent.name == "imgs_1_rect" and read_city(city)[2].shape == (40, 40)


def test_published_parts_are_14_and_10_cities_and_none_is_in_both(oscd):
    assert [len(set(PUBLISHED[part])) for part in ("train", "test")] == [14, 10]
    assert not set(PUBLISHED["train"]) & set(PUBLISHED["test"])
    index = index_oscd(oscd, ["B4"])
    assert [city.id for city in index.cities["train"]] == ["beirut", "mumbai", "paris", "pisa"]
    assert [city.id for city in index.cities["test"]] == ["dubai", "rio"]
    assert len(index.warnings) == 10 + 8 and "nantes of the train part is not here." in index.warnings


def test_labels_of_0_and_1_with_opacity_or_three_equal_bands(copied):
    path = copied / "labels" / "paris" / "cm" / "cm.png"
    one = np.array(Image.open(path))
    expected = one > 0
    for pixels in (one // 255, np.dstack([one] * 3), np.dstack([one, one, one, np.full_like(one, 200)])):
        Image.fromarray(pixels).save(path)
        paris = next(city for city in index_oscd(copied, ["B4"]).cities["train"] if city.id == "paris")
        assert (read_city(paris)[2] == expected).all()


# --- bad input ---


def test_faults_are_told_in_one_line(copied, tmp_path):
    refused("holds no city", "imgs_1_rect", root=tmp_path / "nothing")
    refused("no file of B8A, B12", "imgs_1_rect", root=copied, bands=("B2", "B8A", "B12"))
    refused("'B99'", root=copied, bands=("B99",), error=ConfigError)
    refused("each once", root=copied, bands=("B4", "red"), error=ConfigError)
    (copied / "train.txt").write_text("paris,rio")
    refused("only list", "test.txt", root=copied)
    (copied / "test.txt").write_text("rio")
    refused("rio is in", "train.txt", "test.txt", root=copied)


def test_damaged_files_are_named(copied):
    cut = copied / "beirut" / "imgs_2_rect" / "B03.tif"
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 3])
    refused(str(cut), "cannot be read", root=copied)
    cut.write_bytes(whole)
    shutil.copy(copied / "beirut" / "imgs_2_rect" / "B02.tif", copied / "beirut" / "imgs_2_rect" / "b2.tif")
    refused("are both B2", root=copied)


def test_labels_with_other_values_or_another_size_are_refused(copied):
    path = copied / "labels" / "mumbai" / "cm" / "cm.png"
    label = np.array(Image.open(path))
    for pixels, words in (
        (np.where(label > 0, 255, np.arange(70) % 3), "holds 1, 2"),
        (label // 2, "holds 127"),
        (np.dstack([label, label * 0, label]), "colour image"),
    ):
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        refused(str(path), words, root=copied)
    Image.fromarray(label[:, :50]).save(path)
    refused("is 70 × 64 px", "50 × 64", "imgs_1_rect", root=copied)
    path.unlink()
    refused("mumbai has no label", root=copied)


# --- squares ---


def test_squares_cover_every_pixel_once_and_the_ragged_edge_is_no_data(oscd):
    arrays = read_cities(index_oscd(oscd, ["B4", "B2"]).cities["test"])
    data = OscdPatches(arrays, Ranges((0.0, 0.0), (2550.0, 5100.0)), 32)
    assert len(data) == 2 * 2 * 3 and data.ids[4] == "dubai/32_32" and data.groups[-1] == "rio"
    for city in arrays:
        samples = [data[index] for index, group in enumerate(data.groups) if group == city]
        assert sum(int(sample["valid"].sum()) for sample in samples) == 64 * 70
        changed = sum(int((sample["target"] == 1).sum()) for sample in samples)
        assert changed == arrays[city].changed.sum() > 0
    edge = data[5]
    assert edge["valid"][:, :6].all() and edge["valid"].sum() == 32 * 6
    outside = ~edge["valid"]
    assert (edge["target"][outside] == -1).all() and not edge["pre"][:, outside].any()
    expected = np.floor(arrays["dubai"].before[:, 32:, 64:] / np.array([10.0, 20.0])[:, None, None]) / 255
    np.testing.assert_allclose(edge["pre"][:, :, :6], expected, atol=1e-6)
    shares = [float((sample["target"] == 1).sum() / sample["valid"].sum()) for sample in data]
    np.testing.assert_allclose(data.changed_share, shares)


def test_ranges_published_measured_and_of_bigearthnet(oscd):
    training = read_cities(index_oscd(oscd, ["B4", "B3"]).cities["train"])
    assert band_ranges(["B2", "B4"], "auto", training) == Ranges((885.0, 426.0), (2620.0, 3698.0))
    measured = band_ranges(["B4", "B3"], "measured", training)
    assert all(999 < low < 1010 for low in measured.lower) and all(high == 3000 for high in measured.upper)
    wide = band_ranges(["B10"], "bigearthnet", training)
    np.testing.assert_allclose([*wide.lower, *wide.upper], [2256.06 - 2404.12, 2256.06 + 2404.12])
    with pytest.raises(ConfigError, match=re.escape("B2, B3 and B4 alone")):
        band_ranges(["B4", "B8"], "published", training)


def test_held_out_cities_are_training_cities_and_depend_on_the_seed(oscd):
    index = index_oscd(oscd, ["B4"])
    drawn = []
    for seed in range(8):
        learning, held = hold_out_cities(index, 2, seed)
        assert sorted(city.id for city in [*learning, *held]) == [city.id for city in index.cities["train"]]
        drawn.append(tuple(city.id for city in held))
    assert len(set(drawn)) > 2 and {"rio", "dubai"}.isdisjoint(name for names in drawn for name in names)
    assert hold_out_cities(index, 2, 3) == hold_out_cities(index, 2, 3)
    assert hold_out_cities(index, 0, 0)[1] == []
    with pytest.raises(DataError, match="4 training cities are here, of which 4"):
        hold_out_cities(index, 4, 0)
