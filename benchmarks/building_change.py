"""Train, compare, release and try ``building-change-sim`` on simulated pairs of towns it never saw.

    python benchmarks/building_change.py train      # three seeds of each network, each about five minutes on a core
    python benchmarks/building_change.py table      # results of the finished runs on the test towns
    python benchmarks/building_change.py release    # write weights/building-change-sim.*: the seed validation prefers
    python benchmarks/building_change.py measure --root DIR --name NAME   # the released weights on other pairs
    python benchmarks/building_change.py xbd --root DIR --out DIR   # destroyed buildings of xBD as pairs to evaluate

The fusion UNet of reference system 1 (made small: see the configuration), the same with the absolute difference
instead of both feature maps side by side (the siamese difference network, which is released), and both images stacked
into one U-Net. All start from random weights, see the same pairs and take the same 320 steps. Those are few: what is
compared is what is learned in five minutes. Positive is changed; pixels are pooled over the test towns. Calibration and
threshold are fitted on the towns of val.

``measure`` is ``mmcd evaluate --dataset levir`` with the row kept in the card. ``xbd`` writes pairs of xBD (images/ and
labels/) in LEVIR-CD's layout, with what is graded destroyed as change: another question than the network was trained
for.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image
from rasterio.features import rasterize
from seeds import (
    Row,
    Run,
    differences,
    finished_runs,
    name_of,
    release_weights,
    rounded,
    scored,
    summarise,
    train_once,
)

from mmcd.cards import Decision, find_card, read_card, write_card
from mmcd.data.levir import LevirPairs
from mmcd.evaluation import ScoreCounts, average_precision, summary
from mmcd.paths import workspace
from mmcd.services.evaluate import EvaluateRequest, evaluate
from mmcd.services.evaluate_levir import macro_dice
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_levir import simulate_levir
from mmcd.training.config import ChangeTraining
from mmcd.training.validation import fit_decision

ROOT = Path(__file__).resolve().parent.parent
NAME = "building-change-sim"
CONFIG = ROOT / f"configs/{NAME}.yaml"
PAIRS, SIZE, FIRST = 360, 256, 9_000_000
SEEDS = (0, 1, 2)
SMALL = {"trunk": "resnet18", "levels": 3, "width": 0.5, "embed_dim": 256, "finetune": True}
RELEASED = "siamese difference"
MODELS: dict[str, dict[str, Any]] = {
    "fusion unet": {"model.settings": {**SMALL, "fusion": "concat"}},
    RELEASED: {},
    "early-fusion unet": {"model.architecture": "early_fusion_unet", "model.settings": {"trunk": "resnet18"}},
}
"""What differs from the configuration in each network."""

FIGURES = ("pixel_auc", "average_precision", "f1", "iou", "macro_dice_with_background")
KEPT = ("tiles", "unit", "threshold", *FIGURES, "best_f1", "prevalence", "baselines", "warnings")


def pairs() -> Path:
    """Return the folder of the simulated pairs, written once."""
    root = workspace() / "building-change"
    if not root.exists():
        simulate_levir(SimulateRequest(out=root, scenes=PAIRS, size=SIZE, seed=FIRST, layout="levir"))
    return root


def train_all() -> None:
    root = str(pairs())
    for seed in SEEDS:
        for model, changes in MODELS.items():
            train_once(CONFIG, name_of(NAME, model, seed), {"seed": seed, "export": None, "data.root": root, **changes})


def tests(_: ChangeTraining) -> tuple[LevirPairs, NDArray[np.intp]]:
    """Return the pairs of the test towns."""
    found = LevirPairs(pairs(), "test")
    return found, found.rows["test"]


def rows(runs: list[Run]) -> list[Row]:
    """Return one row a run; calibration and threshold are fitted on the towns of val."""
    table = []
    for run in runs:
        decision = decision_of(run)
        counts = ScoreCounts.of(scored(run.test, decision), run.test.changed)
        figures = summary(counts, decision.threshold)
        row = {"model": run.model, "score": "head", "split": "test", "seed": run.seed}
        whole = {"macro_dice_with_background": macro_dice(counts, decision.threshold)}
        table.append(row | {"threshold": decision.threshold, **figures, **whole})
    return table


def decision_of(run: Run) -> Decision:
    return fit_decision(run.held_out, float(run.held_out.changed.mean()), (1.0,), cosine=False)


def compared(table: list[Row]) -> list[Row]:
    """Return means over seeds, and the lead of the released network over the others."""
    others = [(model, "head") for model in MODELS if model != RELEASED]
    return summarise(table, (*FIGURES, "ece")) + differences(table, (RELEASED, "head"), others, FIGURES)


def release(runs: list[Run], table: list[Row]) -> None:
    """Write the seed that validation prefers and its card."""
    best = max((run for run in runs if run.model == RELEASED), key=validation_ap)
    config = ChangeTraining.from_yaml(CONFIG, {"seed": best.seed})
    path = release_weights(NAME, config, best.folder, best.held_out, float(best.held_out.changed.mean()))
    mark = {"dataset": "simulated", "command": "python benchmarks/building_change.py table"}
    write_card(read_card(path).model_copy(update={"metrics": tuple(mark | row for row in compared(table))}), path)


def validation_ap(run: Run) -> float:
    return average_precision(ScoreCounts.of(scored(run.held_out, decision_of(run)), run.held_out.changed))


def measure(root: Path, name: str) -> None:
    """Measure the released weights on pairs in LEVIR-CD's layout and keep the row in their card."""
    found = evaluate(EvaluateRequest(model=NAME, dataset="levir", root=root))
    row = rounded({"dataset": name, **{key: found[key] for key in KEPT}})
    print(json.dumps(row))
    path, card = find_card(NAME)
    others = tuple(old for old in card.metrics if old["dataset"] != name)
    write_card(card.model_copy(update={"metrics": (*others, row)}), path)


def write_xbd(root: Path, out: Path) -> None:
    """Write pairs of xBD in LEVIR-CD's layout: 255 where a building is graded destroyed after the event."""
    for post in sorted((root / "images").glob("*_post_disaster.png")):
        name = post.name.removesuffix("_post_disaster.png")
        graded = json.loads((root / "labels" / f"{name}_post_disaster.json").read_text())["features"]["xy"]
        gone = [shapely.from_wkt(item["wkt"]) for item in graded if item["properties"]["subtype"] == "destroyed"]
        with Image.open(post) as image:
            shape = (image.height, image.width)
        label = rasterize(gone, shape, default_value=255, dtype=np.uint8) if gone else np.zeros(shape, np.uint8)
        for folder in ("A", "B", "label"):
            (out / "test" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / "images" / f"{name}_pre_disaster.png", out / "test" / "A" / f"{name}.png")
        shutil.copyfile(post, out / "test" / "B" / f"{name}.png")
        Image.fromarray(label).save(out / "test" / "label" / f"{name}.png")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["train", "table", "release", "measure", "xbd"])
    options.add_argument("--root", type=Path, help="folder of the pairs, or of xBD's images and labels")
    options.add_argument("--name", help="what the measured pairs are, for the card")
    options.add_argument("--out", type=Path, help="folder for the pairs of xBD")
    chosen = options.parse_args()
    if chosen.action == "train":
        train_all()
    elif chosen.action == "measure":
        if chosen.root is None or chosen.name is None:
            options.error("measure needs --root and --name")
        measure(chosen.root, chosen.name)
    elif chosen.action == "xbd":
        if chosen.root is None or chosen.out is None:
            options.error("xbd needs --root and --out")
        write_xbd(chosen.root, chosen.out)
    else:
        runs = finished_runs(NAME, MODELS, SEEDS, tests)
        table = rows(runs)
        for line in (*table, *compared(table)):
            print(json.dumps(rounded(line)))
        if chosen.action == "release":
            release(runs, table)


if __name__ == "__main__":
    main()
