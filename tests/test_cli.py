"""Every command as a user types it: another working directory, exit codes, one JSON object, one line of error."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from mmcd.cards import find_card, list_cards
from mmcd.commands import terminal
from mmcd.jobs import open_store
from mmcd.paths import shipped
from mmcd.services.runs import load_run

Pair = tuple[Path, Path]


@pytest.fixture
def elsewhere(tmp_path: Path, workspace: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def mmcd(*arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmcd", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


def as_json(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.stdout.count("\n") == 1, "exactly one object on standard output"
    return json.loads(done.stdout)


def test_help_lists_every_command(elsewhere: Path) -> None:
    shown = mmcd("--help", cwd=elsewhere).stdout
    for command in ("doctor", "scenes", "data", "train", "infer", "evaluate", "weights", "export", "assets", "worker"):
        assert command in shown


def test_a_log_says_now_and_then_how_far_a_run_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, expected in ((0.0, "score 1,200 of 8,000\n"), (60.0, "")):
        monkeypatch.setattr(terminal, "LOG_SECONDS", seconds)
        with terminal.ProgressBar() as progress:
            progress("score", 1_200, 8_000)
        assert capsys.readouterr().err == expected


def test_scenes_list_shows_the_samples(elsewhere: Path) -> None:
    scenes = as_json(mmcd("scenes", "list", "--json", cwd=elsewhere))["scenes"]
    assert len(scenes) == 8
    assert all(scene["simulated"] and scene["id"].startswith("simulated-") for scene in scenes)
    assert len({scene["event_type"] for scene in scenes}) >= 5
    assert "simulated-" in mmcd("scenes", "list", cwd=elsewhere).stdout


def test_check_and_add_a_scene(pair: Pair, elsewhere: Path) -> None:
    report = as_json(mmcd("scenes", "check", *pair, "--json", cwd=elsewhere))
    assert {finding["severity"] for finding in report["findings"]} <= {"note", "warn"}
    relative = [os.path.relpath(path, elsewhere) for path in pair]
    added = as_json(
        mmcd("scenes", "add", *relative, "--id", "mine", "--pre-date", "2024-05-01", "--json", cwd=elsewhere)
    )
    assert added["gsd"] == 10
    listed = as_json(mmcd("scenes", "list", "--json", cwd=elsewhere.parent))["scenes"]
    assert listed[0]["id"] == "mine"
    assert Path(listed[0]["pre"]).samefile(pair[0])
    again = mmcd("scenes", "add", *pair, "--id", "mine", cwd=elsewhere, code=1)
    assert "already" in again.stderr


def test_check_refuses_what_is_not_a_raster(pair: Pair, elsewhere: Path) -> None:
    (elsewhere / "text.tif").write_text("not a raster")
    report = as_json(mmcd("scenes", "check", pair[0], "text.tif", "--json", cwd=elsewhere, code=1))
    assert any(finding["severity"] == "refuse" for finding in report["findings"])
    refused = mmcd("scenes", "add", pair[0], "text.tif", "--id", "x", cwd=elsewhere, code=1)
    assert len(refused.stderr.strip().splitlines()) == 1
    assert as_json(mmcd("scenes", "list", "--json", cwd=elsewhere))["scenes"][0]["id"] != "x"


def test_predict_a_scene_of_the_workspace(pair: Pair, card_path: Path, elsewhere: Path) -> None:
    mmcd("scenes", "add", *pair, "--id", "mine", cwd=elsewhere)
    result = as_json(
        mmcd("infer", "predict", "--scene", "mine", "--model", card_path, "--out", "out", "--json", cwd=elsewhere)
    )
    assert result["inputs"]["scene"] == "mine"
    for name in ("score", "mask", "item", "manifest"):
        assert (elsewhere / result[name]).is_file()
    with rasterio.open(elsewhere / "out" / "score.tif") as score, rasterio.open(pair[1]) as post:
        assert (score.crs, score.transform, score.shape) == (post.crs, post.transform, post.shape)
    _export_what_predict_wrote(elsewhere)


def _export_what_predict_wrote(folder: Path) -> None:
    exported = as_json(
        mmcd("export", "out", "--what", "mask", "--out", "strict.tif", "--threshold", 0.9, "--json", cwd=folder)
    )
    assert exported == {"what": "mask", "threshold": 0.9, "paths": ["strict.tif"], "notes": []}
    with rasterio.open(folder / "strict.tif") as strict, rasterio.open(folder / "out" / "mask.tif") as mask:
        assert (strict.read(1) == 1).sum() <= (mask.read(1) == 1).sum()
    changes = mmcd("export", "out", "--what", "buildings", "--out", "shapes", cwd=folder)
    assert changes.stdout.split() == ["shapes/changes.gpkg", "shapes/changes.geojson"]
    assert "no building footprints" in changes.stderr


def test_predict_without_a_model_chooses_one_and_says_so(pair: Pair, elsewhere: Path) -> None:
    result = as_json(mmcd("infer", "predict", *pair, "--out", "out", "--json", cwd=elsewhere))
    assert result["model"]["name"] == "flood-s2s1"
    assert "GSD" in result["model"]["why"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["infer", "predict", "no.tif", "no.tif", "--out", "out"], 1, "does not exist"),
        (["infer", "predict", "--out", "out"], 2, "two files or a scene"),
        (["infer", "predict", "--scene", "nowhere", "--out", "out"], 1, "no scene"),
        (["infer", "predict", "a", "b", "--out", "out", "--tile", "1"], 2, "--tile"),
        (["evaluate", "--model", "flood-s2s1", "--dataset", "none", "--root", "."], 2, "ombria"),
        (["export", "0" * 32, "--what", "score", "--out", "x.tif"], 1, "no finished run"),
        (["export", "0" * 32, "--what", "scores", "--out", "x.tif"], 2, "--what"),
        (["evaluate", "--model", "none", "--dataset", "ombria", "--root", "."], 1, "no model called"),
        (["evaluate", "--model", "flood-s2s1", "--dataset", "ombria", "--root", "gone"], 1, "not a folder"),
        (["train", "start", "--config", "gone.yaml"], 1, "cannot be read"),
        (["data", "simulate", "out", "--event", "war"], 2, "--event 'war'"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_bad_words_are_one_clear_line(arguments: list[str], code: int, says: str, elsewhere: Path) -> None:
    done = mmcd(*arguments, cwd=elsewhere, code=code)
    assert says in done.stderr
    assert done.stdout == ""
    assert not (elsewhere / "out").exists()


def test_interrupt_leaves_with_130_and_nothing_at_the_final_name(pair: Pair, card_path: Path, elsewhere: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mmcd",
        "infer",
        "predict",
        *map(str, pair),
        "--model",
        str(card_path),
        "--out",
        "out",
    ]
    with subprocess.Popen(command, cwd=elsewhere, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (elsewhere / "out" / ".unfinished" / "score.part").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "Traceback" not in messages
    assert [path.name for path in (elsewhere / "out").iterdir()] == [".unfinished"]


def test_simulate_writes_a_catalog_and_a_card_for_other_bands_refuses_it(card_path: Path, elsewhere: Path) -> None:
    mmcd("data", "simulate", "made", "--scenes", 1, "--size", 256, "--event", "flood", "--seed", 5, cwd=elsewhere)
    items = [path for path in (elsewhere / "made").rglob("*.json") if path.name != "catalog.json"]
    assert len(items) == 1
    assets = json.loads(items[0].read_text())["assets"]
    pre, post = (items[0].parent / assets[name]["href"] for name in ("pre", "post"))
    refused = mmcd("infer", "predict", pre, post, "--model", card_path, "--out", "out", cwd=elsewhere, code=1)
    assert "B4, B3, B2; the model asks for B11, B8, B3" in refused.stderr
    assert not (elsewhere / "out").exists()


def test_two_optical_images_get_the_nearest_model_with_a_warning(pair: Pair, elsewhere: Path) -> None:
    result = as_json(mmcd("infer", "predict", pair[0], pair[0], "--out", "out", "--json", cwd=elsewhere))
    assert "nearest" in result["model"]["why"]
    assert any("looks optical" in warning for warning in result["warnings"])
    assert any("lacks VV" in warning for warning in result["warnings"])


def test_weights_list_and_verify(elsewhere: Path) -> None:
    models = as_json(mmcd("weights", "list", "--json", cwd=elsewhere))["models"]
    assert "flood-s2s1" in {model["name"] for model in models}
    assert len(models) == len(list_cards())
    assert set(as_json(mmcd("weights", "verify", "--json", cwd=elsewhere))["weights"].values()) == {"verified"}


@pytest.mark.real_data
def test_evaluate_an_event_and_write_its_scores(shared_data: Path, elsewhere: Path) -> None:
    """One event, as a check of the shipped weights: what their card says of it, above the training-free baseline."""
    root = shared_data / "ombria"
    result = as_json(
        mmcd(
            *("evaluate", "--model", "flood-s2s1", "--dataset", "ombria", "--root", root, "--event", "ALBANIA"),
            *("--scores", "scores", "--json"),
            cwd=elsewhere,
        )
    )
    assert result["tiles"] == 22
    assert {"pixel_auc", "average_precision", "f1", "iou", "threshold", "ece", "baselines"} <= result.keys()
    assert result["baselines"]["dark_sar"]["pixel_auc"] == pytest.approx(0.80, abs=0.01)
    said = next(row for row in find_card("flood-s2s1")[1].metrics if row.get("command", "").startswith("mmcd evaluate"))
    for figure in ("pixel_auc", "average_precision", "f1"):
        assert result[figure] == pytest.approx(said[figure], abs=0.01)
    assert result["pixel_auc"] > result["baselines"]["dark_sar"]["pixel_auc"] + 0.05
    assert result["average_precision"] > 0.74 and result["f1"] > 0.68
    files = sorted((elsewhere / "scores").glob("*.tif"))
    masks = (root / "2021" / "ALBANIA" / "Sentinel1" / "MASK").glob("*.png")
    assert {path.stem for path in files} == {path.stem.removeprefix("gt_") for path in masks}
    with rasterio.open(files[0]) as score:
        assert score.shape == (256, 256)
        assert (score.read(1) > 0).all()


@pytest.mark.real_data
def test_nothing_happened_in_rotterdam(shared_data: Path, elsewhere: Path) -> None:
    """Optical and radar of one quiet scene: every changed pixel is a false alarm, and the share is reported."""
    folder = shared_data / "spacenet6_rotterdam"
    result = as_json(
        mmcd(
            *("infer", "predict", folder / "rgb_unmasked.tif", folder / "sar_vv.tif", "--model", "flood-s2s1"),
            *("--out", "out", "--json"),
            cwd=elsewhere,
        )
    )
    assert result["areas"]["assessed_px"] > 10_000
    assert 0 <= result["areas"]["changed_share"] < 0.5
    assert any("does not name its bands" in warning for warning in result["warnings"])


@pytest.mark.real_data
def test_a_png_pair_is_analysed_in_pixel_space_and_says_so(shared_data: Path, elsewhere: Path) -> None:
    event = shared_data / "ombria" / "2021" / "ALBANIA"
    pre, post = event / "Sentinel2" / "BEFORE" / "imbefore_1.png", event / "Sentinel1" / "AFTER" / "imafter_1.png"
    result = as_json(mmcd("infer", "predict", pre, post, "--out", "out", "--json", cwd=elsewhere))
    assert result["grid"]["georeferenced"] is False
    assert result["areas"]["changed_km2"] is None
    assert any("georeference" in warning for warning in result["warnings"])
    with rasterio.open(elsewhere / "out" / "score.tif") as score:
        assert np.ptp(score.read(1)) > 0


def test_train_from_anywhere_and_use_the_card_that_comes_out(floods: Path, elsewhere: Path) -> None:
    small = {
        "name": "tiny",
        "data.root": floods,
        "data.folds": 3,
        "data.batch_size": 4,
        "augment.crop": 32,
        "model.settings": "{width: 16, embedding_dim: 8}",
        "trainer.epochs": 1,
        "trainer.loggers": "[]",
    }
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    config = shipped("configs") / "flood-s2s1.yaml"
    result = as_json(mmcd("train", "start", "--config", config, *settings, "--json", cwd=elsewhere))
    assert Path(result["weights"]).is_file()
    measured = as_json(
        mmcd(
            *("evaluate", "--model", result["card"], "--dataset", "ombria", "--root", floods),
            *("--split", "train", "--json"),
            cwd=elsewhere,
        )
    )
    assert measured["tiles"] == 12
    refused = mmcd("train", "start", "--config", config, "--set", "trainer.epoch=1", cwd=elsewhere, code=1)
    assert "trainer.epoch" in refused.stderr


def test_worker_runs_what_is_queued_and_stops_when_asked(
    pair: Pair, card_path: Path, elsewhere: Path, workspace: Path
) -> None:
    mmcd("scenes", "add", *pair, "--id", "mine", cwd=elsewhere)
    store = open_store(workspace)
    job_id = store.submit("predict", {"scene": "mine", "model": str(card_path)})
    with subprocess.Popen([sys.executable, "-m", "mmcd", "worker"], cwd=elsewhere, env=os.environ) as process:
        deadline = time.monotonic() + 120
        while store.get(job_id).active and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    job = store.get(job_id)
    assert job.state == "done", job.message
    assert load_run(job.result["run_id"]).scene_id == "mine"


def test_assets_without_a_network_say_so(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", str(elsewhere))
    done = mmcd("assets", cwd=elsewhere, code=1)
    assert "cannot be fetched" in done.stderr
    assert "internet access" in done.stderr


def test_doctor_finds_everything(elsewhere: Path) -> None:
    report = as_json(mmcd("doctor", "--json", cwd=elsewhere))
    assert report["healthy"]
    assert any(line["subject"] == "weights flood-s2s1" and line["status"] == "ok" for line in report["lines"])
