from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmcd.data.levir import LevirPairs
from mmcd.data.levir_files import index_levir, read_label
from mmcd.data.pair_augment import PairAugmentConfig, augment_pairs
from mmcd.errors import DataError

STEMS = ("train_1_0000_0256", "train_1_0256_0000", "train_10", "train_2", "val_3")


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_pair(folder: Path, stem: str, value: int, label: np.ndarray | None = None, side: int = 16) -> None:
    """Write a pair whose pixels tell its number, changed in the left half."""
    mask = np.zeros((side, side))
    mask[:, : side // 2] = 255
    write(folder / "A" / f"{stem}.png", np.full((side, side, 3), value))
    write(folder / "B" / f"{stem}.png", np.full((side, side, 3), value + 100))
    write(folder / "label" / f"{stem}.png", mask if label is None else label)


def write_all(folder: Path, stems: Iterable[str]) -> Path:
    for number, stem in enumerate(stems):
        write_pair(folder, stem, number)
    return folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("flat"), STEMS)


def values(data: LevirPairs) -> list[tuple[float, float]]:
    """Return the number that each pair's pixels tell, before and after."""
    return [tuple(round(float(s[name].mean() * 255)) for name in ("pre", "post")) for s in data]


# --- layouts and pairing ---


def test_published_layout(tmp_path):
    for part in ("train", "val", "test"):
        write_all(tmp_path / part, [f"{part}_1", f"{part}_2"])
    assert LevirPairs(tmp_path, "val").ids == ["val/val_1", "val/val_2"]
    everything = LevirPairs(tmp_path)
    assert everything.ids == [f"{part}/{part}_{number}" for part in ("train", "val", "test") for number in (1, 2)]
    assert everything.groups == everything.ids and everything.warnings == ()


def test_flat_layout_by_first_word_and_by_list(flat, tmp_path):
    data = LevirPairs(flat, "train")
    assert data.ids == ["train_1_0000_0256", "train_1_0256_0000", "train_2", "train_10"]
    assert data.groups == ["train_1", "train_1", "train_2", "train_10"]
    assert values(data) == [(0, 100), (1, 101), (3, 103), (2, 102)]
    root = write_all(tmp_path, STEMS)
    (root / "list").mkdir()
    (root / "list" / "val.txt").write_text("train_2.png\nval_3\n\ntrain_99.png\n")
    listed = LevirPairs(root, "val")
    assert listed.ids == ["train_2", "val_3"]
    assert listed.warnings == (f"{root / 'list' / 'val.txt'}: train_99 has no file",)


def test_files_are_paired_by_name_and_the_others_are_told(tmp_path):
    write_all(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "B" / "a.png").unlink()
    (tmp_path / "A" / "c.png").unlink()
    (tmp_path / "label" / "c.png").unlink()
    data = LevirPairs(tmp_path)
    assert data.ids == ["b", "d"] and values(data) == [(1, 101), (3, 103)]
    assert data.warnings == ("a: no B", "c: no A and no label")


def test_no_pair_at_all_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="no whole pair") as refused:
        LevirPairs(tmp_path)
    assert "A, B and label" in refused.value.hint
    write_all(tmp_path, ["a"])
    (tmp_path / "label" / "a.png").rename(tmp_path / "label" / "b.png")
    with pytest.raises(DataError, match=r"2 files have no partner.*a: no label"):
        LevirPairs(tmp_path)
    with pytest.raises(DataError, match="no test pair"):
        LevirPairs(write_all(tmp_path / "other", ["train_1"]), "test")


def test_two_files_of_one_name_are_refused(tmp_path):
    write_all(tmp_path, ["a"])
    write(tmp_path / "A" / "a.jpg", np.zeros((16, 16, 3)))
    with pytest.raises(DataError, match="share a name"):
        index_levir(tmp_path)


# --- samples ---


def test_sample_contract(flat):
    data = LevirPairs(flat)
    sample = data[2]
    assert sample["pre"].shape == sample["post"].shape == (3, 16, 16) and sample["pre"].dtype == torch.float32
    assert sample["target"].dtype == torch.int64 and sample["target"][:, :8].all() and not sample["target"][:, 8:].any()
    assert sample["valid"].all() and int(sample["index"]) == 2
    np.testing.assert_array_equal(data.changed_share, [0.5] * len(STEMS))


def test_resize_keeps_labels_to_two_values(tmp_path):
    mask = np.zeros((16, 16))
    mask[:, :5] = 255
    write_pair(tmp_path, "a", 3, mask)
    nearest = LevirPairs(tmp_path, size=8)[0]
    assert nearest["pre"].shape == (3, 8, 8) and nearest["target"].shape == nearest["valid"].shape == (8, 8)
    larger = LevirPairs(tmp_path, size=48)[0]["target"]
    torch.testing.assert_close(larger.float().mean(), torch.tensor(5 / 16))
    reference = LevirPairs(tmp_path, size=48, label_resize="bilinear")[0]["target"]
    assert ((reference == 1) <= (larger == 1)).all() and reference.sum() < larger.sum()  # the rim is lost


def test_masks_of_zero_and_one_and_of_three_bands(tmp_path):
    mask = np.zeros((16, 16))
    mask[3:5, 2:9] = 1
    write_pair(tmp_path, "binary", 0, mask)
    write_pair(tmp_path, "colour", 1, np.repeat(mask[..., None] * 255, 3, axis=2))
    data = LevirPairs(tmp_path)
    for sample in data:
        np.testing.assert_array_equal(sample["target"], mask)
    assert data.warnings == ()


# --- bad input ---


def test_grey_labels_are_cut_at_one_half_and_named(tmp_path):
    write_pair(tmp_path, "clean", 0)
    grey = np.full((16, 16), 100)
    grey[:4], grey[4:8] = 128, 127
    write_pair(tmp_path, "smooth", 1, grey)
    data = LevirPairs(tmp_path)
    (line,) = data.warnings
    assert "1 of 2 labels hold grey values" in line and f"{tmp_path / 'label' / 'smooth.png'} (100, 127, 128)" in line
    np.testing.assert_array_equal(data.changed_share, [0.5, 0.25])
    assert data[1]["target"][:4].all() and not data[1]["target"][4:].any()


def test_colour_labels_are_refused(tmp_path):
    write_pair(tmp_path, "a", 0, np.random.default_rng(0).integers(0, 255, (16, 16, 3)))
    with pytest.raises(DataError, match=r"label .*a\.png is a colour image"):
        LevirPairs(tmp_path)[0]


def test_pairs_of_different_sizes_are_refused_when_opened(tmp_path):
    write_all(tmp_path, ["a", "b"])
    write(tmp_path / "B" / "b.png", np.zeros((16, 20, 3)))
    with pytest.raises(DataError, match=r"pair b differ in size .*A 16 × 16, B 16 × 20, label 16 × 16") as refused:
        LevirPairs(tmp_path)
    assert refused.value.hint


def test_several_sizes_need_a_common_one(tmp_path):
    write_pair(tmp_path, "a", 0)
    write_pair(tmp_path, "b", 1, side=24)
    assert "2 sizes (16 × 16, 24 × 24): set size" in LevirPairs(tmp_path).warnings[0]
    data = LevirPairs(tmp_path, size=16)
    assert data.warnings == () and {sample["pre"].shape for sample in data} == {(3, 16, 16)}


@pytest.mark.parametrize("damage", ["empty", "grey", "16 bit"])
def test_unusable_images_are_named(tmp_path, damage):
    write_all(tmp_path, ["a"])
    path = tmp_path / "A" / "a.png"
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "grey":
        write(path, np.zeros((16, 16)))
    else:
        Image.fromarray(np.zeros((16, 16), np.uint16)).save(path)
    with pytest.raises(DataError, match=r"a\.png"):
        LevirPairs(tmp_path)[0]


# --- augmentation ---


def batch(height: int = 32, width: int = 32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    pre = torch.rand(6, 3, height, width, generator=random)
    return {
        "pre": pre,
        "post": pre.clone(),
        "target": (pre[:, 0] > 0.5).long(),
        "valid": pre[:, 1] > 0.1,
        "index": torch.arange(6),
    }


def varied(source: dict[str, torch.Tensor], seed: int = 0, **settings: object) -> dict[str, torch.Tensor]:
    return augment_pairs(source, PairAugmentConfig(**settings), torch.Generator().manual_seed(seed))


COLOURLESS = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}


@pytest.mark.parametrize(("shape", "crop"), [((32, 32), None), ((40, 56), 32), ((24, 40), None)])
def test_geometry_is_shared_by_images_label_and_mask(shape, crop):
    source = batch(*shape)
    result = varied(source, crop=crop, **COLOURLESS)
    torch.testing.assert_close(result["pre"], result["post"])
    assert torch.equal(result["target"], (result["pre"][:, 0] > 0.5).long())
    assert torch.equal(result["valid"], result["pre"][:, 1] > 0.1)
    assert result["pre"].shape[-2:] == ((crop, crop) if crop else shape)
    moved = [
        not torch.equal(new, old[..., : new.shape[-2], : new.shape[-1]])
        for new, old in zip(result["pre"], source["pre"], strict=True)
    ]
    assert sum(moved) >= 3


def test_all_eight_turns_occur():
    source = batch()
    seen = {varied(source, seed, **COLOURLESS)["pre"][0].numpy().tobytes() for seed in range(60)}
    assert len(seen) == 8


def test_colour_is_drawn_for_each_image_and_leaves_the_label():
    source = batch()
    result = varied(source, aug="reference")
    assert torch.equal(result["target"], source["target"]) and torch.equal(result["valid"], source["valid"])
    assert all(not torch.allclose(pre, post) for pre, post in zip(result["pre"], result["post"], strict=True))
    assert float(result["pre"].min()) >= 0 and float(result["pre"].max()) <= 1


@pytest.mark.parametrize(("name", "low", "high"), [("brightness", 0.65, 1.35), ("contrast", 0.75, 1.25)])
def test_strengths_are_the_references(name, low, high):
    grey = {**batch(), "pre": torch.full((6, 3, 32, 32), 0.2), "post": torch.full((6, 3, 32, 32), 0.6)}
    grey["pre"][..., :16] = grey["post"][..., :16] = 0.4
    others = {other: 0 for other in COLOURLESS if other != name}
    factors = []
    for seed in range(40):
        pre = varied(grey, seed, aug="reference", **others)["pre"]
        left, right = pre[:, 0, 0, 0], pre[:, 0, 0, -1]
        factors.append(right / 0.2 if name == "brightness" else (left - right) / 0.2)
    drawn = torch.cat(factors)
    assert low - 1e-3 <= float(drawn.min()) < low + 0.03 and high - 0.03 < float(drawn.max()) <= high + 1e-3


def test_augmentation_repeats_with_its_generator_and_can_be_left_out():
    source = batch()
    first, again, other = varied(source, 1), varied(source, 1), varied(source, 2)
    assert torch.equal(first["post"], again["post"]) and not torch.equal(first["post"], other["post"])
    assert varied(source, aug="none") is source


# --- real patches ---


@pytest.mark.real_data
def test_real_patches(shared_data):
    data = LevirPairs(shared_data / "levir_cd_samples")
    assert len(data) == 11 and len(set(data.groups)) == 10 and data.warnings == ()
    assert data.groups.count("test_2") == 2
    shares = data.changed_share
    assert (shares == 0).sum() == 1 and 0.1 < shares[shares > 0].min() < shares.max() < 0.3
    sample = data[0]
    assert sample["pre"].shape == (3, 256, 256) and 0.1 < float(sample["pre"].mean()) < 0.9
    assert float(sample["target"].float().mean()) == pytest.approx(shares[0])
    assert [len(LevirPairs(data.pairs[0].pre.parent.parent, part)) for part in ("train", "val", "test")] == [3, 1, 7]
    assert read_label(data.pairs[0].label)[1] == ()
