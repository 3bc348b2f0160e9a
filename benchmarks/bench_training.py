"""Part a, second half: what the patch form and the dense form learn in equal processor seconds.

Both learn from the same simulated scenes and are asked about the same regions of scenes of other families: for every
16 px region whose 256 px context lies in its scene, whether most of it is damaged. Regions with some damage are left
out. Average precision pools the regions of all scenes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from bench_table import Options, Row, number
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.cards import find_card
from mmcd.data.simulated import SceneSet
from mmcd.losses.contrastive import reference_infonce, sample_rois, supervised_infonce
from mmcd.losses.segmentation import binary_cross_entropy, soft_dice
from mmcd.models.siamese import CONTEXT, EMBEDDING_STRIDE, ROI, ContextSiamese, PseudoSiamese, SiameseOutput
from mmcd.simulate import simulate_scene
from mmcd.simulate.events import DAMAGED
from mmcd.training.tasks import normalise, rate, roi_share

MODEL = "damage-vhr-sim"
SIDE, TILE, BATCH, GSD = 512, 256, 8, 0.5
FOCUS = 0.75  # share of training tiles and contexts around damage; contexts are half changed, half not
LEARNT = SceneSet(
    scenes=24,
    seed=4_000_000,
    layouts=("grid", "organic", "village", "industrial"),
    palettes=("temperate", "arid", "mediterranean", "winter"),
    events=("earthquake", "wildfire", "hurricane", "flood", "volcano"),
)
HELD_OUT = SceneSet(scenes=6, seed=5_000_000, layouts=("radial",), palettes=("tropical",))

_LEAD = (CONTEXT - ROI) // 2
_REFRESHED = 4  # batches that the statistics of batch norm are measured on once the weights rest
_STEPS = 1000  # grain of the schedule, which runs over time


@dataclass(frozen=True)
class Scenes:
    """Scenes as the networks take them.

    Attributes:
        pre: Normalised images before, shape (N, 3, H, W), float32.
        post: Normalised images after, shape (N, 1, H, W), float32.
        damaged: True where a building is damaged or destroyed, shape (N, H, W).
    """

    pre: Tensor
    post: Tensor
    damaged: Tensor

    @classmethod
    def of(cls, which: SceneSet) -> "Scenes":
        card = find_card(MODEL)[1]
        scenes = [simulate_scene(spec) for spec in which.specs(SIDE, GSD)]
        pre, post, label = (np.stack([getattr(scene, side) for scene in scenes]) for side in ("pre", "post", "label"))
        known = torch.ones(label.shape, dtype=torch.bool)
        images = (
            normalise(torch.from_numpy(image).float() / 255, known, branch)
            for image, branch in ((pre, card.pre), (post, card.post))
        )
        return cls(*images, torch.from_numpy(label >= DAMAGED))

    def cut(self, scene: int, row: int, col: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return both images and the damage in a square of a scene."""
        window = slice(row, row + side), slice(col, col + side)
        return self.pre[scene, :, *window], self.post[scene, :, *window], self.damaged[scene, *window]


Batch = tuple[Tensor, Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


def accuracy_of_both(options: Options) -> list[Row]:
    """Part a: average precision of both forms after equal processor seconds of training."""
    torch.set_num_threads(1)
    learnt, held_out = Scenes.of(LEARNT), Scenes.of(HELD_OUT)
    budget = options.train_seconds
    torch.manual_seed(options.seed)
    patch, dense = ContextSiamese(3, 1), PseudoSiamese(3, 1)
    # The reference's own rate is 1e-5; in so short a time it would not move.
    pairs = train_for(patch, _contexts(learnt, options.seed), context_loss, 1e-4, budget)
    tiles = train_for(dense, _tiles(learnt, options.seed), dense_loss, 1e-3, budget)
    share, truth = _truth(held_out)
    patch.form = "dense"  # the same weights, all regions of a scene at once
    found = {
        "patch": _average_precision(_answers(patch, held_out, lambda output: output.distance[:, 0]), share, truth),
        "head": _average_precision(_answers(dense, held_out, _head_of_regions), share, truth),
        "cosine": _average_precision(_answers(dense, held_out, _distance_of_regions), share, truth),
    }
    regions = (TILE // EMBEDDING_STRIDE) ** 2
    chance = float((share >= 0.5)[truth].float().mean())
    against = f"{number(found['patch'])}: reference, {pairs * BATCH:,} pairs (chance {number(chance)})"
    what = f"AP after {number(budget)} processor s,"
    seen = f"from {tiles * BATCH:,} tiles, {tiles * BATCH * regions:,} regions"
    return [
        Row("a", f"{what} head", f"{number(found['head'])} {seen}", against, found["head"] - found["patch"], ""),
        Row("a", f"{what} 1 - cosine", number(found["cosine"]), against, found["cosine"] - found["patch"], ""),
    ]


def train_for(model: nn.Module, batches: Iterator[Batch], loss_of: Loss, highest: float, budget: float) -> int:
    """Train until the processor seconds are spent; return the number of steps."""
    model.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=highest, weight_decay=0.01)
    begun, steps = time.process_time(), 0
    while (spent := (time.process_time() - begun) / budget) < 1:
        for group in optimiser.param_groups:
            group["lr"] = highest * rate(int(spent * _STEPS), _STEPS, warmup=0.1)
        loss = loss_of(model, next(batches))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        steps += 1
    _refresh_statistics(model, batches)
    return steps


@torch.no_grad()
def _refresh_statistics(model: nn.Module, batches: Iterator[Batch]) -> None:
    """Measure batch norm's statistics anew: after few steps the running ones are still those of the first weights."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over the batches
    for _ in range(_REFRESHED):
        pre, post, _damaged = next(batches)
        model(pre, post)
    model.eval()


def context_loss(model: nn.Module, batch: Batch) -> Tensor:
    pre, post, damaged = batch
    output = model(pre, post)
    inner = slice(_LEAD, _LEAD + ROI)
    changed = damaged[:, inner, inner].float().mean(dim=(1, 2)) >= 0.5
    aligned, apart = reference_infonce(output.pre_embedding, output.post_embedding, ~changed)
    return aligned + apart


def dense_loss(model: nn.Module, batch: Batch) -> Tensor:
    pre, post, damaged = batch
    output = model(pre, post)
    target, known = damaged.float(), torch.ones_like(damaged)
    loss = binary_cross_entropy(output.logit[:, 0], target, known) + 0.5 * soft_dice(output.logit[:, 0], target, known)
    share, known = roi_share(target), roi_share(known) == 1
    drawn = sample_rois(
        output.pre_embedding, output.post_embedding, share, known, 256, torch.Generator().manual_seed(0)
    )
    return loss + 0.1 * supervised_infonce(*drawn)


def _contexts(scenes: Scenes, seed: int) -> Iterator[Batch]:
    """Yield batches of contexts around single regions, half of them changed."""
    random = np.random.default_rng(seed)
    share = roi_share(scenes.damaged.float())
    inside = _inside(share)
    places = [torch.nonzero(chosen & inside).numpy() for chosen in (share >= 0.5, share == 0)]
    while True:
        picked = [random.choice(places[number % 2]) for number in range(BATCH)]
        corners = [(int(s), int(i) * EMBEDDING_STRIDE - _LEAD, int(j) * EMBEDDING_STRIDE - _LEAD) for s, i, j in picked]
        yield stacked([scenes.cut(*corner, CONTEXT) for corner in corners])


def _tiles(scenes: Scenes, seed: int) -> Iterator[Batch]:
    """Yield batches of tiles, most of them around damage."""
    random = np.random.default_rng(seed)
    damaged = [torch.nonzero(scene).numpy() for scene in scenes.damaged]
    while True:
        batch = []
        for _ in range(BATCH):
            scene = int(random.integers(len(damaged)))
            corner = random.integers(0, SIDE - TILE + 1, 2)
            if len(damaged[scene]) and random.random() < FOCUS:
                corner = np.clip(random.choice(damaged[scene]) - TILE // 2, 0, SIDE - TILE)
            batch.append(scenes.cut(scene, int(corner[0]), int(corner[1]), TILE))
        yield stacked(batch)


def stacked(parts: list[Batch]) -> Batch:
    pre, post, damaged = (torch.stack(column) for column in zip(*parts, strict=True))
    return (*(image.contiguous(memory_format=torch.channels_last) for image in (pre, post)), damaged)


def _inside(share: Tensor) -> Tensor:
    """Return the regions, shape (N, H/8, W/8), whose context lies in the scene."""
    first, last = -(-_LEAD // EMBEDDING_STRIDE), (SIDE - CONTEXT + _LEAD) // EMBEDDING_STRIDE
    inside = torch.zeros_like(share, dtype=torch.bool)
    inside[:, first : last + 1, first : last + 1] = True
    return inside


def _truth(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Return the damaged share of every region and which regions count, both of shape (N, H/8, W/8)."""
    share = roi_share(scenes.damaged.float())
    return share, _inside(share) & ((share >= 0.5) | (share == 0))


@torch.inference_mode()
def _answers(model: nn.Module, scenes: Scenes, answer: Callable[..., Tensor]) -> Tensor:
    """Return a model's answer for every region, shape (N, H/8, W/8), one scene at a time."""
    pairs = zip(scenes.pre, scenes.post, strict=True)
    return torch.cat([answer(model(pre[None], post[None])) for pre, post in pairs])


def _head_of_regions(output: SiameseOutput) -> Tensor:
    return F.avg_pool2d(F.pad(output.logit.sigmoid(), (0, 8, 0, 8)), ROI, EMBEDDING_STRIDE)[:, 0]


def _distance_of_regions(output: SiameseOutput) -> Tensor:
    return 1 - (output.pre_embedding * output.post_embedding).sum(dim=1)


def _average_precision(answers: Tensor, share: Tensor, counted: Tensor) -> float:
    return float(average_precision_score((share >= 0.5)[counted].numpy(), answers[counted].float().numpy()))
