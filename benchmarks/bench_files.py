"""Parts g and h: curves over all thresholds, and the file that a score is stored in.

Both take the shipped model's score of a sample scene, repeated to the wanted size.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from bench_table import Options, Row, Target, duration, interleaved, number
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from mmcd.cards import find_card
from mmcd.evaluation import ScoreCounts, precision_recall_f1
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import RasterSource, output_grid
from mmcd.inference.engine import plan_blocks
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.score import decode_score, encode_score
from mmcd.services.scenes import get_scene
from mmcd.simulate.events import DAMAGED

MODEL, SCENE = "damage-vhr-sim", "simulated-earthquake-organic-02"

CURVE_SIDE, FILE_SIDE = 2500, 4096


def curves(options: Options) -> list[Row]:
    """Part g: precision, recall and F1 at every stored threshold against scikit-learn's curve of the same scores."""
    probability, target = (_repeated(values, CURVE_SIDE) for values in _scene())
    score = encode_score(probability, np.ones(probability.shape, bool))
    decoded, truth = decode_score(score).ravel(), target.ravel()

    def scikit() -> NDArray[np.float64]:
        precision, recall, _ = precision_recall_curve(truth, decoded)
        return 2 * precision * recall / np.maximum(precision + recall, 1e-12)

    times = interleaved(
        {"mmcd": lambda: precision_recall_f1(ScoreCounts.of(score, target)), "scikit-learn": scikit}, options.rounds
    )
    mine, its = times["mmcd"].median, times["scikit-learn"].median
    against = f"{duration(its)}: scikit-learn's precision_recall_curve"
    what = f"F1 at all thresholds, {CURVE_SIDE:,} x {CURVE_SIDE:,}"
    return [Row("g", what, duration(mine), against, its / mine, target=Target(50))]


def score_file(options: Options) -> list[Row]:
    """Part h: the score as mmcd stores it, written and read back, against GDAL's default COG of float probabilities."""
    grid = Grid("EPSG:32634", Affine(0.5, 0, 400_000, 0, -0.5, 4_600_000), FILE_SIDE, FILE_SIDE)
    probability = _repeated(_scene()[0], FILE_SIDE)
    score = encode_score(probability, np.ones(probability.shape, bool))
    with tempfile.TemporaryDirectory() as folder:
        mine, its = Path(folder) / "score.tif", Path(folder) / "float.tif"
        works = {
            "mmcd": lambda: write_cog(mine, score, grid),
            "gdal": lambda: _write_float(its, probability, grid),
        }
        times = interleaved(works, options.rounds)
        sizes = [path.stat().st_size / 1e6 for path in (mine, its)]
    fast, slow = times["mmcd"].median, times["gdal"].median
    what = f"score COG, {FILE_SIDE:,} x {FILE_SIDE:,}"
    return [
        Row("h", f"{what}, time", duration(fast), f"{duration(slow)}: GDAL's float32", slow / fast, target=Target(3)),
        Row("h", f"{what}, size", f"{number(sizes[0])} MB", f"{number(sizes[1])} MB", sizes[1] / sizes[0]),
    ]


def _write_float(path: Path, probability: NDArray[np.float32], grid: Grid) -> None:
    height, width = grid.shape
    place = {"crs": grid.crs, "transform": grid.transform}
    with rasterio.open(path, "w", driver="COG", count=1, height=height, width=width, dtype="float32", **place) as file:
        file.write(probability, 1)


@functools.cache
def _scene() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the shipped model's probabilities of a sample scene and where it is damaged, each of shape (H, W)."""
    card_path, card = find_card(MODEL)
    predictor, scene = Predictor.load(card_path, "cpu"), get_scene(SCENE)
    grid = output_grid(scene.pre, scene.post, card.gsd.nominal)
    plan = plan_blocks(grid, grid.window, grid.width)
    probability = np.zeros(grid.shape, np.float32)
    with PairReader(scene.pre, scene.post, card, grid) as reader, RasterSource(scene.label) as labels:
        for window in (window for tile in plan.tiles for window in tile):
            block = reader.read(Window(window.row, window.col, plan.block, plan.block).padded(predictor.halo))
            values = predictor.probability(block.pre, block.post, block.pre_valid, block.post_valid)
            probability[window.slices] = values[: window.height, : window.width]
        damaged = labels.aligned(grid).read(grid.window).data[0] >= DAMAGED
    return probability, damaged


def _repeated(values: NDArray[Any], side: int) -> NDArray[Any]:
    """Return values set side by side up to a square of the wanted side."""
    times = [-(-side // length) for length in values.shape]
    return np.ascontiguousarray(np.tile(values, times)[:side, :side])
