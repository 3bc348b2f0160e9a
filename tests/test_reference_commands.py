"""What docs/reference-systems.md tells to type runs as it stands there, on a smaller tree with a smaller network."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mmcd.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "reference-systems.md"
TILE = 160
CONFIG = {
    "context_patch_size": 64,
    "patch_stride": 32,
    "data": {"batch_size": 4, "neg_ratio": 0.5, "target_neg_ratio": 0.5, "subset_fraction": 0.2, "workers": 0},
    "model": {"trunk": "resnet18", "pretrained": "none"},
    "trainer": {"epochs": 1, "device": "cpu", "loggers": []},
}
"""What is smaller than in the shipped configuration."""

SMALLER = {
    "data simulate": f"--size {TILE} --gsd 1 --scenes 6",
    "infer threshold": "--device cpu",
    "infer predict": "--device cpu --stride 64",
    "train plot": "--device cpu --samples 1",
    "evaluate --model": "--device cpu",
}
"""Options that shorten a command."""


def commands(number: int) -> list[list[str]]:
    """Return the words of the commands in one of the document's blocks."""
    block = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[number]
    return [shlex.split(line) for line in block.splitlines()]


def merged(config: dict, changes: dict) -> dict:
    return config | {
        key: merged(config[key], value) if isinstance(value, dict) else value for key, value in changes.items()
    }


def run(words: list[str]) -> dict:
    """Run a command with ``--json`` and return what it says."""
    assert words[0] == "mmcd"
    more = shlex.split(SMALLER.get(" ".join(words[1:3]), ""))
    done = CliRunner().invoke(app, [*words[1:], *more, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def place(tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, with a smaller configuration under the shipped one's name."""
    monkeypatch.chdir(tmp_path)
    shipped = yaml.safe_load((ROOT / "configs" / "reference0.yaml").read_text())
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "reference0.yaml").write_text(yaml.safe_dump(merged(shipped, CONFIG)))
    return tmp_path


def test_the_commands_of_system_0_run_one_after_the_other(place: Path, workspace: Path) -> None:
    found = {}
    for words in commands(0):
        if words[1:3] == ["infer", "threshold"]:  # the card is given by its path
            (place / "reference0.toml").symlink_to(found["train start"]["card"])
            (place / "reference0.safetensors").symlink_to(found["train start"]["weights"])
        found[" ".join(words[1:3])] = run(words)
    assert found["data index"]["stats"]["total"]["total_patches"] > 20
    assert 0 <= found["infer threshold"]["auc"] <= 1
    assert (place / "output" / "threshold" / "threshold_analysis.png").is_file()
    evaluated = found["infer predict"]["distance"]["evaluation"]
    assert [row["threshold"] for row in evaluated["thresholds"]] == [0.8, 1.0, 1.25, 1.5]
    assert (place / "output" / "predictions" / "change_prediction.png").is_file()


CONFIG_1 = {
    "data": {"size": 128, "batch_size": 2, "validation_batch_size": 1, "workers": 0},
    "model": {
        "settings": {"trunk": "resnet18", "levels": 3, "width": 0.125},
        "pretrained": "none",
        "force_random_trunk": True,
    },
    "trainer": {"epochs": 1, "device": "cpu", "loggers": []},
}


def test_the_commands_of_system_1_run_one_after_the_other(place: Path, workspace: Path) -> None:
    shipped = yaml.safe_load((ROOT / "configs" / "reference1.yaml").read_text())
    (place / "configs" / "reference1.yaml").write_text(yaml.safe_dump(merged(shipped, CONFIG_1)))
    found = {}
    for words in commands(2):
        if words[1] == "evaluate":
            (place / "reference1.toml").symlink_to(found["train start"]["card"])
            (place / "reference1.safetensors").symlink_to(found["train start"]["weights"])
        found[" ".join(words[1:3])] = run(words)
    measured = found["evaluate --model"]
    assert measured["tiles"] >= 1 and 0 < measured["macro_dice_with_background"] <= 1
    assert (place / "results.png").is_file() and len(found["train plot"]["pairs"]) == 1


TASKS = {
    "eurosat": {"trainer": {"epochs": 2, "device": "cpu", "loggers": []}},
    "eurosat-saco": {
        "trainer": {"epochs": 1, "device": "cpu", "loggers": []},
        "head": {"groups": "readme", "augment": "none"},
    },
    "bigearthnet": {"trainer": {"epochs": 1, "device": "cpu", "loggers": []}},
}


def test_the_commands_of_features_run_one_after_the_other(
    place: Path, eurosat_tree: Path, bigearthnet_tree: Path
) -> None:
    (place / "data").mkdir()
    for name, tree in (("eurosat", eurosat_tree), ("bigearthnet", bigearthnet_tree)):
        (place / "data" / name).symlink_to(tree)
    for name, changes in TASKS.items():
        shipped = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        (place / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(merged(shipped, changes)))
    section = DOCUMENT.read_text().split("## Systems 2 and 3: what a trunk's features are worth")[1]
    block = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0]
    found = [run(shlex.split(line)) for line in block.splitlines()]
    assert [each["dataset"] for each in found if "dataset" in each] == ["eurosat", "bigearthnet"]
    assert all(list(each["seeds"]) == ["0", "1", "2"] for each in found if "seeds" in each)
    kept = [Path(each["folder"]) for each in found if "folder" in each]
    assert [json.loads((folder / "result.json").read_text())["samples"]["train"] for folder in kept] == [20, 20]
