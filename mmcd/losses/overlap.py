"""Losses of overlap: soft intersection over union, and its mix with the cross entropy. Positive means changed.

Everything is summed over the whole batch before the ratio is taken, as in reference system 1, so that images without
change do not dominate.
"""

import torch
from torch import Tensor

from mmcd.losses.segmentation import binary_cross_entropy, cross_entropy

SMOOTH = 1e-6


def soft_iou(logit: Tensor, target: Tensor, valid: Tensor, smooth: float = SMOOTH) -> Tensor:
    """Return one minus the soft IoU of the change class over the whole batch.

    With probabilities p and labels y the intersection is the sum of p y, the union that of p + y - p y.
    Source: Rahman and Wang 2016.

    Args:
        logit: Logit of change, any shape, float32.
        target: 1 where changed, 0 elsewhere, same shape.
        valid: True where the label is known, same shape.
        smooth: Pixels added to both sides of the ratio; it decides batches without a valid pixel.
    """
    return _one_minus_iou(logit.sigmoid() * valid, target.to(logit.dtype) * valid, smooth)


def combined_iou(logit: Tensor, target: Tensor, valid: Tensor, alpha: float = 0.5, smooth: float = SMOOTH) -> Tensor:
    """Return ``alpha`` times the cross entropy plus ``1 - alpha`` times `soft_iou`: the loss of reference system 1.

    Args:
        logit: Logit of change, any shape, float32.
        target: 1 where changed, 0 elsewhere, same shape.
        valid: True where the label is known, same shape.
        alpha: Weight of the cross entropy in [0, 1]; the reference was trained with 0.7.
        smooth: See `soft_iou`.
    """
    overlap = soft_iou(logit, target, valid, smooth)
    return alpha * binary_cross_entropy(logit, target, valid) + (1 - alpha) * overlap


def soft_iou_classes(logits: Tensor, target: Tensor, valid: Tensor, smooth: float = SMOOTH) -> Tensor:
    """Return one minus the mean soft IoU of the classes that the batch holds; 0 when no pixel is valid.

    Args:
        logits: Logits of the classes, shape (B, K, H, W), float32; compared by their softmax.
        target: Class of every pixel, shape (B, H, W), int64; anything where it is not valid.
        valid: True where the label is known, same shape.
        smooth: See `soft_iou`.
    """
    probability = logits.softmax(dim=1)
    losses, present = [], []
    for number in range(logits.shape[1]):
        own = (target == number) & valid
        losses.append(_one_minus_iou(probability[:, number] * valid, own.to(logits.dtype), smooth))
        present.append(own.any())
    weights = torch.stack(present).to(logits.dtype)
    return (torch.stack(losses) * weights).sum() / weights.sum().clamp(min=1)


def combined_iou_classes(
    logits: Tensor, target: Tensor, valid: Tensor, alpha: float = 0.5, smooth: float = SMOOTH
) -> Tensor:
    """Return `combined_iou` for several classes: their cross entropy and `soft_iou_classes`.

    Args:
        logits: Logits of the classes, shape (B, K, H, W), float32.
        target: Class of every pixel, shape (B, H, W), int64; anything where it is not valid.
        valid: True where the label is known, same shape.
        alpha: Weight of the cross entropy in [0, 1].
        smooth: See `soft_iou`.
    """
    overlap = soft_iou_classes(logits, target, valid, smooth)
    return alpha * cross_entropy(logits, target, valid) + (1 - alpha) * overlap


def _one_minus_iou(probability: Tensor, label: Tensor, smooth: float) -> Tensor:
    intersection = (probability * label).sum()
    union = probability.sum() + label.sum() - intersection
    return 1 - (intersection + smooth) / (union + smooth)
