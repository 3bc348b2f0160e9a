"""Shared by the benchmarks that train: several seeds of several models, their means and their differences."""

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.calibration import LogisticCalibration
from mmcd.cards import Decision, file_sha256
from mmcd.data.base import PairDataset
from mmcd.errors import ConfigError
from mmcd.models import zoo
from mmcd.paths import workspace
from mmcd.services.train import TrainRequest, train
from mmcd.training.config import ChangeTraining
from mmcd.training.release import write_card_of
from mmcd.training.tasks import ChangeTask
from mmcd.training.trainer import predict
from mmcd.training.validation import Outputs

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

Row = dict[str, Any]
"""Figures of one run: ``model``, ``score``, ``split`` and ``seed`` say which, the rest are numbers."""

TestSet = Callable[[ChangeTraining], tuple[PairDataset, NDArray[np.intp]]]
"""Returns the samples that a run of a configuration is tested on: a data set, and which of it."""

KEYS = ("model", "score", "split")


@dataclass(frozen=True)
class Run:
    """A finished training run and its outputs on samples that it has not seen."""

    model: str
    seed: int
    folder: Path
    config: ChangeTraining
    held_out: Outputs
    test: Outputs


def name_of(family: str, model: str, seed: int) -> str:
    """Return the name of the run of a model, of those that are compared as one family, with a seed."""
    return f"{family}-{model.replace(' ', '-').lower()}-seed{seed}"


def finished_runs(family: str, models: Iterable[str], seeds: Iterable[int], tests: TestSet) -> list[Run]:
    """Return the runs that are done, by model and seed, with their outputs on validation and test samples."""
    seeds = tuple(seeds)
    runs = []
    for model in models:
        for seed in seeds:
            folder = workspace() / "training" / name_of(family, model, seed)
            if (folder / f"{folder.name}.safetensors").exists():
                config = ChangeTraining.from_yaml(folder / "config.yaml")
                held_out = Outputs.load(folder / "held_out.npz")
                runs.append(Run(model, seed, folder, config, held_out, test_outputs(folder, config, tests)))
    return runs


def test_outputs(folder: Path, config: ChangeTraining, tests: TestSet) -> Outputs:
    """Return the outputs on the test samples, computed once for each trained run."""
    stored = folder / "test.npz"
    if not stored.exists():
        task = ChangeTask(config, training_share=0.0)
        zoo.load_weights(task.model, folder / f"{config.name}.safetensors")
        dataset, indices = tests(config)
        predict(task, dataset, indices, config).save(stored)
    return Outputs.load(stored)


def scored(outputs: Outputs, decision: Decision) -> NDArray[np.uint8]:
    """Return the stored scores of tiles under a decision, shape (N, H, W)."""
    return outputs.scored(LogisticCalibration(decision.head_weight, decision.cosine_weight, decision.intercept))


def release_weights(name: str, config: ChangeTraining, folder: Path, outputs: Outputs, share: float) -> Path:
    """Copy a run's weights among the shipped ones and write their card; return its path.

    Args:
        name: Name of the shipped model.
        config: What the card says, with words for it.
        folder: The run.
        outputs: Outputs on samples that the run did not learn from, which fit the decision.
        share: Share of change of the data.

    Raises:
        ConfigError: The configuration has no words for a card.
    """
    if config.export is None:
        raise ConfigError(f"The configuration of {name} has no export block.", "Add it: it holds the card's words.")
    weights = WEIGHTS / f"{name}.safetensors"
    shutil.copyfile(folder / f"{folder.name}.safetensors", weights)
    return write_card_of(config, config.export, weights, file_sha256(weights), outputs, share)


def train_once(config: Path, name: str, changes: Mapping[str, Any]) -> Path:
    """Train unless an earlier call did; return the run's folder."""
    folder = workspace() / "training" / name
    if not (folder / f"{name}.safetensors").exists():
        train(TrainRequest(config=config, overrides={"name": name, **changes}), report)
    return folder


def report(stage: str, done: int, total: int) -> None:
    """Print progress now and then."""
    if done % 20 == 0:
        print(f"{stage} {done}/{total}", file=sys.stderr, flush=True)


def summarise(table: Sequence[Row], figures: Iterable[str]) -> list[Row]:
    """Return mean and standard deviation over seeds of every model, score and split."""
    lines = []
    for which in sorted({tuple(row[key] for key in KEYS) for row in table}):
        chosen = [row for row in table if tuple(row[key] for key in KEYS) == which]
        line: Row = dict(zip(KEYS, which, strict=True)) | {"seeds": len(chosen)}
        for figure in figures:
            values = [row[figure] for row in chosen]
            line[figure] = round(float(np.mean(values)), 4)
            line[f"{figure}_sd"] = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else 0.0
        lines.append(line)
    return lines


def differences(
    table: Sequence[Row], reference: tuple[str, str], others: Iterable[tuple[str, str]], figures: Iterable[str]
) -> list[Row]:
    """Return the mean difference of a model to others of the same seed and split, over its spread.

    Args:
        table: Rows of all runs.
        reference: Model and score whose lead is measured.
        others: Models and scores to compare with.
        figures: Figures to compare.
    """
    lines = []
    splits = sorted({row["split"] for row in table})
    for (model, score), split, figure in ((o, s, f) for o in others for s in splits for f in figures):
        mine, its = (
            {row["seed"]: row[figure] for row in table if tuple(row[key] for key in KEYS) == (*which, split)}
            for which in (reference, (model, score))
        )
        gaps = np.array([mine[seed] - its[seed] for seed in mine.keys() & its.keys()])
        if len(gaps) > 1:
            mean, spread = float(gaps.mean()), float(gaps.std(ddof=1))
            line = {"difference to": model, "split": split, "figure": figure, "seeds": len(gaps)}
            lines.append(
                line | {"mean": round(mean, 4), "sd": round(spread, 4), "mean_over_sd": round(mean / spread, 2)}
            )
    return lines


def rounded(value: Any) -> Any:
    """Return nested figures with four decimals."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value
