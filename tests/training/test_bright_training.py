"""The dense model trained and measured on simulated tiles in BRIGHT's layout, by the shipped configuration."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from mmcd.calibration import LogisticCalibration
from mmcd.data.bright import CLASSES, index_bright
from mmcd.errors import Cancelled, ConfigError, DataError
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid
from mmcd.models import zoo
from mmcd.samplers import GroupBatchSampler
from mmcd.score import encode_score
from mmcd.services.evaluate import EvaluateRequest, evaluate
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_bright import simulate_bright
from mmcd.services.train import TrainRequest, TrainResult, train
from mmcd.training.config import ChangeTraining
from mmcd.training.steps import StepBatches
from mmcd.training.tasks import ChangeTask, rate
from mmcd.training.validation import Outputs

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "bright_dense.yaml"
EVENT = "simulated-earthquake"
VALIDATED = tuple(f"simulated-{event}_00000001" for event in ("explosion", "flood", "wildfire"))


@pytest.fixture(scope="module")
def tree(bright_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen tiles, three of each of six events: one to train, one to test, and of three events one to validate."""
    root = Path(shutil.copytree(bright_tree, tmp_path_factory.mktemp("training") / "tree"))
    (root / "splits" / "standard_ML" / "val_set.txt").write_text("\n".join(VALIDATED))
    return root


def request_of(root: Path, resume: bool = False, **overrides: object) -> TrainRequest:
    """Return the shipped configuration made tiny: two steps, one between two validations."""
    torch.set_num_threads(1)
    tiny = {
        "data.root": str(root),
        "data.crop": 64,
        "data.batch_size": 2,
        "data.workers": 0,
        "data.calibration_tiles": 2,
        "model.settings": {"width": 16, "embedding_dim": 8, "classes": 4, "changed_from": 2},
        "trainer.steps": 2,
        "trainer.validate_every": 1,
        "trainer.device": "cpu",
        "trainer.precision": "fp32",
        "trainer.loggers": [],
    }
    return TrainRequest(config=CONFIG, overrides=tiny | overrides, resume=resume)


def measure(root: Path, result: TrainResult, **options: object) -> dict:
    words = {"model": str(result.card), "dataset": "bright", "root": root, "device": "cpu", "precision": "fp32"}
    return evaluate(EvaluateRequest.checked(**words, **options))


@dataclass(frozen=True)
class Trained:
    """A finished run and what was heard of it."""

    result: TrainResult
    heard: tuple[tuple[str, int, int], ...]


@pytest.fixture(scope="module")
def trained(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The shipped network after two steps, without one event; the lists that it is validated on hold none of it."""
    heard: list[tuple[str, int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(tmp_path_factory.mktemp("trained")))
        result = train(
            request_of(tree, **{"data.hold_out": EVENT, "trainer.validate_every": 2}), lambda *news: heard.append(news)
        )
    return Trained(result, tuple(heard))


def test_one_command_trains_and_another_measures(tree: Path, trained: Trained) -> None:
    result = trained.result
    assert trained.heard[-1] == ("train", 2, 2) and ("check", 13, 13) in trained.heard
    figures = {f"val/{name}" for name in ("miou", "oa", "f1_loc", "f1_clf", *(f"iou_{name}" for name in CLASSES))}
    assert figures | {"train/bce", "train/lovasz", "val/bce"} <= result.metrics.keys()
    assert "train/dice" not in result.metrics and "train/infonce" not in result.metrics
    card, _ = zoo.load(result.card)
    assert card.classes == CLASSES and card.settings["changed_from"] == 2 and card.marks_buildings
    assert card.decision.prevalence and card.decision.cosine_weight == 0  # the embeddings were not trained
    assert card.training["trainer"]["steps"] == 2 and card.training["loss"]["lovasz"] == 0.75
    outputs = Outputs.load(result.folder / "held_out.npz")
    assert len(outputs.ids) == 2 and outputs.logit.shape == (2, 128, 128)
    measured = measure(tree, result, split="val", scores=result.folder / "maps")
    for number, image_id in enumerate(outputs.ids):  # what the card was calibrated on is what inference says
        calibrated = LogisticCalibration(card.decision.head_weight, 0.0, card.decision.intercept)
        expected = encode_score(
            calibrated(outputs.logit[number].astype(np.float32), outputs.distance[number].astype(np.float32)),
            np.ones((128, 128), bool),
        )
        with rasterio.open(result.folder / "maps" / f"{image_id}.tif") as file:
            assert np.abs(file.read(1).astype(int) - expected).max() <= 2
    assert measured["tiles_scored"] == list(VALIDATED) and set(measured["iou"]) == set(CLASSES)
    best = torch.load(result.folder / "best.ckpt", weights_only=False)
    kept = best["callbacks"][next(key for key in best["callbacks"] if "val/miou" in key)]
    # the same tiles, but with the weights rounded to half precision and continued by their mirror image
    assert measured["miou"] == pytest.approx(float(kept["best_model_score"]), abs=0.1)


def test_cross_event_training_is_known_to_the_evaluation(tree: Path, trained: Trained) -> None:
    zero = measure(tree, trained.result, hold_out=EVENT)
    assert zero["tiles"] == 2 and not any("trained without" in line for line in zero["warnings"])
    other = measure(tree, trained.result, hold_out="simulated-explosion")
    assert any("was trained without simulated-explosion" in line for line in other["warnings"])


def test_resumed_equals_uninterrupted(tree: Path, workspace: Path) -> None:
    narrow = {
        "model.architecture": "fusion_unet",  # a quarter of the weights of the shipped one, and the same order of crops
        "model.settings": {
            **{"trunk": "resnet18", "levels": 3, "width": 0.25, "embed_dim": 64, "finetune": True},
            **{"classes": 4, "changed_from": 2},
        },
        "model.force_random_trunk": True,
        "data.calibration_tiles": 1,
        "export": None,
    }
    whole = train(request_of(tree, name="whole", **narrow))

    def stop_in_the_second_epoch(stage: str, done: int, total: int) -> None:
        if stage == "train" and done == 2:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        train(request_of(tree, name="broken", **narrow), stop_in_the_second_epoch)
    resumed = train(request_of(tree, resume=True, name="broken", **narrow))
    first, second = (torch.load(run.folder / "last.ckpt", weights_only=False) for run in (whole, resumed))
    assert first["global_step"] == 2
    assert all(torch.equal(first["state_dict"][name], second["state_dict"][name]) for name in first["state_dict"])


def test_lovasz_and_the_classes_of_validation_are_the_heads(tree: Path) -> None:
    config = ChangeTraining.from_yaml(CONFIG, request_of(tree).overrides)
    torch.manual_seed(0)
    task = ChangeTask(config, training_share=0.1).eval()
    batch = {
        "pre": torch.rand(2, 3, 64, 64),
        "post": torch.rand(2, 1, 64, 64),
        "target": torch.randint(-1, 4, (2, 64, 64)),
        "valid": torch.ones(2, 64, 64, dtype=torch.bool),
        "index": torch.arange(2),
    }
    parts = task._losses(task(batch), batch, torch.Generator())
    assert set(parts) == {"bce", "lovasz"}
    task.log = lambda *_, **__: None
    task.validation_step(batch, 0)
    assert task._grades is not None and task._grades.total == int((batch["target"] >= 0).sum())


def test_the_shipped_configuration_is_the_official_recipe() -> None:
    config = ChangeTraining.from_yaml(CONFIG)
    assert config.trainer.lengths == (100, 500) and config.data.batch_size * config.trainer.steps == 800_000
    assert (config.optimiser.lr, config.optimiser.weight_decay, config.optimiser.clip) == (1e-4, 5e-3, None)
    assert (config.loss.bce, config.loss.lovasz, config.loss.dice) == (1, 0.75, 0)
    assert {rate(step, 50_000, config.optimiser.warmup, config.optimiser.schedule) for step in (0, 25_000, 49_999)} == {
        1
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model.settings": {"classes": 1}}, "bright has 4 classes"),
        ({"post.unit": "db"}, "unit uint8 and no level"),
        ({"post.bands": ["VV", "VH"]}, "3 bands before and 1 after"),
        ({"trainer.validate_every": 7}, "50000, which is no multiple of validate_every, 7"),
        ({"trainer.steps": None}, "steps and validate_every go together"),
        ({"data.crop": 100}, "data.bright.crop"),
        ({"data.one_shot": True}, "give hold_out"),
        ({"data.hold_out": EVENT, "data.protocol": "dfc25"}, "validates on its val list"),
    ],
)
def test_what_does_not_fit_bright_is_said(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ChangeTraining.from_yaml(CONFIG, overrides)


def test_a_val_list_without_damage_is_refused_before_the_training(tree: Path, tmp_path: Path, workspace: Path) -> None:
    root = tmp_path / "tree"
    simulate_bright(SimulateRequest(out=root, scenes=2, size=128, gsd=1.0, event="flood", layout="bright"))
    label = index_bright(root).tiles[1].label
    assert label is not None
    write_cog(label, np.zeros((128, 128), np.uint8), Grid.in_pixels(128, 128), Band())
    with pytest.raises(DataError, match="None of the 1 val tiles that would calibrate the model shows damage"):
        train(request_of(root))


def test_step_batches_cut_passes_into_epochs() -> None:
    passes = GroupBatchSampler(["a"] * 10, 3, 1.0, 0)
    whole = []
    for number in range(2):
        passes.set_epoch(number)
        whole += list(passes)
    cut = StepBatches(passes, 2)
    epochs = []
    for number in range(3):
        cut.set_epoch(number)
        epochs += list(cut)
    assert len(cut) == 2 and epochs == whole
    numbered = StepBatches(passes, 2, samples=10)
    numbered.set_epoch(1)
    assert list(numbered) == [[index + 10 * step for index in whole[step]] for step in (2, 3)]
