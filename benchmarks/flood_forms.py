"""The patch form on real floods beside the dense form, the early-fusion U-Net and "dark SAR", in one table.

    python benchmarks/flood_forms.py train     # the dense form once, then three seeds of the patch form
    python benchmarks/flood_forms.py table     # accuracy on ALBANIA of everything that was trained
    python benchmarks/flood_forms.py seconds   # seconds per tile of every form, one thread

The patch form is the network of reference system 0 (ResNet-34, 256 px contexts, mean over the whole context). It learns
from the same folds as the dense form and for as many processor seconds as that took, with the reference's loss. Tiles
are continued by their reflection over 120 px, so that every region of a tile has its context, and all forms are scored
on the same pixels: those of the tile. It sees the same stretched images as the dense form instead of a z-score of every
context, so the dense evaluation of its weights is its own map but for the zero padding at the border of a context.

In the reference's words a region is *positive* when it did not change: at most 5 % of it is flooded.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from bench_table import duration, interleaved
from bench_training import Batch, stacked, train_for
from flood_s2s1 import BOTH, CONFIG, FIGURES, MODELS, SEEDS, TEST_EVENT, Run, finished_runs, measure, name_of, others
from numpy.typing import NDArray
from seeds import Row, rounded, summarise, train_once
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.data.base import PairDataset, Sample
from mmcd.data.ombria import Ombria
from mmcd.losses.contrastive import reference_infonce
from mmcd.models import zoo
from mmcd.models.siamese import CONTEXT, EMBEDDING_STRIDE, ROI, ContextSiamese
from mmcd.paths import workspace
from mmcd.training.config import ChangeTraining
from mmcd.training.tasks import normalise
from mmcd.training.trainer import open_split
from mmcd.training.validation import Outputs, fit_decision

PATCH, DARK = "patch", "dark SAR"
LEAD = (CONTEXT - ROI) // 2
CHANGED = 0.05
"""Share of flood above which a region counts as changed, the reference's own."""
BATCH_SIZE = 8
RATE = 1e-4
"""The reference's own rate is 1e-5 with batches of 64; in so short a time it would not move."""
SPENT = "processor_seconds.json"
_CROPS = 8


def train_all() -> None:
    budget = dense_seconds()
    for seed, fold in SEEDS.items():
        train_patch(seed, fold, budget)


def dense_seconds() -> float:
    """Return the processor seconds of one training of the dense form, measured once."""
    name = name_of("siamese timed", 0)
    stored = workspace() / "training" / name / SPENT
    if not stored.exists():
        begun = time.process_time()
        folder = train_once(CONFIG, name, {"seed": 0, "data.fold": SEEDS[0], "export": None})
        (folder / SPENT).write_text(json.dumps(time.process_time() - begun))
    return float(json.loads(stored.read_text()))


def train_patch(seed: int, fold: int, budget: float) -> None:
    """Train the patch form on the folds of a seed and write its outputs, unless an earlier call did."""
    name = name_of(PATCH, seed)
    folder = workspace() / "training" / name
    if (folder / "test.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = ChangeTraining.from_yaml(
        CONFIG, {"name": name, "seed": seed, "data.fold": fold, "export": None, "model.settings": {"pool": "global"}}
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    split = open_split(config)
    torch.manual_seed(seed)
    model = ContextSiamese(len(config.pre.bands), len(config.post.bands))
    steps = train_for(model, contexts(split.dataset, split.training, config), loss_of, RATE, budget)
    zoo.save(model, folder / f"{name}.safetensors")
    (folder / SPENT).write_text(json.dumps({"seconds": budget, "steps": steps, "pairs": steps * BATCH_SIZE}))
    model.form = "dense"  # the same weights, all regions of a tile at once
    test = Ombria(config.data.root, TEST_EVENT, (config.pre, config.post))
    outputs_of(model, split.dataset, split.held_out, config).save(folder / "held_out.npz")
    outputs_of(model, test, np.arange(len(test)), config).save(folder / "test.npz")


def contexts(dataset: PairDataset, indices: NDArray[np.intp], config: ChangeTraining) -> Iterator[Batch]:
    """Yield batches of contexts, half of them around a region that is flooded."""
    random = np.random.default_rng(config.seed)
    tiles = [tile_of(dataset, int(index), config) for index in indices]
    places = [[], []]
    for number, (_, _, flooded) in enumerate(tiles):
        for place in np.argwhere(np.ones(region_share(flooded).shape, np.bool_)):
            places[int(region_share(flooded)[tuple(place)] > CHANGED)].append((number, *place))
    pools = [np.array(pool) for pool in places]
    while True:
        drawn = [random.choice(pools[number % 2]) for number in range(BATCH_SIZE)]
        yield stacked([cut(tiles[tile], int(row), int(column)) for tile, row, column in drawn])


def tile_of(dataset: PairDataset, index: int, config: ChangeTraining) -> Batch:
    """Return a tile's normalised images, continued by reflection, and where it is flooded, (C, H + 240, W + 240)."""
    sample: Sample = dataset[index]
    images = (
        normalise(sample[side][None], sample["valid"][None], branch)
        for side, branch in (("pre", config.pre), ("post", config.post))
    )
    pre, post = (F.pad(image, (LEAD,) * 4, mode="reflect")[0] for image in images)
    return pre, post, sample["target"] >= config.changed_from


def region_share(flooded: Tensor) -> NDArray[np.float32]:
    """Return the flooded share of every region that lies in a tile, shape (H/8 - 1, W/8 - 1)."""
    pooled: NDArray[np.float32] = F.avg_pool2d(flooded[None].float(), ROI, EMBEDDING_STRIDE)[0].numpy()
    return pooled


def cut(tile: Batch, row: int, column: int) -> Batch:
    """Return the context of a region and whether the region is changed, as a map of one pixel."""
    pre, post, flooded = tile
    top, left = row * EMBEDDING_STRIDE, column * EMBEDDING_STRIDE
    window = slice(top, top + CONTEXT), slice(left, left + CONTEXT)
    changed = flooded[top : top + ROI, left : left + ROI].float().mean() > CHANGED
    return pre[:, *window], post[:, *window], changed[None, None]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    pre, post, changed = batch
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pre, post)
    aligned, apart = reference_infonce(output.pre_embedding, output.post_embedding, ~changed[:, 0, 0])
    return aligned + apart


@torch.inference_mode()
def outputs_of(model: nn.Module, dataset: PairDataset, indices: NDArray[np.intp], config: ChangeTraining) -> Outputs:
    """Return the patch form's map of some tiles: a pixel's distance is the mean over the regions that hold it."""
    model.eval()
    maps, changed = [], []
    for index in indices:
        pre, post, flooded = tile_of(dataset, int(index), config)
        with torch.autocast("cpu", torch.bfloat16):
            cells = model(pre[None], post[None]).distance
        maps.append(spread(cells, flooded.shape).numpy().astype(np.float16))
        changed.append(flooded.numpy())
    names = tuple(dataset.ids[index] for index in indices), tuple(dataset.groups[index] for index in indices)
    distance = np.stack(maps)
    return Outputs(*names, np.zeros_like(distance), distance, np.stack(changed))


def spread(cells: Tensor, shape: torch.Size) -> Tensor:
    """Return for every pixel, shape (H, W), the mean distance of the regions around it, from those of a padded tile."""
    first = LEAD // EMBEDDING_STRIDE
    rows, columns = ((side - ROI) // EMBEDDING_STRIDE + 1 for side in shape)
    inside = cells[:, :, first : first + rows, first : first + columns].float()
    total, weight = (_sum_of_regions(values) for values in (inside, torch.ones_like(inside)))
    pixels: Tensor = F.interpolate(total / weight, scale_factor=EMBEDDING_STRIDE, mode="nearest")[0, 0]
    return pixels


def _sum_of_regions(values: Tensor) -> Tensor:
    """Return the sum over the regions that cover every 8 px cell: a region covers two by two of them."""
    return 4 * F.avg_pool2d(F.pad(values, (1, 1, 1, 1)), 2, stride=1)


def dark_runs(runs: list[Run]) -> list[Run]:
    """Return "dark SAR" as runs of the same folds: the lower the stretched radar value, the more it looks flooded."""
    found = []
    for run in (run for run in runs if run.model == "siamese"):
        sets = {
            event: Ombria(run.config.data.root, event, (run.config.pre, run.config.post))
            for event in ("main", TEST_EVENT)
        }
        parts = [(sets["main"], run.held_out), (sets[TEST_EVENT], run.test)]
        outputs = [dark_outputs(dataset, stored) for dataset, stored in parts]
        found.append(Run(DARK, run.seed, run.folder, run.config, *outputs))
    return found


def dark_outputs(dataset: PairDataset, like: Outputs) -> Outputs:
    number = {name: index for index, name in enumerate(dataset.ids)}
    dark = np.stack([1 - dataset[number[name]]["post"][0].numpy() for name in like.ids]).astype(np.float16)
    return Outputs(like.ids, like.groups, np.zeros_like(dark), dark, like.changed)


def patch_runs() -> list[Run]:
    found = []
    for seed in SEEDS:
        folder = workspace() / "training" / name_of(PATCH, seed)
        if (folder / "test.npz").exists():
            outputs = (Outputs.load(folder / f"{which}.npz") for which in ("held_out", "test"))
            found.append(Run(PATCH, seed, folder, ChangeTraining.from_yaml(folder / "config.yaml"), *outputs))
    return found


def table() -> list[Row]:
    """Return one row a run on the test event; every threshold is fitted on the held-out folds of the other seeds."""
    trained = [run for run in finished_runs() if run.model in list(MODELS)[:2]]
    runs = [*trained, *patch_runs(), *dark_runs(trained)]
    shifts = runs[0].config.data.shifts
    share = float(Ombria(runs[0].config.data.root).changed_share.mean())
    lines = []
    for run in runs:
        part = {"siamese": BOTH, "unet": "head"}.get(run.model, "distance")
        decision = fit_decision(others(runs, run), share, shifts, head=run.model in MODELS, cosine=run.model != "unet")
        line = {
            "model": run.model,
            "score": part,
            "split": TEST_EVENT,
            "seed": run.seed,
            "threshold": decision.threshold,
        }
        lines.append(line | measure(run.test, decision, share))
    return lines


def seconds() -> dict[str, str]:
    """Return the processor seconds of one 256 px tile in every form, bf16, one thread."""
    torch.set_num_threads(1)
    config = ChangeTraining.from_yaml(CONFIG)
    bands = len(config.pre.bands), len(config.post.bands)
    side, padded, blocks = 256, 256 + 2 * LEAD, {"siamese": 256 + 2 * 128, "unet": 256}
    regions = ((side - ROI) // EMBEDDING_STRIDE + 1) ** 2
    reference = zoo.build("siamese", *bands, {"pool": "global"})
    as_dense = zoo.build("siamese", *bands, {"pool": "global", "form": "dense"})
    works: dict[str, Callable[[], Any]] = {
        "patch": run_of(reference, bands, CONTEXT, _CROPS),
        "patch, its weights densely": run_of(as_dense, bands, padded, 1),
        "dense": run_of(zoo.build("siamese", *bands, config.model.settings), bands, blocks["siamese"], 1),
        "early-fusion U-Net": run_of(zoo.build("early_fusion_unet", *bands, {}), bands, blocks["unet"], 1),
    }
    times = {name: timing.median for name, timing in interleaved(works, 3).items()}
    times["patch"] *= regions / _CROPS
    return {name: duration(value) for name, value in times.items()}


def run_of(model: nn.Module, bands: tuple[int, int], side: int, count: int) -> Callable[[], Any]:
    """Return a call that runs a model over random images."""
    model = model.eval().to(memory_format=torch.channels_last)
    pre, post = (torch.rand(count, channels, side, side).to(memory_format=torch.channels_last) for channels in bands)

    @torch.inference_mode()
    def work() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(pre, post)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["train", "table", "seconds"])
    action = parser.parse_args().action
    if action == "train":
        train_all()
    elif action == "seconds":
        print(json.dumps(seconds(), indent=1))
    else:
        lines = table()
        for line in (*lines, *summarise(lines, (*FIGURES, "ece"))):
            print(json.dumps(rounded(line)))


if __name__ == "__main__":
    main()
