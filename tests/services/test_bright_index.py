"""BRIGHT through its commands, on simulated tiles in the published layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from pyogrio import read_dataframe
from rasterio.warp import transform_geom
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.commands import terminal
from mmcd.data.bright import BrightTile, index_bright
from mmcd.data.patch_files import read_patches
from mmcd.data.patch_index import PatchRules
from mmcd.errors import Cancelled, ConfigError, DataError, StorageError, UsageError
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid
from mmcd.services.bright import TilesRequest, list_tiles
from mmcd.services.index import IndexRequest, IndexResult, build_index, read_patch_rules
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_bright import simulate_bright

SIDE = 272  # nine candidates a tile by the reference's rules


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tiles, two of each of six events."""
    root = tmp_path_factory.mktemp("bright") / "tree"
    simulate_bright(SimulateRequest(out=root, scenes=12, size=SIDE, gsd=1.0, layout="bright"))
    return root


@pytest.fixture
def copy(flat: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(flat, tmp_path / "tree"))


def label_of(tile: BrightTile) -> np.ndarray:
    assert tile.label is not None
    with rasterio.open(tile.label) as file:
        return file.read(1)


def indexed(root: Path, out: Path, **options: object) -> IndexResult:
    return build_index(IndexRequest(root=root, out=out, **options))


def ids_in(folder: Path, split: str) -> set[str]:
    return set(np.load(folder / f"{split}_image_ids.npy").tolist())


def test_every_patch_of_every_tile_is_listed_once(flat: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    result = build_index(IndexRequest(root=flat, out=tmp_path), lambda *news: heard.append(news))
    assert heard[0] == ("indexing", 0, 12) and heard[-1] == ("indexing", 12, 12)
    labels = {tile.id: label_of(tile) for tile in index_bright(flat).tiles}
    expected = {
        (image_id, y, x): (label[y : y + 16, x : x + 16] > 1).mean()
        for image_id, label in labels.items()
        for y in (120, 128, 136)
        for x in (120, 128, 136)
        if label[y : y + 16, x : x + 16].any()
    }
    found = {}
    for split in ("train", "val"):
        table = read_patches(tmp_path, split, PatchRules())
        for image, (y, x), damage, positive in zip(
            table.image, table.position.tolist(), table.damage_ratio, table.is_positive, strict=True
        ):
            assert positive == (damage <= 0.05)
            found[table.image_ids[image], y, x] = damage
    assert found == pytest.approx(expected) and 0 < len(found) < 12 * 9
    events = [{image_id.rpartition("_")[0] for image_id in ids_in(tmp_path, split)} for split in ("train", "val")]
    assert all(events) and not events[0] & events[1]
    assert result.summary["split_by"] == "event" and result.tiles == 12


def test_same_seed_gives_the_same_bytes(flat: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        indexed(flat, tmp_path / name, split_by="image", seed=5)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_of_the_contest_only_its_train_folder_is_read(tmp_path: Path) -> None:
    simulate_bright(SimulateRequest(out=tmp_path / "tree", scenes=4, size=SIDE, event="flood", layout="dfc25"))
    tiles = index_bright(tmp_path / "tree").tiles
    assert [tile.part for tile in tiles].count("val") == 1
    result = indexed(tmp_path / "tree", tmp_path / "out")
    assert result.tiles == 3 and result.summary["split_by"] == "image"
    assert any("too few to split by event" in line for line in result.warnings)
    here = {tile.id for tile in tiles if tile.part == "train"}
    assert (ids_in(tmp_path / "out", "train") | ids_in(tmp_path / "out", "val")) <= here
    assert not any("--lists" in line or "left out" in line for line in result.warnings)


def test_a_contest_tile_that_is_also_scored_is_not_learnt_from(tmp_path: Path) -> None:
    simulate_bright(SimulateRequest(out=tmp_path / "tree", scenes=8, size=SIDE, event="flood", layout="dfc25"))
    tiles = [tile for tile in index_bright(tmp_path / "tree").tiles if tile.part == "train"]
    for path in (tiles[0].pre, tiles[0].post):  # as in the contest: without labels
        target = path.parents[2] / "test" / path.parent.name / path.name
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
    result = indexed(tmp_path / "tree", tmp_path / "out")
    assert result.tiles == len(tiles) - 1
    assert any(tiles[0].id in line and "val or test folder" in line for line in result.warnings)
    assert tiles[0].id not in ids_in(tmp_path / "out", "train") | ids_in(tmp_path / "out", "val")


def test_without_lists_it_is_told_that_test_tiles_are_learnt_from(flat: Path, tmp_path: Path) -> None:
    words = "Without --lists the official val and test tiles"
    assert any(words in line for line in indexed(flat, tmp_path / "all").warnings)
    listed = indexed(flat, tmp_path / "listed", lists=flat / "splits", split_by="image")
    assert not any(words in line for line in listed.warnings)


def test_metadata_of_other_data_are_refused_before_tiles_are_read(flat: Path, copy: Path, tmp_path: Path) -> None:
    out, lists = tmp_path / "out", flat / "splits"
    indexed(flat, out, split_by="image")
    before = {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "none.txt").write_text("")

    def never(*_: object) -> None:
        raise AssertionError("tiles were read")

    others: list[tuple[str, dict[str, object]]] = [
        ("root", {"root": copy}),
        ("limit", {"limit": 12}),
        ("tile_ids", {"limit": 6}),
        ("lists", {"lists": lists}),
        ("protocol", {"lists": lists, "protocol": "dfc25"}),
        ("hold_out", {"lists": lists, "split_by": "lists", "hold_out": "simulated_island-volcano"}),
        ("blacklist", {"blacklist": tmp_path / "none.txt"}),
        ("select_disaster", {"select_disaster": "simulated"}),
        ("split_asked", {"split_by": "group"}),
    ]
    for key, options in others:
        request = IndexRequest(**{"root": flat, "out": out, "split_by": "image", **options})
        with pytest.raises(DataError, match=rf"another configuration: .*\b{key} "):
            build_index(request, never)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert indexed(flat, out, split_by="image").tiles == 12
    assert indexed(flat, out, split_by="image", limit=7, overwrite=True).tiles == 7


def test_a_file_in_the_place_of_the_folder_is_told(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StorageError, match="cannot be written"):
        indexed(flat, tmp_path / "out", split_by="image")
    assert (tmp_path / "out").read_text() == "mine"


def test_tiles_that_touch_stay_together(tmp_path: Path) -> None:
    # Tiles of an event touch two by two, so that an event has several groups.
    root = tmp_path / "tree"
    simulate_bright(SimulateRequest(out=root, scenes=8, size=SIDE, event="earthquake", layout="bright"))

    def shared(split_by: str, seed: int) -> set[int]:
        out = tmp_path / f"{split_by}-{seed}"
        result = indexed(root, out, split_by=split_by, seed=seed, train_ratio=0.5)
        assert result.summary["split_by"] == split_by
        pairs = [{int(i[-8:]) // 2 for i in ids_in(out, split)} for split in ("train", "val")]
        assert all(pairs)
        return pairs[0] & pairs[1]

    assert not any(shared("group", seed) for seed in range(4))
    assert any(shared("image", seed) for seed in range(4)), "the pairs could have been parted"


def test_blacklist_beside_the_data_is_used_unless_told_otherwise(copy: Path, tmp_path: Path) -> None:
    first = index_bright(copy).tiles[0].id
    (copy / "image_labels.txt").write_text(f"{first},0,c\n")
    result = indexed(copy, tmp_path / "without", split_by="image")
    assert result.tiles == 11 and any("1 tiles of the blacklist" in line for line in result.warnings)
    assert indexed(copy, tmp_path / "with", split_by="image", include_blacklist=True).tiles == 12
    (tmp_path / "none.txt").write_text("")
    assert indexed(copy, tmp_path / "other", split_by="image", blacklist=tmp_path / "none.txt").tiles == 12


def test_choice_of_tiles(flat: Path, tmp_path: Path) -> None:
    result = indexed(flat, tmp_path / "one", select_disaster="simulated-")
    assert result.tiles == 10
    assert indexed(flat, tmp_path / "two", limit=7).tiles == 7
    with pytest.raises(DataError, match="No tile is left"):
        indexed(flat, tmp_path / "three", select_disaster="meteor")


def test_official_lists_and_the_cross_event_protocol(flat: Path, tmp_path: Path) -> None:
    lists = flat / "splits"
    indexed(flat, tmp_path / "lists", lists=lists, split_by="lists")
    for split in ("train", "val"):
        listed = set((lists / "standard_ML" / f"{split}_set.txt").read_text().split())
        assert ids_in(tmp_path / "lists", split) <= listed
    held_out = "simulated_island-volcano"
    zero = indexed(flat, tmp_path / "zero", lists=lists, split_by="lists", hold_out=held_out)
    assert zero.tiles == 10
    one = indexed(flat, tmp_path / "one", lists=lists, split_by="lists", hold_out=held_out, one_shot=True)
    assert one.tiles == 12
    for split in ("train", "val"):  # the lists name every tile, and an event has one in each
        with_patches = ids_in(tmp_path / "lists", split)
        others = {i for i in with_patches if not i.startswith(held_out)}
        assert len(others) < len(with_patches), "the event has patches on this side"
        assert ids_in(tmp_path / "zero", split) == others
        assert ids_in(tmp_path / "one", split) == with_patches
    for split_by in ("event", "group", "image", "patch"):
        with pytest.raises(UsageError, match=r"^--hold-out needs --split-by lists") as caught:
            IndexRequest.checked(root=flat, out=tmp_path, lists=lists, hold_out=held_out, split_by=split_by)
        assert "{" not in str(caught.value)
    for options in ({"split_by": "lists"}, {"hold_out": "x"}, {"lists": lists, "one_shot": True}):
        with pytest.raises(UsageError):
            IndexRequest.checked(root=flat, out=tmp_path, **options)


def test_bad_tiles_are_named_and_the_rest_is_indexed(copy: Path, tmp_path: Path) -> None:
    tiles = index_bright(copy).tiles
    tiles[0].pre.unlink()
    assert tiles[1].label and tiles[2].label and tiles[3].label
    grid = Grid.in_pixels(SIDE, SIDE)
    write_cog(tiles[1].label, np.full((SIDE, SIDE), 9, np.uint8), grid, Band())
    write_cog(tiles[2].post, np.zeros((SIDE, 99), np.uint8), Grid.in_pixels(SIDE, 99), Band())
    for path, shape in ((tiles[3].pre, (3, 64, 64)), (tiles[3].post, (64, 64)), (tiles[3].label, (64, 64))):
        write_cog(
            path, np.ones(shape, np.uint8), Grid.in_pixels(64, 64), Band(names=("",) * (3 if len(shape) > 2 else 1))
        )
    result = indexed(copy, tmp_path / "out", split_by="image")
    assert result.tiles == 9
    said = "\n".join(result.warnings)
    for words in (
        f"{tiles[0].id}: no optical file",
        "holds 9 in",
        f"files of tile {tiles[2].id} differ in size",
        f"{tiles[3].id}: smaller than the context of 256 px",
        f"{tiles[3].id}: not {SIDE} × {SIDE} px",
    ):
        assert words in said
    left_out = {tile.id for tile in tiles[:4]}
    assert not left_out & (ids_in(tmp_path / "out", "train") | ids_in(tmp_path / "out", "val"))


def test_nothing_to_index_is_an_error_that_writes_nothing(copy: Path, tmp_path: Path) -> None:
    for tile in index_bright(copy).tiles:
        assert tile.label is not None
        write_cog(tile.label, np.zeros((SIDE, SIDE), np.uint8), Grid.in_pixels(SIDE, SIDE), Band())
    with pytest.raises(DataError, match="None of 12 tiles"):
        indexed(copy, tmp_path / "out")
    shutil.rmtree(copy / "target")
    with pytest.raises(
        DataError, match=r"No tile is left: none of 12 tiles has a label file; .*target.*Download target"
    ):
        indexed(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stopped_run_writes_nothing(flat: Path, tmp_path: Path) -> None:
    def cancel(_: str, done: int, __: int) -> None:
        if done == 3:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        build_index(IndexRequest(root=flat, out=tmp_path / "out"), cancel)
    assert not (tmp_path / "out").exists()


def test_rules_come_from_a_file_that_holds_other_keys_too(tmp_path: Path) -> None:
    path = tmp_path / "reference.yaml"
    path.write_text("roi_patch_size: 32\npatch_stride: 16\nmax_pairs_per_image: 500\nmodel: {resnet: 34}\n")
    rules = read_patch_rules(path, 0.5)
    assert rules == PatchRules(roi_patch_size=32, patch_stride=16, building_threshold=0.5)
    path.write_text("roi_patch_size: 300\n")
    with pytest.raises(ConfigError, match="even number"):
        read_patch_rules(path)
    path.write_text("patch_stride: much\n")
    with pytest.raises(ConfigError, match="patch_stride"):
        read_patch_rules(path)
    for text in ("- a list\n", "a: [\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"reference\.yaml"):
            read_patch_rules(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_patch_rules(tmp_path / "none.yaml")


# --- outlines -----------------------------------------------------------------------------------------------------


def test_outlines_lie_where_the_tiles_lie(copy: Path, tmp_path: Path) -> None:
    tiles = index_bright(copy).tiles
    write_cog(tiles[0].post, np.zeros((SIDE, SIDE), np.uint8), Grid.in_pixels(SIDE, SIDE), Band())
    tiles[1].label.unlink()  # type: ignore[union-attr]
    path = tmp_path / "new" / "tiles.geojson"
    result = list_tiles(TilesRequest(root=copy, footprints=path, lists=copy / "splits"))
    assert result.tiles == 12 and {event.tiles for event in result.events} == {2}
    assert sum(event.labelled for event in result.events) == 11
    assert result.events[0].parts == dict.fromkeys(
        [f"{name} {part}" for name in ("dfc25", "few_shot", "standard_ML") for part in ("train", "val")], 1
    )
    assert [line for line in result.warnings if "no georeference" in line and str(tiles[0].post) in line]
    table = read_dataframe(path)
    assert table.crs.to_epsg() == 4326 and table["id"].tolist() == [tile.id for tile in tiles[1:]]
    for tile, row in zip(tiles[1:], table.itertuples(), strict=True):
        with rasterio.open(tile.post) as file:
            there = shapely.geometry.shape(transform_geom(file.crs, "EPSG:4326", shapely.box(*file.bounds)))
        assert there.symmetric_difference(row.geometry).area < 1e-3 * there.area
        assert there.contains(shapely.Point(row.lon, row.lat))
        assert (row.width, row.height, row.gsd, row.event) == (SIDE, SIDE, 1.0, tile.event)
        assert "standard_ML" in row.parts
    with pytest.raises(DataError, match="split lists"):
        list_tiles(TilesRequest(root=copy, lists=tmp_path))
    alone = list_tiles(TilesRequest(root=copy, lists=copy / "splits" / "dfc25"))
    assert alone.events[0].parts == {"dfc25 train": 1, "dfc25 val": 1}


# --- the commands -------------------------------------------------------------------------------------------------


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_commands_simulate_list_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "tree", tmp_path / "metadata"
    made = run("data", "simulate", root, "--layout", "bright", "--scenes", 6, "--size", SIDE, "--json")
    assert len(json.loads(made)["scenes"]) == 6
    index_bright(root).tiles[0].label.unlink()  # type: ignore[union-attr]
    listed = json.loads(run("data", "tiles", root, "--footprints", tmp_path / "tiles.geojson", "--json"))
    assert listed["tiles"] == 6 and len(listed["warnings"]) == 1
    assert len(json.loads((tmp_path / "tiles.geojson").read_text())["features"]) == 6
    assert "simulated_island-volcano" in run("data", "tiles", root)
    result = json.loads(run("data", "index", root, "--out", out, "--split-by", "image", "--json"))
    assert result["tiles"] == 5 and result["stats"]["total"]["total_patches"] > 0
    unlabelled = index_bright(root).missing[0]
    first, second, *others = result["warnings"]
    assert first.startswith(f"{unlabelled.id}: no label file") and second.startswith("Without --lists")
    assert len(set(others)) == len(others) and all("split holds no" in line for line in others)
    assert len(read_patches(out, "train")) == result["stats"]["train"]["total_patches"]
    shown = CliRunner().invoke(app, ["data", "index", str(root), "--out", str(out), "--split-by", "image"])
    assert "no label file" in shown.stderr and "train total_patches" in shown.stdout
    monkeypatch.setattr(terminal, "SHOWN_WARNINGS", 0)
    shown = CliRunner().invoke(app, ["data", "tiles", str(root)])
    assert "1 more warnings" in shown.stderr
