"""The fusion UNet trained on simulated pairs in LEVIR-CD's layout, by the shipped configurations."""

import io
import logging
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from torchvision.models import ResNet18_Weights, resnet18

from mmcd.cli import main
from mmcd.data.levir import LevirPairs
from mmcd.errors import Cancelled, ConfigError, DataError, ModelError
from mmcd.losses.overlap import combined_iou
from mmcd.models import zoo
from mmcd.models.fusion_unet import FusionUNet
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_levir import simulate_levir
from mmcd.services.train import TrainRequest, TrainResult, train
from mmcd.training.config import ChangeTraining
from mmcd.training.panels import PANELS
from mmcd.training.tasks import ChangeTask, build_optimiser, logit_of
from mmcd.training.trainer import open_split
from mmcd.training.validation import Outputs

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = {"trunk": "resnet18", "levels": 3, "width": 0.125, "embed_dim": 64}
TINY = {
    "data.size": 64,
    "data.batch_size": 2,
    "data.workers": 0,
    "data.validation_batch_size": 3,
    "trainer.device": "cpu",
    "trainer.precision": "fp32",
    "trainer.loggers": [],
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pairs of 64 px: six to train on, four to validate, four to test."""
    root = tmp_path_factory.mktemp("levir") / "pairs"
    simulate_levir(SimulateRequest(out=root, scenes=14, size=64, gsd=1.0, layout="levir", seed=3))
    return root


def request_of(root: Path, config: str = "building-change-sim", resume: bool = False, **more: object) -> TrainRequest:
    """Return a shipped configuration made tiny: two epochs of a step each or so."""
    torch.set_num_threads(1)
    tiny = TINY | {"data.root": str(root), "model.settings": {**SMALL, "finetune": True}}
    if config == "building-change-sim":
        tiny |= {"data.augment.crop": 32, "trainer.steps": 4, "trainer.validate_every": 2}
    else:
        tiny |= {"trainer.epochs": 2}
    return TrainRequest(config=CONFIGS / f"{config}.yaml", overrides=tiny | more, resume=resume)


@pytest.fixture(scope="module")
def trained(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A finished run of the shipped small configuration with all logs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(tmp_path_factory.mktemp("workspace")))
        return train(request_of(pairs, **{"trainer.loggers": ["tensorboard", "mlflow"], "trainer.artifacts": True}))


def test_a_run_leaves_weights_card_and_figures(trained: TrainResult, pairs: Path) -> None:
    parts = {f"{part}/{name}" for part in ("train", "val") for name in ("loss", "change_iou", "change_f1")}
    assert parts | {"train/macro_dice_with_background", "val/macro_dice_with_background"} <= trained.metrics.keys()
    assert parts | {"val/auc", "val/ap", "train/combined_iou"} <= trained.metrics.keys()
    assert "train/bce" not in trained.metrics
    card, model = zoo.load(trained.card)
    assert isinstance(model, FusionUNet) and card.architecture == "fusion_unet"
    assert card.decision.cosine_weight == 0 and card.decision.prevalence > 0
    assert (card.pre.modality, card.post.modality) == ("optical", "optical")
    assert card.pre.bands == card.post.bands == ("red", "green", "blue") and card.classes == ("unchanged", "changed")
    outputs = Outputs.load(trained.folder / "held_out.npz")
    val = LevirPairs(pairs, "val", 64)
    assert list(outputs.ids) == val.ids and outputs.logit.shape == (len(val), 64, 64)
    changed = [val[index]["target"].numpy() > 0 for index in range(len(val))]
    assert (outputs.changed == np.stack(changed)).all()


def test_curves_pictures_and_artifacts_are_logged(trained: TrainResult) -> None:
    events = EventAccumulator(str(trained.folder / "tensorboard")).Reload()
    tags = events.Tags()
    assert set(PANELS) <= set(tags["images"])
    curves = {f"{part}/{name}" for part in ("train", "val") for name in ("loss", "change_iou", "change_f1")}
    assert curves <= set(tags["scalars"]) and len(events.Scalars("val/loss")) == 2
    client = MlflowClient(f"sqlite:///{trained.folder.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("mmcd").experiment_id])
    assert run.data.params["optimiser/lr"] == "0.001" and "val/change_iou" in run.data.metrics
    kept = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert kept == {"best.ckpt", "config.yaml", trained.weights.name, trained.card.name, "tensorboard_logs"}
    assert (trained.folder / "best.ckpt").is_file() and trained.weights.is_file()


def test_pictures_are_the_first_pairs_as_they_are_on_disk(trained: TrainResult, pairs: Path) -> None:
    events = EventAccumulator(str(trained.folder / "tensorboard")).Reload()
    shown = {name: _picture(events.Images(name)[-1].encoded_image_string) for name in PANELS}
    val = LevirPairs(pairs, "val", 64)
    assert all(picture.shape[:2] == (64, 64) or picture.size for picture in shown.values())
    first = (val[0]["pre"].numpy().transpose(1, 2, 0) * 255).round()
    assert np.abs(_tile_of(shown["Input1"], 0) - first).max() <= 1
    label = _tile_of(shown["Label"], 0)[..., 0] > 127
    assert (label == (val[0]["target"].numpy() > 0)).all()


def test_the_reference_is_configured_as_it_was() -> None:
    config = ChangeTraining.from_yaml(CONFIGS / "reference1.yaml")
    assert config.model.settings["trunk"] == "resnet50" and config.model.pretrained == "imagenet"
    assert not config.model.settings["finetune"]
    assert (config.optimiser.kind, config.optimiser.lr, config.optimiser.weight_decay) == ("adam", 1e-3, 0)
    assert (config.optimiser.schedule, config.optimiser.warmup, config.optimiser.ema) == ("constant", 0, 0)
    assert (config.data.size, config.data.batch_size, config.trainer.epochs) == (512, 16, 75)
    assert config.trainer.early_stop == 10
    active = {name: value for name, value in vars(config.loss).items() if name in _PARTS and value}
    assert active == {"combined_iou": 1.0} and config.loss.alpha == 0.7


_PARTS = ("bce", "dice", "lovasz", "combined_iou", "infonce")


def test_the_optimiser_is_the_one_asked_for() -> None:
    model = FusionUNet(**SMALL, finetune=True)
    options = ChangeTraining.from_yaml(CONFIGS / "reference1.yaml").optimiser
    assert type(build_optimiser(list(model.parameters()), options)) is torch.optim.Adam
    decayed = options.model_copy(update={"kind": "adamw", "weight_decay": 0.1})
    optimiser = build_optimiser(list(model.parameters()), decayed)
    assert type(optimiser) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.0]
    assert all(parameter.ndim > 1 for parameter in optimiser.param_groups[0]["params"])


def test_the_loss_is_cross_entropy_and_soft_iou(pairs: Path) -> None:
    config = ChangeTraining.from_yaml(CONFIGS / "reference1.yaml", {"model.settings": SMALL})
    task = ChangeTask(config, 0.1)
    sample = LevirPairs(pairs, "val", 64)[0]
    batch = {name: values[None] for name, values in sample.items()}
    logit = torch.linspace(-2, 2, 64 * 64).reshape(1, 1, 64, 64)
    parts = task._losses(logit, batch, torch.Generator())
    expected = combined_iou(logit[:, 0], batch["target"] > 0, batch["valid"], alpha=0.7)
    assert parts.keys() == {"combined_iou"}
    torch.testing.assert_close(parts["combined_iou"], expected)


def test_logits_of_classes_are_understood() -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0]]).reshape(1, 3, 1, 1)
    p = F.softmax(logits, dim=1)[0, :, 0, 0]
    assert logit_of(logits, 2).sigmoid().item() == pytest.approx(p[2].item())
    assert logit_of(logits, 1).sigmoid().item() == pytest.approx((p[1] + p[2]).item())


# --- a trunk that is frozen ---


def test_a_frozen_random_trunk_is_refused_unless_forced(pairs: Path, workspace: Path) -> None:
    frozen = {"model.settings": SMALL}
    with pytest.raises(ModelError, match="stay random") as refused:
        train(request_of(pairs, "reference1", **frozen, **{"model.pretrained": "none"}))
    assert "force_random_trunk=true" in refused.value.hint
    forced = {"model.pretrained": "none", "model.force_random_trunk": True, "name": "forced", "trainer.epochs": 1}
    assert train(request_of(pairs, "reference1", **frozen, **forced)).weights.is_file()


def test_imagenet_weights_start_a_trunk_and_stay(pairs: Path, workspace: Path, monkeypatch, tmp_path) -> None:
    """A file of torchvision's name in torch's cache, as its server leaves it; training keeps it as it is."""
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(5)
    public = resnet18(weights=None).state_dict()
    torch.save(public, cache / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    result = train(request_of(pairs, "reference1", **{"model.settings": SMALL, "trainer.epochs": 1}))
    _, model = zoo.load(result.card)
    torch.testing.assert_close(model.encoder1[0].weight, public["conv1.weight"], atol=1e-3, rtol=1e-3)
    assert torch.equal(model.encoder1[1].running_mean, public["bn1.running_mean"])
    with pytest.raises(ConfigError, match="no pretrained weights"):
        train(TrainRequest(config=CONFIGS / "building-change-sim.yaml", from_scratch=True))


def test_a_run_goes_on_from_a_checkpoint_of_the_reference(pairs: Path, workspace: Path, tmp_path: Path) -> None:
    torch.manual_seed(8)
    start = FusionUNet(**SMALL)
    path = tmp_path / "best_model.pth"
    torch.save({"model_state_dict": start.state_dict(), "epoch": 3}, path)
    frozen = {"model.settings": SMALL, "model.checkpoint": str(path), "trainer.epochs": 1, "optimiser.lr": 1e-9}
    result = train(request_of(pairs, "reference1", **frozen))
    _, model = zoo.load(result.card)
    for name, tensor in start.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), tensor, atol=1e-3, rtol=1e-3)


def test_a_checkpoint_of_another_trunk_is_told_in_one_line(pairs: Path, workspace: Path, tmp_path: Path) -> None:
    path = tmp_path / "best_model.pth"
    torch.save(FusionUNet(**SMALL | {"trunk": "resnet34"}).state_dict(), path)
    settings = {"model.settings": SMALL, "model.checkpoint": str(path)}
    with pytest.raises(ModelError, match="of the trunk resnet34, the model has resnet18") as refused:
        train(request_of(pairs, "reference1", **settings))
    assert "\n" not in str(refused.value)


def test_resumed_equals_uninterrupted(pairs: Path, workspace: Path) -> None:
    forced = {"model.settings": SMALL, "model.pretrained": "none", "model.force_random_trunk": True, "export": None}

    def request(name: str, resume: bool = False) -> TrainRequest:
        return request_of(pairs, "reference1", resume, name=name, **forced)

    def stop_in_the_second_epoch(stage: str, done: int, total: int) -> None:
        if stage == "train" and done > total // 2:
            raise Cancelled("Stopped.")

    whole = train(request("whole"))
    with pytest.raises(Cancelled):
        train(request("broken"), stop_in_the_second_epoch)
    resumed = train(request("broken", resume=True))
    assert whole.metrics == resumed.metrics
    first, second = (torch.load(run.folder / "last.ckpt", weights_only=False)["state_dict"] for run in (whole, resumed))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_run_says_nothing_that_its_user_cannot_act_on(pairs: Path, workspace: Path, recwarn, monkeypatch) -> None:
    hints: list[str] = []
    listening = logging.Handler()
    listening.emit = lambda record: hints.append(record.getMessage())
    logger = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(logger, "handlers", [listening])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    warnings.simplefilter("always")
    forced = {"model.pretrained": "none", "model.force_random_trunk": True, "model.settings": SMALL, "export": None}
    train(request_of(pairs, "reference1", **forced, **{"trainer.epochs": 1}))
    assert hints == [] and [str(told.message) for told in recwarn if "lightning" in told.filename] == []


def test_a_run_is_resumed_with_its_own_settings_only(trained: TrainResult, pairs: Path, monkeypatch) -> None:
    monkeypatch.setenv("MMCD_WORKSPACE", str(trained.folder.parents[1]))
    with pytest.raises(ConfigError, match=r"begun with loss\.alpha 0\.7, which is now 0\.5"):
        train(request_of(pairs, resume=True, **{"loss.alpha": 0.5}))
    kept = ChangeTraining.from_yaml(trained.folder / "config.yaml")
    assert kept.loss.alpha == 0.7


# --- early stopping ---


@pytest.mark.parametrize(("keep", "reached"), [("best", 2.0), ("last", 2.4)])
def test_the_run_stops_after_the_epochs_that_it_waits_for(
    pairs: Path, workspace: Path, monkeypatch, keep: str, reached: float
) -> None:
    losses = [3.0, 2.0, 2.5, 2.4, 1.0, 1.0]

    def scripted(self, batch, batch_index):
        self.log("val/loss", losses[self.current_epoch])

    monkeypatch.setattr(ChangeTask, "validation_step", scripted)
    monkeypatch.setattr(ChangeTask, "on_validation_epoch_end", lambda self: None)
    settings = {"model.pretrained": "none", "model.force_random_trunk": True, "model.settings": SMALL, "export": None}
    length = {"trainer.epochs": 6, "trainer.early_stop": 1, "trainer.keep": keep}
    result = train(request_of(pairs, "reference1", **settings, **length))
    epochs = {
        name: torch.load(result.folder / f"{name}.ckpt", weights_only=False)["epoch"] for name in ("best", "last")
    }
    assert epochs == {"best": 1, "last": 3}  # 2.5 was waited for, 2.4 was too much
    assert result.metrics["val/loss"] == pytest.approx(reached)  # of the weights that are kept


# --- bad input ---


def copied(pairs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pairs, tmp_path / "copy"))


@pytest.mark.parametrize("fault", ["no partner", "grey", "sizes in a pair", "sizes of pairs", "nothing changed"])
def test_faulty_pairs_are_told_in_one_line(pairs: Path, tmp_path: Path, workspace: Path, fault: str) -> None:
    root = copied(pairs, tmp_path)
    first = sorted((root / "train" / "label").glob("*.png"))[0]
    more: dict[str, object] = {}
    if fault == "no partner":
        first.unlink()
        said = f"train/{first.stem}: no label"
    elif fault == "grey":
        Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(first)
        said = "grey"
    elif fault == "sizes in a pair":
        Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(root / "train" / "B" / first.name)
        said = "differ in size"
    elif fault == "sizes of pairs":
        for folder in ("A", "B", "label"):
            Image.open(root / "train" / folder / first.name).resize((32, 32), Image.NEAREST).save(
                root / "train" / folder / first.name
            )
        more, said = {"data.size": None}, "2 sizes"
    else:
        for path in (root / "val" / "label").glob("*.png"):
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
        said = "shows change"
    with pytest.raises(DataError, match=said) as refused:
        train(request_of(root, **more))
    assert "\n" not in str(refused.value)


def test_a_lenient_run_goes_on_with_what_is_whole(pairs: Path, tmp_path: Path) -> None:
    root = copied(pairs, tmp_path)
    sorted((root / "train" / "label").glob("*.png"))[0].unlink()
    overrides = request_of(root).overrides | {"data.strict": False}
    split = open_split(ChangeTraining.from_yaml(CONFIGS / "building-change-sim.yaml", overrides))
    whole = open_split(ChangeTraining.from_yaml(CONFIGS / "building-change-sim.yaml", request_of(pairs).overrides))
    assert len(split.training) == len(whole.training) - 1 and len(split.held_out) == len(whole.held_out) == 4
    assert {split.dataset.ids[index].split("/")[0] for index in split.held_out} == {"val"}


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        ("reference1", {"model.settings": {"classes": 2}}, "classes 1"),
        ("reference1", {"pre.bands": ["B4", "B3", "B2"]}, "red, green, blue"),
        ("reference1", {"augment": {"crop": 64}}, "data.augment"),
        ("flood-s2s1", {"trainer.early_stop": 3}, "validation loss"),
        ("flood-s2s1", {"model.pretrained": "imagenet"}, "fusion_unet"),
        ("building-change-sim", {"model.architecture": "early_fusion_unet"}, "leave out export"),
    ],
)
def test_options_that_do_not_go_together_are_refused(config: str, change: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ChangeTraining.from_yaml(CONFIGS / f"{config}.yaml", change)


def test_the_command_tells_a_fault_in_one_line(
    pairs: Path, tmp_path: Path, workspace: Path, monkeypatch, capsys
) -> None:
    root = copied(pairs, tmp_path)
    lost = sorted((root / "val" / "B").glob("*.png"))[0]
    lost.unlink()
    config = str(CONFIGS / "building-change-sim.yaml")
    monkeypatch.setattr(sys, "argv", ["mmcd", "train", "start", "--config", config, "--set", f"data.root={root}"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == DataError.exit_code
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and f"val/{lost.stem}: no B" in said[0]


def _picture(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _tile_of(picture: np.ndarray, number: int, side: int = 64) -> np.ndarray:
    """Return one of the pictures that TensorBoard put side by side."""
    columns = picture.shape[1] // side
    row, column = divmod(number, columns)
    return picture[row * side : (row + 1) * side, column * side : (column + 1) * side].astype(np.float32)
