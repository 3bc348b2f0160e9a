"""What alignment and adaptation do for ``damage-vhr-sim`` on simulated scenes that are displaced or look different.

    python benchmarks/robustness.py align           post displaced by 0, 4, 8 and 16 px
    python benchmarks/robustness.py adapt           post with another gain, gamma, offset, speckle or look angle
    python benchmarks/robustness.py align --split validation --scenes 10     the scenes that the criterion was set on

Every scene is one that the card names; training saw none of them. The limits of the alignment were set on validation
scenes, so figures are quoted from test scenes. A scene is simulated 32 px larger than it is used, so that a displaced
image shows real ground up to its edge. All figures are over pooled pixels; positive is damaged or destroyed. Where an
aligned image shows nothing, nothing is assessed.
"""

import argparse
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Card, find_card
from mmcd.data.simulated import SceneSet
from mmcd.evaluation import ScoreCounts, average_precision, metrics_at
from mmcd.geo.catalog import Scene
from mmcd.geo.raster import output_grid
from mmcd.inference.adaptation import adapt
from mmcd.inference.alignment import find_alignment
from mmcd.inference.engine import score_whole
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.services.simulate import PLACES, write_scene
from mmcd.simulate import SceneSpec, SimulatedScene, simulate_scene

MARGIN = 16
SHIFTS = (0, 4, 8, 16)
DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))
ALPHAS = (0.9, 0.7, 0.5)

Bytes = NDArray[np.uint8]
Look = Callable[[Bytes], Bytes]

LOOKS: dict[str, Look] = {
    "as trained": lambda post: post,
    "gain 0.6": lambda post: _stored(0.6 * post),
    "gain 1.6": lambda post: _stored(1.6 * post),
    "gamma 0.7": lambda post: _stored(255 * (post / 255) ** 0.7),
    "gamma 1.4": lambda post: _stored(255 * (post / 255) ** 1.4),
    "offset 30": lambda post: _stored(post + 30.0),
}
"""What another calibration or display stretch does to the stored amplitude."""
UNSEEN: dict[str, dict[str, Any]] = {
    "1 look": {"looks": 1},
    "16 looks": {"looks": 16},
    "20 degrees": {"incidence": 20.0},
    "60 degrees": {"incidence": 60.0},
}
"""Speckle and look angles that training never showed: it draws 2 to 4 looks and incidences of 28 to 50 degrees."""


def _stored(values: NDArray[np.floating[Any]]) -> Bytes:
    stored: Bytes = np.clip(values + 0.5, 1, 255).astype(np.uint8)
    return stored


def specs(card: Card, split: str, count: int) -> list[SceneSpec]:
    """Return scenes of a split of the card, spread over its families, larger by the margin."""
    options = card.training["data"]["scenes"]
    every = SceneSet.model_validate(options[split]).specs(options["size"] + 2 * MARGIN, options["gsd"])
    # A stride without a factor in common with the numbers of families meets all of them.
    return [every[7 * number % len(every)] for number in range(count)]


def displaced(scene: SimulatedScene, rows: int, cols: int) -> SimulatedScene:
    """Return the middle of a scene; the content of its radar image lies some rows and columns further on."""
    side = scene.spec.size - 2 * MARGIN
    kept = slice(MARGIN, MARGIN + side)
    moved = slice(MARGIN - rows, MARGIN - rows + side), slice(MARGIN - cols, MARGIN - cols + side)
    return replace(
        scene,
        spec=replace(scene.spec, size=side),
        pre=scene.pre[:, kept, kept],
        post=scene.post[:, *moved],
        label=scene.label[kept, kept],
        buildings=(),
    )


class Bench:
    """A model, the scenes it is measured on, and the counts of every condition."""

    def __init__(self, model: str, split: str, count: int, folder: Path, score: bool) -> None:
        path, self.card = find_card(model)
        self.predictor = Predictor.load(path)
        self.specs = specs(self.card, split, count)
        self._folder, self._score = folder, score
        self.counts: defaultdict[str, list[ScoreCounts]] = defaultdict(list)

    def write(self, scene: SimulatedScene) -> Scene:
        return write_scene(self._folder, "scene", PLACES[0], scene)

    def open(self, scene: Scene) -> PairReader:
        return PairReader(scene.pre, scene.post, self.card, output_grid(scene.pre, scene.post, self.card.gsd.nominal))

    def count(self, condition: str, reader: PairReader, label: Bytes, predictor: Predictor | None = None) -> None:
        """Score a scene under a condition and keep its counts."""
        if self._score:
            score = score_whole(reader, predictor or self.predictor)
            self.counts[condition].append(ScoreCounts.of(score, label >= 2))

    def repeat(self, condition: str, like: str) -> None:
        """Keep the last scene's counts of one condition for another, whose scores are the same."""
        if self._score:
            self.counts[condition].append(self.counts[like][-1])

    def table(self) -> dict[str, dict[str, float]]:
        """Return AP and F1 of every condition, pooled, and the mean over scenes."""
        rows = {}
        for name, scenes in self.counts.items():
            total = sum(scenes[1:], start=scenes[0])
            rows[name] = {
                "ap": round(average_precision(total), 4),
                "ap_mean_of_scenes": round(float(np.mean([average_precision(scene) for scene in scenes])), 4),
                "f1": round(metrics_at(total, self.card.decision.threshold)["f1"], 4),
            }
        return rows


def measure_alignment(bench: Bench, shifts: Sequence[int]) -> dict[str, Any]:
    found = []
    for number, spec in enumerate(bench.specs):
        whole = simulate_scene(spec)
        direction = DIRECTIONS[number % len(DIRECTIONS)]
        for length in shifts:
            rows, cols = (length * part for part in direction)
            scene = bench.write(displaced(whole, rows, cols))
            label = whole.label[MARGIN:-MARGIN, MARGIN:-MARGIN]
            with bench.open(scene) as reader:
                bench.count(f"{length} px", reader, label)
                result = find_alignment(bench.predictor, reader)
                reader.shift = result.shift
                if result.applied:
                    bench.count(f"{length} px aligned", reader, label)
                else:
                    bench.repeat(f"{length} px aligned", f"{length} px")
            error = math.hypot(result.dy_px - rows, result.dx_px - cols)
            found.append((length, round(error, 1), result.gain, result.confidence, result.applied, spec.event))
            print(*found[-1], flush=True)
    return {
        "applied": {length: sum(row[4] for row in found if row[0] == length) for length in shifts},
        "largest_error_px_where_applied": {
            length: max((row[1] for row in found if row[0] == length and row[4]), default=None) for length in shifts
        },
    }


def measure_adaptation(bench: Bench, conditions: Sequence[str]) -> dict[str, Any]:
    drift: defaultdict[str, list[float]] = defaultdict(list)
    for spec in bench.specs:
        for look, scene in looks(spec, conditions):
            label = scene.label
            with bench.open(bench.write(scene)) as reader:
                bench.count(look, reader, label)
                for alpha in ALPHAS:
                    adapted, result = adapt(bench.predictor, reader, alpha)
                    bench.count(f"{look}, alpha {alpha}", reader, label, adapted)
                drift[look].append(result.drift)
    return {"drift": {look: round(float(np.mean(values)), 3) for look, values in drift.items()}}


def looks(spec: SceneSpec, conditions: Sequence[str]) -> Iterator[tuple[str, SimulatedScene]]:
    """Yield a scene as it was trained on and as other radars and processors would show it."""
    scene = displaced(simulate_scene(spec), 0, 0)
    for name in conditions:
        if name in LOOKS:
            yield name, replace(scene, post=LOOKS[name](scene.post))
        else:
            yield name, displaced(simulate_scene(replace(spec, **UNSEEN[name])), 0, 0)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("what", choices=("align", "adapt"))
    options.add_argument("--model", default="damage-vhr-sim", help="name, or path of a card")
    options.add_argument("--split", default="test", choices=("validation", "test"))
    options.add_argument("--scenes", type=int, default=12)
    options.add_argument("--shifts", type=int, nargs="+", default=SHIFTS, help="pixels of displacement, up to 16")
    options.add_argument(
        "--looks", nargs="+", default=(*LOOKS, *UNSEEN), choices=(*LOOKS, *UNSEEN), help="conditions of adapt"
    )
    options.add_argument("--no-score", action="store_true", help="only say what is found")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(chosen.model, chosen.split, chosen.scenes, Path(folder), not chosen.no_score)
        if chosen.what == "align":
            measured = measure_alignment(bench, chosen.shifts)
        else:
            measured = measure_adaptation(bench, chosen.looks)
    facts = {"model": f"{bench.card.name} {bench.card.version}", "split": chosen.split, "scenes": chosen.scenes}
    print(json.dumps(facts | measured, indent=2))
    for name, row in bench.table().items():
        print(f"{name:28s}", *(f"{key} {value:.4f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
