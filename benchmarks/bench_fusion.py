"""Parts l and m: what the fusion UNet costs with each trunk, and what a frozen trunk saves in training.

l   inference of a pair of 512 px through the engine's torch backend, its operations against a large convolution's.
m   a training step with ResNet-50: the trunk frozen, its features read from disk instead, and trained too.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_networks import convolution, operations
from bench_table import Options, Row, interleaved, number
from torch import Tensor
from torch.utils.data import default_collate

from mmcd.cards import Branch
from mmcd.data.base import Sample, to_sample
from mmcd.inference.backends import TorchBackend
from mmcd.losses.overlap import combined_iou
from mmcd.models.devices import choose_precision
from mmcd.models.fusion_unet import FusionUNet
from mmcd.models.trunks import FEATURE_TRUNKS, FeatureTrunk
from mmcd.training.feature_cache import cache_features
from mmcd.training.tasks import normalise

SIDE = 512
TILE, BATCH = 256, 2
TRUNK: FeatureTrunk = "resnet50"
BRANCH = Branch(modality="optical", sensor="", bands=("B4", "B3", "B2"), unit="uint8", mean=(0.5,) * 3, std=(0.2,) * 3)


class Pairs:
    """Random pairs in memory, as many as a batch."""

    ids = groups = tuple(str(number) for number in range(BATCH))
    changed_share = np.full(BATCH, 0.5)

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng(index)
        pre, post = random.random((2, 3, TILE, TILE), np.float32)
        changed = np.zeros((TILE, TILE), np.uint8)
        changed[:, TILE // 2 :] = 1
        return to_sample(pre, post, changed, np.ones(changed.shape, bool), index)


def inference(options: Options) -> list[Row]:
    """Part l: megapixels a second for each trunk, on one thread."""
    torch.set_num_threads(1)
    dtype = choose_precision("auto", torch.device("cpu"))
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    pre, post = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE), np.float32)
    works: dict[str, Callable[[], object]] = {"convolution": convolution(dtype)}
    for trunk in FEATURE_TRUNKS:
        engine = TorchBackend(FusionUNet(trunk=trunk), "cpu", precision)
        works[trunk] = lambda engine=engine: engine.run(pre, post)  # type: ignore[misc]
    counted = {name: operations(work) for name, work in works.items()}
    times = interleaved(works, options.rounds)
    speeds = {name: counted[name] / times[name].least / 1e9 for name in works}
    rows = []
    for trunk in FEATURE_TRUNKS:
        what = f"fusion UNet, {trunk}, {precision}, {number(counted[trunk] / 1e9)} GFLOP a pair of {SIDE} px"
        pace = f"{number(SIDE**2 / times[trunk].least / 1e6)} MP/s, {number(speeds[trunk])} GFLOP/s"
        against = f"{number(speeds['convolution'])} GFLOP/s: the convolution of part c"
        rows.append(Row("l", what, pace, against, speeds[trunk] / speeds["convolution"], ""))
    return rows


def training(options: Options) -> list[Row]:
    """Part m: training images a second, two of each pair, on one thread."""
    torch.set_num_threads(1)
    pairs, names = Pairs(), ("frozen", "cached", "trained too")
    models = {name: FusionUNet(trunk=TRUNK, finetune=name == "trained too") for name in names}
    batch = default_collate([pairs[index] for index in range(BATCH)])
    with tempfile.TemporaryDirectory(prefix="mmcd-features-") as folder:
        cache = cache_features(models["cached"], pairs, np.arange(BATCH), (BRANCH, BRANCH), Path(folder))

        def from_images(model: FusionUNet) -> Tensor:
            pre, post = (normalise(batch[side], batch["valid"], BRANCH) for side in ("pre", "post"))
            return model(pre, post)  # type: ignore[no-any-return]

        def from_features(model: FusionUNet) -> Tensor:
            return model.decode_features(*cache.features(batch["index"]), (TILE, TILE))

        works = {
            name: _step(model, batch, from_features if name == "cached" else from_images)
            for name, model in models.items()
        }
        times = interleaved(works, options.rounds)
    speeds = {name: 2 * BATCH / timing.median for name, timing in times.items()}
    what = f"training images a second, {TRUNK}, batches of {BATCH} pairs of {TILE} px"
    return [
        Row(
            "m",
            f"{what}: {mine}",
            number(speeds[mine]),
            f"{number(speeds[other])}: {other}",
            speeds[mine] / speeds[other],
        )
        for mine, other in (("frozen", "trained too"), ("cached", "frozen"), ("cached", "trained too"))
    ]


def _step(model: FusionUNet, batch: Sample, logits_of: Callable[[FusionUNet], Tensor]) -> Callable[[], None]:
    """Return a step in the arithmetic that training takes on this processor."""
    model.to(memory_format=torch.channels_last).train()
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=1e-4)
    dtype = choose_precision("auto", torch.device("cpu"))

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logit = logits_of(model)[:, 0]
        combined_iou(logit, batch["target"] > 0, batch["valid"], 0.7).backward()
        optimiser.step()

    return step
