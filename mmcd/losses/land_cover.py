"""Losses of maps of several classes whose sizes differ much. Functions of tensors."""

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_cross_entropy(logits: Tensor, target: Tensor, valid: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the cross entropy averaged over valid pixels, each weighing as its class does; 0 without one.

    Args:
        logits: Shape (N, K, H, W).
        target: Class of every pixel, shape (N, H, W), int64; anything where it is not valid.
        valid: True where the label is known, same shape.
        weights: Weight of each class, shape (K,); all alike if left out.
    """
    picked = target.masked_fill(~valid, 0)
    losses = F.cross_entropy(logits, picked, reduction="none")
    share = valid.to(losses.dtype) if weights is None else weights.to(losses)[picked] * valid
    return (losses * share).sum() / share.sum().clamp(min=torch.finfo(losses.dtype).tiny)


def soft_dice_classes(logits: Tensor, target: Tensor, valid: Tensor, smooth: float = 1.0) -> Tensor:
    """Return one minus the soft Dice coefficient, averaged over the classes that the batch holds; 0 without one.

    Args:
        logits: Shape (N, K, H, W); compared by their softmax.
        target: Class of every pixel, shape (N, H, W), int64; anything where it is not valid.
        valid: True where the label is known, same shape.
        smooth: Pixels added to both sides of each ratio.

    Source: Milletari et al. 2016.
    """
    probability = logits.softmax(dim=1) * valid[:, None]
    picked = target.masked_fill(~valid, 0)
    label = F.one_hot(picked, logits.shape[1]).movedim(-1, 1) * valid[:, None]
    axes = (0, 2, 3)
    overlap, total = (probability * label).sum(axes), probability.sum(axes) + label.sum(axes)
    present = label.any(0).any(-1).any(-1)
    loss = 1 - (2 * overlap + smooth) / (total + smooth)
    return (loss * present).sum() / present.sum().clamp(min=1)
