"""A very small U-Net trained on simulated scenes, to learn what each image gives away about damage."""

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.simulate import SceneSpec, simulate_scene
from mmcd.simulate.events import EVENTS
from mmcd.simulate.layouts import LAYOUTS
from mmcd.simulate.palettes import PALETTES

SIZE = 256
"""Pixels of a probe scene: 128 m, large enough for a block and for the layover of an apartment house."""


def scenes(first_seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Simulate scenes over all events, layouts and palettes.

    Returns:
        Optical images in [-1, 1], shape (n, 3, H, W); radar images, shape (n, 1, H, W); damage masks, shape (n, H, W).
    """
    made = [
        simulate_scene(
            SceneSpec(
                size=SIZE,
                seed=seed,
                event=EVENTS[seed % len(EVENTS)],
                layout=LAYOUTS[seed % len(LAYOUTS)],
                palette=PALETTES[(seed // 5) % len(PALETTES)],
            )
        )
        for seed in range(first_seed, first_seed + count)
    ]
    pre = torch.from_numpy(np.stack([scene.pre for scene in made])).float() / 127.5 - 1
    post = torch.from_numpy(np.stack([scene.post for scene in made])).float() / 127.5 - 1
    return pre, post, torch.from_numpy(np.stack([scene.label for scene in made])) > 1


class TinyUNet(nn.Module):
    """U-Net over three levels, computed from half resolution."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.stem = _block(channels * 4, width)
        self.down = nn.ModuleList(
            [_block(width, 2 * width), _block(2 * width, 4 * width), _block(4 * width, 4 * width)]
        )
        self.up = nn.ModuleList([_block(8 * width, 2 * width), _block(4 * width, width), _block(2 * width, width)])
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of change, shape (n, H, W)."""
        x = self.stem(F.pixel_unshuffle(image, 2))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        return F.pixel_shuffle(self.head(x), 2)[:, 0]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


def train_and_score(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], steps: int, batch: int = 6) -> float:
    """Train a network from scratch on (images, damage) and return its average precision on unseen scenes."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images, damage = train
    net = TinyUNet(images.shape[1]).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.from_numpy(rng.choice(len(images), batch, replace=False))
        axes = [axis for axis in (-1, -2) if rng.random() < 0.5]
        x, y = images[chosen].flip(axes), damage[chosen].flip(axes).float()
        loss = F.binary_cross_entropy_with_logits(net(x), y, pos_weight=torch.tensor(8.0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(part) for part in test[0].split(8)])
    return float(average_precision_score(test[1].flatten()[::3], logits.flatten()[::3]))
