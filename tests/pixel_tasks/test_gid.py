import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from mmcd.data.gid import COARSE, FINE, GidPatches, class_numbers, index_gid
from mmcd.errors import DataError

NAMES, MERGED = tuple(FINE), tuple(COARSE)


@pytest.fixture
def copied(gid_fetched, tmp_path) -> Path:
    return Path(shutil.copytree(gid_fetched, tmp_path / "gid"))


def first(root: Path, classes=15) -> dict:
    return GidPatches(index_gid(root, "train", classes), classes, 32)[0]


def refused(words: str, root: Path, classes=15) -> None:
    with pytest.raises(DataError) as said:
        first(root, classes)
    assert words in str(said.value) and "\n" not in str(said.value)


def test_fetched_layout_in_squares_with_a_ragged_edge(gid_fetched):
    train, val = (GidPatches(index_gid(gid_fetched, part), side=32) for part in ("train", "val"))
    assert sorted(set(train.groups)) == ["GF2_0", "GF2_1", "GF2_2", "GF2_3"] and set(val.groups) == {"GF2_4"}
    assert len(val) == 12 and val.ids[9] == "GF2_4/64_32"
    sample = val[2]
    assert NAMES[int(sample["target"][0, 2])] == "river" and NAMES[int(sample["target"][5, 31])] == "paddy field"
    assert (val[0]["target"][:4, :4] == -1).all() and not val[0]["valid"][:4, :4].any() and val[0]["valid"][4:].all()
    assert round(float(sample["image"][2, 5, 30]) * 255) == 202
    edge = val[9]
    assert edge["valid"][:8].all() and not edge["valid"][8:].any()
    assert (edge["target"][8:] == -1).all() and not edge["image"][:, 8:].any()


def test_published_layout_in_colours_and_its_drawn_parts(gid_published):
    parts = [{image.id for image in index_gid(gid_published, part)} for part in ("train", "val")]
    assert sorted(map(len, parts)) == [1, 4] and not parts[0] & parts[1]
    target = first(gid_published)["target"]
    assert NAMES[int(target[0, 0])] == "lake" and NAMES[int(target[12, 0])] == "garden plot"
    assert (target[18:] == -1).all()


def test_15_classes_are_merged_to_5(gid_published, gid_fetched):
    target = first(gid_published, 5)["target"]
    assert MERGED[int(target[0, 0])] == "water" and MERGED[int(target[12, 0])] == "forest"
    assert (target[18:20, :30] == -1).all()
    numbers = class_numbers(np.arange(16)[None, None], 5, Path("label.png"))[0]
    named = dict(zip(NAMES, [MERGED[number] for number in numbers[1:]], strict=True))
    assert numbers[0] == -1 and named["traffic land"] == "built-up" and named["dry cropland"] == "farmland"
    assert named["shrub land"] == "forest" and named["artificial grassland"] == "meadow" and named["pond"] == "water"


def test_labels_of_5_classes_have_colours_of_their_own(gid_published, tmp_path):
    root = Path(shutil.copytree(gid_published, tmp_path / "gid"))
    shutil.copytree(root / "label_15classes", root / "label_5classes")
    for path in (root / "label_5classes").glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.write(np.tile(np.array(COARSE["meadow"], np.uint8)[:, None, None], (1, 20, 30)))
    target = first(root, 5)["target"]
    assert MERGED[int(target[3, 3])] == "meadow"
    shutil.rmtree(root / "label_15classes")
    (root / "label_5classes").rename(root / "label_15classes")
    refused("no class of GID", root)


def test_faults_are_told_in_one_line(copied, tmp_path):
    refused("holds no images of GID", tmp_path / "nothing")
    label = copied / "GID" / "ann_dir" / "train" / "GF2_0_15label.png"
    pixels = np.array(Image.open(label))
    Image.fromarray(np.where(pixels == 13, 16, pixels).astype(np.uint8)).save(label)
    refused("no class of GID", copied)
    Image.fromarray(pixels[:20]).save(label)
    refused("another size than GF2_0.tif", copied)
    label.unlink()
    refused("has no label", copied)
    image = copied / "GID" / "img_dir" / "train" / "GF2_0.tif"
    Image.fromarray(pixels).save(label)
    image.write_bytes(image.read_bytes()[:100])
    refused(f"{image} cannot be read", copied)
