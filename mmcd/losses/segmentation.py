"""Losses of a per-pixel logit of change. Positive means changed. Functions of tensors."""

from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logit: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean binary cross entropy over valid pixels; 0 when there are none.

    Args:
        logit: Logit of change, any shape, float32.
        target: 1 where changed, 0 elsewhere, same shape.
        valid: True where the label is known, same shape.
    """
    losses = F.binary_cross_entropy_with_logits(logit, target.to(logit.dtype), reduction="none")
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cross entropy of several classes over valid pixels; 0 when there are none.

    Args:
        logits: Logits of the classes, shape (B, K, H, W), float32.
        target: Class of every pixel, shape (B, H, W), int64; anything where it is not valid.
        valid: True where the label is known, same shape.
    """
    losses = F.cross_entropy(logits, target.clamp(min=0), reduction="none")
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def soft_dice(logit: Tensor, target: Tensor, valid: Tensor, smooth: float = 1.0) -> Tensor:
    """Return one minus the soft Dice coefficient of the change class over the whole batch.

    Over the batch and not per image, so that images without change do not dominate. Source: Milletari et al. 2016.

    Args:
        logit: Logit of change, any shape, float32.
        target: 1 where changed, 0 elsewhere, same shape.
        valid: True where the label is known, same shape.
        smooth: Pixels added to both sides of the ratio; it decides batches without change.
    """
    probability = logit.sigmoid() * valid
    changed = target.to(logit.dtype) * valid
    overlap = 2 * (probability * changed).sum() + smooth
    return 1 - overlap / (probability.sum() + changed.sum() + smooth)
