"""Probes of a trunk: what is learned, what is fixed, groups and textures, retrieval, seeds, and runs that are kept."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.feature import local_binary_pattern
from torch import Tensor
from torch.nn import functional as F

from mmcd.data.eurosat_files import FILE_BANDS
from mmcd.errors import Cancelled, ConfigError, DataError
from mmcd.models.probe import GroupClassifier, retrieve
from mmcd.services.train import TrainRequest, train
from mmcd.training.downstream import Benchmark, Outcome, RunPlace, run_seeds, summarise
from mmcd.training.eurosat_task import EuroSatConfig, class_figures
from mmcd.training.probe import Judge, Probed, run_probe
from mmcd.training.probe_features import ProbeFeatures, saco_transform
from mmcd.training.trunk_start import IMAGENET_NORMALISATION, TrunkScaling, TrunkStart, start_trunk, trunk_scaling

FAST = {"epochs": 25, "device": "cpu", "batch_size": 8, "loggers": []}
JUDGE = Judge(4, F.cross_entropy, class_figures, "accuracy")


class Colours:
    """Images of four colours with a little noise, 13 bands of 32 px."""

    bands: Sequence[str] = FILE_BANDS

    def __init__(self, seed: int, labels: Sequence[int], shown: Sequence[int] | None = None) -> None:
        self.labels = labels
        colours = np.random.default_rng(0).uniform(0.2, 0.8, (4, 13, 1, 1))
        noise = np.random.default_rng(seed).normal(0, 0.02, (len(labels), 13, 32, 32))
        self.images = torch.from_numpy((colours[list(shown or labels)] + noise).clip(0, 1)).float()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], torch.tensor(self.labels[index])


CLASSES = [0, 1, 2, 3] * 6
TRAIN, TEST = Colours(1, CLASSES), Colours(2, CLASSES)


def config(**groups: Any) -> EuroSatConfig:
    values: dict[str, Any] = {"data": {"root": "."}, "trainer": FAST, "optimiser": {"lr": 0.05}}
    return EuroSatConfig.model_validate(values | groups)


def probed(folder: Path, settings: EuroSatConfig, train_part: Colours = TRAIN) -> Probed:
    return run_probe(settings, JUDGE, {"train": train_part, "test": TEST}, 0, RunPlace(folder))


def accuracy(found: Probed) -> float:
    return class_figures(found.answers, found.rows.labels)["accuracy"]


# --- features ---


def test_a_frozen_trunk_stays_as_it_is_in_training_mode() -> None:
    images = torch.rand(4, 3, 32, 32)
    trunk = start_trunk(TrunkStart(), ("B4", "B3", "B2"), 3).train()
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    whole, alone = trunk(images), trunk(images[:1])
    assert torch.allclose(whole[:1], alone, atol=1e-5) and not whole.requires_grad
    assert all(torch.equal(tensor, trunk.state_dict()[name]) for name, tensor in before.items())
    assert torch.equal(start_trunk(TrunkStart(), ("B4", "B3", "B2"), 3)(images), whole)
    assert not torch.allclose(start_trunk(TrunkStart(), ("B4", "B3", "B2"), 4)(images), whole)
    assert start_trunk(TrunkStart(frozen=False), ("B4", "B3", "B2"), 3)(images).requires_grad


def test_maps_end_in_what_is_averaged() -> None:
    images = torch.rand(2, 3, 64, 96)
    for name in ("resnet18", "convnext_tiny"):
        trunk = start_trunk(TrunkStart(architecture=name), ("B4", "B3", "B2"), 0)
        maps = trunk.maps(images)
        assert {level: tuple(cells.shape[1:]) for level, cells in maps.items()} == {
            level: (trunk.channels[level], 64 // stride, 96 // stride) for level, stride in trunk.strides.items()
        }
        assert torch.allclose(maps[5].mean(dim=(2, 3)), trunk(images), atol=1e-5)


def test_groups_are_seen_one_by_one_and_by_the_name_of_their_bands() -> None:
    trunk = start_trunk(TrunkStart(), ("B4", "B3", "B2"), 0)
    images = torch.rand(2, 13, 32, 32)
    features, textures = ProbeFeatures(config(head={"groups": "readme"}), trunk, None, FILE_BANDS)(images)
    urban = images[:, [FILE_BANDS.index(band) for band in ("B12", "B11", "B4")]]
    assert features.shape == (2, 7, 512) and textures.shape == (2, 0)
    assert torch.allclose(features[:, 2], trunk(urban), atol=1e-5)
    preset = ProbeFeatures(config(head={"groups": "saco_code_eurosat"}), trunk, None, FILE_BANDS)(images)[0]
    agriculture = images[:, [FILE_BANDS.index(band) for band in ("B12", "B9", "B2")]]
    assert torch.allclose(preset[:, 3], trunk(agriculture), atol=1e-5)
    with pytest.raises(DataError, match="no band B8 among B4, B3, B2"):
        ProbeFeatures(config(head={"bands": ["B8"]}), trunk, None, ("B4", "B3", "B2"))
    with pytest.raises(DataError, match="The band group 'near_infrared' needs B8, B4, B3"):
        ProbeFeatures(config(head={"groups": "readme"}), trunk, None, ("B4", "B3", "B2"))


def test_histograms_are_those_of_scikit_image() -> None:
    images = torch.rand(2, 13, 32, 32)
    trunk = start_trunk(TrunkStart(), ("B4", "B3", "B2"), 0)
    head = {"texture": True, "texture_scale": "batch"}
    counts = ProbeFeatures(config(head=head), trunk, None, FILE_BANDS)(images)[1]
    for row, image in enumerate(images.numpy()):
        codes = [local_binary_pattern((band * 255).astype(int), 16, 2, "uniform") for band in image]
        expected = np.concatenate([np.bincount(each.astype(int).ravel(), minlength=18)[:16] for each in codes])
        assert counts[row].tolist() == expected.tolist()  # 208 values; codes 16 and 17 are dropped
    shares = ProbeFeatures(config(head={"texture": True}), trunk, None, FILE_BANDS)(images)[1]
    assert torch.allclose(shares, counts / 32**2)


def test_values_are_brought_to_what_a_trunk_learned_from() -> None:
    scaling = trunk_scaling(TrunkStart(trunk="imagenet"), ("B4", "B2", "B8"))
    assert scaling is not None and trunk_scaling(TrunkStart(), ("B4",)) is None
    found = scaling(torch.full((1, 3, 1, 1), 51.0)).flatten()
    mean, std = IMAGENET_NORMALISATION.mean, IMAGENET_NORMALISATION.std
    expected = [(0.2 - mean[0]) / std[0], (0.2 - mean[2]) / std[2], (0.2 - sum(mean) / 3) / (sum(std) / 3)]
    assert found.tolist() == pytest.approx(expected)
    assert TrunkScaling(IMAGENET_NORMALISATION, "ABC", "ABC")(torch.full((1, 3, 1, 1), 900.0)).flatten().tolist() == (
        pytest.approx([(1 - each) / other for each, other in zip(mean, std, strict=True)])
    )


# --- heads ---


def test_answers_of_groups_are_averaged_as_logits_or_as_the_source_does() -> None:
    head = GroupClassifier(5, 2, 3)
    features, textures = torch.randn(4, 7, 5), torch.randn(4, 2)
    each = torch.stack([head.linear(torch.cat([features[:, group], textures], dim=1)) for group in range(7)])
    assert torch.allclose(head(features, textures), each.mean(dim=0), atol=1e-6)
    source = GroupClassifier(5, 2, 3, mean="probabilities")
    source.load_state_dict(head.state_dict())
    assert torch.allclose(source(features, textures), each.softmax(dim=2).mean(dim=0), atol=1e-6)
    # A sure and right answer still costs log(1 + 2 / e), which is why logits are the default.
    with torch.no_grad():
        source.linear.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    loss = F.cross_entropy(source(features, textures), torch.zeros(4, dtype=torch.int64))
    assert loss.item() == pytest.approx(np.log(1 + 2 / np.e))


def test_retrieval_is_what_a_loop_finds() -> None:
    random = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 6, generator=random), torch.randint(0, 3, (40,), generator=random)
    queries, depth = torch.tensor([0, 7, 39]), 10
    precisions, recalls = [], []
    for query in queries.tolist():
        others = [row for row in range(40) if row != query]
        others.sort(key=lambda row: -F.cosine_similarity(features[query], features[row], dim=0).item())
        hits = sum(bool(labels[row] == labels[query]) for row in others[:depth])
        precisions.append(hits / depth)
        recalls.append(hits / sum(bool(labels[row] == labels[query]) for row in others))
    expected = float(np.mean(precisions)), float(np.mean(recalls))
    assert retrieve(features, labels, queries, depth) == pytest.approx(expected)
    assert np.isnan(retrieve(features, labels, queries, 40)).all()
    assert np.isnan(retrieve(features[:3], torch.tensor([0, 1, 2]), torch.tensor([0]), 2)[1])


# --- learning ---


def test_a_probe_learns_separable_kinds_and_nothing_from_shuffled_labels(tmp_path: Path) -> None:
    found = probed(tmp_path / "right", config(head={"bands": list(FILE_BANDS)}))
    assert accuracy(found) == 1.0 and set(found.weights) == {"head.linear.weight", "head.linear.bias"}
    assert found.how.startswith("computed once in evaluation mode")
    shuffled = Colours(1, [CLASSES[(row // 4 + row) % 4] for row in range(24)], shown=CLASSES)
    assert sorted(shuffled.labels) == sorted(CLASSES)
    assert accuracy(probed(tmp_path / "wrong", config(head={"bands": list(FILE_BANDS)}), shuffled)) < 0.6


def test_groups_and_textures_learn_too_by_default_and_as_the_source(tmp_path: Path) -> None:
    head = {"groups": "readme", "texture": True}
    found = probed(tmp_path / "ours", config(head=head))
    assert accuracy(found) == 1.0 and found.weights["head.linear.weight"].shape == (4, 512 + 208)
    source = head | {"groups": "saco_code_eurosat", "mean_of": "probabilities", "texture_scale": "batch"}
    answers = probed(tmp_path / "source", config(head=source)).answers
    assert torch.allclose(answers.sum(dim=1), torch.ones(len(answers)), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"start": {"frozen": False}}, {"weight", "statistics"}),
        ({"head": {"bn": "train"}}, {"statistics"}),
        ({"head": {"augment": "saco"}}, set()),
    ],
)
def test_what_of_a_trunk_moves(tmp_path: Path, changes: dict[str, Any], moved: set[str]) -> None:
    settings = config(**changes, trainer=FAST | {"epochs": 1})
    found = probed(tmp_path, settings)
    before = start_trunk(settings.start, ("B4", "B3", "B2"), 0).state_dict()
    after = {name.removeprefix("trunk."): value for name, value in found.weights.items() if "trunk." in name}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    kinds = {"weight": "body.0.weight", "statistics": "body.1.running_mean"}
    assert {kind for kind, name in kinds.items() if name in changed} == moved
    assert bool(after) == bool(moved)


def test_images_are_varied_within_their_size() -> None:
    torch.manual_seed(0)
    image = torch.rand(13, 64, 64)
    varied = [saco_transform()(image) for _ in range(8)]
    assert {tuple(each.shape) for each in varied} == {(13, 64, 64)}
    assert sum(not torch.equal(each, image) for each in varied) >= 6


def test_the_best_epoch_needs_a_part_to_choose_on(tmp_path: Path) -> None:
    settings = config(trainer=FAST | {"keep": "best", "epochs": 2})
    with pytest.raises(ConfigError, match="keep best needs a validation part"):
        probed(tmp_path, settings)
    parts = {"train": TRAIN, "val": TEST, "test": TEST}
    run_probe(settings, JUDGE, parts, 0, RunPlace(tmp_path))
    assert (tmp_path / "best.ckpt").is_file()


# --- seeds and runs ---


def test_seeds_are_summed_up_as_mean_and_spread() -> None:
    def task(config: EuroSatConfig, seed: int, place: RunPlace) -> Outcome:
        assert place.folder.is_dir() and not place.loggers
        place.progress("train", 1, 2)
        return Outcome({"accuracy": float(seed), "recall": float("nan")}, {}, {"test": 1}, "images")

    heard: list[str] = []
    benchmark = Benchmark("Toy", EuroSatConfig, task)
    rows, outcomes = run_seeds(benchmark, config(), (1, 2, 6), lambda stage, *_: heard.append(stage))
    assert [row["seed"] for row in rows] == [1, 2, 6, "mean", "sd"] and len(outcomes) == 3
    assert rows[3]["accuracy"] == 3 and rows[4]["accuracy"] == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert np.isnan(rows[3]["recall"]) and np.isnan(summarise([{"accuracy": 1.0}])[1]["accuracy"])
    assert heard == [f"seed {seed}{what}" for seed in (1, 2, 6) for what in ("", ": train")]


@pytest.mark.parametrize("seeds", [[0, 0], [], [-1]])
def test_seeds_are_different_ones(seeds: list[int], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"data: {{source: eurosat, root: .}}\nstart: {{seeds: {seeds}}}\n")
    with pytest.raises(ConfigError, match="seeds"):
        EuroSatConfig.from_yaml(tmp_path / "c.yaml")


def test_a_run_is_kept_and_found_by_its_source(eurosat_tree: Path, workspace: Path, tmp_path: Path) -> None:
    file = tmp_path / "euro.yaml"
    file.write_text(
        f"task: downstream\nname: euro\ndata: {{source: eurosat, root: {eurosat_tree}, images: ms}}\n"
        "head: {groups: readme}\noptimiser: {lr: 0.02}\ntrainer: {epochs: 3, device: cpu, loggers: []}\n"
    )
    done = train(TrainRequest(config=file, overrides={"trainer.epochs": 2}))
    assert set(load_file(done.weights or "")) == {"head.linear.weight", "head.linear.bias"} and done.card is None
    told = json.loads((done.folder / "result.json").read_text())
    assert told["figures"] == done.metrics and 0 <= done.metrics["accuracy"] <= 1
    assert told["samples"] == {"train": 20, "val": 10, "test": 10} and told["trunk"] == "random"
    assert np.sum(told["details"]["confusion"]["counts"]) == 10
    with pytest.raises(ConfigError, match=r"begun with trainer.epochs 2, which is now 3"):
        train(TrainRequest(config=file, resume=True))
    with pytest.raises(ConfigError, match="exists"):
        train(TrainRequest(config=file))
    with pytest.raises(ConfigError, match=r"no downstream task on data.source 'none'. Write bigearthnet, eurosat"):
        train(TrainRequest(config=file, overrides={"data.source": "none"}))


@pytest.mark.parametrize("head", ["dropout: 0.5", "augment: saco"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    eurosat_tree: Path, workspace: Path, tmp_path: Path, head: str
) -> None:
    file = tmp_path / "euro.yaml"
    file.write_text(
        f"task: downstream\nname: whole\ndata: {{source: eurosat, root: {eurosat_tree}}}\nhead: {{{head}}}\n"
        "trainer: {epochs: 3, batch_size: 8, device: cpu, loggers: []}\n"
    )
    whole = load_file(train(TrainRequest(config=file)).weights or "")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "train" and done == 5:  # of 2 steps an epoch
            raise Cancelled("Stopped.")

    request = TrainRequest(config=file, overrides={"name": "broken"})
    with pytest.raises(Cancelled):
        train(request, stop)
    found = load_file(train(request.model_copy(update={"resume": True})).weights or "")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    kept = torch.load(workspace / "training" / "broken" / "last.ckpt", weights_only=False)["state_dict"]
    assert kept.keys() == {"head.linear.weight", "head.linear.bias"}, "no frozen trunk"


def test_optimisers_of_a_task_keep_its_schedule_when_one_value_is_changed() -> None:
    changed = EuroSatConfig.model_validate({"data": {"root": "."}, "optimiser": {"lr": 1e-5}})
    assert changed.optimiser.schedule == "multistep" and changed.optimiser.milestones == (60, 80)
