"""Collections of pictures, their panels and patches, and flags that are written line by line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmcd.data.bright import colour_label, index_bright, read_layer
from mmcd.data.bright_splits import read_blacklist
from mmcd.data.patch_index import PatchRules, tile_patches
from mmcd.errors import DataError, InputError
from mmcd.geo.grid import Window
from mmcd.services import explore
from mmcd.services.collections import CATALOG, Collection, open_collection, register, registered
from mmcd.services.explore import (
    PALETTE,
    context_window,
    file_facts,
    image_panel,
    label_panel,
    legend,
    outlined,
    patch_facts,
    patches_of,
    walk,
)
from mmcd.services.flags import Flag, add_flag, flags_of, undo_flag

RULES = PatchRules(context_patch_size=64)


@pytest.fixture
def towns(bright_tree: Path, workspace: Path) -> Collection:
    return open_collection(register(bright_tree))


def test_a_folder_is_opened_in_its_layout_and_found_by_its_key(bright_tree, floods, workspace):
    keys = [register(bright_tree), register(floods)]
    assert [key.partition("-")[0] for key in keys] == ["bright", "ombria"]
    assert list(registered()) == keys[::-1]  # the last first
    assert register(bright_tree, "bright") == keys[0]
    found = open_collection(keys[0])
    assert [picture.id for picture in found.pictures] == [tile.id for tile in index_bright(bright_tree).tiles]
    assert found.number_of(found.pictures[3].id) == 3 and found.number_of("nowhere") is None
    assert found.flags == bright_tree / "image_labels.txt"
    assert len(open_collection(keys[1]).pictures) == 12
    assert open_collection(CATALOG).flags.parent.parent == workspace  # shipped scenes are not written to


def test_an_address_opens_no_folder_that_the_user_did_not(tmp_path, workspace):
    for key in ("bright-0123456789", "/etc", "../secret"):
        with pytest.raises(InputError, match="knows no such data set"):
            open_collection(key)
    with pytest.raises(DataError, match="holds no pairs"):
        register(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        register(tmp_path / "nothing")


def test_the_percentiles_act(towns):
    path = towns.pictures[0].post
    narrow, wide = image_panel(path, (25.0, 75.0)).pixels, image_panel(path, (0.0, 100.0)).pixels
    assert narrow.shape == wide.shape == (128, 128, 3) and narrow.dtype == np.uint8
    ends = [np.isin(pixels, (0, 255)).mean() for pixels in (narrow, wide)]
    assert ends[0] > 0.4 > ends[1]
    part = image_panel(path, (25.0, 75.0), Window(16, 32, 64, 48))
    np.testing.assert_array_equal(part.pixels, narrow[16:80, 32:80])  # one stretch for the whole file


def test_a_large_picture_is_shown_by_every_nth_pixel(towns, monkeypatch):
    monkeypatch.setattr(explore, "MAX_SIDE", 64)
    panel = image_panel(towns.pictures[0].pre, (2.0, 98.0))
    assert (panel.pixels.shape[:2], panel.step, panel.shape) == ((64, 64), 2, (128, 128))


def test_labels_have_bright_s_colours_and_masks_two_of_them(towns, floods, workspace):
    tile = index_bright(towns.flags.parent).tiles[0]
    expected = colour_label(read_layer(tile, "label")[0][0], PALETTE)
    np.testing.assert_array_equal(label_panel(towns.pictures[0]).pixels, expected)
    assert list(legend(towns.pictures[0])) == ["background", "intact", "damaged", "destroyed"]
    flood = open_collection(register(floods)).pictures[0]
    colours = {tuple(colour) for colour in label_panel(flood).pixels.reshape(-1, 3).tolist()}
    assert colours == {PALETTE[0], PALETTE[-1]} == set(legend(flood).values())
    assert label_panel(replace(flood, label=None)) is None


def test_facts_name_size_crs_bands_and_type(towns):
    before, after, label = file_facts(towns.pictures[0])
    assert (before["Size"], after["Data type"], label["File"]) == ("128 × 128 px", "uint8", "Label")
    assert before["Bands"].startswith("3: ") and before["CRS"].startswith("EPSG:")


def test_patches_are_those_of_the_index(towns):
    tile = index_bright(towns.flags.parent).tiles[0]
    expected = tile_patches(tile.id, read_layer(tile, "label")[0][0], RULES)
    found = patches_of(towns.pictures[0], RULES)
    np.testing.assert_array_equal(found.position, expected.position)
    positive, negative = (patches_of(towns.pictures[0], RULES, which) for which in ("positive", "negative"))
    assert len(positive) + len(negative) == len(found) > 0
    assert positive.is_positive.all() and not negative.is_positive.any()
    facts = patch_facts(found, 0)
    window = context_window(found, 0, RULES)
    assert (window.row + RULES.pad, window.col + RULES.pad) == (facts["row"], facts["col"])
    assert len(patches_of(replace(towns.pictures[0], label=None), RULES)) == 0


@pytest.mark.parametrize("which", ["all", "positive", "negative"])
def test_a_walk_passes_every_patch_once_and_comes_back(towns, which):
    few = replace(towns, pictures=towns.pictures[:5])
    counts = [len(patches_of(picture, RULES, which)) for picture in few.pictures]
    everything = [(picture, patch) for picture, count in enumerate(counts) for patch in range(count)]
    assert walk(few, (0, 0), 0, RULES, which) == everything[0]
    for step in (1, 10, 100):
        for place in range(0, len(everything) - step, 37):
            assert walk(few, everything[place], step, RULES, which) == everything[place + step]
            assert walk(few, everything[place + step], -step, RULES, which) == everything[place]
    assert walk(few, everything[0], -100, RULES, which) == everything[0]
    assert walk(few, everything[-1], 100, RULES, which) == everything[-1]


def test_a_walk_ends_where_there_is_nothing(towns):
    blank = replace(towns, pictures=tuple(replace(picture, label=None) for picture in towns.pictures[:3]))
    assert walk(blank, (1, 0), 1, RULES, "all") is None
    last = replace(towns, pictures=(towns.pictures[0], *blank.pictures))
    assert walk(last, (2, 0), 1, RULES, "all") == (0, len(patches_of(towns.pictures[0], RULES)) - 1)


def test_the_roi_is_framed_outside_its_own_pixels():
    grey = np.full((64, 64, 3), 90, np.uint8)
    framed = outlined(grey, RULES)
    roi = np.s_[RULES.pad : RULES.pad + 16, RULES.pad : RULES.pad + 16]
    assert (framed[roi] == 90).all() and (grey == 90).all()
    assert set(np.unique(framed)) == {0, 90, 255}


def test_flags_are_appended_in_the_reference_s_format_and_undone(tmp_path, workspace):
    path = tmp_path / "image_labels.txt"
    path.write_bytes(b"bata-explosion_00000003,3,c\r\nbeirut-explosion_00000001,7,s")  # no end of line
    before = path.read_bytes()
    first, second = Flag("turkey-earthquake_00000009", 9, "s"), Flag("turkey-earthquake_00000009", 9, "c")
    assert add_flag(path, first) and add_flag(path, second)
    assert not add_flag(path, first)
    assert path.read_bytes() == before + b"\nturkey-earthquake_00000009,9,s\nturkey-earthquake_00000009,9,c\n"
    assert flags_of(path)["turkey-earthquake_00000009"] == ("s", "c")
    assert set(read_blacklist(path)) == set(flags_of(path))
    undo_flag(path, first)
    assert path.read_bytes() == before + b"\nturkey-earthquake_00000009,9,c\n"
    undo_flag(path, second)
    assert path.read_bytes() == before + b"\n"
    with pytest.raises(InputError, match="no line"):
        undo_flag(path, second)


def test_ids_with_folders_and_commas_survive(tmp_path, workspace):
    path = tmp_path / "new" / "image_labels.txt"
    flag = Flag('train/a, "b"', 0, "c")
    add_flag(path, flag)
    assert flags_of(path) == {flag.image_id: ("c",)}
    undo_flag(path, flag)
    assert flags_of(path) == {}


def test_a_flagged_tile_is_left_out_of_the_index(bright_tree, tmp_path, workspace):
    path = tmp_path / "image_labels.txt"
    tile = index_bright(bright_tree).tiles[0]
    add_flag(path, Flag(tile.id, 0, "s"))
    assert read_blacklist(path) == {tile.id: "s"}
