"""Train, compare and release `flood-s2s1`: three seeds beside an early-fusion U-Net of the same split and schedule.

    python benchmarks/flood_s2s1.py train     # ten runs, each about 7 minutes on a quiet core
    python benchmarks/flood_s2s1.py table     # out-of-fold and ALBANIA results of the finished runs
    python benchmarks/flood_s2s1.py release   # write weights/flood-s2s1.* and measure them

Every seed holds out another fold of the main set. Fold 0, more than half of which is one scene that is flooded to
0.6, always trains: it is the least like an event in use. The released weights learned from all folds by the same
schedule; their threshold and calibration are fitted on the three seeds' held-out outputs, never on ALBANIA.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import seeds
from numpy.typing import NDArray
from seeds import WEIGHTS, Row, Run, differences, release_weights, report, rounded, scored, summarise, train_once

from mmcd.cards import Decision, read_card, write_card
from mmcd.data.ombria import Ombria
from mmcd.errors import ConfigError
from mmcd.evaluation import ScoreCounts, summary
from mmcd.paths import workspace
from mmcd.services.evaluate import EvaluateRequest, evaluate
from mmcd.training.config import ChangeTraining
from mmcd.training.validation import SHIFTS, Outputs, ShiftedCounts, fit_decision

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/flood-s2s1.yaml"
MODELS: dict[str, tuple[Path, dict[str, Any]]] = {
    "siamese": (CONFIG, {}),
    "unet": (ROOT / "configs/flood-s2s1-unet.yaml", {}),
    "siamese without InfoNCE": (CONFIG, {"loss.infonce": 0.0}),
}
"""Configuration of each model and what differs from it."""
SEEDS = {0: 1, 1: 2, 2: 3}
"""Seed and the fold it holds out."""
RELEASE = "flood-s2s1-all"
"""The run over all folds."""
TEST_EVENT = "ALBANIA"
FIGURES = ("pixel_auc", "average_precision", "f1")
BOTH = "head + cosine"
"""The score that is shipped."""


def name_of(model: str, seed: int) -> str:
    return seeds.name_of("flood-s2s1", model, seed)


def train_all() -> None:
    for seed, fold in SEEDS.items():
        for model, (config, changes) in MODELS.items():
            train_once(config, name_of(model, seed), {"seed": seed, "data.fold": fold, "export": None, **changes})
    train_once(CONFIG, RELEASE, {"data.fold": None})


def finished_runs() -> list[Run]:
    return seeds.finished_runs("flood-s2s1", MODELS, SEEDS, tests)


def tests(config: ChangeTraining) -> tuple[Ombria, NDArray[np.intp]]:
    """Return the tiles of the test event."""
    dataset = Ombria(config.data.root, TEST_EVENT, (config.pre, config.post))
    return dataset, np.arange(len(dataset))


def measure(outputs: Outputs, decision: Decision, share: float) -> dict[str, float]:
    """Return the figures as they are and, where the tiles allow it, F1 at the lower shares of change."""
    scores = scored(outputs, decision)
    figures = summary(ScoreCounts.of(scores, outputs.changed), decision.threshold)
    shifted = ShiftedCounts.of(scores, outputs.changed)
    for label, part in zip(("third", "tenth"), SHIFTS, strict=True):
        low = summary(shifted.at_share(part * share), decision.threshold)
        figures |= {f"ap_{label}": low["average_precision"], f"f1_{label}": low["f1"]}
    return figures


def others(runs: list[Run], run: Run) -> Outputs:
    """Return the held-out outputs of the same model's other seeds, or its own while it has none."""
    rest = [other.held_out for other in runs if other.model == run.model and other.seed != run.seed]
    return Outputs.pooled(rest or [run.held_out])


def rows(runs: list[Run], share: float) -> list[Row]:
    """Return one row a run and a part of the score; the threshold is fitted on the other seeds' folds."""
    table = []
    shifts = ChangeTraining.from_yaml(CONFIG).data.shifts
    for run in runs:
        parts = {"head": (True, False)}
        if run.model != "unet":
            parts |= {"cosine": (False, True), BOTH: (True, True)}
        for part, (head, cosine) in parts.items():
            decision = fit_decision(others(runs, run), share, shifts, head=head, cosine=cosine)
            for split, outputs in (("held-out fold", run.held_out), (TEST_EVENT, run.test)):
                row = {"model": run.model, "score": part, "split": split, "seed": run.seed}
                table.append(row | {"threshold": decision.threshold} | measure(outputs, decision, share))
    return table


def compared(table: list[Row]) -> list[Row]:
    """Return means over seeds, and the lead of the released model over each other one."""
    shares = ("ap_third", "f1_third", "ap_tenth", "f1_tenth")
    means = summarise(table, (*FIGURES, *shares, "ece"))
    others = [(model, "head" if model == "unet" else BOTH) for model in list(MODELS)[1:]]
    return means + differences(table, ("siamese", BOTH), others, (*FIGURES, "ap_third"))


def release(runs: list[Run], share: float, table: list[Row]) -> None:
    """Write the weights of the run over all folds and their card, then measure them once on the path users take."""
    config = ChangeTraining.from_yaml(CONFIG, {"data.fold": None})
    if config.export is None:
        raise ConfigError(f"{CONFIG} has no export block.", "Add it: it holds the card's words.")
    history = earlier_candidates(WEIGHTS / "flood-s2s1.toml", config.export.version)
    pooled = Outputs.pooled([run.held_out for run in runs if run.model == "siamese"])
    path = release_weights("flood-s2s1", config, workspace() / "training" / RELEASE, pooled, share)
    mark = {"candidate": config.export.version, "command": "python benchmarks/flood_s2s1.py table"}
    metrics = [mark | row for row in compared(table)]
    found = evaluate(
        EvaluateRequest(model=str(path), dataset="ombria", root=config.data.root, event=TEST_EVENT), report
    )
    log = {
        "candidate": config.export.version,
        "model": "flood-s2s1",
        "split": TEST_EVENT,
        "command": f"mmcd evaluate --model flood-s2s1 --dataset ombria --root DIR --event {TEST_EVENT} --json",
        **{name: round(found[name], 4) for name in (*FIGURES, "iou", "ece", "prevalence", "threshold")},
    }
    write_card(read_card(path).model_copy(update={"metrics": (log, *metrics, *history)}), path)
    print(json.dumps(log, indent=1))


def earlier_candidates(card: Path, version: str) -> list[Row]:
    """Return the results of earlier candidates: every look at the test event stays in the card."""
    if not card.exists():
        return []
    return [row for row in read_card(card).metrics if row.get("candidate") not in (None, version)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train", "table", "release"])
    action = parser.parse_args().action
    if action == "train":
        train_all()
        return
    runs = finished_runs()
    share = float(Ombria(runs[0].config.data.root).changed_share.mean())
    table = rows(runs, share)
    for line in (*table, *compared(table)):
        print(json.dumps(rounded(line)))
    if action == "release":
        release(runs, share, table)


if __name__ == "__main__":
    main()
