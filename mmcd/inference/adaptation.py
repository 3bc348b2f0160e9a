"""Adapt a model to one scene without labels: its batch-norm statistics become a mixture of training and scene.

A radar image with another gain, number of looks or climate than the training set shifts the activations of every
layer. The means and variances that batch norm subtracts and divides by are measured again on the scene and mixed,
``alpha * training + (1 - alpha) * scene`` (Schneider et al., Improving robustness against common corruptions by
covariate shift adaptation, NeurIPS 2020; You et al., Test-time batch statistics calibration for covariate shift,
2021). Much of the training set must stay: a scene's own statistics alone also remove what is common to a destroyed
town.
"""

import copy
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcd.errors import ConfigError
from mmcd.inference.backends import TorchBackend
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor, normalise
from mmcd.inference.survey import sample_windows

_SIDE = 256  # Sixteen windows of this size hold a million pixels and keep the one pass over them below 400 MB.
_FEWEST_PIXELS = 128 * 128  # Fewer leave less than 64 cells at stride 16: their statistics would be noise.


@dataclass(frozen=True)
class Adaptation:
    """What was measured and mixed, for the manifest.

    Attributes:
        alpha: Weight of the training statistics in [0, 1]; 1 changes nothing.
        windows: Number of windows that were looked at.
        pixels: Pixels measured in both images among them.
        layers: Batch-norm layers that were adapted; 0 when there were too few pixels.
        drift: How far the scene is from the training set: mean over all channels of the distance between the two
            means, in standard deviations of the training set.
    """

    alpha: float
    windows: int
    pixels: int
    layers: int
    drift: float

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of it."""
        if self.layers:
            return ()
        return (f"The model was not adapted to the scene: only {self.pixels:,} px of its sample hold data.",)


def adapt(predictor: Predictor, reader: PairReader, alpha: float) -> tuple[Predictor, Adaptation]:
    """Return a copy of a predictor whose statistics are adapted to a scene, and what was measured.

    One pass in single precision over at most sixteen windows, all together, so that the statistics of each layer are
    those of its inputs after the layers before it were adapted.

    Args:
        predictor: A predictor in torch; it is left as it is.
        reader: The scene.
        alpha: Weight of the training statistics in [0, 1].

    Raises:
        ConfigError: The predictor runs an exported model, whose statistics are folded into its weights.
        InputError: An image is damaged.
    """
    if not isinstance(predictor.backend, TorchBackend):
        raise ConfigError("An exported model cannot be adapted to a scene.", "Use --backend torch, or --no-adapt.")
    windows = sample_windows(reader.grid.shape, _SIDE)
    pre, post, valid = _sample(predictor, reader, windows)
    pixels = int(valid.sum())
    if pixels < _FEWEST_PIXELS:
        return predictor, Adaptation(alpha, len(windows), pixels, 0, 0.0)
    backend = copy.deepcopy(predictor.backend)
    drifts = _mix_statistics(backend.model, pre, post, valid, alpha)
    adapted = Predictor(backend, predictor.card)
    return adapted, Adaptation(alpha, len(windows), pixels, len(drifts), round(float(np.mean(drifts)), 3))


def _sample(predictor: Predictor, reader: PairReader, windows: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised images (N, bands, side, side) and where both were measured, (N, 1, side, side) of 0 and 1."""
    card = predictor.card
    blocks = [reader.read(window) for window in windows]
    pre = np.stack([normalise(block.pre, block.pre_valid, card.pre) for block in blocks])
    post = np.stack([normalise(block.post, block.post_valid, card.post) for block in blocks])
    valid = np.stack([(block.pre_valid & block.post_valid)[None] for block in blocks])
    return torch.from_numpy(pre), torch.from_numpy(post), torch.from_numpy(valid.astype(np.float32))


@torch.inference_mode()
def _mix_statistics(model: nn.Module, pre: Tensor, post: Tensor, valid: Tensor, alpha: float) -> list[float]:
    """Set the running statistics of every batch norm, each right before it runs; return the drift of each.

    A trunk that both images share runs twice: the image after is then met with the statistics of both.
    """
    device = next(model.parameters()).device
    missing = 1 - valid.to(device)
    drifts: dict[nn.BatchNorm2d, float] = {}
    seen: dict[nn.BatchNorm2d, _Seen] = {}

    def mix(layer: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        moments = _moments(inputs[0], missing)
        if moments is None or layer.running_mean is None or layer.running_var is None:
            return
        if layer not in seen:
            seen[layer] = _Seen((layer.running_mean.clone(), layer.running_var.clone()), [])
        training, scene = seen[layer].training, seen[layer].with_moments(*moments)
        away = (scene[0] - training[0]).abs() / (training[1] + layer.eps).sqrt()
        drifts[layer] = float(away.mean())
        for kept, known, found in zip((layer.running_mean, layer.running_var), training, scene, strict=True):
            kept.copy_(known).mul_(alpha).add_(found, alpha=1 - alpha)

    with ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                hooks.callback(layer.register_forward_pre_hook(mix).remove)
        inputs = (image.to(device).contiguous(memory_format=torch.channels_last) for image in (pre, post))
        model(*inputs)
    return list(drifts.values())


@dataclass(frozen=True)
class _Seen:
    """What a layer knew of the training set, and mean and variance of each image that it has met of the scene."""

    training: tuple[Tensor, Tensor]
    met: list[tuple[Tensor, Tensor]]

    def with_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of all images together, this one and those before it."""
        self.met.append((mean, variance))
        means, variances = (torch.stack(values) for values in zip(*self.met, strict=True))
        both = means.mean(dim=0)
        return both, variances.mean(dim=0) + (means - both).square().mean(dim=0)


def _moments(features: Tensor, missing: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return mean and variance of every channel over cells in which no pixel is missing; None without such cells.

    Args:
        features: Shape (N, C, h, w).
        missing: 1 where a pixel was not measured, else 0, shape (N, 1, H, W).
    """
    kept = 1 - F.adaptive_max_pool2d(missing, features.shape[-2:])  # (N, 1, h, w)
    cells = kept.sum()
    if cells == 0:
        return None
    mean = (features * kept).sum(dim=(0, 2, 3)) / cells
    away = (features - mean[:, None, None]) * kept
    return mean, away.square().sum(dim=(0, 2, 3)) / cells
