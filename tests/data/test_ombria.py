from pathlib import Path

import numpy as np
import pytest
import rasterio

from mmcd.cards import Branch, Level
from mmcd.data.ombria import Ombria, index_ombria, read_tile
from mmcd.errors import DataError


def write_png(path: Path, bands: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with rasterio.open(path, "w", driver="PNG", count=count, height=height, width=width, dtype="uint8") as image:
        image.write(bands)


def write_tile(names: dict[str, Path], value: int, size: int = 16) -> None:
    """Write a tile whose pixels tell its number, flooded in its left half."""
    flooded = np.zeros((1, size, size), np.uint8)
    flooded[..., : size // 2] = 255
    contents = {"pre": np.full((3, size, size), value), "post": np.full((1, size, size), value + 1), "mask": flooded}
    for layer, path in names.items():
        write_png(path, contents[layer].astype(np.uint8))


def main_names(root: Path, split: str, number: str) -> dict[str, Path]:
    return {
        "pre": root / "OmbriaS2" / split / "BEFORE" / f"S2_before_{number}.png",
        "post": root / "OmbriaS1" / split / "AFTER" / f"S1_after_{number}.png",
        "mask": root / "OmbriaS1" / split / "MASK" / f"S1_mask_{number}.png",
    }


def event_names(folder: Path, number: str) -> dict[str, Path]:
    return {
        "pre": folder / "Sentinel2" / "BEFORE" / f"imbefore_{number}.png",
        "post": folder / "Sentinel1" / "AFTER" / f"imafter_{number}.png",
        "mask": folder / "Sentinel1" / "MASK" / f"gt_{number}.png",
    }


@pytest.fixture
def root(tmp_path):
    for split, number, value in (("train", "0002", 2), ("train", "0010", 10), ("test", "0001", 1)):
        write_tile(main_names(tmp_path, split, number), value)
    for number in ("5", "12"):
        write_tile(event_names(tmp_path / "2021" / "NOWHERE", number), int(number))
    rows = ["folder,tile_id,scene_group,group_size", "train,0002,7,2", "test,0001,7,2", "2021/NOWHERE,5,3,1"]
    (tmp_path / "scene_groups.csv").write_text("\n".join(rows))
    return tmp_path


def test_both_layouts_with_groups(root):
    index = index_ombria(root)
    found = {tile.id: (tile.event, tile.group) for tile in index.tiles}
    assert found == {
        "train/0002": ("main", "7"),
        "train/0010": ("main", "train/0010"),
        "test/0001": ("main", "7"),
        "2021/NOWHERE/5": ("NOWHERE", "NOWHERE"),
        "2021/NOWHERE/12": ("NOWHERE", "NOWHERE"),
    }
    assert index.unpaired == ()


def test_scene_groups_whose_numbers_interlock_show_one_event(root):
    """Groups a and b alternate, c lies inside the run of b, d follows them all: a, b and c are one, d is its own."""
    listed = {"0002": "a", "0010": "a", "0004": "b", "0020": "b", "0015": "c", "0021": "d"}
    for number in listed:
        write_tile(main_names(root, "train", number), int(number))
    rows = [f"train,{number},{group},1" for number, group in listed.items()]
    (root / "scene_groups.csv").write_text("\n".join(["folder,tile_id,scene_group,group_size", *rows]))
    found = {tile.id.removeprefix("train/"): tile.group for tile in index_ombria(root).tiles}
    assert {found[number] for number in ("0002", "0010", "0004", "0020", "0015")} == {"a"}
    assert found["0021"] == "d" and found["test/0001"] == "test/0001"


def test_numbers_sort_as_numbers_and_layers_belong_together(root):
    dataset = Ombria(root, "NOWHERE")
    assert dataset.ids == ["2021/NOWHERE/5", "2021/NOWHERE/12"]
    sample = dataset[1]
    assert sample["pre"].shape == (3, 16, 16) and sample["post"].shape == (1, 16, 16)
    assert float(sample["pre"].mean() * 255) == pytest.approx(12) and float(
        sample["post"].mean() * 255
    ) == pytest.approx(13)
    assert sample["target"][:, :8].eq(1).all() and sample["target"][:, 8:].eq(0).all()
    assert dataset.changed_share.tolist() == [0.5, 0.5]


def test_every_scene_is_moved_to_one_level(root):
    """Tiles 5 and 12 of the later event are one scene; their difference stays, their level does not."""
    branches = [
        Branch(modality=modality, sensor="", bands=bands, unit=unit, level=level, mean=(0.5,), std=(0.2,))
        for modality, bands, unit, level in (
            ("optical", ("B11", "B8", "B3"), "reflectance", None),
            ("sar", ("VV",), "db", Level(percentile=100, value=0.7)),
        )
    ]
    later, main = Ombria(root, "NOWHERE", tuple(branches)), Ombria(root, "main", tuple(branches))
    assert [float(later[place]["post"].max()) for place in (0, 1)] == pytest.approx([0.7 - 7 / 255, 0.7])
    assert [float(main[main.ids.index(name)]["post"].max()) for name in ("train/0002", "train/0010", "test/0001")] == (
        pytest.approx([0.7, 0.7, 0.7 - 1 / 255])
    )
    assert later[1]["pre"].eq(Ombria(root, "NOWHERE")[1]["pre"]).all(), "no level was asked for before"


@pytest.mark.parametrize("start", [".", "2021", "2021/NOWHERE"])
def test_an_event_is_found_from_any_folder_above_it(root, start):
    assert len(Ombria(root / start, "NOWHERE")) == 2


def test_what_has_no_partner_is_reported(root):
    event_names(root / "2021" / "NOWHERE", "5")["post"].unlink()
    write_tile({"mask": event_names(root / "2021" / "NOWHERE", "9")["mask"]}, 9)
    index = index_ombria(root)
    assert index.unpaired == ("2021/NOWHERE/5: no post", "2021/NOWHERE/9: no pre and no post")
    assert [tile.id for tile in index.tiles if tile.event == "NOWHERE"] == ["2021/NOWHERE/12"]


def test_unknown_event_and_empty_folder(root, tmp_path_factory):
    with pytest.raises(DataError, match=r"NOWHERE, main"):
        Ombria(root, "ELSEWHERE")
    with pytest.raises(DataError, match="holds no OMBRIA tile"):
        index_ombria(tmp_path_factory.mktemp("empty"))


def test_damaged_files_are_named(root):
    names = main_names(root, "train", "0010")
    tile = next(tile for tile in index_ombria(root).tiles if tile.id == "train/0010")
    write_png(names["mask"], np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"train/0010 differ in size"):
        read_tile(tile)
    write_png(names["pre"], np.zeros((1, 16, 16), np.uint8))
    with pytest.raises(DataError, match=r"S2_before_0010\.png has 1 bands"):
        read_tile(tile)
    names["pre"].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"S2_before_0010\.png cannot be read"):
        read_tile(tile)


@pytest.mark.real_data
def test_published_set(shared_data):
    index = index_ombria(shared_data / "ombria")
    events = [tile.event for tile in index.tiles]
    assert events.count("main") == 694 and events.count("ALBANIA") == 22 and not index.unpaired
    groups = {event: {tile.group for tile in index.tiles if tile.event == event} for event in set(events)}
    assert not groups["main"] & groups["ALBANIA"]
    arrays = read_tile(next(tile for tile in index.tiles if tile.id == "2021/ALBANIA/5"))
    assert arrays.pre.shape == (3, 256, 256) and arrays.post.shape == (1, 256, 256) and 0 < arrays.changed.mean() < 1
