"""Train, compare, release and measure ``damage-vhr-sim`` on simulated scenes of families it never saw.

    python benchmarks/damage_vhr_sim.py train      # three seeds of each model, each 15 to 30 minutes on a quiet core
    python benchmarks/damage_vhr_sim.py table      # results of the finished runs on the test scenes
    python benchmarks/damage_vhr_sim.py release    # write weights/damage-vhr-sim.*: the seed that validation prefers
    python benchmarks/damage_vhr_sim.py measure    # the released weights the way of a user's scene, into the card

``measure`` takes ``--samples`` for the scenes of sample_data/ and ``--gsd 1.0`` for another pixel size: scenes are
written as COGs (optical as JPEG), read back, scored block by block and stored as bytes. Positive is damaged or
destroyed; pixels are pooled over all scenes. A building counts as found when the rules of `mmcd.buildings` grade it
damaged or worse at the threshold that was fitted on the validation scenes.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
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

from mmcd.buildings import count_buildings, read_footprints
from mmcd.cards import Card, Decision, find_card, read_card, write_card
from mmcd.data.simulated import SceneSet, Simulated
from mmcd.evaluation import ScoreCounts, average_precision, roc_auc, summary
from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid
from mmcd.geo.raster import RasterSource, output_grid
from mmcd.inference.engine import score_whole
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.paths import sample_data_dir
from mmcd.services.simulate import PLACES, write_scene
from mmcd.simulate import simulate_scene
from mmcd.simulate.events import DAMAGED
from mmcd.training.config import ChangeTraining, SimulatedDataConfig
from mmcd.training.validation import Outputs, fit_decision

ROOT = Path(__file__).resolve().parent.parent
NAME = "damage-vhr-sim"
CONFIG = ROOT / f"configs/{NAME}.yaml"
MODELS: dict[str, tuple[Path, dict[str, Any]]] = {
    "siamese": (CONFIG, {}),
    "unet": (ROOT / f"configs/{NAME}-unet.yaml", {}),
    "siamese without own-pair negatives": (CONFIG, {"loss.own_negatives": False}),
}
"""Configuration of each model and what differs from it."""
SEEDS = (0, 1, 2)
BOTH = "head + cosine"
FIGURES = ("pixel_auc", "average_precision", "f1", "building_f1")
SMOOTHING = 9
"""Pixels of the mean filter of the radar baselines: 4.5 m takes most of the speckle and keeps a house."""

KEPT = ("pixel_auc", "average_precision", "f1", "iou", "precision", "recall", "best_f1", "ece", "prevalence")


def train_all() -> None:
    for seed in SEEDS:
        for model, (config, changes) in MODELS.items():
            train_once(config, name_of(NAME, model, seed), {"seed": seed, "export": None, **changes})


def tests(config: ChangeTraining) -> tuple[Simulated, NDArray[np.intp]]:
    """Return the tiles of the test scenes."""
    scenes = scenes_of(config).scenes
    none = scenes.training.model_copy(update={"scenes": 1})
    dataset = Simulated(
        scenes.model_copy(update={"training": none, "validation": scenes.test, "test": scenes.validation})
    )
    return dataset, dataset.validation


def scenes_of(config: ChangeTraining) -> SimulatedDataConfig:
    if not isinstance(config.data, SimulatedDataConfig):
        raise TypeError(f"{config.name} was not trained on simulated scenes")
    return config.data


def rows(runs: list[Run], towns: dict[str, Scene]) -> list[Row]:
    """Return one row a run and a part of the score; the threshold is fitted on the validation scenes."""
    table = []
    for run in runs:
        parts = {"head": (True, False)}
        if run.model != "unet":
            parts |= {"cosine": (False, True), BOTH: (True, True)}
        for part, (head, cosine) in parts.items():
            decision = decision_of(run, head, cosine)
            scores = scored(run.test, decision)
            figures = summary(ScoreCounts.of(scores, run.test.changed), decision.threshold)
            found = building_f1(run.test, scores, towns, decision.threshold)
            row = {"model": run.model, "score": part, "split": "test", "seed": run.seed}
            table.append(row | {"threshold": decision.threshold, **figures, "building_f1": found})
    return table


def decision_of(run: Run, head: bool = True, cosine: bool = True) -> Decision:
    return fit_decision(run.held_out, float(run.held_out.changed.mean()), (1.0,), head, cosine)


def building_f1(outputs: Outputs, scores: NDArray[np.uint8], towns: dict[str, Scene], threshold: float) -> float:
    """Return the F1 of "damaged or destroyed" over all buildings of the test scenes."""
    hits = found = true = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, score in whole_scenes(outputs, scores).items():
            town = towns[name]
            grid = output_grid(town.pre, town.post, None)
            path = write_cog(Path(folder) / f"{name}.tif", score, grid)
            table = count_buildings(path, read_footprints(town.footprints)).at(threshold).frame.set_index("id")
            truth = geopandas.read_file(town.footprints).astype({"id": str}).set_index("id")["grade"] >= DAMAGED
            damaged = table["grade"].isin(["damaged", "destroyed"]).reindex(truth.index, fill_value=False)
            hits += int((damaged & truth).sum())
            found += int(damaged.sum())
            true += int(truth.sum())
    return 2 * hits / max(found + true, 1)


def whole_scenes(outputs: Outputs, scores: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Return the tiles of each scene put together, by the scene's name."""
    side = scores.shape[1]
    corners = [tuple(int(part) for part in name.rsplit("/", 1)[1].split("-")) for name in outputs.ids]
    size = max(max(corner) for corner in corners) + side
    scenes: dict[str, NDArray[np.uint8]] = {}
    for (row, col), group, score in zip(corners, outputs.groups, scores, strict=True):
        scene = scenes.setdefault(group, np.zeros((size, size), np.uint8))
        scene[row : row + side, col : col + side] = score
    return scenes


def compared(table: list[Row]) -> list[Row]:
    """Return means over seeds, and the lead of the released model over each other one."""
    others = [(model, "head" if model == "unet" else BOTH) for model in list(MODELS)[1:]]
    return summarise(table, (*FIGURES, "ece")) + differences(table, ("siamese", BOTH), others, FIGURES)


def release(runs: list[Run], table: list[Row]) -> None:
    """Write the weights that validation prefers and their card."""
    best = max((run for run in runs if run.model == "siamese"), key=validation_ap)
    config = ChangeTraining.from_yaml(CONFIG, {"seed": best.seed})
    path = release_weights(NAME, config, best.folder, best.held_out, float(best.held_out.changed.mean()))
    mark = {"dataset": "simulated", "command": "python benchmarks/damage_vhr_sim.py table"}
    write_card(read_card(path).model_copy(update={"metrics": tuple(mark | row for row in compared(table))}), path)


def validation_ap(run: Run) -> float:
    return average_precision(ScoreCounts.of(scored(run.held_out, decision_of(run)), run.held_out.changed))


def test_scenes(scenes: SceneSet, size: int, gsd: float, folder: Path) -> Iterator[Scene]:
    """Simulate and write the test scenes at a pixel size in metres."""
    for number, spec in enumerate(scenes.specs(size, gsd)):
        name = f"{spec.event}-{spec.layout}-{spec.palette}-{spec.seed}"
        yield write_scene(folder, name, PLACES[number % len(PLACES)], simulate_scene(spec))


def read_in(path: Path, grid: Grid) -> NDArray[np.uint8]:
    """Return the first band of a file in a grid, nearest pixel, shape (H, W)."""
    with RasterSource(path) as source:
        values: NDArray[np.uint8] = source.aligned(grid, "nearest").read(grid.window).data[0].astype(np.uint8)
    return values


def count_scene(scene: Scene, card: Card, predictor: Predictor) -> dict[str, ScoreCounts]:
    """Return the counts of the model and of each baseline over one scene."""
    grid = output_grid(scene.pre, scene.post, card.gsd.nominal)
    with PairReader(scene.pre, scene.post, card, grid) as reader:
        score = score_whole(reader, predictor)
    if scene.label is None:
        raise ValueError(f"{scene.id} has no label")
    label = read_in(scene.label, grid)
    radar = np.clip(uniform_filter(read_in(scene.post, grid).astype(np.float32), SMOOTHING), 1, 254).astype(np.uint8)
    maps = {
        "model": score,
        "dark_sar": (255 - radar).astype(np.uint8),
        "bright_sar": radar,
        "every_true_building": np.where(label > 0, 255, 1).astype(np.uint8),
    }
    return {name: ScoreCounts.of(values, label >= DAMAGED) for name, values in maps.items()}


def measure(scenes: Iterator[Scene], card: Card, predictor: Predictor) -> dict[str, Any]:
    """Return metrics over all scenes, the baselines' and those by kind of event."""
    total: defaultdict[str, ScoreCounts] = defaultdict(ScoreCounts.none)
    events: defaultdict[str, ScoreCounts] = defaultdict(ScoreCounts.none)
    number = 0
    for number, scene in enumerate(scenes, start=1):  # noqa: B007  the count is reported
        counts = count_scene(scene, card, predictor)
        for name, table in counts.items():
            total[name] += table
        events[scene.event_type] += counts["model"]
    figures = summary(total["model"], card.decision.threshold)
    return {
        "scenes": number,
        "unit": "pixels of all scenes pooled",
        "threshold": card.decision.threshold,
        **{name: figures[name] for name in KEPT},
        "baselines": {
            name: {"pixel_auc": roc_auc(table), "average_precision": average_precision(table)}
            for name, table in total.items()
            if name != "model"
        },
        "by_event": {
            event: {name: summary(table, card.decision.threshold)[name] for name in ("average_precision", "f1")}
            for event, table in sorted(events.items())
        },
    }


def measure_released(samples: bool, gsd: float) -> None:
    """Measure the released weights the way of a user's own scene and keep the row in their card."""
    path, card = find_card(NAME)
    options = ChangeTraining.from_yaml(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        if samples:
            row: Row = {"dataset": "sample_data"}
            scenes = iter(Catalog.open(sample_data_dir()).scenes())
        else:
            row = {"dataset": "simulated", "split": "test", "gsd": gsd}
            held = scenes_of(options).scenes
            scenes = test_scenes(held.test, held.size, gsd, Path(folder))
        row |= rounded(measure(scenes, card, Predictor.load(path)))
    print(json.dumps(row, indent=2))
    same = ("dataset", "split", "gsd", "command")
    others = [old for old in card.metrics if any(old.get(key) != row.get(key) for key in same)]
    write_card(card.model_copy(update={"metrics": (*others, row)}), path)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("action", choices=["train", "table", "release", "measure"])
    options.add_argument("--samples", action="store_true", help="measure on sample_data/")
    options.add_argument("--gsd", type=float, default=0.5, help="pixel size of the test scenes in metres")
    chosen = options.parse_args()
    if chosen.action == "train":
        train_all()
        return
    if chosen.action == "measure":
        measure_released(chosen.samples, chosen.gsd)
        return
    runs = finished_runs(NAME, MODELS, SEEDS, tests)
    held = scenes_of(ChangeTraining.from_yaml(CONFIG)).scenes
    with tempfile.TemporaryDirectory() as folder:
        towns = {scene.id: scene for scene in test_scenes(held.test, held.size, held.gsd, Path(folder))}
        table = rows(runs, towns)
    for line in (*table, *compared(table)):
        print(json.dumps(rounded(line)))
    if chosen.action == "release":
        release(runs, table)


if __name__ == "__main__":
    main()
