"""Real training on a tiny flood set: water is dark in the radar image."""

import multiprocessing
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mmcd.errors import Cancelled, ConfigError, DataError
from mmcd.models import zoo
from mmcd.services.train import TrainRequest, train
from mmcd.training import trainer
from mmcd.training.config import ChangeTraining
from mmcd.training.runs import _mlflow
from mmcd.training.tasks import ChangeTask, normalise, rate, roi_share
from mmcd.training.trainer import open_split
from mmcd.training.validation import Outputs

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def request_of(floods, workspace, tmp_path):
    """Return a maker of requests: the shipped configuration made tiny."""
    torch.set_num_threads(1)
    values = yaml.safe_load((CONFIGS / "flood-s2s1.yaml").read_text())
    values |= {"name": "tiny", "augment": {"crop": 32}}
    values["data"] |= {"root": str(floods), "folds": 3, "batch_size": 4}
    values["model"]["settings"] = {"width": 16, "embedding_dim": 8}
    values["trainer"] = {"epochs": 2, "device": "cpu", "precision": "fp32", "loggers": ["tensorboard"]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return lambda resume=False, **overrides: TrainRequest(config=path, overrides=overrides, resume=resume)


def test_a_run_leaves_weights_card_outputs_and_logs(request_of):
    reported = []
    result = train(request_of(), lambda *step: reported.append(step))
    assert reported[-1] == ("train", 4, 4)
    card, model = zoo.load(result.card)
    assert card.name == "tiny" and card.post.bands == ("VV",) and card.decision.prevalence > 0
    assert card.training["data"]["fold"] == 0 and "licence" not in card.training
    outputs = Outputs.load(result.folder / "held_out.npz")
    assert len(outputs.ids) == 4 and outputs.logit.shape == (4, 32, 32) and np.isfinite(outputs.logit).all()
    assert {"val/ap_shift", "val/bce", "train/bce", "train/dice", "train/infonce"} <= result.metrics.keys()
    assert list((result.folder / "tensorboard").glob("events*"))
    assert yaml.safe_load((result.folder / "config.yaml").read_text())["data"]["folds"] == 3
    assert sum(tensor.numel() for tensor in model.state_dict().values()) > 1e6


def test_resumed_equals_uninterrupted(request_of):
    whole = train(request_of(name="whole"))

    def stop_in_the_second_epoch(stage, done, total):
        if done == 3:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        train(request_of(name="broken"), stop_in_the_second_epoch)
    resumed = train(request_of(resume=True, name="broken"))
    first, second = (torch.load(run.folder / "last.ckpt", weights_only=False) for run in (whole, resumed))
    for name, tensor in first["current_model_state"].items():
        assert torch.equal(tensor, second["current_model_state"][name]), name
    assert all(torch.equal(first["state_dict"][name], second["state_dict"][name]) for name in first["state_dict"])
    assert whole.metrics == resumed.metrics


def test_a_resumed_run_still_knows_its_best_epoch(request_of, monkeypatch):
    monkeypatch.setattr(trainer, "MONITOR", "val/bce")  # the highest is taken, and the first epoch has it

    def stop_in_the_second_epoch(stage, done, total):
        if done == 3:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        train(request_of(), stop_in_the_second_epoch)
    folder = train(request_of(resume=True)).folder
    stored = {name: torch.load(folder / f"{name}.ckpt", weights_only=False) for name in ("best", "last")}
    assert [stored[name]["epoch"] for name in ("best", "last")] == [0, 1]


def test_ctrl_c_is_a_cancelled_run_that_can_go_on(request_of):
    def interrupt(stage, done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(Cancelled, match="--resume"):
        train(request_of(), interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(request_of(resume=True)).card.is_file()


def test_the_seed_decides_the_run(request_of):
    runs = [train(request_of(name=name, seed=seed, **{"trainer.epochs": 1})) for name, seed in (("a", 1), ("b", 2))]
    assert runs[0].metrics["train/bce"] != runs[1].metrics["train/bce"]


def test_a_baseline_trains_on_everything_and_has_no_card(request_of):
    overrides = {"model.architecture": "early_fusion_unet", "model.settings": {}, "export": None, "data.fold": None}
    result = train(request_of(**overrides, **{"trainer.epochs": 1}))
    assert result.card is None and result.weights.is_file()
    assert "train/infonce" not in result.metrics and not (result.folder / "held_out.npz").exists()


def test_training_stops_before_the_end_of_its_schedule(request_of):
    short = train(request_of(**{"trainer.epochs": 3, "trainer.stop_after": 1, "data.fold": None}))
    stored = torch.load(short.folder / "last.ckpt", weights_only=False)
    assert (stored["epoch"], stored["global_step"]) == (0, 3)
    assert stored["optimizer_states"][0]["param_groups"][0]["lr"] > 0.5e-3


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_run_leaves_the_epoch_that_is_asked_for(request_of, monkeypatch, keep):
    monkeypatch.setattr(trainer, "MONITOR", "val/bce")  # the highest is taken, and the first epoch has it
    run = train(request_of(**{"trainer.keep": keep}))
    stored = {name: torch.load(run.folder / f"{name}.ckpt", weights_only=False) for name in ("best", "last")}
    assert [stored[name]["epoch"] for name in ("best", "last")] == [0, 1]
    _, model = zoo.load(run.card)
    biases = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim == 1}  # not rounded to half

    def same_as(name):
        return all(torch.equal(tensor, stored[name]["state_dict"][f"model.{key}"]) for key, tensor in biases.items())

    assert {name: same_as(name) for name in stored} == {"best": keep == "best", "last": keep == "last"}


def test_mlflow_keeps_the_run_in_a_local_store(request_of, workspace):
    import mlflow

    train(request_of(**{"trainer.loggers": ["mlflow"], "trainer.epochs": 1}))
    client = mlflow.MlflowClient(f"sqlite:///{workspace / 'training' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("mmcd").experiment_id])
    assert run.data.params["data/batch_size"] == "4" and run.data.metrics["val/ap_shift"] > 0


def test_two_trainings_create_the_store_at_one_moment(tmp_path):
    import mlflow

    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    started = [context.Process(target=_begin_run, args=(name, tmp_path, together)) for name in ("one", "two")]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
    assert [process.exitcode for process in started] == [0, 0]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mmcd").experiment_id])
    assert {run.info.run_name for run in runs} == {"one", "two"}


def _begin_run(name, folder, together):
    together.wait(60)
    _mlflow(name, folder)


def test_names_are_not_taken_twice(request_of):
    train(request_of(**{"trainer.epochs": 1}))
    with pytest.raises(ConfigError, match="The run 'tiny' exists"):
        train(request_of())
    with pytest.raises(ConfigError, match="no run 'other' to resume"):
        train(request_of(resume=True, name="other"))


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"trainer.epoch": 3}, ConfigError, "trainer.epoch"),
        ({"optimiser.lr": -1}, ConfigError, "optimiser.lr"),
        ({"data.fold": 3}, ConfigError, "Fold 3 of 3"),
        ({"data.folds": 7}, DataError, "6 groups cannot be split into 7"),
        ({"data.root": "nowhere"}, DataError, "holds no OMBRIA tile"),
    ],
)
def test_what_cannot_be_trained_is_said(request_of, overrides, error, words):
    with pytest.raises(error, match=words):
        train(request_of(**overrides))


@pytest.mark.parametrize("name", ["flood-s2s1", "flood-s2s1-unet"])
def test_shipped_configurations_are_valid(name):
    config = ChangeTraining.from_yaml(CONFIGS / f"{name}.yaml")
    assert config.name == name and isinstance(ChangeTask(config, 0.3), torch.nn.Module)


@pytest.mark.real_data
def test_no_group_trains_and_validates(shared_data):
    config = ChangeTraining.from_yaml(CONFIGS / "flood-s2s1.yaml", {"data.root": str(shared_data / "ombria")})
    split = open_split(config)
    groups = split.dataset.groups
    assert len(split.training) + len(split.held_out) == 694
    assert not {groups[index] for index in split.training} & {groups[index] for index in split.held_out}
    assert not any("ALBANIA" in name for name in split.dataset.ids)


def test_four_classes_are_learned_and_change_counts_from_the_damaged_ones():
    config = ChangeTraining.from_yaml(
        CONFIGS / "damage-vhr-sim.yaml",
        {"model.settings": {"width": 16, "embedding_dim": 8, "classes": 4, "changed_from": 2}},
    )
    torch.manual_seed(0)
    task = ChangeTask(config, training_share=0.1)
    target = torch.randint(-1, 4, (2, 64, 64))
    batch = {
        "pre": torch.rand(2, 3, 64, 64),
        "post": torch.rand(2, 1, 64, 64),
        "target": target,
        "valid": torch.ones(2, 64, 64, dtype=torch.bool),
        "index": torch.arange(2),
    }
    assert torch.equal(task.changed(batch), (target == 2) | (target == 3))
    output = task(batch)
    parts = task._losses(output, batch, torch.Generator().manual_seed(0))
    known = target >= 0
    expected = torch.nn.functional.cross_entropy(output.classes.permute(0, 2, 3, 1)[known], target[known])
    torch.testing.assert_close(parts["bce"], expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"changed_from": 1, "model.settings": {}}, "1 is an intact building"),
        ({"model.settings": {"classes": 4, "changed_from": 3}}, "2 for the labels and 3 for the head"),
    ],
)
def test_labels_and_head_agree_on_what_change_is(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        ChangeTraining.from_yaml(CONFIGS / "damage-vhr-sim.yaml", changes)


def test_rate_rises_and_falls_to_zero():
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert rates[9] == pytest.approx(1) and rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.01 and rates[9:] == sorted(rates[9:], reverse=True)


def test_pixels_without_data_become_the_mean():
    config = ChangeTraining.from_yaml(CONFIGS / "flood-s2s1.yaml")
    valid = torch.tensor([[[True, False]]])
    image = torch.full((1, 3, 1, 2), 0.5)
    normalised = normalise(image, valid, config.pre)
    expected = [(0.5 - mean) / std for mean, std in zip(config.pre.mean, config.pre.std, strict=True)]
    assert normalised[0, :, 0, 0].tolist() == pytest.approx(expected) and normalised[0, :, 0, 1].eq(0).all()


def test_roi_share_counts_pixels_of_each_roi():
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, :8, :16] = True
    share = roi_share(mask)[0]
    assert share.shape == (4, 4)
    assert share[0, :3].tolist() == [0.5, 0.25, 0.0] and share[1].eq(0).all()
    assert roi_share(torch.ones(1, 32, 32, dtype=torch.bool))[0, -1, -1] == 0.25
