"""`mmcd evaluate` on pretrained trunks: seeds, trunks of all kinds, published tables, and words at odds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.config import Config
from mmcd.errors import ConfigError, DataError, ModelError, UsageError
from mmcd.models.trunk_weights import save_trunk, trunk_shapes
from mmcd.services.evaluate import EvaluateRequest, evaluate
from mmcd.services.evaluate_request import DOWNSTREAM
from mmcd.services.published_downstream import published_downstream
from mmcd.training.benchmarks import BENCHMARKS, read_downstream
from mmcd.trunk_cards import Normalisation, TrunkCard

ROOT = Path(__file__).resolve().parents[2]
SHORT = "task: downstream\ndata: {{source: {}, root: unused}}\noptimiser: {{lr: 0.05}}\ntrainer: {{epochs: 2}}\n"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EuroSAT's task in two epochs."""
    path = tmp_path_factory.mktemp("config") / "short.yaml"
    path.write_text(SHORT.format("eurosat"))
    return path


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a trunk of two bands, one of them unknown to colour images."""
    path = tmp_path_factory.mktemp("trunk") / "tiny.safetensors"
    torch.manual_seed(7)
    weights = {
        name: torch.zeros(shape, dtype=torch.int64) if name.endswith("tracked") else torch.rand(shape) * 0.1
        for name, shape in trunk_shapes("resnet18", 2).items()
    }
    card = TrunkCard(
        name="tiny-trunk",
        version="1",
        title="Untrained",
        description="For tests.",
        trunk="resnet18",
        method="seco",
        bands=("B4", "B8"),
        normalisation=Normalisation(lower=(0, 0), upper=(129, 103), mean=(0.4, 0.5), std=(0.2, 0.3), words="as it is"),
        licence={"weights": "Apache-2.0"},
    )
    save_trunk(weights, card, path)
    return path.with_suffix(".toml")


def measured(root: Path, config: Path | None, **words: Any) -> dict[str, Any]:
    options = {"model": "random", "dataset": "eurosat", "device": "cpu", "config": config} | words
    return evaluate(EvaluateRequest.checked(root=root, **options))


def test_every_seed_is_told_with_mean_and_spread(eurosat_tree: Path, short: Path) -> None:
    result = measured(eurosat_tree, short, seeds=2)
    assert list(result["seeds"]) == ["0", "1"] and result["samples"] == {"train": 20, "test": 20}
    figures = [row["accuracy"] for row in result["seeds"].values()]
    assert result["mean"]["accuracy"] == pytest.approx(sum(figures) / 2)
    assert result["sd"]["accuracy"] == pytest.approx(abs(figures[0] - figures[1]) / 2**0.5)
    assert result["mean"]["precision@20"] is None  # 19 other images
    assert any("2 seeds have no spread" in line for line in result["warnings"])
    assert result["start"] == {"trunk": "random", "architecture": "resnet18", "learned": "the head"}
    assert result["config"]["data"]["root"] == str(eurosat_tree)
    again = measured(eurosat_tree, short, seeds=1)
    assert again["seeds"]["0"] == result["seeds"]["0"] and again["sd"]["accuracy"] is None
    assert json.dumps(result, allow_nan=False)


def test_a_trunk_is_taken_with_its_card_and_adapted(eurosat_tree: Path, short: Path, trunk: Path) -> None:
    result = measured(eurosat_tree, short, model=str(trunk), seeds=1)
    assert result["start"]["method"] == "seco" and result["start"]["bands"] == "B4 B8"
    wished = short.with_name("wished.yaml")
    wished.write_text(short.read_text().replace("root: unused", "root: unused, scaling: trunk"))
    assert 0 <= measured(eurosat_tree, wished, model=str(trunk), seeds=1)["mean"]["accuracy"] <= 1
    with pytest.raises(ModelError, match="no trunk called 'nobody'"):
        measured(eurosat_tree, short, model="nobody")


def test_the_defaults_are_the_shipped_configuration() -> None:
    def plain(config: Config) -> dict[str, Any]:
        return config.model_dump(mode="json")

    for name in ("eurosat", "bigearthnet"):
        benchmark, shipped = read_downstream(ROOT / "configs" / f"{name}.yaml", {})
        assert benchmark is BENCHMARKS[name]
        assert plain(shipped) == plain(benchmark.config.model_validate({"data": {"root": f"data/{name}"}}))
    saco = read_downstream(ROOT / "configs" / "eurosat-saco.yaml", {})[1]
    assert saco.trainer.keep == "best"


def test_published_figures_come_with_what_is_wrong_with_them() -> None:
    (table,) = published_downstream("oscd")
    off = {}
    for name, row in table["rows"].items():
        precision, recall = row["oscd_precision"], row["oscd_recall"]
        off[name] = 2 * precision * recall / (precision + recall)
    wrong = {name: f"{value:.2f}" for name, value in off.items() if abs(value - table["rows"][name]["oscd_f1"]) > 0.1}
    assert wrong == {"SeCo": "48.42", "SACo": "51.04"}
    assert all(value in table["remarks"][0] for value in wrong.values())
    assert "adds 0.2" in published_downstream("pastis")[0]["remarks"][0]
    assert published_downstream("gid") == [] and len(published_downstream("eurosat")) == 2
    text = json.dumps([published_downstream(name) for name in ("eurosat", "oscd", "pastis", "bigearthnet")])
    # Remembered, not read: CACo's paper on OSCD, BigEarthNet and DynamicEarthNet, SeCo's paper on EuroSAT.
    assert not any(value in text for value in ("52.1,", "81.3", "87.0", "42.7", "27.9", "63.21", "89.51"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"dataset": "ombria", "seeds": 3}, "--seeds and --config are for pretrained trunks"),
        ({"dataset": "levir", "config": Path("x.yaml")}, "--seeds and --config are for pretrained trunks"),
        ({"split": "test"}, "--split is not for eurosat"),
        ({"event": "flood"}, "--event is not for eurosat"),
        ({"scores": Path("out")}, "--scores is not for eurosat"),
        ({"backend": "onnx"}, "--backend is not for eurosat"),
        ({"lists": Path("lists")}, "are BRIGHT's"),
        ({"one_shot": True}, "are BRIGHT's"),
        ({"seeds": 0}, "--seeds 0"),
    ],
)
def test_options_of_one_data_set_are_refused_for_others(words: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        EvaluateRequest.checked(**({"model": "random", "dataset": "eurosat", "root": Path()} | words))


def test_a_configuration_has_to_be_of_the_data_set(tmp_path: Path, eurosat_tree: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(SHORT.format("nowhere"))
    with pytest.raises(ConfigError, match=r"no downstream task on data.source 'nowhere'"):
        measured(eurosat_tree, other)
    other.write_text(SHORT.format("eurosat").replace("lr: 0.05", "lr: fast"))
    with pytest.raises(ConfigError, match=r"`optimiser.lr` input should be a valid number"):
        measured(eurosat_tree, other)
    with pytest.raises(DataError, match="holds no EuroSAT"):
        measured(tmp_path, None)


def test_the_command_prints_tables_and_json(eurosat_tree: Path, short: Path) -> None:
    words = ["evaluate", "--model", "random", "--dataset", "eurosat", "--root", str(eurosat_tree), "--device", "cpu"]
    more = ["--config", str(short), "--seeds", "1"]
    done = CliRunner().invoke(app, [*words, *more], catch_exceptions=False)
    assert done.exit_code == 0
    assert all(text in done.stdout for text in ("balanced_accuracy", "seed 0", "mean", "93.08", "Retrieval", "linear"))
    told = json.loads(CliRunner().invoke(app, [*words, *more, "--json"], catch_exceptions=False).stdout)
    assert told["title"] == "Ten kinds of land, EuroSAT" and len(told["published"]) == 2


def test_every_data_set_that_may_be_named_has_a_task_of_that_source() -> None:
    assert set(DOWNSTREAM) == set(BENCHMARKS)
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.config.model_validate({"data": {"root": "."}}).data.source == name
