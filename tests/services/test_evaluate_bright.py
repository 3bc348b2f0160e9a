"""BRIGHT's protocol on simulated tiles in the published layout."""

import json
import re
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rich.console import Console
from sklearn.metrics import cohen_kappa_score, f1_score, jaccard_score
from typer.testing import CliRunner

from mmcd.cards import read_card, write_card
from mmcd.cli import app
from mmcd.commands import bright_report
from mmcd.commands.bright_report import report_bright
from mmcd.data.bright import CLASSES, EVENTS, BrightTile, index_bright, read_tile
from mmcd.data.bright_choice import held_out_split
from mmcd.data.bright_splits import read_split, unsupervised_split
from mmcd.errors import DataError, ModelError, UsageError
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid
from mmcd.inference.engine import stored_whole
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.models import zoo
from mmcd.score import threshold_value
from mmcd.services.evaluate import EvaluateRequest, evaluate
from mmcd.services.published_bright import published

SIDE = 128
EVENT = "simulated-explosion"
TEST = ("simulated-earthquake_00000002", "simulated-explosion_00000002", "simulated-wildfire_00000002")


@pytest.fixture(scope="module")
def tree(bright_tree: Path) -> Path:
    """Eighteen tiles, three of each of six events: one to train, one to validate, one to test."""
    return bright_tree


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, with the test tiles of three events alone in its list."""
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    (root / "splits" / "standard_ML" / "test_set.txt").write_text("\n".join(TEST))
    return root


@pytest.fixture(scope="module")
def grader(tree: Path, building_card_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a small untrained model that maps each class to about a quarter of a tile."""
    folder = tmp_path_factory.mktemp("grader")
    card, model = zoo.load(building_card_path)
    pixels = read_tile(tile_of(tree, TEST[0]))
    pre, post = (torch.from_numpy((image / 255 - 0.5) / 0.2).float()[None] for image in (pixels.pre, pixels.post))
    with torch.no_grad():
        head = model.get_submodule("decoder.logit")
        head.bias.sub_(model(pre, post).classes.mean(dim=(0, 2, 3)))
    sha256 = zoo.save(model, folder / card.weights)
    write_card(card.model_copy(update={"sha256": sha256}), folder / "card.toml")
    return folder / "card.toml"


@pytest.fixture(scope="module")
def measured(tree: Path, grader: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The result on the test list, and the folder of its maps."""
    scores = tmp_path_factory.mktemp("scores")
    return evaluate(asked(tree, grader, split="test", scores=scores)), scores


def asked(root: Path, card: Path, **options: object) -> EvaluateRequest:
    common = {"device": "cpu", "precision": "fp32"}
    return EvaluateRequest.checked(model=str(card), dataset="bright", root=root, **common, **options)


def tile_of(root: Path, image_id: str) -> BrightTile:
    return next(tile for tile in index_bright(root).tiles if tile.id == image_id)


def values_of(path: Path | None) -> np.ndarray:
    assert path is not None
    with rasterio.open(path) as file:
        return file.read(1)


def write_label(path: Path | None, values: np.ndarray) -> None:
    assert path is not None
    write_cog(path, values, Grid.in_pixels(*values.shape), Band())


def test_figures_are_those_of_the_maps_that_are_written(tree: Path, measured: tuple[dict, Path]) -> None:
    result, scores = measured
    assert result["tiles"] == 6 and len(result["tiles_scored"]) == 6 and result["tiles_missing"] == {}
    labels = {i: values_of(tile_of(tree, i).label) for i in result["tiles_scored"]}
    maps = {i: values_of(scores / f"{i}_building_damage.tif") for i in labels}
    truth, answer = (np.concatenate([values[i].ravel() for i in labels]) for values in (labels, maps))
    assert len(np.unique(answer)) == 4
    assert result["oa"] == pytest.approx((truth == answer).mean())
    assert list(result["iou"].values()) == pytest.approx(jaccard_score(truth, answer, average=None).tolist())
    assert result["miou"] == pytest.approx(jaccard_score(truth, answer, average="macro"))
    assert result["f1_loc"] == pytest.approx(f1_score(truth > 0, answer > 0))
    on_buildings = f1_score(truth[truth > 0], answer[truth > 0], average=None, labels=[1, 2, 3])
    assert result["f1_clf"] == pytest.approx(3 / (1 / on_buildings).sum())
    assert result["binary"]["kappa"] == pytest.approx(cohen_kappa_score(truth == 3, answer == 3))
    assert np.array(result["confusion"]).sum() == truth.size == 6 * SIDE**2
    for event, row in result["events"].items():
        image_id = f"{event}_00000002"
        assert row["tiles"] == 1 and row["oa"] == pytest.approx((labels[image_id] == maps[image_id]).mean())


def test_maps_are_what_the_scene_path_says_of_the_files(tree: Path, grader: Path, measured: tuple[dict, Path]) -> None:
    tile, card = tile_of(tree, TEST[0]), read_card(grader)
    predictor = Predictor.load(grader, "cpu", "fp32", all_classes=True)
    with rasterio.open(tile.post) as file:
        grid = Grid(file.crs.to_string(), file.transform, *file.shape)
    with PairReader(tile.pre, tile.post, card, grid, substitute=True) as reader:
        found = stored_whole(reader, predictor)
    assert found.classes is not None
    assert np.array_equal(values_of(measured[1] / f"{tile.id}_building_damage.tif"), found.classes)
    assert np.array_equal(values_of(measured[1] / f"{tile.id}.tif"), found.score)
    with rasterio.open(measured[1] / f"{tile.id}.tif") as score, rasterio.open(tile.post) as post:
        assert score.crs == post.crs and score.transform == post.transform


def test_published_tables_stand_beside_with_their_source(measured: tuple[dict, Path]) -> None:
    shared, full, binary = measured[0]["published"]
    assert "697 tiles" in shared["tiles"] and shared["rows"]["UNet"]["miou"] == 63.37
    assert "Table 5" in full["source"] and full["rows"]["ChangeMamba"]["miou"] == 67.63
    assert full["rows"]["ChangeOS Swin-T"]["oa"] is None
    assert binary["rows"]["AGSCC"] == {"oa": 88.49, "f1": 14.82, "iou": 8.0, "kappa": 9.54}
    assert any("None of the scored tiles is of a published event" in line for line in measured[0]["warnings"])


def test_published_tables_agree_with_themselves() -> None:
    for key in ("zero_shot", "one_shot"):
        rows = published(key).rows
        assert set(rows) - {"mean"} == set(EVENTS)
        assert np.mean([rows[event] for event in EVENTS], axis=0) == pytest.approx(rows["mean"], abs=0.01)
    for row in published("standard_test").rows.values():
        assert np.mean(row[4:]) == pytest.approx(row[3], abs=0.03)


def test_a_model_of_change_alone_gets_the_binary_protocol(copy: Path, card_path: Path, tmp_path: Path) -> None:
    some = TEST[:2]
    (copy / "splits" / "standard_ML" / "test_set.txt").write_text("\n".join(some))
    result = evaluate(asked(copy, card_path, split="test", scores=tmp_path / "scores"))
    assert "miou" not in result and result["confusion"] is None
    assert any("only the binary protocol" in line for line in result["warnings"])
    assert any("2 tiles have pixels of 1.00 to 1.00 m" in line for line in result["warnings"])  # the card says 5 to 30
    assert [table["title"].split()[0] for table in result["published"]] == ["Unsupervised"]
    truth = np.concatenate([values_of(tile_of(copy, i).label).ravel() for i in some]) == 3
    scores = np.concatenate([values_of(tmp_path / "scores" / f"{i}.tif").ravel() for i in some])
    answer = scores >= threshold_value(read_card(card_path).decision.threshold)
    assert result["binary"]["f1"] == pytest.approx(f1_score(truth, answer))
    assert result["binary"]["kappa"] == pytest.approx(cohen_kappa_score(truth, answer))
    assert len(list((tmp_path / "scores").iterdir())) == 2


def test_what_is_not_scored_is_named_with_its_reason(copy: Path, grader: Path) -> None:
    tile_of(copy, TEST[0]).pre.unlink()
    label = tile_of(copy, TEST[1]).label
    assert label is not None
    label.unlink()
    names = (*TEST, "ukraine-conflict_00000001", "noto-earthquake_00000001")
    (copy / "splits" / "standard_ML" / "test_set.txt").write_text("\n".join(names))
    for layer, suffix in (("post-event", "_post_disaster.tif"), ("target", "_building_damage.tif")):
        shutil.copy(copy / layer / f"{TEST[2]}{suffix}", copy / layer / f"{names[3]}{suffix}")
    result = evaluate(asked(copy, grader, split="test"))
    assert result["tiles_scored"] == [TEST[2]]
    assert result["tiles_missing"] == {
        TEST[0]: "no optical file",
        TEST[1]: "no label file",
        names[3]: "no optical file: the images of this event may not be passed on",
        names[4]: "not on disk",
    }
    said = " ".join(result["warnings"])
    assert "3 of 5 test tiles" in said and "1 of 5 tiles of standard_ML test have no label" in said


def test_the_unsupervised_protocol_scores_all_but_the_val_tiles(tree: Path, grader: Path) -> None:
    result = evaluate(asked(tree, grader, split="unsupervised", event=EVENT))
    assert result["tiles_scored"] == [f"{EVENT}_00000000", f"{EVENT}_00000002"]
    assert result["protocol"] == "standard_ML unsupervised test"


def test_unlabelled_pixels_count_nowhere(copy: Path, grader: Path) -> None:
    tile = tile_of(copy, TEST[0])
    label = values_of(tile.label)
    label[:40] = 9
    assert tile.label is not None
    write_cog(tile.label, label, Grid.in_pixels(SIDE, SIDE), Band(nodata=9))
    result = evaluate(asked(copy, grader, split="test", event="simulated-earthquake"))
    assert np.sum(result["confusion"]) == (SIDE - 40) * SIDE and result["tiles"] == 1


def test_a_class_that_no_label_holds_is_said_and_left_out(copy: Path, grader: Path) -> None:
    for image_id in TEST:
        path = tile_of(copy, image_id).label
        write_label(path, np.minimum(values_of(path), 1).astype(np.uint8))
    result = evaluate(asked(copy, grader, split="test"))
    assert [line.split(":")[0] for line in result["warnings"] if "is labelled" in line] == [
        "No scored tile is labelled damaged",
        "No scored tile is labelled destroyed",
    ]
    assert result["labelled_px"]["damaged"] == 0 and result["iou"]["damaged"] == 0  # mapped and never right


def test_bad_tiles_and_lists_are_one_clear_line(copy: Path, grader: Path, card_path: Path) -> None:
    path = tile_of(copy, TEST[0]).label
    whole = values_of(path)
    wrong = whole.copy()
    wrong[0, :3] = 7
    write_label(path, wrong)
    with pytest.raises(DataError, match=rf"{TEST[0]}.*holds 7 in 3 pixels; labels are 0 to 3.*Restore"):
        evaluate(asked(copy, grader, split="test"))
    write_label(path, whole[:100])
    with pytest.raises(DataError, match=rf"{TEST[0]} differ in size.*label 128 × 100"):
        evaluate(asked(copy, grader, split="test"))
    with pytest.raises(DataError, match=r"holdout list of standard_ML names no tile.*train 6, val 6, test 3"):
        evaluate(asked(copy, grader, split="holdout"))
    with pytest.raises(DataError, match="names no tile of event 'simulated-flood'"):
        evaluate(asked(copy, grader, split="test", event="simulated-flood"))
    with pytest.raises(DataError, match="Events there: simulated-earthquake"):
        evaluate(asked(copy, grader, event="nowhere"))
    with pytest.raises(DataError, match="no split lists"):
        evaluate(asked(copy, grader, split="test", lists=copy / "nowhere"))
    labels = {path.name: path.read_bytes() for path in (copy / "target").iterdir()}
    with pytest.raises(DataError, match=r"target holds the labels.*another folder"):
        evaluate(asked(copy, grader, split="test", scores=copy / "splits" / ".." / "target"))
    assert {path.name: path.read_bytes() for path in (copy / "target").iterdir()} == labels
    shutil.rmtree(copy / "target")
    with pytest.raises(DataError, match=r"None of the 3 tiles of standard_ML test .* has a label.*target folder"):
        evaluate(asked(copy, grader, split="test"))


def test_models_of_other_images_or_classes_are_refused(copy: Path, grader: Path, tmp_path: Path) -> None:
    card = read_card(grader)
    others = {
        "maps no pixels": {"pre": card.pre.model_copy(update={"scaling": "patch"})},
        "takes 2 bands before": {"pre": card.pre.model_copy(update={"bands": ("B8", "B3")})},
        "BRIGHT's classes are background": {"classes": ("none", "minor", "major", "destroyed")},
    }
    for words, changes in others.items():
        write_card(card.model_copy(update=changes), tmp_path / "other.toml")
        with pytest.raises(ModelError, match=words):
            evaluate(asked(copy, tmp_path / "other.toml", split="test"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "ombria", "split": "val"}, "OMBRIA has the splits train and test"),
        ({"dataset": "ombria", "hold_out": "x"}, "--dataset bright"),
        ({"one_shot": True}, "--hold-out EVENT"),
        ({"hold_out": "x", "split": "train"}, "give no other part"),
        ({"hold_out": "all"}, "{event} in --model"),
        ({"protocol": "none"}, "--protocol 'none'"),
        ({"split": "unsupervised", "protocol": "dfc25"}, "leave out --protocol"),
        ({"split": "unsupervised", "dataset": "levir"}, "LEVIR-CD has the splits"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        EvaluateRequest.checked(**{"model": "m", "dataset": "bright", "root": Path()} | options)
    assert words in str(refused.value)


# --- cross-event --------------------------------------------------------------------------------------------------


def test_zero_shot_scores_all_tiles_of_the_event(tree: Path, grader: Path) -> None:
    zero = evaluate(asked(tree, grader, hold_out="simulated-flood"))
    assert zero["tiles_scored"] == [f"simulated-flood_{number:08d}" for number in range(3)]
    assert zero["shots"] == 0 and any("does not say that it was trained without" in line for line in zero["warnings"])
    with pytest.raises(DataError, match="cannot be held out"):
        evaluate(asked(tree, grader, hold_out="nowhere"))


def test_the_table_over_events_has_a_model_an_event_and_one_shot_leaves_out_what_was_shown(
    tree: Path, grader: Path, tmp_path: Path
) -> None:
    card = read_card(grader)
    held_out = ("simulated-flood", "simulated-wildfire")
    for event in held_out:
        folder = tmp_path / event
        folder.mkdir()
        shutil.copy(grader.with_name(card.weights), folder)
        write_card(card.model_copy(update={"training": {"data": {"hold_out": event}}}), folder / "card.toml")
    result = evaluate(asked(tree, tmp_path / "{event}" / "card.toml", hold_out="all", one_shot=True))
    assert tuple(result["cross_event"]) == (*held_out, "mean")
    rows = [result["cross_event"][event] for event in held_out]
    assert result["cross_event"]["mean"]["miou"] == pytest.approx(np.mean([row["miou"] for row in rows]))
    alone = evaluate(asked(tree, tmp_path / held_out[0] / "card.toml", hold_out=held_out[0], one_shot=True))
    assert alone["tiles_scored"] == [f"{held_out[0]}_00000002"] and alone["shots"] == 1
    assert rows[0]["miou"] == alone["miou"] and not any("trained without" in line for line in alone["warnings"])
    assert sum(line.startswith("No card for") for line in result["warnings"]) == 4
    assert "noto-earthquake" in result["published"][0]["rows"]
    with pytest.raises(ModelError, match="There is no card"):
        evaluate(asked(tree, tmp_path / "none" / "{event}.toml", hold_out="all"))


def test_an_event_without_tiles_leaves_the_table_and_a_model_of_change_alone_has_its_own(
    copy: Path, card_path: Path, tmp_path: Path
) -> None:
    lost, kept = "simulated-earthquake", "simulated-wildfire"
    for event in (lost, kept):
        shutil.copy(card_path.with_suffix(".safetensors"), tmp_path)
        shutil.copy(card_path, tmp_path / f"{event}.toml")
    for tile in index_bright(copy).tiles:
        if tile.event == lost:
            tile.pre.unlink()
    result = evaluate(asked(copy, tmp_path / "{event}.toml", hold_out="all", one_shot=True))
    assert tuple(result["cross_event"]) == (kept, "mean")
    assert set(result["cross_event"][kept]) == {"tiles", "oa", "f1", "iou", "kappa"}
    assert result["cross_event"]["mean"]["oa"] == result["results"][kept]["binary"]["oa"]
    (said,) = [line for line in result["warnings"] if line.startswith(f"{lost} is left out")]
    assert "has both images" in said and "Download them" in said
    (tmp_path / f"{kept}.toml").unlink()
    with pytest.raises(DataError, match=r"None of the 3 test tiles"):
        evaluate(asked(copy, tmp_path / "{event}.toml", hold_out="all"))


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ({"hold_out": "simulated-flood"}, {"split": "test"}, "on the test tiles of the other events: only --hold-out"),
        ({}, {"split": "train"}, "was trained on a train list of BRIGHT"),
        ({}, {"split": "unsupervised"}, "was trained on a train list of BRIGHT"),
        ({}, {"split": "test"}, None),
    ],
)
def test_tiles_that_a_model_learned_from_are_told(
    tree: Path, grader: Path, tmp_path: Path, data: dict[str, object], options: dict[str, str], words: str | None
) -> None:
    card = read_card(grader)
    shutil.copy(grader.with_name(card.weights), tmp_path)
    write_card(card.model_copy(update={"training": {"data": {"source": "bright"} | data}}), tmp_path / "card.toml")
    said = evaluate(asked(tree, tmp_path / "card.toml", event=EVENT, **options))["warnings"]
    assert [line for line in said if "was trained" in line and (words or "") in line] == [
        line for line in said if "was trained" in line
    ]
    assert any("was trained" in line for line in said) == (words is not None)


@pytest.mark.real_data
def test_official_cross_event_lists(shared_data: Path) -> None:
    lists = shared_data / "bright_splits"
    for event, tiles in (("marshall-wildfire", 77), ("la_palma-volcano", 933)):
        assert len(held_out_split(lists, event, one_shot=False).parts["test"]) == tiles
        assert len(held_out_split(lists, event, one_shot=True).parts["test"]) == tiles - 2
    assert len(unsupervised_split(read_split(lists, "standard_ML")).parts["test"]) == 3796


# --- the command --------------------------------------------------------------------------------------------------


def test_published_tables_fit_into_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    monkeypatch.setattr(bright_report, "results", Console(file=written, width=100))
    row = {"tiles": 1114, "oa": 1.0, "miou": 1.0, "miou_absent_zero": 1.0, "f1_loc": 1.0, "f1_clf": None}
    tables = [published("one_shot").to_dict(), published("standard_test").to_dict()]
    report_bright("one-shot", {"cross_event": {"la_palma-volcano": row}, "published": tables, "warnings": []})
    names = [*row, *EVENTS, *(column for table in tables for name in table["rows"] for column in table["rows"][name])]
    lines = written.getvalue().splitlines()
    cells = {cell.strip() for line in lines if line[:1] in "┃│" for cell in re.split("[┃│]", line)}
    assert set(names) <= cells and max(len(line) for line in lines if line[:1] in "┃│┏└") == 100


def shown(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_prints_tables_or_one_object(copy: Path, grader: Path, card_path: Path, tmp_path: Path) -> None:
    options = ("--dataset", "bright", "--root", copy, "--split", "test", "--event", EVENT, "--device", "cpu")
    result = json.loads(shown("evaluate", "--model", grader, *options, "--json"))
    text = shown("evaluate", "--model", grader, *options)
    for words in (f"{100 * result['miou']:.2f}", "DamageFormer", "697 tiles", EVENT, *CLASSES):
        assert words in text
    assert "Unsupervised" in shown("evaluate", "--model", card_path, *options)
    card = read_card(grader)
    shutil.copy(grader.with_name(card.weights), tmp_path)
    write_card(card, tmp_path / f"{EVENT}.toml")
    table = shown(
        *("evaluate", "--model", tmp_path / "{event}.toml", "--dataset", "bright", "--root", copy),
        *("--hold-out", "all", "--one-shot", "--device", "cpu"),
    )
    assert EVENT in table and "one-shot" in table and "43.23" in table
