import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from mmcd.data.bright import (
    CLASSES,
    PALETTE,
    UNLABELLED,
    BrightTile,
    check_headers,
    colour_label,
    event_of,
    index_bright,
    read_layer,
    read_tile,
    select_tiles,
    tile_groups,
)
from mmcd.data.bright_splits import (
    BrightSplit,
    cross_event_split,
    protocols_in,
    read_blacklist,
    read_split,
    resolve_split,
)
from mmcd.errors import DataError, InputError
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid, Window
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_bright import EVENT_NAMES, simulate_bright

SIDE = 128


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen tiles, three of each of six events, in the flat layout."""
    root = tmp_path_factory.mktemp("bright") / "tree"
    simulate_bright(SimulateRequest(out=root, scenes=18, size=SIDE, gsd=1.0, layout="bright"))
    return root


@pytest.fixture
def copy(flat: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(flat, tmp_path / "tree"))


def contest_of(flat: Path, root: Path) -> Path:
    """Move the tiles of a flat tree into the contest's folders: every third one is in ``val``."""
    for number, tile in enumerate(index_bright(flat).tiles):
        home = root / "dfc25_track2_trainval" / ("val" if number % 3 == 1 else "train")
        for path in (tile.pre, tile.post, tile.label):
            assert path is not None
            target = home / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return root


def write(path: Path, values: np.ndarray, *, dtype: str = "uint8", nodata: float | None = None) -> Path:
    grid = Grid("EPSG:32636", rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000), *values.shape[-2:])
    names = ("",) * (1 if values.ndim == 2 else len(values))
    return write_cog(path, values, grid, Band(dtype=dtype, names=names, nodata=nodata))


# --- the simulated tree is what BRIGHT is -------------------------------------------------------------------------


def test_simulated_tree_has_names_types_and_georeference_of_the_published_one(flat: Path) -> None:
    index = index_bright(flat)
    assert len(index.tiles) == 18 and index.layout == "flat"
    assert {tile.event for tile in index.tiles} == set(EVENT_NAMES.values())
    tile = index.tiles[0]
    assert tile.pre == flat / "pre-event" / f"{tile.id}_pre_disaster.tif"
    assert tile.post == flat / "post-event" / f"{tile.id}_post_disaster.tif"
    assert tile.label == flat / "target" / f"{tile.id}_building_damage.tif"
    for path, bands in ((tile.pre, 3), (tile.post, 1), (tile.label, 1)):
        with rasterio.open(path) as file:
            assert (file.count, file.dtypes[0], file.shape) == (bands, "uint8", (SIDE, SIDE))
            assert file.crs.to_epsg() // 100 in (326, 327)
            assert file.res == (1, 1)
            assert file.tags()["simulated"] == "true"
    labels = [read_tile(tile).label for tile in index.tiles]
    assert set(np.unique(labels)) == {0, 1, 2, 3}


def test_simulated_tree_is_the_same_for_the_same_seed_and_never_overwrites(flat: Path, tmp_path: Path) -> None:
    simulate_bright(SimulateRequest(out=tmp_path / "again", scenes=2, size=SIDE, gsd=1.0, layout="bright"))
    for tile in index_bright(tmp_path / "again").tiles:
        first = next(other for other in index_bright(flat).tiles if other.id == tile.id)
        for mine, theirs in ((tile.pre, first.pre), (tile.post, first.post), (tile.label, first.label)):
            assert mine is not None and theirs is not None
            assert mine.read_bytes() == theirs.read_bytes()
    with pytest.raises(InputError, match="holds files"):
        simulate_bright(SimulateRequest(out=flat, layout="bright"))


def test_simulated_lists_fit_the_tiles(flat: Path, tmp_path: Path) -> None:
    index = index_bright(flat)
    for protocol, parts in (("standard_ML", {"train", "val", "test"}), ("few_shot", {"train", "val"})):
        split = read_split(flat / "splits", protocol)
        assert set(split.parts) == parts and split.warnings == ()
        found, warnings = resolve_split(split, index)
        assert warnings == () and {part: len(tiles) for part, tiles in found.items()} == dict.fromkeys(parts, 6)
    simulate_bright(SimulateRequest(out=tmp_path, scenes=3, size=SIDE, gsd=1.0, event="volcano", layout="dfc25"))
    parts = {tile.id[-1]: tile.part for tile in index_bright(tmp_path).tiles}
    assert parts == {"0": "train", "1": "val", "2": "train"}
    found, _ = resolve_split(read_split(tmp_path / "splits", "dfc25"), index_bright(tmp_path))
    assert {part: tiles[0].id[-1] for part, tiles in found.items()} == {"train": "0", "val": "1", "holdout": "2"}


# --- pairing ------------------------------------------------------------------------------------------------------


def test_events_end_at_the_last_underscore() -> None:
    assert event_of("la_palma-volcano_00000113") == "la_palma-volcano"
    for wrong in ("morocco", "morocco_", "_00000001", "morocco_12x"):
        with pytest.raises(DataError, match="not the id"):
            event_of(wrong)


@pytest.mark.parametrize("inside", ["", "dfc25_track2_trainval"])
def test_contest_folders_are_found_from_either_side_and_sorted(flat: Path, tmp_path: Path, inside: str) -> None:
    index = index_bright(contest_of(flat, tmp_path) / inside)
    assert index.layout == "contest" and index.report() == []
    assert [(tile.part, tile.id) for tile in index.tiles] == sorted((tile.part, tile.id) for tile in index.tiles)
    assert sum(tile.part == "val" for tile in index.tiles) == 6
    assert sorted(tile.id for tile in index.tiles) == [tile.id for tile in index_bright(flat).tiles]


def test_every_missing_file_is_named_and_the_rest_goes_on(copy: Path) -> None:
    tiles = index_bright(copy).tiles
    assert tiles[4].label is not None
    for path in (tiles[0].pre, tiles[2].post, tiles[4].label):
        path.unlink()
    (copy / "pre-event" / "notes.tif").touch()
    (copy / "pre-event" / f"._{tiles[1].id}_pre_disaster.tif").touch()  # some systems leave these beside each file
    index = index_bright(copy)
    assert [tile.id for tile in index.tiles] == [tile.id for n, tile in enumerate(tiles) if n not in (0, 2)]
    assert [tile.id for tile in index.tiles if tile.label is None] == [tiles[4].id]
    lines = index.report()
    assert len(lines) == 4
    for line, words in zip(
        lines,
        [(tiles[0].id, "optical"), (tiles[2].id, "SAR"), (tiles[4].id, "label"), ("notes.tif", "left out")],
        strict=True,
    ):
        assert all(word in line for word in words)
    with pytest.raises(DataError, match="no label"):
        read_layer(index.tiles[2], "label")


def test_a_layer_that_is_not_there_is_one_line(flat: Path, tmp_path: Path) -> None:
    root = contest_of(flat, tmp_path)
    shutil.rmtree(root / "dfc25_track2_trainval" / "val" / "target")
    index = index_bright(root)
    assert len(index.tiles) == 18 and len(index.missing) == 6
    assert len(index.report()) == 1 and "6 tiles" in index.report()[0]


def test_events_without_redistributable_images_are_explained(copy: Path) -> None:
    tile = index_bright(copy).tiles[0]
    shutil.copy(tile.post, copy / "post-event" / "ukraine-conflict_00000001_post_disaster.tif")
    assert any("may not be passed on" in line for line in index_bright(copy).report())


def test_folder_without_tiles_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pre-event"):
        index_bright(tmp_path)
    (tmp_path / "post-event").mkdir()
    (tmp_path / "post-event" / "bata-explosion_00000001_post_disaster.tif").touch()
    with pytest.raises(DataError, match="2 files are missing"):
        index_bright(tmp_path)


# --- choosing -----------------------------------------------------------------------------------------------------


def test_tiles_are_chosen_by_event_blacklist_and_number(flat: Path, tmp_path: Path) -> None:
    tiles = index_bright(flat).tiles
    volcano = select_tiles(tiles, disaster="island-volcano")
    assert [tile.event for tile in volcano] == ["simulated_island-volcano"] * 3
    (tmp_path / "labels.txt").write_text(f"{volcano[0].id},0,c\n\n{volcano[2].id},1,s\n")
    blacklist = read_blacklist(tmp_path / "labels.txt")
    assert blacklist == {volcano[0].id: "c", volcano[2].id: "s"}
    assert select_tiles(tiles, disaster="volcano", excluded=blacklist) == [volcano[1]]
    rest = [tile for tile in tiles if tile.id not in blacklist]
    assert select_tiles(tiles, excluded=blacklist, limit=5) == rest[:5]
    with pytest.raises(DataError, match="simulated-flood"):
        select_tiles(tiles, disaster="meteor")
    (tmp_path / "labels.txt").write_text("nonsense,0,c\n")
    with pytest.raises(DataError, match="nonsense"):
        read_blacklist(tmp_path / "labels.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_blacklist(tmp_path / "none.txt")


@pytest.mark.real_data
def test_official_lists_lose_only_the_two_duplicates(shared_data: Path) -> None:
    lists = shared_data / "bright_splits"
    standard, contest, few = (read_split(lists, name) for name in ("standard_ML", "dfc25", "few_shot"))
    sizes = {part: len(ids) for part, ids in standard.parts.items()}
    assert sizes == {"train": 2918, "val": 450, "test": 878} and standard.warnings == ()
    sizes = {part: len(ids) for part, ids in contest.parts.items()}
    assert sizes == {"train": 2227, "val": 349, "holdout": 661, "test": 156}
    assert len(contest.warnings) == 2
    assert any("libya-flood_00000024" in line and "val" in line for line in contest.warnings)
    assert any("bata-explosion_00000049" in line and "holdout" in line for line in contest.warnings)
    assert {part: len(ids) for part, ids in few.parts.items()} == {"train": 14, "val": 14}
    assert read_split(lists / "dfc25", "dfc25") == contest
    events = {event_of(i) for ids in standard.parts.values() for i in ids}
    assert len(events) == 14 and "la_palma-volcano" in events


@pytest.mark.real_data
def test_cross_event_protocols_on_the_official_lists(shared_data: Path) -> None:
    lists = shared_data / "bright_splits"
    standard, few = read_split(lists, "standard_ML"), read_split(lists, "few_shot")
    zero = cross_event_split(standard, "la_palma-volcano")
    assert {part: len(ids) for part, ids in zero.parts.items()} == {
        "train": 2918 - 647 + 878 - 189,
        "val": 450 - 97,
        "test": 933,
    }
    one = cross_event_split(standard, "la_palma-volcano", 1, few)
    for part in ("train", "val"):
        added = set(one.parts[part]) - set(zero.parts[part])
        assert added == {i for i in few.parts[part] if event_of(i) == "la_palma-volcano"} and len(added) == 1
        assert not set(one.parts["test"]) & added
    assert len(one.parts["test"]) == 931
    assert not set(zero.parts["train"]) & set(zero.parts["test"])


def test_cross_event_split_without_shots_or_events_says_so() -> None:
    split = BrightSplit("standard_ML", {"train": ("a_1", "b_1"), "val": ("b_2",), "test": ("a_3",)})
    with pytest.raises(DataError, match="held out"):
        cross_event_split(split, "c")
    with pytest.raises(DataError, match="no val tile of a"):
        cross_event_split(split, "a", 1)
    with pytest.raises(DataError, match="held out"):
        cross_event_split(split, "b")  # the only event with val tiles


def test_lists_with_other_names_and_with_faults(tmp_path: Path, flat: Path) -> None:
    (tmp_path / "train_setlevel.txt").write_text("a_1\na_1\n\nb_2\n")
    (tmp_path / "holdout_setlevel.txt").write_text("b_2")
    split = read_split(tmp_path, "dfc25")
    assert split.parts == {"train": ("a_1",), "holdout": ("b_2",)}
    assert "b_2 dropped from train" in split.warnings[0]
    with pytest.raises(DataError, match="None of the 1 train"):
        resolve_split(split, index_bright(flat))
    with pytest.raises(DataError, match="no train list"):
        read_split(flat, "few_shot")
    (tmp_path / "train_setlevel.txt").write_text("what is this")
    with pytest.raises(DataError, match="what is this"):
        read_split(tmp_path, "dfc25")


def test_lists_of_one_protocol_are_not_read_as_anothers(tmp_path: Path, flat: Path) -> None:
    for protocol in ("standard_ML", "few_shot"):
        with pytest.raises(DataError, match=rf"lists of dfc25, not of {protocol}.*--protocol dfc25"):
            read_split(flat / "splits" / "dfc25", protocol)
    (tmp_path / "train_set.txt").write_text("a_1")
    assert read_split(tmp_path, "standard_ML").parts == {"train": ("a_1",)}
    assert protocols_in(tmp_path) == ("standard_ML",)
    (tmp_path / "holdout_set.txt").write_text("a_2")
    with pytest.raises(DataError, match="--protocol dfc25"):
        read_split(tmp_path, "standard_ML")
    assert protocols_in(tmp_path) == ("dfc25",)
    assert protocols_in(flat / "splits" / "few_shot") == ("few_shot",) and protocols_in(flat) == ()


def test_lists_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "train_set.txt").write_bytes(b"a_1\n\xff\xfe")
    with pytest.raises(DataError, match=r"train_set\.txt cannot be read.*one id a line"):
        read_split(tmp_path, "standard_ML")


def test_tiles_of_a_list_that_are_not_on_disk_are_counted_by_event(flat: Path) -> None:
    index = index_bright(flat)
    here = index.tiles[0].id
    found, warnings = resolve_split(BrightSplit("mine", {"train": (here, "ukraine-conflict_00000001")}), index)
    assert [tile.id for tile in found["train"]] == [here]
    assert "1 of 2" in warnings[0] and "ukraine-conflict" in warnings[0]


# --- reading ------------------------------------------------------------------------------------------------------


def test_pixels_crs_and_transform_are_those_of_the_files(flat: Path) -> None:
    tile = index_bright(flat).tiles[3]
    pixels = read_tile(tile)
    window = Window(20, 40, 50, 30)
    part = read_tile(tile, window)
    assert pixels.label is not None and part.label is not None
    for layer, values, cut in (
        (tile.pre, pixels.pre, part.pre),
        (tile.post, pixels.post, part.post),
        (tile.label, pixels.label[None], part.label[None]),
    ):
        with rasterio.open(layer) as file:
            np.testing.assert_array_equal(values, file.read())
            np.testing.assert_array_equal(cut, file.read(window=window.to_rasterio()))
            assert values.dtype == cut.dtype == np.uint8
            assert pixels.grid.crs == file.crs.to_string() and pixels.grid.transform == file.transform
            assert part.grid.transform == file.window_transform(window.to_rasterio())


def tile_of(folder: Path, **values: Path) -> BrightTile:
    files = {
        "pre": lambda: write(folder / "pre.tif", np.full((3, 32, 32), 9, np.uint8)),
        "post": lambda: write(folder / "post.tif", np.full((32, 32), 7, np.uint8)),
        "label": lambda: write(folder / "label.tif", np.zeros((32, 32), np.uint8)),
    }
    return BrightTile(
        "bata-explosion_00000001", "", **{name: values.get(name) or make() for name, make in files.items()}
    )


def test_extra_optical_and_sar_bands_are_left_out(tmp_path: Path) -> None:
    bands = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((4, 32, 32), np.uint8)
    tile = tile_of(
        tmp_path, pre=write(tmp_path / "four.tif", bands), post=write(tmp_path / "grey.tif", bands[[2, 2, 2]])
    )
    pixels = read_tile(tile)
    assert pixels.pre[:, 0, 0].tolist() == [0, 1, 2] and pixels.post.shape == (1, 32, 32)


def test_what_is_not_as_published_is_named_with_what_to_do(tmp_path: Path) -> None:
    wrong = np.zeros((32, 32), np.uint8)
    wrong[0, :3] = 4
    wrong[1, 1] = 255
    with pytest.raises(DataError, match=r"wrong\.tif holds 4, 255 in 4 pixels; labels are 0 to 3"):
        read_tile(tile_of(tmp_path, label=write(tmp_path / "wrong.tif", wrong)))
    small = write(tmp_path / "small.tif", np.zeros((32, 30), np.uint8))
    for layer in ("post", "label"):
        with pytest.raises(DataError, match=r"00000001 differ in size.*30 × 32.*blacklist"):
            read_tile(tile_of(tmp_path, **{layer: small}))
    with pytest.raises(DataError, match=r"small\.tif has 1 bands"):
        read_tile(tile_of(tmp_path, pre=small))
    deep = write(tmp_path / "deep.tif", np.zeros((32, 32), np.uint16), dtype="uint16")
    with pytest.raises(DataError, match="holds uint16"):
        read_tile(tile_of(tmp_path, post=deep))
    torn = tmp_path / "torn.tif"
    torn.write_bytes(small.read_bytes()[:300])
    with pytest.raises(DataError, match=r"torn\.tif"):
        check_headers(tile_of(tmp_path, post=torn))


def test_background_declared_as_nodata_is_background_and_other_nodata_is_unlabelled(tmp_path: Path) -> None:
    label = np.zeros((32, 32), np.uint8)
    label[:4] = 2
    zero = read_tile(tile_of(tmp_path, label=write(tmp_path / "zero.tif", label, nodata=0)))
    np.testing.assert_array_equal(zero.label, label)
    label[5:7] = 255
    void = read_tile(tile_of(tmp_path, label=write(tmp_path / "void.tif", label, nodata=255)))
    assert void.label is not None
    np.testing.assert_array_equal(void.label, np.where(label == 255, UNLABELLED, label))


def test_labels_are_painted_in_brights_colours() -> None:
    painted = colour_label(np.array([[0, 1, 2, 3, UNLABELLED]], np.uint8))
    assert [tuple(pixel) for pixel in painted[0, : len(CLASSES)].tolist()] == list(PALETTE)
    assert painted[0, 4].tolist() not in [list(colour) for colour in PALETTE]


def test_groups_are_tiles_that_touch(flat: Path) -> None:
    tiles = index_bright(flat).tiles
    groups = tile_groups(tiles, [check_headers(tile) for tile in tiles])
    named = {tile.id: group for tile, group in zip(tiles, groups, strict=True)}
    for event in EVENT_NAMES.values():
        first, second, third = (f"{event}_{number:08d}" for number in range(3))
        assert (named[first], named[second], named[third]) == (first, first, third)
    nowhere = tile_groups(tiles[:2], [Grid.in_pixels(8, 8)] * 2)
    assert nowhere == [tile.id for tile in tiles[:2]]
