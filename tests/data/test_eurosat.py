"""EuroSAT's files: both layouts, three kinds of split, bands by name, and what is said of files that are otherwise."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from mmcd.data.eurosat import EuroSatImages
from mmcd.data.eurosat_files import CLASSES, FILE_BANDS, Form, index_eurosat, read_bands
from mmcd.errors import DataError


@pytest.fixture
def copy(eurosat_tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(eurosat_tree, tmp_path / "tree"))


def rewrite(path: Path, **changes: object) -> None:
    """Write an image again with other properties, filled with zeros."""
    with rasterio.open(path) as image:
        profile = dict(image.profile) | changes
    with rasterio.open(path, "w", **profile):
        pass


def test_colour_images_have_the_parts_of_their_lists(eurosat_tree: Path) -> None:
    index = index_eurosat(eurosat_tree)
    assert index.form == "rgb" and set(index.files) == {"train", "test"} and not index.warnings
    for files, labels in zip(index.files.values(), index.labels.values(), strict=True):
        assert [path.parent.name for path in files] == [CLASSES[label] for label in labels]
        assert np.bincount(labels).tolist() == [2] * 10
    assert index.files["train"][0].name == "AnnualCrop_1.jpg"  # 10 comes after 2
    listed = {Path(line).stem for line in (eurosat_tree / "val.txt").read_text().splitlines()}
    assert {path.stem for path in index.files["test"]} == listed
    assert "same field or scene can be on both sides" in index.unit


def test_torchgeos_layout_has_three_parts_and_lists_of_other_endings(eurosat_tree: Path) -> None:
    index = index_eurosat(eurosat_tree, "ms")
    assert {part: len(files) for part, files in index.files.items()} == {"train": 20, "val": 10, "test": 10}
    assert {path.suffix for files in index.files.values() for path in files} == {".tif"}
    spatial = index_eurosat(eurosat_tree, "ms", "spatial")
    assert spatial.unit == "split by longitude" and spatial.files["train"] != index.files["train"]


def test_our_reader_agrees_with_torchgeos(eurosat_tree: Path) -> None:
    from torchgeo import datasets  # takes seconds

    theirs = datasets.EuroSAT(eurosat_tree, "test")
    files = index_eurosat(eurosat_tree, "ms").files["test"]
    assert len(theirs) == len(files)
    named = {Path(path).name: theirs[number] for number, (path, _) in enumerate(theirs.samples)}
    for path in files:
        bands = tuple(f"B{int(name[1:]):d}" if name != "B8A" else name for name in theirs.all_band_names)
        assert bands == FILE_BANDS
        assert np.array_equal(read_bands(path, "ms", FILE_BANDS), named[path.name]["image"].numpy())
        assert theirs.classes[named[path.name]["label"]] == path.parent.name


def test_parts_are_drawn_class_by_class_and_always_the_same(eurosat_tree: Path, copy: Path) -> None:
    index = index_eurosat(eurosat_tree, "rgb", "seeded")
    assert {part: np.bincount(labels).tolist() for part, labels in index.labels.items()} == {
        "train": [2] * 10,
        "val": [1] * 10,
        "test": [1] * 10,
    }
    assert len({path for files in index.files.values() for path in files}) == 40
    (copy / "train.txt").unlink()
    again = index_eurosat(copy, "rgb", "seeded")
    assert [path.name for path in again.files["test"]] == [path.name for path in index.files["test"]]


@pytest.mark.parametrize(("form", "bands"), [("rgb", ("B4", "B3", "B2")), ("ms", FILE_BANDS)])
def test_images_are_scaled_as_the_protocols_have_it(eurosat_tree: Path, form: Form, bands: tuple[str, ...]) -> None:
    index = index_eurosat(eurosat_tree, form)
    files, labels = index.files["train"], index.labels["train"]
    images = EuroSatImages(files, labels, form, "protocol")
    image, label = images[3]
    assert images.bands == bands and image.shape == (len(bands), 64, 64) and image.dtype == torch.float32
    raw = read_bands(files[3], form, bands).astype(float)
    expected = raw / 255 if form == "rgb" else (raw - raw.min()) / (raw.max() - raw.min())
    assert np.allclose(image.numpy(), expected, atol=1e-6) and label == labels[3]
    wished = EuroSatImages(files, labels, form, "trunk")[3][0].numpy()
    assert np.allclose(wished, raw if form == "rgb" else raw * 255 / 10_000, rtol=1e-6)


def test_an_image_without_contrast_is_zero(eurosat_tree: Path, copy: Path) -> None:
    path = index_eurosat(copy, "ms").files["train"][0]
    rewrite(path)
    assert not EuroSatImages((path,), (0,), "ms", "protocol")[0][0].any()


def test_bands_are_found_by_name_where_a_file_names_them(eurosat_tree: Path, copy: Path) -> None:
    path = index_eurosat(copy, "ms").files["train"][0]
    before = read_bands(path, "ms", ("B8A", "B4"))
    order = ["B8A", *FILE_BANDS[:-1]]
    with rasterio.open(path) as image:
        profile, values = image.profile, image.read()
    with rasterio.open(path, "w", **profile) as image:
        image.write(values[[12, *range(12)]])
        image.descriptions = order
    assert np.array_equal(read_bands(path, "ms", ("B8A", "B4")), before)


def test_damaged_images_are_named(copy: Path) -> None:
    first = index_eurosat(copy, "rgb").files["train"][0]
    first.write_bytes(first.read_bytes()[:60])
    with pytest.raises(DataError, match=r"AnnualCrop_1.jpg cannot be read: .*\. Unpack EuroSAT again"):
        read_bands(first, "rgb", ("B4",))
    second = index_eurosat(copy, "ms").files["train"][0]
    rewrite(second, count=12)
    with pytest.raises(DataError, match=r"has 12 bands of uint16, 64 × 64 px; EuroSAT has 13"):
        read_bands(second, "ms", ("B4",))
    rewrite(second, count=13, width=60)
    with pytest.raises(DataError, match="60 × 64 px"):
        read_bands(second, "ms", ("B4",))


def test_folders_and_lists_that_are_not_whole_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no EuroSAT: no EuroSAT_RGB/AnnualCrop/\*.jpg or ds/"):
        index_eurosat(tmp_path)
    names = (copy / "val.txt").read_text().splitlines()
    (copy / "val.txt").write_text("\n".join([*names, "Forest_77.jpg", "Forest_78.jpg"]))
    with pytest.raises(DataError, match=r"names Forest_77 and 1 more, which .*EuroSAT_RGB lacks"):
        index_eurosat(copy)
    train = (copy / "train.txt").read_text().splitlines()
    (copy / "val.txt").write_text("\n".join([*names, train[0]]))
    with pytest.raises(DataError, match=r"AnnualCrop_1 stands twice, in .*train.txt and in .*val.txt"):
        index_eurosat(copy)
    (copy / "val.txt").write_text("\n".join(name for name in names if "River" not in name))
    with pytest.raises(DataError, match=r"The test part of .* has no image of River"):
        index_eurosat(copy)
    for name in ("val.txt", "eurosat-train.txt"):
        (copy / name).unlink()
    with pytest.raises(DataError, match=r"has no lists of its parts: no train.txt or eurosat-train.txt"):
        index_eurosat(copy)
    shutil.rmtree(copy / "EuroSAT_RGB" / "SeaLake")
    with pytest.raises(DataError, match="SeaLake holds no images"):
        index_eurosat(copy)


def test_images_outside_all_lists_are_counted(copy: Path) -> None:
    names = (copy / "val.txt").read_text().splitlines()
    (copy / "val.txt").write_text("\n".join(names[::2]))
    assert index_eurosat(copy).warnings == ("10 of 40 images are in no list.",)
