"""Losses of a per-pixel logit of change. Positive means changed. Functions of tensors."""

import torch
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


def lovasz_softmax(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the Lovász-Softmax loss of the whole batch: a smooth stand-in for ``1 - mean IoU``; 0 without a label.

    The mean goes over the classes that the batch's labels hold: of an absent class the IoU says nothing.

    Args:
        logits: Logits of the classes, shape (B, K, H, W).
        target: Class of every pixel, shape (B, H, W), int64; anything where it is not valid.
        valid: True where the label is known, same shape.

    Source: Berman et al. 2018, "The Lovász-Softmax loss", algorithm 1 and equation 11.
    """
    probability = logits.float().softmax(dim=1).transpose(0, 1).flatten(1)  # (K, N)
    known = valid.flatten()
    classes = torch.arange(len(probability), device=target.device)[:, None]
    inside = (target.flatten() == classes) & known
    errors = (inside.float() - probability).abs().masked_fill(~known, 0.0)
    present = inside.any(dim=1)
    return (_lovasz_extension(errors, inside) * present).sum() / present.sum().clamp(min=1)


def lovasz_hinge(logit: Tensor, target: Tensor, valid: Tensor, per_image: bool = False) -> Tensor:
    """Return the Lovász hinge of a logit of change: a convex stand-in for ``1 - IoU`` of change; 0 without a label.

    Where nothing changed it is the largest hinge, ``1 + logit`` of the pixel that is most taken for change.

    Args:
        logit: Logit of change, shape (B, H, W) or any other with a leading batch axis.
        target: True or 1 where changed, same shape.
        valid: True where the label is known, same shape.
        per_image: Mean over the images of the batch, instead of one IoU of the whole batch.

    Source: Berman et al. 2018, "The Lovász-Softmax loss", equations 7 to 9; Yu and Blaschko 2015.
    """
    rows = len(logit) if per_image else 1
    values, known = logit.float().reshape(rows, -1), valid.reshape(rows, -1)
    inside = target.reshape(rows, -1).bool() & known
    hinges = (1 - torch.where(inside, values, -values)).masked_fill(~known, -torch.inf)
    return _lovasz_extension(hinges.relu(), inside).mean()


def _lovasz_extension(errors: Tensor, inside: Tensor) -> Tensor:
    """Return the Lovász extension of the Jaccard loss of each row, shape (R,).

    Errors are taken from the largest to the smallest, each weighted by how much the Jaccard loss grows when its pixel
    is missed too. That growth is written out, ``1 / union`` for a pixel of the class and
    ``intersection / (union (union - 1))`` for another: as a difference of two ratios near one it would be rounding.

    Args:
        errors: Error of each pixel, not negative, shape (R, N); 0 where it must not count.
        inside: True for pixels of the class, same shape; False where it must not count.
    """
    ordered, order = errors.sort(dim=1, descending=True)
    hit = inside.gather(1, order)
    size = hit.sum(dim=1, keepdim=True)
    missed = hit.cumsum(dim=1)
    rank = torch.arange(1, hit.shape[1] + 1, device=hit.device)
    union, intersection = (size + rank - missed).float(), (size - missed).float()
    growth = torch.where(hit, 1 / union, intersection / (union * (union - 1).clamp(min=1)))
    growth = torch.where((size == 0) & (rank == 1), 1.0, growth)  # of nothing, the first false pixel costs everything
    return (ordered * growth).sum(dim=1)
