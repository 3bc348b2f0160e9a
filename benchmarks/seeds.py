"""Shared by the benchmarks that train: several seeds of several models, their means and their differences."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmcd.paths import workspace
from mmcd.services.train import TrainRequest, train

Row = dict[str, Any]
"""Figures of one run: ``model``, ``score``, ``split`` and ``seed`` say which, the rest are numbers."""

KEYS = ("model", "score", "split")


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
