"""Parts j and k: what the dense form and the vectorised index save against reference system 0.

j   training pairs a second: a step of the dense form embeds a whole tile for each image and draws region pairs from it,
    a step of the reference encodes a context of 256 px for each image of each pair.
k   patch metadata of labels in memory: the reference asks every candidate of every tile by itself.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from bench_table import Options, Row, Target, duration, interleaved, number
from bench_training import Batch, context_loss, dense_loss
from numpy.typing import NDArray
from torch import Tensor, nn

from mmcd.data.bright import DAMAGED
from mmcd.data.patch_index import PatchRules, pool, tile_patches
from mmcd.models.siamese import CONTEXT, ContextSiamese, PseudoSiamese
from mmcd.simulate import SceneSpec, simulate_scene

TILE, TILES, PATCHES = 256, 8, 4
TILES_INDEXED, TILES_LOOPED, SIDE, SCENES = 100, 3, 1024, 4
ROIS_PER_CLASS = 256


def training_pairs(options: Options) -> list[Row]:
    """Part j: region pairs a second that enter the contrastive loss, both forms on one thread in fp32."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense, patch = PseudoSiamese(3, 1), ContextSiamese(3, 1)
    works = {
        "dense": _step(dense, _batch(TILES, TILE), dense_loss),
        "patch": _step(patch, _batch(PATCHES, CONTEXT), context_loss),
    }
    times = interleaved(works, options.rounds)
    mine, its = 2 * ROIS_PER_CLASS / times["dense"].median, PATCHES / times["patch"].median
    what = f"training pairs a second in the loss: dense form, {TILES} tiles of {TILE} px a step"
    against = f"{number(its)}: the reference's patch form, ResNet-34"
    return [Row("j", what, number(mine), against, mine / its, target=Target(50))]


def _step(model: nn.Module, batch: Batch, loss_of: Callable[[nn.Module, Batch], Tensor]) -> Callable[[], Any]:
    model.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        loss_of(model, batch).backward()
        optimiser.step()

    return step


def _batch(count: int, side: int) -> Batch:
    """Return random images of which every second tile is damaged on its right half: both classes are in every batch."""
    random = torch.Generator().manual_seed(0)
    pre, post = (torch.randn(count, bands, side, side, generator=random) for bands in (3, 1))
    damaged = torch.zeros(count, side, side, dtype=torch.bool)
    damaged[::2, :, side // 2 :] = True
    return *(image.contiguous(memory_format=torch.channels_last) for image in (pre, post)), damaged


def patch_index(options: Options) -> list[Row]:
    """Part k: the patch metadata of 100 tiles in memory against the reference's loop over some of them."""
    rules = PatchRules()
    drawn = [simulate_scene(SceneSpec(size=SIDE, seed=seed)).label for seed in range(SCENES)]
    labels = [np.roll(drawn[number % SCENES], 37 * number, axis=1) for number in range(TILES_INDEXED)]
    ids = [f"simulated-earthquake_{number:08d}" for number in range(TILES_INDEXED)]
    works = {
        "mmcd": lambda: pool([tile_patches(*tile, rules) for tile in zip(ids, labels, strict=True)]),
        "loop": lambda: [list(_loop(label, rules)) for label in labels[:TILES_LOOPED]],
    }
    times = interleaved(works, options.rounds)
    mine, its = times["mmcd"].median, times["loop"].median * TILES_INDEXED / TILES_LOOPED
    what = f"index of {TILES_INDEXED} tiles of {SIDE} px in memory"
    against = f"{duration(its)}: the reference's loop, from {TILES_LOOPED} tiles"
    return [Row("k", what, duration(mine), against, its / mine, target=Target(20))]


def _loop(label: NDArray[np.uint8], rules: PatchRules) -> Iterator[tuple[tuple[int, ...], float, bool, bool]]:
    """Yield the patches of a tile as the reference system finds them: each candidate is cut out and counted."""
    values, side = label.astype(np.float32), rules.roi_patch_size
    for row in rules.candidates(label.shape[0]):
        for column in rules.candidates(label.shape[1]):
            roi = values[row : row + side, column : column + side]
            known = ~np.isnan(roi)
            if not known.any() or not (roi[known] > 0).any():
                continue
            ratio = float((roi[known] >= DAMAGED).sum() / known.sum())
            building = float((roi[known] > 0).sum() / known.sum())
            box = (row - rules.pad, column - rules.pad, row + side + rules.pad, column + side + rules.pad)
            yield (row, column, *box), ratio, ratio <= rules.pos_threshold, building >= rules.building_threshold
