"""Parts n and o: what the data path of pretraining costs, and texture codes of a batch.

n   images a second of a whole step (tiles, views, network, loss, optimiser) against the same step on views that lie
    ready, and beside both the bare forward and backward pass of the trunk; OMBRIA's two-date mode, ResNet-18.
o   local binary patterns of a batch against scikit-image's, image by image; on a GPU too where there is one.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from bench_table import Options, Row, Target, duration, interleaved, number
from rasterio.errors import NotGeoreferencedWarning
from skimage.feature import local_binary_pattern as published
from torch import nn

from mmcd.data.texture import local_binary_pattern
from mmcd.models.devices import choose_precision
from mmcd.models.moco import Method, pooled_trunk
from mmcd.training.pretrain_config import PretrainTraining
from mmcd.training.pretrain_task import PretrainTask
from mmcd.training.pretrainer import open_series, series_loader

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "pretrain-ombria.yaml"
METHODS: tuple[Method, ...] = ("moco", "seco", "caco", "saco")
TILES, SIDE, BATCH, CROP = 64, 256, 64, 64
PLANES = 192


def training(options: Options) -> list[Row]:
    """Part n: images a second on one thread, and the share of them that the data path leaves."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mmcd-bench-") as place:
        _write_tiles(Path(place))
        return [_row(Path(place), method, options) for method in METHODS]


def _row(root: Path, method: Method, options: Options) -> Row:
    changes = {"method": method, "data.root": str(root), "data.batch_size": BATCH, "trainer.device": "cpu"}
    config = PretrainTraining.from_yaml(CONFIG, changes | {"trainer.precision": "auto"})
    series = open_series(config)
    task = PretrainTask(config, series.bands, len(series.places)).train()
    task.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    optimiser: Any = task.configure_optimizers()
    dtype = choose_precision("auto", torch.device("cpu"))
    made, batches = task.views, _batches(series_loader(series, config))

    def step(batch: Any) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = task.training_step(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    ready = next(batches)
    views = made(ready["images"])

    def on_ready_views() -> None:
        task.views = lambda _: views  # type: ignore[method-assign]
        step(ready)
        task.views = made  # type: ignore[method-assign]

    works: dict[str, Callable[[], object]] = {
        "whole": lambda: step(next(batches)),
        "network": on_ready_views,
        "trunk": _bare(config.trunk, dtype),
    }
    times = interleaved(works, 2 * options.rounds + 1)
    speed = {name: BATCH / timing.median for name, timing in times.items()}
    arithmetic = "bf16" if dtype == torch.bfloat16 else "fp32"
    what = f"{method} from tiles to step, images/s, batch {BATCH} of {CROP} px, ResNet-18, {arithmetic}, 1 thread"
    against = f"{number(speed['network'])}: the step on ready views; trunk alone {number(speed['trunk'])}"
    return Row("n", what, number(speed["whole"]), against, speed["whole"] / speed["network"], target=Target(0.85))


def _bare(trunk: Any, dtype: torch.dtype) -> Callable[[], object]:
    """Return forward and backward pass of the trunk alone."""
    net: nn.Module = pooled_trunk(trunk, 3).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = torch.randn(BATCH, 3, CROP, CROP)

    def work() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            features = net(images)
        features.float().square().mean().backward()

    return work


def _batches(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _write_tiles(root: Path) -> None:
    """Write a main set of random tiles in OMBRIA's layout."""
    random = np.random.default_rng(0)
    layers = {
        "OmbriaS2/train/BEFORE/S2_before_{}.png": 3,
        "OmbriaS2/train/AFTER/S2_after_{}.png": 3,
        "OmbriaS1/train/AFTER/S1_after_{}.png": 1,
        "OmbriaS1/train/MASK/S1_mask_{}.png": 1,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for place in range(TILES):
            for name, count in layers.items():
                path = root / name.format(f"{place:04}")
                path.parent.mkdir(parents=True, exist_ok=True)
                size = {"count": count, "height": SIDE, "width": SIDE}
                with rasterio.open(path, "w", driver="PNG", dtype="uint8", **size) as file:
                    file.write(random.integers(0, 140, (count, SIDE, SIDE)).astype(np.uint8))


def texture(options: Options) -> list[Row]:
    """Part o: codes of a batch of bytes, 16 points at radius 2."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (PLANES, CROP, CROP), generator=torch.Generator().manual_seed(0))
    arrays = images.numpy()
    works: dict[str, Callable[[], object]] = {
        "mmcd": lambda: local_binary_pattern(images),
        "skimage": lambda: [published(image, 16, 2, "uniform") for image in arrays],
    }
    if torch.cuda.is_available():
        there = images.cuda()
        works["cuda"] = lambda: (local_binary_pattern(there), torch.cuda.synchronize())
    times = interleaved(works, options.rounds)
    what = f"texture codes of {PLANES} bands of {CROP} px"
    against = f"{duration(times['skimage'].median)}: scikit-image"
    pairs = [("mmcd", "processor, 1 thread", 1.0), ("cuda", "GPU", 20.0)]
    return [
        Row(
            "o",
            f"{what}, {where}",
            duration(times[name].median),
            against,
            times["skimage"].median / times[name].median,
            target=Target(limit),
        )
        for name, where, limit in pairs
        if name in times
    ]
