"""Pretraining from files to a trunk with its card, on tiny images: steps, resume, change labels, what is refused."""

import csv
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from torch import Tensor

from mmcd.data.ombria_dates import OmbriaDates
from mmcd.data.seasonal import DRAWS
from mmcd.errors import Cancelled, ConfigError, DataError
from mmcd.models.trunk_weights import load_trunk
from mmcd.samplers import ChangeAwareSampler
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_seasonal import simulate_seasonal
from mmcd.services.train import TrainRequest, TrainResult, train
from mmcd.training.change_labels import CHANGED, UNCHANGED, UNSEEN
from mmcd.training.pretrain_config import PretrainTraining
from mmcd.training.pretrain_task import PretrainTask, rate_at
from mmcd.training.pretrainer import open_series, series_loader

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METHODS = ("moco", "moco_tp", "seco", "teco", "caco", "saco", "saco_plus")
TILES, SIDE, BATCH = 8, 40, 4


def write_png(path: Path, bands: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = bands.shape
    with rasterio.open(path, "w", driver="PNG", count=count, height=height, width=width, dtype="uint8") as image:
        image.write(bands)


@pytest.fixture(scope="module")
def ombria(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A main set of eight tiles, and an event beside it whose files nobody can read."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("ombria")
    random = np.random.default_rng(0)
    for number in range(1, TILES + 1):
        before = random.integers(0, 120, (3, SIDE, SIDE)).astype(np.uint8)
        after = before if number % 2 else random.integers(0, 120, (3, SIDE, SIDE)).astype(np.uint8)
        flood = np.zeros((1, SIDE, SIDE), np.uint8)
        write_png(root / f"OmbriaS2/train/BEFORE/S2_before_{number:04}.png", before)
        write_png(root / f"OmbriaS2/train/AFTER/S2_after_{number:04}.png", after)
        write_png(root / f"OmbriaS1/train/AFTER/S1_after_{number:04}.png", flood)
        write_png(root / f"OmbriaS1/train/MASK/S1_mask_{number:04}.png", flood)
    for kind in ("Sentinel2/BEFORE", "Sentinel2/AFTER", "Sentinel1/AFTER", "Sentinel1/MASK"):
        folder = root / "2021" / "ALBANIA" / kind
        folder.mkdir(parents=True)
        (folder / "im_1.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series") / "set"
    simulate_seasonal(SimulateRequest(out=folder, scenes=4, size=36, gsd=10, layout="seasonal"))
    return folder


def tiny(config: str, root: Path, **changes: Any) -> PretrainTraining:
    small = {"data.root": str(root), "data.batch_size": BATCH, "data.workers": 0, "momentum.queue": 8}
    small |= {"momentum.momentum": 0.9, "views.crop": 32, "band_views.crop": 32, "trainer.device": "cpu"}
    return PretrainTraining.from_yaml(CONFIGS / f"pretrain-{config}.yaml", small | changes)


def two_dates(root: Path, method: str, **changes: Any) -> PretrainTraining:
    window = {"data.window": 36, "momentum.dim": 16, "momentum.hidden": [16], "trainer.precision": "fp32"}
    return tiny("ombria", root, method=method, **{**window, **changes})


def task_and_batch(config: PretrainTraining) -> tuple[PretrainTask, Any]:
    torch.manual_seed(config.seed)
    data = open_series(config)
    task = PretrainTask(config, data.bands, len(data.places)).train()
    task.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    return task, next(iter(series_loader(data, config)))


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_step_moves_the_query_encoder_and_the_key_encoder_follows(ombria: Path, method: str) -> None:
    task, batch = task_and_batch(two_dates(ombria, method))
    assert batch["images"].shape == (BATCH, DRAWS[method].count, 3, 36, 36)  # type: ignore[index]
    optimiser: Any = task.configure_optimizers()
    assert type(optimiser) is (torch.optim.Adam if method.startswith("saco") else torch.optim.SGD)
    names = "0.weight", "7.1.conv2.weight"
    before = {name: task.net.encoder_q.get_parameter(name).detach().clone() for name in names}
    for _ in range(2):
        loss = task.training_step(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        moved = {name: task.net.encoder_q.get_parameter(name).detach().clone() for name in names}
        optimiser.step()
        assert loss.isfinite()
    for name in names:
        assert (moved[name] - before[name]).abs().max() > 0
        followed = torch.lerp(before[name], moved[name], 0.1)
        assert torch.allclose(task.net.encoder_k.get_parameter(name), followed, atol=1e-7)
    assert task.net.queue_ptr.tolist() == [[0]] * task.net.settings.subspaces and task.net.steps == 2


@pytest.mark.parametrize(
    ("config", "method", "groups"), [("caco", "caco", 0), ("saco", "saco", 7), ("saco", "saco_plus", 11)]
)
def test_the_full_form_takes_a_step_on_twelve_bands(series: Path, config: str, method: str, groups: int) -> None:
    small = {"momentum.dim": 16, "momentum.hidden": [16], "groups.vegetation": False}
    task, batch = task_and_batch(tiny(config, series, method=method, **small))
    views = task.views(batch["images"])
    assert views.query.shape == ((BATCH, groups, 3, 32, 32) if groups else (BATCH, 3, 32, 32))
    loss = task.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite() and task.net.encoder_q.get_parameter("0.weight").grad is not None
    if task.beliefs is not None:
        assert task.beliefs.running[batch["place"], batch["half"]].isfinite().all()


def test_labels_of_change_add_the_other_half_to_the_negatives(ombria: Path) -> None:
    losses = {}
    for label in (UNSEEN, UNCHANGED, CHANGED):
        task, batch = task_and_batch(two_dates(ombria, "caco"))
        assert task.beliefs is not None
        task.beliefs.labels.fill_(label)
        losses[label] = float(task.training_step(batch, 0).detach())
    assert losses[UNSEEN] == losses[UNCHANGED] < losses[CHANGED]


def test_two_dates_are_drawn_as_each_method_needs_them(ombria: Path) -> None:
    drawn = {method: OmbriaDates(ombria, method, window=20) for method in METHODS}  # type: ignore[arg-type]
    assert all(len(data.places) == TILES for data in drawn.values()), "the later event is not read"
    for method in ("caco", "teco"):
        data = drawn[method]
        assert len(data) == 2 * TILES and [data.drawn(index) for index in (0, 1)] == [[0] * 3, [1] * 3]
        older, recent = data[0]["images"], data[1]["images"]  # the first tile is the same at both dates
        assert torch.equal(older, recent) and (older == older[0]).all() and older.shape == (3, 3, 20, 20)
    counts = {method: sorted(set(map(len, map(drawn[method].drawn, range(TILES))))) for method in METHODS[:3]}
    assert counts == {"moco": [1], "moco_tp": [2], "seco": [3]}
    assert all(sorted(drawn["moco_tp"].drawn(index)) == [0, 1] for index in range(TILES))
    assert {tuple(drawn["saco"].drawn(index)) for index in range(TILES)} == {(0, 0), (1, 1)}, "one date, seen twice"
    seco = drawn["seco"]
    assert {tuple(seco.drawn(index)) for index in range(TILES)} > {(0, 0, 1)} or any(
        len(set(seco.drawn(index))) == 1 for index in range(TILES)
    ), "with replacement"
    first = seco[3]["images"]
    seco.set_epoch(1)
    other = seco[3]["images"]
    seco.set_epoch(0)
    assert not torch.equal(first, other) and torch.equal(first, seco[3]["images"])


def test_rates_follow_the_method(ombria: Path) -> None:
    moco, saco = (tiny(name, ombria) for name in ("moco", "saco"))
    assert [round(rate_at(moco, part), 3) for part in (0, 0.59, 0.6, 0.8)] == [1, 1, 0.1, 0.01]
    assert rate_at(saco, 0.9) == 1 and (saco.optimising.kind, saco.optimising.lr) == ("adam", 1e-4)
    cosine = two_dates(ombria, "moco")
    assert rate_at(cosine, 0.025) == pytest.approx(0.5) and rate_at(cosine, 1.0) == pytest.approx(0)
    assert (moco.temperature, saco.temperature) == (0.07, 0.05)
    assert (moco.settings.hidden, two_dates(ombria, "saco", **{"momentum.hidden": None}).settings.hidden) == (
        None,
        (1024, 512),
    )


def test_one_class_of_change_is_told_once_and_keeps_the_labels(ombria: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, _ = task_and_batch(two_dates(ombria, "caco"))
    assert task.beliefs is not None
    task.beliefs.running.fill_(1.0)
    task.beliefs.labels[3, 1] = CHANGED
    with caplog.at_level(logging.WARNING):
        assert task._fit(task.beliefs) == {} and task._fit(task.beliefs) == {}
    (line,) = (record.getMessage() for record in caplog.records)
    assert "Epoch 1" in line and "make one class and not two" in line and "labels stay as they were" in line
    assert task.beliefs.labels[3, 1] == CHANGED and int((task.beliefs.labels == UNSEEN).sum()) == 2 * TILES - 1
    task.beliefs.running[:, :, 2] = torch.linspace(1, 1.1, 2 * TILES).reshape(TILES, 2)
    task.beliefs.running[:2, :, 2] = torch.tensor([[4.0, 4.2], [3.9, 4.1]])
    assert task._fit(task.beliefs)["changed_share"] == pytest.approx(4 / (2 * TILES))


# --- whole runs ---------------------------------------------------------------------------------------------------

ASKED = {
    "data.change_aware": 0.5,
    "data.batch_size": 8,
    "trainer.epochs": 2,
    "trainer.steps": None,
    "trainer.loggers": [],
}


@pytest.fixture(scope="module")
def written(ombria: Path) -> Path:
    """The shipped configuration made tiny."""
    values = two_dates(ombria, "caco", name="tiny", **ASKED).model_dump(mode="json")
    path = ombria / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def whole(written: Path) -> TrainResult:
    """CACo for two epochs of two steps, not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(written.parent / "whole"))
        return train(TrainRequest(config=written))


def test_a_run_leaves_a_trunk_its_card_and_what_it_believes(written: Path, whole: TrainResult) -> None:
    assert whole.card is not None and whole.weights is not None and whole.weights.exists()
    card, weights = load_trunk(whole.card)
    assert (card.method, card.trunk, card.bands) == ("caco", "resnet18", ("B11", "B8", "B3"))
    assert card.normalisation.lower == (1, 4, 6) and card.normalisation.upper == (135, 134, 115)
    stored = torch.load(whole.folder / "last.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(weights["layer4.1.conv2.weight"], stored["net.encoder_q.7.1.conv2.weight"])
    assert torch.equal(weights["bn1.running_mean"], stored["net.encoder_q.1.running_mean"])
    with (whole.folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0.0", "1.0"] and all(np.isfinite(float(row["loss"])) for row in rows)
    with (whole.folder / "change.csv").open() as file:
        change = list(csv.DictReader(file))
    assert [(row["location"], row["half"]) for row in change[:2]] == [("train/0001", "older"), ("train/0001", "recent")]
    assert len(change) == 2 * TILES and {"train/loss", "train/space_1", "train/similarity"} <= whole.metrics.keys()


def test_resumed_equals_uninterrupted(written: Path, whole: TrainResult, workspace: Path) -> None:
    def stop_at(step: int) -> Callable[[str, int, int], None]:
        def heard(stage: str, done: int, _: int) -> None:
            if stage == "train" and done == step:
                raise Cancelled("Stopped.")

        return heard

    within = {"trainer.checkpoint_batches": 1}
    with pytest.raises(Cancelled):
        train(TrainRequest(config=written, overrides=within), stop_at(4))
    last = torch.load(workspace / "training" / "tiny" / "last.ckpt", weights_only=False)
    assert (last["epoch"], last["global_step"]) == (1, 3), "in the middle of the second epoch"
    steps: list[int] = []

    def heard(stage: str, done: int, _: int) -> None:
        steps.extend([done] if stage == "train" else [])

    resumed = train(TrainRequest(config=written, overrides=within, resume=True), heard)
    assert steps == [4]
    one, other = (torch.load(run.folder / "last.ckpt", weights_only=False) for run in (whole, resumed))
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor.nan_to_num(), other["state_dict"][name].nan_to_num()), name
    for mine, its in zip(_momenta(one), _momenta(other), strict=True):
        assert torch.equal(mine, its)
    assert one["pretraining"]["history"] == other["pretraining"]["history"]
    assert load_trunk(whole.card)[0].sha256 == load_trunk(resumed.card)[0].sha256  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"begun with momentum\.queue 8, which is now 16"):
        train(TrainRequest(config=written, overrides={"momentum.queue": 16}, resume=True))


def _momenta(checkpoint: dict[str, Any]) -> list[Tensor]:
    (state,) = checkpoint["optimizer_states"]
    return [value["momentum_buffer"] for value in state["state"].values()]


def test_the_estimate_of_change_reaches_the_sampler(ombria: Path) -> None:
    config = two_dates(ombria, "caco", **{"data.change_aware": 0.2})
    task, _ = task_and_batch(config)
    sampler = series_loader(open_series(config), config).batch_sampler
    assert isinstance(sampler, ChangeAwareSampler) and task.beliefs is not None
    task.sampler = sampler
    task.beliefs.running.fill_(1.0)
    task.beliefs.running[2] = 9.0
    task._fit(task.beliefs)
    drawn = np.bincount([index // 2 for batch in sampler for index in batch], minlength=TILES)
    assert drawn[2] == drawn.max() > np.delete(drawn, 2).max()


@pytest.mark.slow
def test_two_processes_share_queue_and_beliefs(written: Path, workspace: Path) -> None:
    """One epoch of two processes sees every place once, whichever process drew it."""
    words = ["train", "start", "--config", str(written), "--set", "trainer.epochs=1", "--set", "trainer.devices=2"]
    words += ["--set", "data.batch_size=4"]
    environment = {**os.environ, "MMCD_WORKSPACE": str(workspace), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "mmcd", *words], env=environment, capture_output=True, text=True, timeout=900
    )
    assert found.returncode == 0, found.stderr
    with (workspace / "training" / "tiny" / "change.csv").open() as file:
        assert all(np.isfinite(float(row["ratio"])) for row in csv.DictReader(file))
    stored = torch.load(workspace / "training" / "tiny" / "last.ckpt", weights_only=False)
    assert stored["global_step"] == 2 and stored["state_dict"]["net.queue_ptr"].tolist() == [[0]] * 3


# --- what cannot be trained ---------------------------------------------------------------------------------------


def test_a_queue_that_is_no_multiple_of_all_batches_is_refused_at_once(written: Path, workspace: Path) -> None:
    with pytest.raises(ConfigError, match=r"queue of 10 keys is not a multiple of the 8 rows.*Choose a queue of 8"):
        train(TrainRequest(config=written, overrides={"momentum.queue": 10}))
    with pytest.raises(ConfigError, match=r"not a multiple of the 24 rows of a batch on all processes"):
        train(TrainRequest(config=written, overrides={"trainer.devices": 3}))


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"data.batch_size": 3}, ConfigError, "even data.batch_size"),
        ({"method": "seco"}, ConfigError, "follows CACo's estimate of change, which seco does not make"),
        ({"optimiser.drops": [0.6, 160]}, ConfigError, "optimiser.drops.1. .*less than or equal to 1"),
        ({"method": "saco", "data.change_aware": None, "groups.own": {}}, ConfigError, "groups.own.*at least 1 item"),
        ({"data.window": 64}, ConfigError, "window of 64 px does not fit tiles of 40 px"),
        ({"method": "saco", "data.change_aware": None, "groups.own": None}, DataError, "leave the group 'natural' out"),
        ({"data.batch_size": 32, "momentum.queue": 32}, DataError, "do not fill a batch"),
    ],
)
def test_what_does_not_go_together_is_named(
    written: Path, workspace: Path, overrides: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"(?i){words}"):
        train(TrainRequest(config=written, overrides=overrides))


def test_short_and_incomplete_series_are_named(series: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "set"
    shutil.copytree(series, root)
    homes = sorted(path for path in root.iterdir() if path.is_dir())
    for folder in sorted(homes[0].iterdir())[2:]:
        shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING):
        assert len(open_series(tiny("seco", root)).places) == 3
    assert f"{homes[0].name} is left out: 2 whole acquisitions, but 3 are needed" in caplog.text
    config = tiny("saco", root, **{"groups.preset": "readme"})
    with pytest.raises(DataError, match=r"'complementary_2' needs B7, B8, B10, but there is no B10.*'saco_code'"):
        PretrainTask(config, open_series(config).bands, 3)
    with pytest.raises(ConfigError, match="moco sees three bands as colours, not the 4"):
        tiny("moco", root, **{"data.bands": ["B4", "B3", "B2", "B8"]})


def test_a_tile_without_its_second_date_is_named(ombria: Path, tmp_path: Path) -> None:
    shutil.copytree(ombria, tmp_path / "cut")
    (tmp_path / "cut/OmbriaS2/train/AFTER/S2_after_0003.png").unlink()
    with pytest.raises(DataError, match="Tile train/0003 has no Sentinel-2 image after the event"):
        OmbriaDates(tmp_path / "cut", "seco")
