"""Features on disk: the same answers as from the images, kept for one trunk and refused where they would be wrong."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from mmcd.cards import Branch
from mmcd.data.base import Sample, to_sample
from mmcd.data.levir import LevirPairs
from mmcd.errors import ConfigError, DataError, StorageError
from mmcd.models.fusion_unet import FusionUNet
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_levir import simulate_levir
from mmcd.services.train import TrainRequest, train
from mmcd.training import feature_cache, trainer
from mmcd.training.feature_cache import cache_features
from mmcd.training.tasks import normalise

BRANCH = Branch(modality="optical", sensor="", bands=("B4", "B3", "B2"), unit="uint8", mean=(0.5,) * 3, std=(0.2,) * 3)
PAIR = (BRANCH, BRANCH.model_copy(update={"mean": (0.4,) * 3}))
SIZE = (40, 56)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass
class Pairs:
    """Random pairs of one size; the last one may have another."""

    odd: bool = False
    read: list[int] = field(default_factory=list)
    ids = ("a", "b", "c", "d", "e")
    groups = ids
    changed_share = np.full(5, 0.5)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        rng = np.random.default_rng(index)
        size = (24, 24) if self.odd and index == 4 else SIZE
        pre, post = rng.random((2, 3, *size), np.float32)
        return to_sample(pre, post, np.zeros(size, np.uint8), rng.random(size) > 0.1, index)


def model(**settings: object) -> FusionUNet:
    torch.manual_seed(0)
    return FusionUNet(trunk="resnet18", levels=3, width=0.25, embed_dim=64, **settings)


@pytest.fixture(scope="module")
def frozen() -> FusionUNet:
    return model().train()


def batch_of(pairs: Pairs, indices: list[int]) -> Sample:
    return torch.utils.data.default_collate([pairs[index] for index in indices])


def test_logits_and_gradients_are_those_of_the_images(frozen: FusionUNet, tmp_path: Path) -> None:
    pairs, order = Pairs(), [3, 1]
    cache = cache_features(frozen, pairs, np.array([0, 1, 3]), PAIR, tmp_path, batch_size=2)
    assert frozen.decoder1.training and not frozen.get_submodule("encoder1").training, "left as it was"
    for layer in frozen.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.eval()  # else two passes differ by chance
    batch = batch_of(pairs, order)
    images = [
        normalise(batch[side], batch["valid"], branch) for side, branch in zip(("pre", "post"), PAIR, strict=True)
    ]
    parameter = frozen.get_parameter("fuse2.weight")
    found = []
    for logits in (frozen(*images), frozen.decode_features(*cache.features(batch["index"]), SIZE)):
        parameter.grad = None
        logits.square().mean().backward()
        assert parameter.grad is not None
        found.append((logits.detach(), parameter.grad.clone()))
    assert np.ptp(found[0][0].numpy()) > 0.1
    assert found[1][0].shape == (2, 1, *SIZE)
    for direct, cached in zip(*found, strict=True):
        torch.testing.assert_close(cached, direct, rtol=1e-3, atol=1e-3)


def test_they_are_computed_once_for_one_trunk(frozen: FusionUNet, tmp_path: Path) -> None:
    indices, pairs = np.arange(4), Pairs()
    cache_features(frozen, pairs, indices, PAIR, tmp_path)
    pairs.read.clear()
    cache_features(frozen, pairs, indices, PAIR, tmp_path)
    assert len(pairs.read) <= 1, "the size is looked at, nothing else"
    torch.manual_seed(1)
    other = FusionUNet(trunk="resnet18", levels=3, width=0.25, embed_dim=64)
    cache_features(other, pairs, indices, PAIR, tmp_path)
    assert pairs.read[-4:] == [0, 1, 2, 3]
    (kept,) = (tmp_path / feature_cache.FOLDER).iterdir()
    assert {path.suffix for path in kept.iterdir()} == {".npy", ".json"}
    assert {np.load(path, mmap_mode="r").dtype for path in kept.glob("*.npy")} == {np.dtype(np.float16)}


def test_what_was_cut_short_is_computed_anew(frozen: FusionUNet, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    pairs = Pairs()
    with pytest.raises(KeyboardInterrupt):
        cache_features(frozen, pairs, np.arange(4), PAIR, tmp_path, batch_size=2, progress=stop)
    pairs.read.clear()
    cache_features(frozen, pairs, np.arange(4), PAIR, tmp_path, batch_size=2)
    assert pairs.read[-4:] == [0, 1, 2, 3]


def test_a_sample_that_was_not_cached_is_no_other_sample(frozen: FusionUNet, tmp_path: Path) -> None:
    cache = cache_features(frozen, Pairs(), np.array([2, 4]), PAIR, tmp_path)
    with pytest.raises(DataError, match="sample 3"):
        cache.features(torch.tensor([2, 3]))


@pytest.mark.parametrize("settings", [{"finetune": True}, {"frozen_statistics": False}])
def test_a_trunk_that_moves_is_refused(settings: dict[str, bool], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be cached"):
        cache_features(model(**settings), Pairs(), np.arange(2), PAIR, tmp_path)
    assert not list(tmp_path.iterdir())


def test_samples_of_several_sizes_and_full_disks_are_told(
    frozen: FusionUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="one size only: e differs"):
        cache_features(frozen, Pairs(odd=True), np.arange(5), PAIR, tmp_path)
    with pytest.raises(DataError, match="no sample"):
        cache_features(frozen, Pairs(), np.arange(0), PAIR, tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="GB are free"):
        cache_features(frozen, Pairs(), np.arange(4), PAIR, tmp_path)


def test_an_averaged_copy_reads_the_same_files(frozen: FusionUNet, tmp_path: Path) -> None:
    cache = cache_features(frozen, Pairs(), np.arange(2), PAIR, tmp_path)
    assert copy.deepcopy([cache])[0] is cache


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pairs of 64 px in LEVIR-CD's layout."""
    root = tmp_path_factory.mktemp("levir") / "pairs"
    simulate_levir(SimulateRequest(out=root, scenes=6, size=64, gsd=1.0, layout="levir", seed=3))
    return root


def request_of(root: Path, resume: bool = False, **more: object) -> TrainRequest:
    torch.set_num_threads(1)
    overrides = {
        "data.root": str(root),
        "data.size": 64,
        "data.batch_size": 2,
        "data.workers": 0,
        "data.augment.aug": "none",
        "data.augment.crop": None,
        "model.settings": {"trunk": "resnet18", "levels": 3, "width": 0.125, "embed_dim": 64},
        "model.pretrained": "none",
        "model.force_random_trunk": True,
        "trainer.steps": None,
        "trainer.validate_every": None,
        "trainer.epochs": 1,
        "trainer.device": "cpu",
        "trainer.precision": "fp32",
        "trainer.loggers": [],
    }
    return TrainRequest(config=CONFIGS / "building-change-sim.yaml", overrides=overrides | more, resume=resume)


def test_a_run_on_cached_features_learns_what_one_on_images_learns(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, encoded, encode = [], [], FusionUNet.encode
    monkeypatch.setattr(FusionUNet, "encode", lambda *words: encoded.append(len(words[1])) or encode(*words))
    for cached in (False, True):
        monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path / str(cached)))
        encoded.clear()
        found.append(train(request_of(simulated, **{"trainer.cache_features": cached})))
    pairs = 2 * (len(LevirPairs(simulated, "train")) + len(LevirPairs(simulated, "val")))
    calibrating = 2 * len(LevirPairs(simulated, "val"))  # in mirrored context, which has other features
    assert sum(encoded) == pairs + calibrating
    plain, cached = ({name: run.metrics[name] for name in ("train/loss", "val/loss")} for run in found)
    assert cached == pytest.approx(plain, rel=5e-3)
    assert cached != plain, "half precision shows somewhere"

    encoded.clear()
    monkeypatch.setattr(trainer, "prepare_weights", lambda *_: pytest.fail("a resumed run has its weights"))
    train(request_of(simulated, resume=True, **{"trainer.cache_features": True}))
    assert sum(encoded) == calibrating, "the trunk is that of the run that was resumed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"data.augment.aug": "joint"},
        {"model.settings": {"trunk": "resnet18", "finetune": True}},
        {"model.settings": {"trunk": "resnet18", "frozen_statistics": False}},
    ],
)
def test_configurations_whose_features_move_are_refused(
    simulated: Path, workspace: Path, wrong: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="cache_features"):
        train(request_of(simulated, **{"trainer.cache_features": True}, **wrong))
