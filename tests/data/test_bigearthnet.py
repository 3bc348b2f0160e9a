"""BigEarthNet's files: lists, bands by name, 43 classes as 19, and what is said of patches that are not whole."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from mmcd.data.bigearthnet import CLASSES, LAND, LEFT_OUT, BigEarthNetImages, index_bigearthnet, read_band, read_labels
from mmcd.errors import DataError

HOME = "BigEarthNet-v1.0"


@pytest.fixture
def copy(bigearthnet_tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(bigearthnet_tree, tmp_path / "tree"))


def test_patches_come_in_the_order_of_their_lists(bigearthnet_tree: Path, copy: Path) -> None:
    index = index_bigearthnet(bigearthnet_tree)
    assert {part: len(folders) for part, folders in index.folders.items()} == {"train": 12, "val": 4, "test": 4}
    lines = (bigearthnet_tree / "bigearthnet-val.csv").read_text().splitlines()
    assert [folder.name for folder in index.folders["val"]] == [line.split(",")[0] for line in lines]
    names = [folder.name for folder in index.folders["train"]]
    for part in ("train", "val", "test"):
        path = copy / f"bigearthnet-{part}.csv"
        path.with_suffix(".txt").write_text("\n".join(line.split(",")[0] for line in path.read_text().splitlines()))
        path.unlink()
    (copy / "patches_with_seasonal_snow.csv").write_text("\n".join(names[:2]))
    fewer = index_bigearthnet(copy)
    assert [folder.name for folder in fewer.folders["train"]] == names[2:]
    assert fewer.warnings == ("2 patches with snow, clouds or shadow are left out.",)


def test_bands_and_labels_are_torchgeos(bigearthnet_tree: Path) -> None:
    from torchgeo import datasets  # takes seconds

    theirs = datasets.BigEarthNet(bigearthnet_tree, "test", bands="s2", num_classes=19)
    folders = index_bigearthnet(bigearthnet_tree).folders["test"]
    assert list(CLASSES) == theirs.class_sets[19]
    assert sorted([*LEFT_OUT, *(name for names in LAND.values() for name in names)]) == sorted(theirs.class_sets[43])
    for number, name in enumerate(theirs.class_sets[43]):
        place = theirs.label_converter.get(number)
        assert name in LEFT_OUT if place is None else name in LAND[CLASSES[place]]
    order = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B11", "B12")
    for number, folder in enumerate(folders):
        sample = theirs[number]
        assert np.array_equal(np.stack([read_band(folder, band) for band in order]), sample["image"].numpy())
        assert read_labels(folder).tolist() == sample["label"].tolist()


def test_values_are_eight_bit_between_two_deviations_and_resized(bigearthnet_tree: Path, copy: Path) -> None:
    folder = index_bigearthnet(copy).folders["train"][0]
    images = BigEarthNetImages([folder], ("B4", "B3", "B2"), "protocol")
    path = folder / f"{folder.name}_B04.tif"
    with rasterio.open(path) as image:
        profile = image.profile
    with rasterio.open(path, "w", **profile) as image:
        image.write(np.full((1, 120, 120), 1000, profile["dtype"]))
    patch, labels = images[0]
    assert patch.shape == (3, 128, 128) and patch.dtype == torch.float32 and labels.shape == (19,)
    low, high = 590.24 - 2 * 675.89, 590.24 + 2 * 675.89
    assert patch[0].unique().tolist() == pytest.approx([int((1000 - low) / (high - low) * 255) / 255])
    wished = BigEarthNetImages([folder], ("B4",), "trunk")[0][0]
    assert wished.unique().tolist() == [25]  # reflectance 0.1
    with pytest.raises(DataError, match="has no band B10"):
        BigEarthNetImages([folder], ("B10",), "trunk")


def test_what_is_not_whole_is_named(copy: Path, tmp_path: Path) -> None:
    folder = index_bigearthnet(copy).folders["test"][0]
    labels = folder / f"{folder.name}_labels_metadata.json"
    labels.write_text(json.dumps({"labels": ["Moon"]}))
    with pytest.raises(DataError, match="names the class 'Moon', which is none of the 43"):
        read_labels(folder)
    labels.write_text("{")
    with pytest.raises(DataError, match=r"labels_metadata.json cannot be read: JSONDecodeError"):
        read_labels(folder)
    (folder / f"{folder.name}_B04.tif").unlink()
    with pytest.raises(DataError, match=r"_B04.tif cannot be read: .* Unpack the patch again"):
        read_band(folder, "B4")
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=rf"names {folder.name}, which .* lacks"):
        index_bigearthnet(copy)
    (copy / "bigearthnet-test.csv").write_text((copy / "bigearthnet-val.csv").read_text())
    with pytest.raises(DataError, match="is in the lists of val and of test"):
        index_bigearthnet(copy)
    (copy / "bigearthnet-val.csv").unlink()
    with pytest.raises(DataError, match=r"has no bigearthnet-val.csv or .txt"):
        index_bigearthnet(copy)
    with pytest.raises(DataError, match=r"holds no folder BigEarthNet-v1.0"):
        index_bigearthnet(tmp_path)
