"""Contrastive losses between the embeddings of two branches. Functions of tensors; queues would be arguments.

Here a *positive* pair is an unchanged pair: the same ground in both images, to be pulled together. A changed pair is
an explicit negative: its two embeddings are pushed apart.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def supervised_infonce(
    pre: Tensor, post: Tensor, changed: Tensor, temperature: float = 0.1, own_negatives: bool = True
) -> Tensor:
    """Return the supervised InfoNCE of ROI pairs: unchanged pairs together, changed pairs apart.

    With ``s_ij = pre_i . post_j / temperature``, U the unchanged and C the changed pairs, every unchanged row i adds
    ``-log(exp(s_ii) / sum_j exp(s_ij))`` over all sampled ROIs j, in both directions (their mean), and
    ``-log(exp(s_ii) / (exp(s_ii) + sum_{k in C} exp(s_kk)))``, in which the changed ROIs' *own* pairs are the
    negatives. Every row has its own denominator. Without unchanged pairs the loss is the mean of
    ``log(1 + exp(s_kk))`` over C, so changed pairs are still pushed apart.

    Args:
        pre: Unit vectors of the image before, shape (N, D).
        post: Unit vectors of the image after, shape (N, D).
        changed: True for changed pairs, shape (N,).
        temperature: Divides the cosine; smaller is harder.
        own_negatives: Push the two embeddings of a changed pair apart. Without it changed ROIs are only other ground.

    Raises:
        ValueError: There is no pair.

    Source: van den Oord et al. 2018 (InfoNCE); the explicit negatives are reference system 0's.
    """
    if not len(pre):
        raise ValueError("supervised_infonce needs at least one pair")
    similarity = pre.float() @ post.float().T / temperature  # (N, N)
    own = similarity.diagonal()
    unchanged = ~changed
    if not unchanged.any():
        return F.softplus(own).mean() * own_negatives
    rows = similarity.logsumexp(dim=1)[unchanged] - own[unchanged]
    columns = similarity.logsumexp(dim=0)[unchanged] - own[unchanged]
    aligned = (rows.mean() + columns.mean()) / 2
    return aligned + _own_pair_term(own[unchanged], own[changed]) if own_negatives else aligned


def _own_pair_term(unchanged: Tensor, changed: Tensor) -> Tensor:
    """Return the mean over unchanged pairs of ``log(1 + sum_k exp(s_kk) / exp(s_ii))``; 0 without changed pairs."""
    if not len(changed):
        return unchanged.new_zeros(())
    return F.softplus(changed.logsumexp(dim=0) - unchanged).mean()


def reference_infonce(
    optical: Tensor, sar: Tensor, unchanged: Tensor, temperature: float = 0.07
) -> tuple[Tensor, Tensor]:
    """Return the two terms of reference system 0's loss; its total is their sum.

    Unchanged pair i: ``-log(exp(s_ii) / (exp(s_ii) + sum_{j changed} exp(s_ij) + 1e-8))``, so the only negatives are
    the SAR vectors of changed pairs and there is no SAR-to-optical term. Changed pair k: ``log(1 + exp(s_kk))``.
    A term whose class is absent is 0 here, where the reference divides by zero.

    Args:
        optical: Projections of the optical branch, shape (N, D); they are normalised here.
        sar: Projections of the SAR branch, shape (N, D).
        unchanged: True for unchanged pairs (the reference's ``is_positive``), shape (N,).
        temperature: Divides the cosine.
    """
    similarity = F.normalize(optical.float(), dim=1) @ F.normalize(sar.float(), dim=1).T / temperature
    own = similarity.diagonal()
    changed = ~unchanged
    if not changed.any():
        return -own.mean(), own.new_zeros(())
    negative = F.softplus(own[changed]).mean()
    if not unchanged.any():
        return own.new_zeros(()), negative
    rivals = similarity[unchanged][:, changed]
    rivals = torch.cat([rivals, rivals.new_full((len(rivals), 1), 1e-8).log()], dim=1)
    return F.softplus(rivals.logsumexp(dim=1) - own[unchanged]).mean(), negative


def sample_rois(
    pre: Tensor, post: Tensor, share: Tensor, known: Tensor, per_class: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a balanced set of ROI pairs from dense embeddings.

    An ROI is changed when at least half of it is, unchanged when none of it is; the rest, on the border of a change,
    is left out.

    Args:
        pre: Unit vectors, shape (B, D, h, w).
        post: Unit vectors, same shape.
        share: Share of changed pixels of each ROI in [0, 1], shape (B, h, w).
        known: True for ROIs whose label is known everywhere, shape (B, h, w).
        per_class: Number of pairs drawn of each class, fewer where there are fewer.
        generator: Source of randomness, on the CPU.

    Returns:
        The drawn vectors, (N, D) twice, and True for changed pairs, (N,).
    """
    flat, usable = share.reshape(-1), known.reshape(-1)
    changed = _draw((flat >= 0.5) & usable, per_class, generator)
    unchanged = _draw((flat == 0) & usable, per_class, generator)
    picked = torch.cat([changed, unchanged])
    first, second = (_rows(vectors)[picked] for vectors in (pre, post))
    return first, second, torch.arange(len(picked), device=picked.device) < len(changed)


def _draw(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    indices = candidates.nonzero().squeeze(1)
    order = torch.randperm(len(indices), generator=generator)[:count]
    return indices[order.to(indices.device)]


def _rows(vectors: Tensor) -> Tensor:
    """Return (B, D, h, w) as (B h w, D)."""
    return vectors.permute(0, 2, 3, 1).reshape(-1, vectors.shape[1])
