import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mmcd.data.bright import UNLABELLED
from mmcd.data.patch_files import read_patches, read_rules, write_patches
from mmcd.data.patch_index import (
    PatchRules,
    PatchSplit,
    PatchTable,
    SplitBy,
    context_boxes,
    pool,
    split_patches,
    tile_patches,
)
from mmcd.errors import DataError

SMALL = PatchRules(context_patch_size=32)


def loop(label: np.ndarray, rules: PatchRules, measured: np.ndarray | None = None) -> list[tuple[Any, ...]]:
    """The rules of the reference, one candidate after the other on values that may be NaN."""
    values = np.where(label == UNLABELLED, np.nan, label.astype(float))
    pre = np.ones(label.shape) if measured is None else np.where(measured, 1.0, np.nan)
    height, width = label.shape
    roi, pad = rules.roi_patch_size, (rules.context_patch_size - rules.roi_patch_size) // 2
    kept = []
    for y in range(pad, height - pad - roi + 1, rules.patch_stride):
        for x in range(pad, width - pad - roi + 1, rules.patch_stride):
            part, optical = values[y : y + roi, x : x + roi], pre[y : y + roi, x : x + roi]
            if np.isfinite(optical).mean() < rules.min_valid_pixels:
                continue
            known = part[np.isfinite(part)]
            if not len(known) or (known == 0).all():
                continue
            damage, building = (known > 1).sum() / len(known), (known > 0).sum() / len(known)
            box = (y - pad, x - pad, y + roi + pad, x + roi + pad)
            kept.append((y, x, damage, damage <= rules.pos_threshold, building >= rules.building_threshold, *box))
    return kept


def blocky(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Classes in blocks of 4 px, some of them not labelled."""
    coarse = random.choice([0, 0, 0, 0, 0, 0, 1, 1, 2, 3, UNLABELLED], size=(-(-height // 4), -(-width // 4)))
    return np.kron(coarse, np.ones((4, 4)))[:height, :width].astype(np.uint8)


def assert_same(table: PatchTable, expected: list[tuple[Any, ...]], rules: PatchRules) -> None:
    assert len(table) == len(expected)
    if expected:
        y, x, damage, positive, building, *box = map(np.array, zip(*expected, strict=True))
        np.testing.assert_array_equal(table.position, np.stack([y, x], axis=1))
        np.testing.assert_array_equal(table.damage_ratio, damage.astype(np.float32))
        np.testing.assert_array_equal(table.is_positive, positive)
        np.testing.assert_array_equal(table.has_building, building)
        np.testing.assert_array_equal(context_boxes(table.position, rules), np.stack(box, axis=1))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    roi=st.sampled_from([4, 8, 12, 16]),
    more=st.sampled_from([0, 6, 16, 30]),
    stride=st.sampled_from([1, 3, 4, 8, 16, 20]),
    threshold=st.sampled_from([0.0, 0.05, 0.25, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_patches_are_those_of_the_loop(
    seed: int, shape: tuple[int, int], roi: int, more: int, stride: int, threshold: float
) -> None:
    rules = PatchRules(
        roi_patch_size=roi,
        context_patch_size=roi + more,
        patch_stride=stride,
        pos_threshold=threshold,
        building_threshold=threshold,
    )
    random = np.random.default_rng(seed)
    label, measured = blocky(random, *shape), random.random(shape) < 0.8
    assert_same(tile_patches("a_1", label, rules), loop(label, rules), rules)
    assert_same(tile_patches("a_1", label, rules, measured), loop(label, rules, measured), rules)


def test_the_reference_rules_on_a_tile_of_the_published_size() -> None:
    rules = PatchRules()
    assert list(rules.candidates(1024)) == list(range(120, 889, 8))
    everywhere = tile_patches("a_1", np.full((1024, 1024), 1, np.uint8), rules)
    assert len(everywhere) == 97 * 97 == 9409
    assert everywhere.position.min() == 120 and everywhere.position.max() == 888
    assert everywhere.is_positive.all() and everywhere.has_building.all()
    assert context_boxes(everywhere.position, rules)[[0, -1]].tolist() == [[0, 0, 256, 256], [768, 768, 1024, 1024]]
    label = np.zeros((300, 300), np.uint8)
    label[128:132, 128:140] = 3  # 48 of the 256 pixels of four ROIs or more
    label[150, 150] = 1
    assert_same(tile_patches("a_1", label, rules), loop(label, rules), rules)
    assert len(tile_patches("a_1", np.full((255, 1024), 3, np.uint8), rules)) == 0
    assert len(tile_patches("a_1", np.full((256, 256), 3, np.uint8), rules)) == 1


def test_positive_means_at_most_the_threshold_of_all_labelled_pixels() -> None:
    rules = PatchRules(context_patch_size=16)
    for damaged, positive in ((12, True), (13, False)):  # 5 % of 256 is 12.8
        label = np.zeros((16, 16), np.uint8)
        label.flat[:damaged] = 2
        table = tile_patches("a_1", label, rules)
        assert table.is_positive.tolist() == [positive]
        assert table.damage_ratio.dtype == np.float32 and table.damage_ratio[0] == np.float32(damaged / 256)


@pytest.mark.parametrize(
    "wrong", [{"context_patch_size": 8}, {"context_patch_size": 33}, {"patch_stride": 0}, {"roi": 1}]
)
def test_rules_that_make_no_patch_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        PatchRules(**wrong)


# --- splits -------------------------------------------------------------------------------------------------------


def table_of(counts: dict[str, int]) -> PatchTable:
    """Patches of tiles, every third of them damaged."""
    tables = []
    for image_id, count in counts.items():
        number = np.arange(count)
        damage = np.where(number % 3 == 0, 0.5, 0).astype(np.float32)
        position = np.stack([number, number], axis=1).astype(np.int32)
        tables.append(
            PatchTable((image_id,), np.zeros(count, np.int32), position, damage, damage == 0, number % 2 == 0)
        )
    return pool(tables)


COUNTS = {"a_1": 30, "a_2": 20, "b_1": 40, "b_2": 0, "c_1": 5, "c_2": 15, "d_d_1": 90}
TABLE = table_of(COUNTS)
EVENTS = [name.rpartition("_")[0] for name in TABLE.image_ids]


def ids_in(table: PatchTable) -> set[str]:
    return {table.image_ids[number] for number in table.image}


@pytest.mark.parametrize("seed", range(6))
def test_an_event_lies_on_one_side(seed: int) -> None:
    split = split_patches(TABLE, "event", EVENTS, 0.8, seed)
    train, val = ({i.rpartition("_")[0] for i in ids_in(part)} for part in (split.train, split.val))
    assert train and val and not train & val
    assert len(split.train) + len(split.val) == len(TABLE)
    assert len(split.val) <= 0.2 * len(TABLE) and split.warnings == ()


def test_the_split_follows_its_seed() -> None:
    sides = [tuple(sorted(ids_in(split_patches(TABLE, "image", TABLE.image_ids, 0.5, s).val))) for s in (0, 0, 1, 2, 3)]
    assert sides[0] == sides[1] and len(set(sides)) > 1


def test_an_event_larger_than_the_share_leaves_the_smallest_for_validation() -> None:
    table = table_of({"a_1": 50, "b_1": 40, "c_1": 45})
    split = split_patches(table, "event", ["a", "b", "c"], 0.9, 0)
    assert ids_in(split.val) == {"b_1"}


@pytest.mark.parametrize("names", [["a_1", "a_2", "a_3"], ["a_1", "a_2", "b_1", "b_2"]])
def test_fewer_than_three_events_are_split_by_image_with_a_warning(names: list[str]) -> None:
    table = table_of(dict.fromkeys(names, 10))
    split = split_patches(table, "event", [name[0] for name in names], 0.8, 42)
    assert split.split_by == "image" and "too few" in split.warnings[0] and "a" in split.warnings[0]
    assert len(split.train) and len(split.val) and not ids_in(split.train) & ids_in(split.val)


def test_one_group_is_split_by_image_and_one_image_is_refused() -> None:
    table = table_of({"a_1": 10, "a_2": 10})
    split = split_patches(table, "group", ["g", "g"], 0.8, 0)
    assert split.split_by == "image" and ids_in(split.train) != ids_in(split.val)
    with pytest.raises(DataError, match="cannot be split by image"):
        split_patches(table_of({"a_1": 10, "a_2": 0}), "image", ["a_1", "a_2"], 0.8, 0)


def test_lists_say_which_side_and_may_not_leave_one_empty() -> None:
    parts = ["train", "val", "train", "val", "val", "train", "train"]
    split = split_patches(TABLE, "lists", parts, 0.8, 0)
    assert ids_in(split.val) == {"a_2", "c_1"}
    with pytest.raises(DataError, match="train split would be empty"):
        split_patches(TABLE, "lists", ["val"] * len(parts), 0.8, 0)


def test_patch_split_is_the_references_and_says_what_it_is_worth() -> None:
    split = split_patches(TABLE, "patch", TABLE.image_ids, 0.8, 42)
    np.random.seed(42)  # the reference's shuffle
    order = list(range(len(TABLE)))
    np.random.shuffle(order)
    cut = int(len(TABLE) * 0.8)
    np.testing.assert_array_equal(split.train.image, TABLE.image[order[:cut]])
    np.testing.assert_array_equal(split.val.position, TABLE.position[order[cut:]])
    assert "share context" in split.warnings[0]
    with pytest.raises(DataError, match="train split would be empty"):
        split_patches(table_of({"a_1": 1}), "patch", ["a_1"], 0.5, 0)


def test_a_class_that_a_side_lacks_is_told() -> None:
    table = table_of({"a_1": 30, "a_2": 1, "a_3": 1})
    split = split_patches(table, "lists", ["train", "val", "train"], 0.8, 0)
    assert [line for line in split.warnings if "no unchanged" in line and "val" in line]
    calm = PatchTable(
        table.image_ids, table.image, table.position, table.damage_ratio * 0, table.image >= 0, table.has_building
    )
    split = split_patches(calm, "lists", ["train", "val", "train"], 0.8, 0)
    assert len([line for line in split.warnings if "no damaged" in line]) == 2


# --- files --------------------------------------------------------------------------------------------------------


def written(folder: Path, split_by: SplitBy = "event", **more: Any) -> PatchSplit:
    split = split_patches(TABLE, split_by, EVENTS, 0.8, 42)
    write_patches(folder, split, SMALL, {"train_ratio": 0.8, "random_seed": 42}, **more)
    return split


def assert_equal_patches(one: PatchTable, other: PatchTable) -> None:
    assert [one.image_ids[n] for n in one.image] == [other.image_ids[n] for n in other.image]
    for name in ("position", "damage_ratio", "is_positive", "has_building"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("split_by", ["event", "patch"])
def test_what_was_written_is_read(split_by: SplitBy, tmp_path: Path) -> None:
    split = written(tmp_path, split_by)
    assert_equal_patches(read_patches(tmp_path, "train", SMALL), split.train)
    assert_equal_patches(read_patches(tmp_path, "val"), split.val)
    assert read_rules(tmp_path) == SMALL


def test_files_are_those_that_the_reference_reads(tmp_path: Path) -> None:
    split = written(tmp_path)
    types = {
        "image_ids": "U", "roi_positions": "int32", "context_positions": "int32", "is_positive": "bool",
        "damage_ratios": "float32", "has_building": "bool", "positive_indices": "int64", "negative_indices": "int64",
        "building_indices": "int64", "non_building_indices": "int64",
    }  # fmt: skip
    for name, part in (("train", split.train), ("val", split.val)):
        arrays = {key: np.load(tmp_path / f"{name}_{key}.npy", allow_pickle=False) for key in types}
        assert all(
            np.issubdtype(a.dtype, t) if t != "U" else a.dtype.kind == "U"
            for a, t in zip(arrays.values(), types.values(), strict=True)
        )
        assert arrays["image_ids"].tolist() == [part.image_ids[n] for n in part.image]
        assert arrays["context_positions"].shape == (len(part), 4)
        assert part.is_positive[arrays["positive_indices"]].all()
        assert sorted([*arrays["positive_indices"], *arrays["negative_indices"]]) == list(range(len(part)))
        assert sorted([*arrays["building_indices"], *arrays["non_building_indices"]]) == list(range(len(part)))
        summary = json.loads((tmp_path / f"{name}_summary.json").read_text())
        assert summary["positive_patches"] == len(arrays["positive_indices"])
        assert summary["building_ratio"] == len(arrays["building_indices"]) / len(part)
    config = json.loads((tmp_path / "config_summary.json").read_text())
    keys = "roi_patch_size context_patch_size stride pos_threshold min_valid_pixels building_threshold train_ratio"
    assert {*keys.split(), "random_seed", "stats", "split_by"} <= set(config)
    assert config["stats"]["total"]["total_patches"] == len(TABLE) == len(split.train) + len(split.val)


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    split = written(tmp_path)
    table = pd.read_parquet(tmp_path / "patches.parquet")
    assert len(table) == len(TABLE)
    part = table[table["split"] == "val"]
    assert part["image_id"].tolist() == [split.val.image_ids[n] for n in split.val.image]
    assert part[["y", "x"]].to_numpy().tolist() == split.val.position.tolist()
    assert (part["event"].astype(str) + "_" == part["image_id"].astype(str).str[:-1]).all()


def test_another_configuration_is_named_and_never_overwritten_unasked(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(DataError, match="context_patch_size is 32, 256 is asked for"):
        read_patches(tmp_path, "train", PatchRules())
    written(tmp_path)  # the same again is no conflict
    with pytest.raises(DataError, match="split_by event instead of patch"):
        written(tmp_path, "patch")
    split = written(tmp_path, "patch", overwrite=True)
    assert_equal_patches(read_patches(tmp_path, "val"), split.val)


def as_reference(folder: Path, ids: Any) -> None:
    np.save(folder / "train_image_ids.npy", np.array(ids, dtype=object), allow_pickle=True)


def test_object_ids_of_the_reference_are_imported(tmp_path: Path) -> None:
    split = written(tmp_path)
    as_reference(tmp_path, [split.train.image_ids[n] for n in split.train.image])
    assert_equal_patches(read_patches(tmp_path, "train"), split.train)
    as_reference(tmp_path, [np.str_(split.train.image_ids[n]) for n in split.train.image])
    assert_equal_patches(read_patches(tmp_path, "train"), split.train)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_something_is_refused_before_it_runs(tmp_path: Path) -> None:
    written(tmp_path)
    as_reference(tmp_path, [_Bomb(tmp_path / "ran")])
    with pytest.raises(DataError, match="which ids do not need"):
        read_patches(tmp_path, "train")
    assert not (tmp_path / "ran").exists()
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    (tmp_path / "train_image_ids.npy").write_bytes(buffer.getvalue() + pickle.dumps(["a_1"]))
    with pytest.raises(DataError, match="not a list of strings"):
        read_patches(tmp_path, "train")
    as_reference(tmp_path, [3])
    with pytest.raises(DataError, match="not a list of strings"):
        read_patches(tmp_path, "train")


def test_damaged_or_missing_metadata_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no patch metadata.*data index"):
        read_patches(tmp_path, "train")
    written(tmp_path)
    np.save(tmp_path / "train_is_positive.npy", np.ones(3, bool))
    with pytest.raises(DataError, match="differ in length"):
        read_patches(tmp_path, "train")
    (tmp_path / "train_is_positive.npy").unlink()
    with pytest.raises(DataError, match=r"train_is_positive\.npy cannot be read"):
        read_patches(tmp_path, "train")
    for name in ("roi_positions", "damage_ratios", "is_positive", "has_building", "image_ids"):
        values = np.load(tmp_path / f"val_{name}.npy")
        np.save(tmp_path / f"val_{name}.npy", values[:0])
    with pytest.raises(DataError, match=r"val split in .* is empty"):
        read_patches(tmp_path, "val")
    (tmp_path / "config_summary.json").write_text("[")
    with pytest.raises(DataError, match="cannot be read"):
        read_rules(tmp_path)
