"""Trainings as MLflow's store and their folders tell them; keeping weights; starting; the other tools' pages."""

import json
import shutil
import sqlite3
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from mmcd.cards import find_card, read_card, weights_dir
from mmcd.commands.train import train_app
from mmcd.errors import ConfigError, DataError, InputError, ModelError, StorageError
from mmcd.jobs import open_store
from mmcd.services import boards
from mmcd.services.run_samples import SamplesRequest, can_draw, draw_samples, kept_pictures
from mmcd.services.tracking import POINTS, list_tracked, read_curves, store_path
from mmcd.services.training_configs import command, free_name, list_configs, read_config, training_request
from mmcd.services.training_runs import differing, find_training, list_trainings, register_weights

SHIPPED = "flood-s2s1"


def test_a_resumed_run_is_one_and_its_last_word_counts(trained: Path) -> None:
    known = list_tracked()
    first = known["first"]
    assert len(first.ids) == 2 and first.state == "FINISHED"
    assert first.settings["data.root"] == "/data/ombria"
    curve = read_curves(first.ids, ["train/loss", "val/ap", "nothing"])
    assert set(curve) == {"train/loss", "val/ap"}
    loss = curve["train/loss"]
    assert loss.step.tolist() == list(range(100))
    assert loss.value[39] == pytest.approx(1 / 40) and loss.value[40] == pytest.approx(0.1 + 1 / 41)
    assert loss.hours[10] == pytest.approx(0.1)
    assert loss.hours[50] == pytest.approx(3.5)  # the part that was resumed began three hours later


def test_states_tell_apart_finished_failed_silent_and_untracked(trained: Path) -> None:
    known = list_trainings()
    assert {name: run.state for name, run in known.items()} == {
        "bare": "stopped",
        "trunk": "failed",
        "second": "stopped",  # says to run, and has said nothing for long
        "first": "finished",
    }
    assert known["bare"].task == "downstream" and known["trunk"].task == "pretrain"
    assert known["second"].data == "ombria"
    assert known["first"].main_figure == ("val/ap", pytest.approx(0.599))
    (trained / "training" / "second" / "last.ckpt").write_bytes(b"")
    assert list_trainings()["second"].state == "running"  # a checkpoint was written now


def test_a_job_that_trains_is_seen_and_so_is_one_that_waits(trained: Path) -> None:
    config = str(weights_dir().parent / "configs" / "flood-s2s1.yaml")
    store = open_store(trained)
    job = store.submit("train", {"config": config, "overrides": {"name": "second"}})
    store.submit("train", {"config": config, "overrides": {"name": "next"}})
    store.submit("train", {"config": "/nowhere.yaml"})  # its own job says so
    assert [list_trainings()[name].state for name in ("second", "next")] == ["waiting", "waiting"]
    store.claim("long", gpu=False)
    assert list_trainings()["second"].state == "running"
    assert list_trainings()["second"].job == job


def test_only_what_differs_is_listed(trained: Path) -> None:
    known = list_trainings()
    assert differing([known["first"], known["second"]]) == [{"Setting": "seed", "first": "0", "second": "1"}]
    rows = {row["Setting"]: row for row in differing([known["first"], known["trunk"]])}
    assert rows["task"] == {"Setting": "task", "first": "–", "trunk": "pretrain"}
    assert "seed" not in rows


def test_long_curves_are_thinned_and_keep_their_end(trained: Path) -> None:
    run = list_tracked()["second"].ids[0]
    with sqlite3.connect(store_path()) as store:
        rows = [("long", float(step), step, run, step, 0) for step in range(3 * POINTS + 1)]
        rows.append(("long", 0.0, 9_000_000, run, 9_000_000, 1))
        store.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", rows)
    curve = read_curves([run], ["long"])["long"]
    assert len(curve.step) <= POINTS + 1
    assert curve.step[-1] == 9_000_000 and np.isnan(curve.value[-1])


def test_no_store_an_empty_one_and_a_damaged_one(workspace: Path) -> None:
    assert list_trainings() == {}
    path = store_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")  # a training is just creating it
    assert list_tracked() == {}
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="cannot be read"):
        list_tracked()


def leave_weights(workspace: Path, run: str) -> Path:
    """Put a shipped card and its weights into a run's folder, as a finished training does."""
    card = read_card(weights_dir() / f"{SHIPPED}.toml")
    shutil.copyfile(weights_dir() / card.weights, workspace / "training" / run / card.weights)
    return Path(shutil.copyfile(weights_dir() / f"{SHIPPED}.toml", workspace / "training" / run / f"{run}.toml"))


def test_weights_are_kept_once_under_a_name_and_found_again(trained: Path) -> None:
    leave_weights(trained, "first")
    run = find_training("first")
    path, reference = register_weights(run, "my-floods", "2")
    assert reference == "my-floods"
    found, card = find_card(reference)
    assert (found, card.version) == (path, "2")
    assert (path.parent / card.weights).read_bytes() == (run.folder / read_card(run.card).weights).read_bytes()
    before = path.read_bytes()
    with pytest.raises(ModelError, match="already"):
        register_weights(run, "my-floods", "2")
    assert path.read_bytes() == before
    with pytest.raises(ModelError, match="already"):
        register_weights(run)  # name and version are those of a shipped card
    assert register_weights(run, SHIPPED, "mine")[1] == f"{SHIPPED}@mine"
    for wrong in ("../up", "two words"):
        with pytest.raises(InputError, match="no word"):
            register_weights(run, wrong, "1")


def test_damaged_weights_and_runs_without_a_card_are_refused(trained: Path) -> None:
    with pytest.raises(ModelError, match="no weights with a card"):
        register_weights(find_training("second"), "a", "1")
    leave_weights(trained, "first")
    run = find_training("first")
    (run.folder / read_card(run.card).weights).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="do not match"):
        register_weights(run, "a", "1")
    assert not list((trained / "weights").glob("*.toml"))
    with pytest.raises(InputError, match="no training 'nobody'"):
        find_training("nobody")


def test_the_commands_list_trainings_and_keep_their_weights(trained: Path) -> None:
    leave_weights(trained, "first")
    runner = CliRunner()
    listed = json.loads(runner.invoke(train_app, ["list", "--json"]).stdout)["trainings"]
    assert [(run["name"], run["state"]) for run in listed][-1] == ("first", "finished")
    assert "first: finished, val/ap 0.599" in runner.invoke(train_app, ["list"]).stdout
    kept = runner.invoke(train_app, ["register", "first", "--name", "my-floods", "--json"])
    assert json.loads(kept.stdout)["model"] == "my-floods"
    assert find_card("my-floods")[1].version == read_card(weights_dir() / f"{SHIPPED}.toml").version


def test_every_shipped_configuration_is_offered_with_its_task() -> None:
    known = list_configs()
    assert {config.task for config in known.values()} == {"", "patches", "pretrain", "downstream"}
    assert all(config.about for config in known.values())
    assert known["damage-vhr-sim"].root is None and known["flood-s2s1"].root
    assert known["pretrain-ombria"].length == "trainer.steps" and known["eurosat"].length == "trainer.epochs"


def test_a_request_is_the_file_and_what_was_changed(workspace: Path, floods: Path, tmp_path: Path) -> None:
    config = list_configs()["flood-s2s1"]
    request = training_request(config, "mine", str(floods), {"trainer.epochs": 2, "seed": None}, "loss.dice=0\n\n")
    assert request.overrides == {"name": "mine", "data.root": str(floods), "trainer.epochs": 2, "loss.dice": 0}
    assert f"--set data.root={floods}" in command(request) and "--set trainer.epochs=2" in command(request)
    with pytest.raises(DataError, match="no folder"):
        training_request(config, "mine", str(tmp_path / "away"), {})
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        training_request(config, "mine", str(floods), {}, "nonsense")
    (workspace / "training" / "mine").mkdir(parents=True)
    (workspace / "training" / "mine" / "last.ckpt").write_bytes(b"")
    assert free_name("mine") == "mine-2"
    with pytest.raises(ConfigError, match="mine-2"):
        training_request(config, "mine", str(floods), {})
    other = tmp_path / "other.yaml"
    other.write_text("task: dance\n")
    with pytest.raises(ConfigError, match="'dance'"):
        read_config(other)


def test_held_out_tiles_are_drawn_from_what_the_run_kept(workspace: Path, floods: Path) -> None:
    from mmcd.config import read_yaml
    from mmcd.training.config import ChangeTraining
    from mmcd.training.validation import Outputs

    values = read_yaml(list_configs()["flood-s2s1"].path)
    values["data"] |= {"root": str(floods), "folds": 3}
    folder = workspace / "training" / values["name"]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(ChangeTraining.model_validate(values).to_yaml())
    with pytest.raises(ConfigError, match="no outputs"):
        draw_samples(SamplesRequest(run=values["name"]))
    changed = np.zeros((3, 32, 32), bool)
    changed[1, :8] = True
    ids = ("train/0003", "train/0001", "train/0002")
    outputs = Outputs(ids, ids, np.zeros(changed.shape, np.float16), np.zeros(changed.shape, np.float16), changed)
    outputs.save(folder / "held_out.npz")
    assert can_draw(folder)
    made = draw_samples(SamplesRequest(run=values["name"], samples=2))
    assert kept_pictures(folder) == (Path(made["path"]),) and not can_draw(folder)
    renamed = Outputs(("x", "y", "z"), ids, outputs.logit, outputs.distance, changed)
    renamed.save(folder / "held_out.npz")
    with pytest.raises(DataError, match="not in the run's data"):
        draw_samples(SamplesRequest(run=values["name"]))


def test_a_board_with_nothing_to_show_or_not_installed_says_so(workspace: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="written for TensorBoard"):
        boards.start_board("tensorboard")
    with pytest.raises(ConfigError, match="written for MLflow"):
        boards.start_board("mlflow")
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        boards.start_board("tensorboard")


def test_a_board_answers_on_this_machine_and_ends_when_it_is_let_go(workspace: Path, monkeypatch) -> None:
    # A small server stands in for the tools, which take up to a minute to start.
    serve = ["-m", "http.server", "--bind", boards.HOST, "--directory", str(workspace)]
    monkeypatch.setattr(boards, "_command", lambda name, port: [boards.sys.executable, *serve, str(port)])
    board = boards.start_board("tensorboard")
    try:
        assert boards.start_board("tensorboard") is board
        deadline = time.monotonic() + 60
        while not board.ready and time.monotonic() < deadline:
            time.sleep(0.05)
        assert urllib.request.urlopen(board.url).status == 200
    finally:
        boards.stop_board("tensorboard")
    assert not board.alive and not board.ready
    assert boards.running_board("tensorboard") is None


def test_a_board_that_fails_shows_its_last_words(workspace: Path, monkeypatch) -> None:
    monkeypatch.setattr(boards, "_command", lambda name, port: [boards.sys.executable, "-c", "raise SystemExit('no')"])
    board = boards.start_board("mlflow")
    assert board.keeper.wait(60) == 1
    assert not board.ready and board.said() == "no"
    boards.stop_board("mlflow")


@pytest.mark.slow
def test_a_real_training_is_listed_with_its_curves_and_its_weights_are_kept(
    workspace: Path, floods: Path, tmp_path: Path
) -> None:
    from mmcd.config import read_yaml
    from mmcd.services.train_job import run_train

    values = read_yaml(list_configs()["flood-s2s1"].path) | {"name": "tiny", "augment": {"crop": 32}}
    values["data"] |= {"root": str(floods), "folds": 3, "batch_size": 4}
    values["model"]["settings"] = {"width": 16, "embedding_dim": 8}
    values["trainer"] = {"epochs": 2, "device": "cpu", "precision": "fp32", "loggers": ["mlflow"]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    request = training_request(read_config(path), "tiny", str(floods), {})
    run_train(request.model_dump(mode="json"), lambda *step: None)
    run = find_training("tiny")
    assert run.state == "finished" and run.settings["loss.infonce"] == "0.1"
    assert len(read_curves(run.ids, ["train/loss"])["train/loss"].step) == 2
    assert find_card(register_weights(run, "kept", "1")[1])[1].version == "1"
    assert kept_pictures(folder := run.folder) == () and can_draw(folder)
    draw_samples(SamplesRequest(run="tiny", samples=2))
    assert len(kept_pictures(folder)) == 1
