"""BRIGHT as training samples, on simulated tiles in the published layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from mmcd.data.base import UNKNOWN
from mmcd.data.bright import index_bright, read_tile
from mmcd.data.bright_pairs import BrightConfig, BrightCrops, BrightPairs
from mmcd.errors import DataError
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_bright import simulate_bright

SIDE = 136  # no multiple of 16


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen tiles, three of each of six events: one to train, one to validate, one to test."""
    root = tmp_path_factory.mktemp("pairs") / "tree"
    simulate_bright(SimulateRequest(out=root, scenes=18, size=SIDE, gsd=1.0, layout="bright"))
    return root


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tree, tmp_path / "tree"))


@pytest.fixture(scope="module")
def pairs(tree: Path) -> BrightPairs:
    return BrightPairs(BrightConfig(root=tree, crop=64))


def test_whole_tiles_are_the_files_divided_by_255(tree: Path, pairs: BrightPairs) -> None:
    sample = pairs[7]
    tile = next(tile for tile in index_bright(tree).tiles if tile.id == pairs.ids[7])
    pixels = read_tile(tile)
    inner = (..., slice(0, SIDE), slice(0, SIDE))
    assert sample["pre"].shape == (3, 144, 144) and sample["post"].shape == (1, 144, 144)
    assert torch.equal(sample["pre"][inner], torch.from_numpy(pixels.pre.astype(np.float32) / 255))
    assert torch.equal(sample["post"][inner], torch.from_numpy(pixels.post.astype(np.float32) / 255))
    assert pixels.label is not None
    assert torch.equal(sample["target"][inner], torch.from_numpy(pixels.label).long())
    assert sample["valid"][inner].all() and sample["valid"].sum() == SIDE**2
    assert (sample["target"][SIDE:] == UNKNOWN).all() and (sample["target"][:, SIDE:] == UNKNOWN).all()


def test_lists_decide_what_trains_and_what_validates(tree: Path, pairs: BrightPairs) -> None:
    assert [pairs.ids[i][-1] for i in pairs.training] == ["0"] * 6
    assert [pairs.ids[i][-1] for i in pairs.validation] == ["1"] * 6
    assert set(pairs.groups) == {image_id.rpartition("_")[0] for image_id in pairs.ids}
    shares = [float((pairs[i]["target"] >= 2).sum()) / SIDE**2 for i in range(len(pairs))]
    assert pairs.changed_share == pytest.approx(shares) and max(shares) > 0
    event = "simulated-flood"
    zero = BrightPairs(BrightConfig(root=tree, hold_out=event))
    assert event not in zero.groups and len(zero.training) == 10 and len(zero.validation) == 5
    one = BrightPairs(BrightConfig(root=tree, hold_out=event, one_shot=True))
    assert [i for i in one.ids if i.startswith(event)] == [f"{event}_00000000", f"{event}_00000001"]


def test_the_contest_validates_on_the_tiles_that_have_labels(copy: Path) -> None:
    for tile in index_bright(copy).tiles:
        if tile.id.endswith("1") and tile.label is not None:  # as in the contest's zip
            tile.label.unlink()
    with pytest.raises(DataError, match=r"None of the 6 tiles of dfc25 val .* has a label"):
        BrightPairs(BrightConfig(root=copy, protocol="dfc25"))
    pairs = BrightPairs(BrightConfig(root=copy, protocol="dfc25", validate_on="holdout"))
    assert [pairs.ids[i][-1] for i in pairs.validation] == ["2"] * 6


def test_crops_are_pieces_of_their_tile_and_differ_from_draw_to_draw(pairs: BrightPairs) -> None:
    crops = BrightCrops(pairs, pairs.training, seed=3)
    first, second = crops[2], crops[2 + len(crops)]
    whole = pairs[int(pairs.training[2])]
    for crop in (first, second):
        assert crop["pre"].shape == (3, 64, 64) and crop["valid"].all() and int(crop["index"]) == 2
        places = [
            (row, col)
            for row in range(SIDE - 63)
            for col in range(SIDE - 63)
            if torch.equal(whole["post"][:, row : row + 64, col : col + 64], crop["post"])
        ]
        (place,) = places
        window = np.s_[..., place[0] : place[0] + 64, place[1] : place[1] + 64]
        assert torch.equal(whole["pre"][window], crop["pre"]) and torch.equal(whole["target"][window], crop["target"])
    assert not torch.equal(first["post"], second["post"])
    assert torch.equal(first["post"], BrightCrops(pairs, pairs.training, seed=3)[2]["post"])


def paint(root: Path, label: np.ndarray) -> None:
    for tile in index_bright(root).tiles:
        assert tile.label is not None
        write_cog(tile.label, label, Grid.in_pixels(*label.shape), Band(nodata=9))


def test_a_crop_is_drawn_again_while_one_class_is_most_of_it(copy: Path) -> None:
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[:, : SIDE // 2] = np.arange(SIDE)[:, None] % 2  # background and intact in rows; the right half is background
    paint(copy, label)
    mixed = 0
    for tries in (1, 10):
        crops = BrightCrops(BrightPairs(BrightConfig(root=copy, crop=32, tries=tries)), np.arange(6), seed=0)
        shares = [float((crops[draw]["target"] == 0).float().mean()) for draw in range(40)]
        few = mixed
        mixed = sum(share < 0.75 for share in shares)
    assert few < 30 and mixed > 38


def test_tiles_smaller_than_a_crop_are_filled_without_label(tree: Path) -> None:
    pairs = BrightPairs(BrightConfig(root=tree, crop=160))
    crop = BrightCrops(pairs, pairs.training, seed=0)[0]
    assert crop["pre"].shape == (3, 160, 160) and crop["valid"].sum() == SIDE**2
    assert (crop["target"] == UNKNOWN).sum() == 160**2 - SIDE**2 and (crop["pre"][:, SIDE:] == 0).all()


def test_unlabelled_pixels_are_unknown(copy: Path) -> None:
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[:50] = 9
    paint(copy, label)
    sample = BrightPairs(BrightConfig(root=copy))[0]
    assert (sample["target"][:50, :SIDE] == UNKNOWN).all() and (sample["target"][50:SIDE, :SIDE] == 0).all()


def test_labels_are_read_before_the_training(copy: Path) -> None:
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[:9] = 3
    paint(copy, label)
    pairs = BrightPairs(BrightConfig(root=copy))
    assert pairs.labelled[0].tolist() == [SIDE * (SIDE - 9), 0, 0, SIDE * 9]
    for part in ("train", "val"):
        said = [line for line in pairs.warnings if line.startswith(f"No {part} tile")]
        assert [line.split(":")[0].split()[-1] for line in said] == ["intact", "damaged"]
    path = next(tile.label for tile in index_bright(copy).tiles if tile.id == pairs.ids[8])
    assert path is not None
    label[5, 5] = 7
    write_cog(path, label, Grid.in_pixels(SIDE, SIDE), Band())
    with pytest.raises(DataError, match=rf"{path.name} holds 7 in 1 pixels"):
        BrightPairs(BrightConfig(root=copy))


def test_what_cannot_be_learned_from_is_one_clear_line(copy: Path) -> None:
    tile = index_bright(copy).tiles[0]
    for path, bands in ((tile.pre, 3), (tile.post, 1), (tile.label, 1)):
        assert path is not None
        with rasterio.open(path) as file:
            values = file.read()[:, :128, :128]
        write_cog(path, values, Grid.in_pixels(128, 128), Band(names=("",) * bands))
    with pytest.raises(DataError, match=rf"has {SIDE} × {SIDE} px, {tile.id} has 128 × 128 px.*out of the lists"):
        BrightPairs(BrightConfig(root=copy))
    tile.post.unlink()
    pairs = BrightPairs(BrightConfig(root=copy))
    assert tile.id not in pairs.ids and any("1 of 6 train tiles" in line for line in pairs.warnings)
    with pytest.raises(DataError, match="not a folder"):
        BrightPairs(BrightConfig(root=copy / "nowhere"))
    with pytest.raises(DataError, match="no split lists"):
        BrightPairs(BrightConfig(root=copy, lists=copy / "nowhere"))
    (copy / "splits" / "standard_ML" / "val_set.txt").write_text("")
    with pytest.raises(DataError, match="val list of standard_ML names no tile"):
        BrightPairs(BrightConfig(root=copy))
