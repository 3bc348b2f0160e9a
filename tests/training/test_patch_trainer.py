"""Real training on patch pairs of simulated tiles; contexts of 32 px, because 256 px take seconds a pair."""

import csv
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import f1_score, roc_auc_score
from torch.utils.data import DataLoader
from torchvision.models.resnet import BasicBlock, ResNet
from typer.testing import CliRunner

from mmcd.cards import read_card
from mmcd.cli import app
from mmcd.data.patch_files import read_patches
from mmcd.data.patch_index import PatchTable
from mmcd.data.patches import PatchSample
from mmcd.errors import Cancelled, ConfigError, DataError, MmcdError
from mmcd.losses.contrastive import reference_infonce
from mmcd.models import encoders, zoo
from mmcd.models.pretrained import freeze_trunks
from mmcd.models.siamese import ContextSiamese
from mmcd.services.index import IndexRequest, build_index, read_patch_rules
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_bright import simulate_bright
from mmcd.services.train import TrainRequest, TrainResult, train
from mmcd.training import monitor
from mmcd.training.monitor import LAYERS, GradientMonitor
from mmcd.training.patch_config import MonitorConfig, PatchTraining
from mmcd.training.patch_release import PatchScores, fit_patch_decision
from mmcd.training.patch_task import EpochFigures, PatchTask

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "reference0.yaml"


@pytest.fixture(scope="module", autouse=True)
def small_trunk() -> Iterator[None]:
    """ResNet-18 with one block a stage: checkpoints of the real one would be most of what these tests do."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders._TRUNKS, "resnet18", lambda weights: ResNet(BasicBlock, [1, 1, 1, 1]))
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiles of 128 px in BRIGHT's layout, the shipped configuration made tiny, and their metadata."""
    folder = tmp_path_factory.mktemp("patches")
    simulate_bright(
        SimulateRequest(out=folder / "tree", scenes=4, size=128, gsd=2.0, event="earthquake", layout="bright")
    )
    values = yaml.safe_load(CONFIG.read_text()) | {"name": "tiny", "context_patch_size": 32}
    values["data"] |= {"root": str(folder / "tree"), "metadata": str(folder / "metadata"), "batch_size": 4}
    values["data"] |= {"subset_fraction": 0.02, "neg_ratio": 0.5, "target_neg_ratio": 0.5, "workers": 0}
    values["model"] |= {"trunk": "resnet18", "embedding_dim": 8}
    values["trainer"] |= {"epochs": 2, "device": "cpu", "loggers": ["tensorboard"]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    build_index(
        IndexRequest(root=folder / "tree", out=folder / "metadata", config=folder / "tiny.yaml", split_by="image")
    )
    return folder


def request(tree: Path, *, resume: bool = False, from_scratch: bool = True, **overrides: object) -> TrainRequest:
    return TrainRequest(config=tree / "tiny.yaml", overrides=overrides, resume=resume, from_scratch=from_scratch)


@pytest.fixture(scope="module")
def whole(tree: Path) -> TrainResult:
    """A run of two epochs of three batches that was not interrupted, watched by the monitor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(tree / "whole"))
        return train(request(tree, **WATCHED))


WATCHED = {"trainer.monitor_gradients": True, "trainer.monitor.log_interval": 2, "optimiser.patience": 0}


def test_a_run_leaves_weights_card_scores_curves_and_logs(tree: Path, whole: TrainResult) -> None:
    assert whole.card is not None
    card, model = zoo.load(whole.card)
    assert isinstance(model, ContextSiamese) and model.context == 32 and model.pool == "global"
    assert card.settings == {"trunk": "resnet18", "pool": "global", "embedding_dim": 8, "context": 32}
    assert card.pre.scaling == card.post.scaling == "patch" and card.post.bands == ("amplitude",)
    natural = float((~read_patches(tree / "metadata", "val").is_positive).mean())
    assert card.decision.head_weight == 0 and card.decision.prevalence == pytest.approx(natural)
    assert card.training["split_by"] == "image" and card.training["pretrained"] == "none"
    with np.load(whole.folder / "held_out.npz") as stored:
        drawn = int(0.02 * len(read_patches(tree / "metadata", "val")))
        assert stored["distance"].shape == stored["is_positive"].shape == (drawn,)
        assert ((stored["distance"] >= 0) & (stored["distance"] <= 2)).all()
    assert (whole.folder / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    with (whole.folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [0, 1]
    for side in ("train", "val"):
        for row in rows:
            parts = float(row[f"{side}/positive_loss"]) + float(row[f"{side}/negative_loss"])
            assert (
                float(row[f"{side}/loss"]) == pytest.approx(parts) and 0 <= float(row[f"{side}/balanced_accuracy"]) <= 1
            )
    assert {"train/loss", "val/loss", "val/balanced_accuracy", "lr"} <= whole.metrics.keys()
    best = torch.load(whole.folder / "best.ckpt", weights_only=False)
    assert best["epoch"] == int(np.argmin([float(row["val/loss"]) for row in rows]))
    weights = model.state_dict()
    for name, tensor in best["state_dict"].items():
        assert torch.allclose(weights[name.removeprefix("model.")].float(), tensor.float(), rtol=1e-3, atol=1e-3), name


def test_the_monitor_tells_the_loggers_what_flows(whole: TrainResult) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole.folder / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for layer in LAYERS:
        for key in ("gradient", "activation", "mean", "std", "min", "max"):
            assert f"monitor/{layer}/{key}" in tags
    recorded = events.Scalars("monitor/optical_encoder.layer4/gradient")
    assert [event.step for event in recorded] == [0, 2, 3, 5]  # batches 0 and 2 of both epochs
    assert all(event.value > 0 for event in recorded)
    low, mean, high = (events.Scalars(f"monitor/sar_encoder.layer2/{key}")[0].value for key in ("min", "mean", "max"))
    assert low <= mean <= high and "monitor/distance/std" in tags


def test_resumed_equals_uninterrupted(tree: Path, whole: TrainResult, workspace: Path) -> None:
    def stop_at(step: int) -> Callable[[str, int, int], None]:
        def heard(_: str, done: int, __: int) -> None:
            if done == step:
                raise Cancelled("Stopped.")

        return heard

    with pytest.raises(Cancelled):
        train(request(tree, **WATCHED), stop_at(4))  # the first epoch's checkpoint is there, the second's is not
    within = WATCHED | {"trainer.checkpoint_batches": 1}
    with pytest.raises(Cancelled):
        train(request(tree, resume=True, **within), stop_at(5))
    last = torch.load(workspace / "training" / "tiny" / "last.ckpt", weights_only=False)
    assert (last["epoch"], last["global_step"]) == (1, 5), "in the middle of the second epoch"
    steps: list[int] = []
    resumed = train(request(tree, resume=True, **within), lambda _, done, __: steps.append(done))
    assert steps == [6]
    one, other = (torch.load(run.folder / "last.ckpt", weights_only=False) for run in (whole, resumed))
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name
    assert one["patches"]["plateau"] == other["patches"]["plateau"]
    assert one["patches"]["history"] == other["patches"]["history"] and len(one["patches"]["history"]) == 2
    assert one["epoch"] == other["epoch"] and one["global_step"] == other["global_step"] == 6
    for first, second in zip(_states(one), _states(other), strict=True):
        assert torch.equal(first, second)
    scores = [
        [value["best_model_score"] for key, value in run["callbacks"].items() if "val/loss" in key]
        for run in (one, other)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 1
    assert whole.metrics == resumed.metrics
    assert (whole.folder / "tiny.safetensors").read_bytes() == (resumed.folder / "tiny.safetensors").read_bytes()


def _states(checkpoint: dict[str, Any]) -> list[torch.Tensor]:
    states = checkpoint["optimizer_states"][0]["state"]
    return [torch.as_tensor(value) for number in sorted(states) for _, value in sorted(states[number].items())]


@pytest.mark.parametrize(
    ("overrides", "from_scratch", "words"),
    [
        ({"optimiser.lr": 1e-6}, True, "begun with optimiser.lr 1e-05, which is now 1e-06"),  # Adam's state holds it
        ({}, False, "begun with model.pretrained none, which is now imagenet"),  # the card would tell it
        ({"data.batch_size": 8}, True, "begun with data.batch_size 4, which is now 8"),
    ],
)
def test_a_run_is_not_resumed_with_what_its_checkpoint_overrules(
    tree: Path,
    whole: TrainResult,
    monkeypatch: pytest.MonkeyPatch,
    overrides: dict[str, object],
    from_scratch: bool,
    words: str,
) -> None:
    monkeypatch.setenv("MMCD_WORKSPACE", str(tree / "whole"))
    before = (whole.folder / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=words):
        train(request(tree, resume=True, from_scratch=from_scratch, **WATCHED | {"trainer.epochs": 3}, **overrides))
    assert (whole.folder / "config.yaml").read_bytes() == before


def test_ctrl_c_before_the_first_checkpoint_promises_no_resume(tree: Path, workspace: Path) -> None:
    def interrupt_at(step: int) -> Callable[[str, int, int], None]:
        def heard(_: str, done: int, __: int) -> None:
            if done == step:
                raise KeyboardInterrupt

        return heard

    with pytest.raises(Cancelled, match=r"before its first checkpoint\. Start it again without --resume"):
        train(request(tree, **WATCHED), interrupt_at(1))
    with pytest.raises(Cancelled, match=r"interrupted\. Go on with --resume"):
        train(request(tree, **WATCHED, **{"trainer.checkpoint_batches": 1}), interrupt_at(2))


# --- what cannot be trained ---------------------------------------------------------------------------------------


def one_class(tree: Path, out: Path, split: str, unchanged: bool) -> Path:
    """Copy the metadata with only one class left in a split."""
    shutil.copytree(tree / "metadata", out)
    keep = np.load(out / f"{split}_is_positive.npy") == unchanged
    for name in ("image_ids", "roi_positions", "damage_ratios", "is_positive", "has_building"):
        path = out / f"{split}_{name}.npy"
        np.save(path, np.load(path)[keep])
    return out


@pytest.mark.parametrize(("split", "unchanged", "lacking"), [("train", True, "damaged"), ("val", False, "unchanged")])
def test_a_class_that_is_absent_is_named(
    tree: Path, workspace: Path, tmp_path: Path, split: str, unchanged: bool, lacking: str
) -> None:
    folder = one_class(tree, tmp_path / "metadata", split, unchanged)
    with pytest.raises(
        DataError, match=rf"The {split} split in .*metadata holds no {lacking} patch .* mmcd data index"
    ):
        train(request(tree, **{"data.metadata": str(folder)}))


def test_a_draw_that_leaves_no_patch_of_a_class_is_told(tree: Path, workspace: Path) -> None:
    with pytest.raises(DataError, match=r"No damaged patch is among the \d+ of \d+ .* train split\. Draw more"):
        train(request(tree, **{"data.target_neg_ratio": 0.0}))


def test_metadata_that_do_not_fit_are_named(tree: Path, workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"another configuration: context_patch_size is 32, 48 is asked for.*data index"
    ):
        train(request(tree, context_patch_size=48))
    with pytest.raises(DataError, match=r"holds no patch metadata .*Make it with mmcd data index"):
        train(request(tree, **{"data.metadata": str(tmp_path)}))
    empty = shutil.copytree(tree / "metadata", tmp_path / "empty")
    for path in empty.glob("val_*.npy"):
        np.save(path, np.load(path)[:0])
    with pytest.raises(DataError, match=r"The val split in .*empty is empty\. Make it again"):
        train(request(tree, **{"data.metadata": str(empty)}))
    with pytest.raises(DataError, match=r"0\.0001 of \d+ patches is none"):
        train(request(tree, **{"data.subset_fraction": 0.0001}))
    (tmp_path / "other").mkdir()
    simulate_bright(SimulateRequest(out=tmp_path / "other" / "tree", scenes=1, size=128, gsd=2.0, layout="bright"))
    with pytest.raises(DataError, match=r"lacks \d of the \d tiles of the patch metadata"):
        train(request(tree, **{"data.root": str(tmp_path / "other" / "tree")}))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"trainer.epoch": 3}, "trainer.epoch"),
        ({"pre.scaling": "scene"}, "must be `patch`"),
        ({"post.bands": ["VV", "VH"]}, "one SAR band"),
        ({"context_patch_size": 40}, "multiple of 16"),
        ({"data.neg_ratio": 1.0}, "data.neg_ratio"),
        ({"model.freeze_resnet": True}, "would keep random trunks"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told(tree: Path, overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(request(tree, **overrides))


def test_tasks_are_told_apart(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("task: cook\n")
    with pytest.raises(ConfigError, match=r"there is no task 'cook'\. Write `task: patches`"):
        train(TrainRequest(config=tmp_path / "x.yaml"))
    with pytest.raises(ConfigError, match="asks for no pretrained weights"):
        train(TrainRequest(config=CONFIG.with_name("flood-s2s1.yaml"), from_scratch=True))


def test_without_a_network_the_pretrained_weights_are_asked_for_in_one_line(
    tree: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(ConfigError) as caught:
        train(request(tree, from_scratch=False))
    line = str(caught.value)
    assert line.startswith("The ImageNet weights of resnet18 could not be fetched from https://")
    assert f"{tmp_path}/hub/checkpoints/resnet18-" in line and "--from-scratch" in line and "\n" not in line


def test_the_shipped_configuration_is_the_reference(tmp_path: Path) -> None:
    config = PatchTraining.from_yaml(CONFIG)
    assert config.rules.model_dump() == {
        "roi_patch_size": 16,
        "context_patch_size": 256,
        "patch_stride": 8,
        "pos_threshold": 0.05,
        "min_valid_pixels": 0.8,
        "building_threshold": 0.2,
    }
    assert config.rules == read_patch_rules(CONFIG)
    assert config.settings == {"trunk": "resnet34", "pool": "global", "embedding_dim": 128}
    assert (config.data.batch_size, config.data.neg_ratio, config.data.target_neg_ratio) == (64, 0.8, 0.8)
    assert (config.data.subset_seed, config.data.workers, config.data.transforms) == (42, 4, False)
    assert config.data.tolerance is None and config.model.pretrained == "imagenet" and not config.model.freeze_resnet
    assert (config.loss.temperature, config.loss.negative_weight) == (0.07, 1.0)
    assert config.optimiser.model_dump() == {"lr": 1e-5, "weight_decay": 1e-4, "factor": 0.5, "patience": 5}
    assert (config.trainer.epochs, config.trainer.precision) == (9, "fp32")


# --- the alarm ----------------------------------------------------------------------------------------------------


def _root_of_nothing(_: torch.nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
    """Add zero, but with a gradient that is no number."""
    return output + (output * 0).sum().sqrt()


@pytest.fixture
def task(tree: Path) -> PatchTask:
    torch.manual_seed(0)
    return PatchTask(PatchTraining.from_yaml(tree / "tiny.yaml"))


def one_step(task: PatchTask, not_finite: str = "raise") -> None:
    batch = PatchSample(
        optical=torch.randn(4, 3, 32, 32),
        sar=torch.randn(4, 1, 32, 32),
        is_positive=torch.tensor([True, False, True, False]),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        callbacks=[GradientMonitor(MonitorConfig(not_finite=not_finite))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, DataLoader([batch], batch_size=None))


@pytest.mark.parametrize(
    ("kind", "layer"), [("activation", "sar_encoder.layer3"), ("gradient", "optical_projector.layer1.0")]
)
def test_what_is_no_number_stops_the_run_before_a_step(task: PatchTask, kind: str, layer: str) -> None:
    if kind == "activation":
        task.model.sar_encoder.layer3[0].conv1.weight.data[0, 0, 0, 0] = math.nan
    else:
        task.model.optical_projector.layer2[0].register_forward_hook(_root_of_nothing)
    before = task.model.optical_encoder.conv1.weight.clone()
    with pytest.raises(MmcdError, match=rf"The {kind} of layer {layer} is not finite in step 0\. .*optimiser\.lr"):
        one_step(task)
    assert torch.equal(task.model.optical_encoder.conv1.weight, before)
    assert not any(module._forward_hooks for module in task.model.sar_encoder.modules())


def test_an_alarm_may_be_a_warning(task: PatchTask, monkeypatch: pytest.MonkeyPatch) -> None:
    # Libraries of tests before this one configure all loggers and handlers there are: these are outside their reach.
    said: list[str] = []
    own, handler = logging.Logger("alarm"), logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    own.addHandler(handler)
    monkeypatch.setattr(monitor, "logger", own)
    task.model.sar_encoder.layer2[0].conv1.weight.data[0, 0, 0, 0] = math.nan
    one_step(task, "warn")
    assert said[0] == "The activation of layer sar_encoder.layer2 is not finite in step 0."


# --- parts --------------------------------------------------------------------------------------------------------


def test_the_loss_is_taken_in_fp32_whatever_the_network_runs_in(task: PatchTask) -> None:
    torch.manual_seed(2)
    batch = PatchSample(
        optical=torch.randn(4, 3, 32, 32),
        sar=torch.randn(4, 1, 32, 32),
        is_positive=torch.tensor([True, False, True, False]),
    )
    with torch.autocast("cpu", torch.bfloat16):
        output = task(batch)
        task.forward = lambda _: output  # type: ignore[method-assign]
        loss = task.training_step(batch, 0)
    terms = reference_infonce(output.pre_embedding, output.post_embedding, batch["is_positive"], 0.07)
    assert loss.dtype == torch.float32 and loss.item() == sum(terms).item()


def test_figures_of_an_epoch_are_means_over_batches_and_classes() -> None:
    figures = EpochFigures()
    near, far = torch.tensor([0.2, 0.9, 1.0]), torch.tensor([1.4, 0.3])
    figures.add(torch.tensor(2.0), torch.tensor(1.0), near, torch.ones(3, dtype=torch.bool))
    assert figures.figures()["balanced_accuracy"] == pytest.approx(2 / 3), "the class that is absent does not count"
    figures.add(torch.tensor(4.0), torch.tensor(0.0), far, torch.zeros(2, dtype=torch.bool))
    expected = {"loss": 3.5, "positive_loss": 3.0, "negative_loss": 0.5, "balanced_accuracy": (2 / 3 + 1 / 2) / 2}
    assert figures.figures() == pytest.approx(expected)


def test_the_decision_holds_at_the_natural_share_of_damage() -> None:
    random = np.random.default_rng(0)
    damaged = np.arange(4000) < 3200  # as drawn: four fifths
    distance = (random.normal(0.4, 0.2, 4000) + 0.4 * damaged).clip(0, 2).astype(np.float32)
    nothing = np.zeros(4000, np.int32)
    table = PatchTable(("a_1",), nothing, np.zeros((4000, 2), np.int32), damaged.astype(np.float32), ~damaged, damaged)
    decision, reached = fit_patch_decision(PatchScores(table, distance), damaged_share=0.1)
    # Two normal distributions of one width: log odds are linear in the distance.
    assert decision.cosine_weight == pytest.approx(0.4 / 0.2**2, rel=0.1)
    assert decision.intercept == pytest.approx(math.log(0.1 / 0.9) - (0.8**2 - 0.4**2) / (2 * 0.2**2), rel=0.1)
    assert decision.prevalence == 0.1 and decision.head_weight == 0
    assert reached["auc"] == pytest.approx(roc_auc_score(damaged, distance), abs=2e-3)
    probability = 1 / (1 + np.exp(-(decision.cosine_weight * distance.astype(float) + decision.intercept)))
    weight = np.where(damaged, 0.1 / 0.8, 0.9 / 0.2)
    best = max(f1_score(damaged, probability >= cut, sample_weight=weight) for cut in np.linspace(0.02, 0.9, 60))
    assert reached["f1"] == pytest.approx(best, abs=0.01)


def test_frozen_trunks_learn_only_in_their_last_stage() -> None:
    model = ContextSiamese(3, 1, trunk="resnet18", embedding_dim=8)
    freeze_trunks(model)
    learning = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad
    }
    expected = {"optical_encoder.layer4", "sar_encoder.layer4"}
    assert learning == expected | {f"{side}_projector.layer{n}" for side in ("optical", "sar") for n in (1, 2)}


# --- the commands -------------------------------------------------------------------------------------------------


def test_commands_from_tiles_to_a_card(tree: Path, workspace: Path, tmp_path: Path) -> None:
    """The shipped configuration, indexed and trained with nothing but options."""
    tiny = "context_patch_size=32 data.batch_size=4 data.neg_ratio=0.5 data.target_neg_ratio=0.5 data.workers=0"
    tiny += " data.subset_fraction=0.02 model.trunk=resnet18 trainer.epochs=1 trainer.device=cpu trainer.loggers=[]"
    paths = [f"data.root={tree / 'tree'}", f"data.metadata={tmp_path / 'metadata'}", "data.transforms=true"]
    rules = tmp_path / "rules.yaml"
    rules.write_text("context_patch_size: 32\n")
    index = ["data", "index", tree / "tree", "--config", rules, "--out", tmp_path / "metadata", "--split-by", "image"]
    start = ["train", "start", "--config", CONFIG, "--from-scratch", "--json"]
    start += [word for pair in [*tiny.split(), *paths] for word in ("--set", pair)]
    for command in (index, start):
        done = CliRunner().invoke(app, [str(word) for word in command], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    card = read_card(Path(result["card"]))
    assert card.name == "reference0" and card.classes == ("unchanged", "damaged")
    assert 0 < card.decision.threshold <= 1 and math.isfinite(result["metrics"]["val/loss"])
