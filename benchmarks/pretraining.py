"""Repeats what the project claims of pretraining: on OMBRIA's two dates, and of CACo's change labels on known truth.

    python benchmarks/pretraining.py train                  # methods x seeds; skips finished ones
    python benchmarks/pretraining.py train --methods caco,saco --seeds 1 --steps 100
    python benchmarks/pretraining.py table                  # random weights and all trained ones on three tasks
    python benchmarks/pretraining.py change-labels          # AUC of d_LT / d_ST against truth

``train`` leaves runs ``ombria-METHOD-seedN`` in the workspace, each with its trunk and card. All methods take the same
number of steps of the same number of images; a run that was stopped goes on where it was.

``table`` scores the frozen trunks of ``train`` and random ones, see ``pretraining_proof.py``; rows are kept in
``pretraining.json`` in the workspace's ``training`` and not computed again.

``change-labels`` simulates seasonal series, part of which changed between their halves, trains CACo on them and asks
how well the running ratio tells them apart. Nothing of the truth is seen in training.
"""

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pretraining_proof import MEASURED, RAW, judge_trunk, read_floods, taizhou
from seeds import report, rounded
from sklearn.metrics import roc_auc_score

from mmcd.paths import workspace
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_seasonal import simulate_seasonal
from mmcd.services.train import TrainRequest, train

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
METHODS = ("moco", "seco", "caco", "saco")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="pretrain on OMBRIA, method after method")
    training.add_argument("--data", type=Path, default=Path("../shared/data/ombria"))
    training.add_argument("--methods", default=",".join(METHODS))
    training.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    training.add_argument("--steps", type=int, help="steps of a run; the configuration's when left out")
    proof = commands.add_parser("table", help="score the frozen trunks on three tasks")
    proof.add_argument("--data", type=Path, default=Path("../shared/data/ombria"))
    proof.add_argument("--landsat", type=Path, default=Path("../shared/data/landsat_taizhou"))
    proof.add_argument("--methods", default=",".join(METHODS))
    proof.add_argument("--seeds", type=int, default=3, help="seeds 0 to N - 1")
    proof.add_argument("--tiles", type=int, help="about so many tiles of the main set only, to try it")
    labels = commands.add_parser("change-labels", help="CACo's estimate of change against simulated truth")
    labels.add_argument("--locations", type=int, default=64)
    labels.add_argument("--size", type=int, default=96, help="px of 10 m, a multiple of 6")
    labels.add_argument("--epochs", type=int, default=12)
    labels.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.command == "train":
        pretrain(chosen.data, chosen.methods.split(","), range(chosen.seeds), chosen.steps)
    elif chosen.command == "table":
        print_table(prove(chosen.data, chosen.landsat, chosen.methods.split(","), range(chosen.seeds), chosen.tiles))
    else:
        for seed in range(chosen.seeds):
            print(json.dumps(change_labels(chosen.locations, chosen.size, chosen.epochs, seed)), flush=True)


def run_name(method: str, seed: int) -> str:
    """Return the name of a run on OMBRIA."""
    return f"ombria-{method}-seed{seed}"


def pretrain(data: Path, methods: Sequence[str], seeds: Sequence[int], steps: int | None) -> None:
    """Train every method with every seed, unless an earlier call did; seed after seed, so that one is soon complete."""
    for seed in seeds:
        for method in methods:
            changes: dict[str, Any] = {"method": method, "seed": seed, "data.root": str(data)}
            folder = train_on(
                CONFIGS / "pretrain-ombria.yaml",
                run_name(method, seed),
                changes | ({"trainer.steps": steps} if steps else {}),
            )
            print(f"{folder.name}: {last_epoch(folder)}", flush=True)


def train_on(config: Path, name: str, changes: Mapping[str, Any]) -> Path:
    """Train unless an earlier call did, or go on with what one began; return the run's folder."""
    folder = workspace() / "training" / name
    if not (folder / f"{name}.toml").exists():
        begun = (folder / "last.ckpt").exists()
        train(TrainRequest(config=config, overrides={"name": name, **changes}, resume=begun), report)
    return folder


def last_epoch(folder: Path) -> dict[str, float]:
    """Return the figures of the last epoch of a run."""
    with (folder / "history.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    return {name: round(float(value), 4) for name, value in row.items() if value}


def prove(
    data: Path, landsat: Path, methods: Sequence[str], seeds: Sequence[int], tiles: int | None
) -> list[dict[str, Any]]:
    """Score random weights and every finished run, and return a row for each; rows of earlier calls are kept."""
    store = workspace() / "training" / "pretraining.json"
    rows: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() and tiles is None else []
    main, event = read_floods(data, tiles)
    for seed in seeds:
        for model in (RAW, MEASURED, *methods):
            card = workspace() / "training" / run_name(model, seed) / f"{run_name(model, seed)}.toml"
            known = any((row["model"], row["seed"]) == (model, seed) for row in rows)
            if known or (model not in (RAW, MEASURED) and not card.exists()):
                continue
            trunk = model if model in (RAW, MEASURED) else str(card)
            row = {"model": model, "seed": seed, **judge_trunk(trunk, seed, main, event, landsat)}
            rows.append(row)
            print(json.dumps(rounded(row)), file=sys.stderr, flush=True)
            if tiles is None:
                store.write_text(json.dumps(rows, indent=1) + "\n")
    return [*rows, {"model": "pixels", "seed": 0, **taizhou(None, landsat)}]


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print mean and standard deviation over seeds of every figure."""
    figures = ("a_auc_folds", "a_auc_event", "b_ap_fold", "b_ap_event", "c_auc")
    print(f"{'two-date mode':<30}{'seeds':>6}" + "".join(f"{name:>18}" for name in figures))
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        cells = []
        for name in figures:
            values = [row[name] for row in own if name in row]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{f'{np.mean(values):.3f}{spread}' if values else '-':>18}")
        print(f"{model:<30}{len(own):>6}" + "".join(cells))


def change_labels(locations: int, size: int, epochs: int, seed: int) -> dict[str, Any]:
    """Train CACo on simulated series and return the AUC of its ratio against the truth.

    Half of the locations changed. The AUC is of locations, each by the mean over its halves; chance is 0.5.
    """
    with tempfile.TemporaryDirectory(prefix="mmcd-series-") as place:
        root = Path(place) / "series"
        request = SimulateRequest(
            out=root, scenes=locations, size=size, gsd=10, layout="seasonal", seed=1000 * (seed + 1)
        )
        simulate_seasonal(request, report)
        batch = 16
        changes = {
            "name": f"change-labels-{Path(place).name}",
            "seed": seed,
            "data.root": str(root),
            "data.size": size,
            "data.batch_size": batch,
            "data.workers": 0,
            "momentum.queue": 8 * batch,
            "momentum.momentum": 0.99,
            "views.crop": 64,
            "views.order": "crop_first",
            "trainer.epochs": epochs,
            "trainer.loggers": [],
        }
        run = train(TrainRequest(config=CONFIGS / "pretrain-caco.yaml", overrides=changes), report)
        return {"seed": seed, "locations": locations, "epochs": epochs, **judge(root, run.folder)}


def judge(root: Path, folder: Path) -> dict[str, float]:
    """Return how well ratio, distances and labels of a run tell changed locations from others."""
    with (root / "changed.csv").open() as file:
        truth = {row["location"]: row["changed"] == "1" for row in csv.DictReader(file)}
    with (folder / "change.csv").open() as file:
        rows = list(csv.DictReader(file))
    changed = np.array([truth[row["location"]] for row in rows]).reshape(-1, 2)[:, 0]
    figures = {}
    for column in ("ratio", "d_long", "d_short"):
        values = np.array([float(row[column]) for row in rows]).reshape(-1, 2)
        known = np.isfinite(values).all(axis=1)
        figures[f"auc_{column}"] = round(float(roc_auc_score(changed[known], values[known].mean(axis=1))), 4)
    labels = np.array([int(row["label"]) for row in rows]).reshape(-1, 2) == 1
    figures["labels_right"] = round(float((labels == changed[:, None]).mean()), 4)
    figures["labelled_changed"] = round(float(labels.mean()), 4)
    return figures


if __name__ == "__main__":
    sys.exit(main())
