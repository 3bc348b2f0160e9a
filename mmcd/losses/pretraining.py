"""Contrastive losses of self-supervised pretraining: MoCo-v2, MoCo+TP, SeCo, TeCo, CACo, SACo and SACo+.

Functions of tensors; encoders and queues are `mmcd.models.moco`'s. S is the number of embedding spaces, V of views, N
of rows here, M of rows of all processes, K of keys in a queue, D of dimensions, G of band groups. ``first`` is where
this process's rows begin among the M (`MomentumEncoder.first_row`). A *positive* is another view of the same place.
Everything is computed in single precision with log-sum-exp, also under autocast.

A training step, with ``net = MomentumEncoder(pooled_trunk(name, bands), trunk_width(name), METHODS[method])``. It ends
with ``net.enqueue(...)`` before or after ``backward``. ``t0, t1, t2`` are acquisitions of a place; ``aug`` is colour
jitter (0.4, 0.4, 0.4, 0.1; p 0.8), grey (p 0.2), blur (p 0.5) and a horizontal flip. All views get a random resized
crop (224, scale 0.2 to 1) and normalisation. SGD, lr 0.03, momentum 0.9, weight decay 1e-4, batch 256, last batch left
out; lr x 0.1 at 60 and 80 % of the epochs. Temperature 0.07, queue 16384, momentum 0.999, 128 dimensions:

* MoCo-v2 (1 space): views ``aug(t0)`` twice. ``q = net.embed_query(a)``, ``k = net.embed_keys(b)``;
  ``moco_loss(q[0], k[0, 0], net.negatives()[0], first=first)``; ``net.enqueue(k[:, 0])``.
* MoCo+TP (1 space): the same with query ``t0`` and key ``aug(t1)``, another acquisition of the place (the temporal
  positive).
* SeCo (3 spaces): query ``t0``; keys ``aug(t1)``, ``t2``, ``aug(t0)``, drawn with replacement. ``k =
  net.embed_keys(k0, k1, k2)`` is (S, V, M, D); the total is ``seco_loss(q, k, net.negatives(), first=first).sum()``;
  ``net.enqueue(own_keys(k))``. Space 0 keeps nothing of time and augmentation apart, 1 nothing of time, 2 nothing of
  augmentation.
* TeCo (3 spaces): SeCo with rows in pairs, row 2l the older and 2l + 1 the recent half of place l (all three
  acquisitions from that half), an even batch on every process, and ``teco_loss``.
* CACo (3 spaces): TeCo without replacement, with indices ``places`` and ``halves`` of the rows, and the query as a
  fourth view of the keys: ``k = net.embed_keys(k0, k1, k2, q_images)``. ``beliefs =
  mmcd.training.change_labels.ChangeLabels(number of places)`` is kept by the task. The loss is ``caco_loss(q, k[:, :3],
  queue, beliefs.changed(places, halves), first=first).sum()``; then ``beliefs.update(places, halves,
  *change_distances(k[1, 3, own], k[1, 1, own]))`` with ``own = slice(first, first + N)``; ``beliefs.fit()`` after every
  epoch. Nothing is believed changed before the first fit.
* SACo (1 space; temperature 0.05, 256 dimensions, head 1024-512, queue 384, Adam lr 1e-4, weight decay 1e-5, batch 64,
  64 px): images as band groups (N, G, 3, H, W), see `mmcd.data.band_groups`. ``z = net.embed_groups(x)[0]``, ``q =
  group_mean(z)``; keys are ``aug(x)`` and another time: ``k = net.embed_keys(a, b)[0]``; the total is the sum of the
  terms of ``saco_loss(q, k, net.negatives()[0], z, first=first)``; ``net.enqueue(k[None, 0])``: augmented keys only. In
  its second mode the query is ``aug(x)`` and the only key another time. Its augmentation is its own: rotation, flip,
  centre crop and jitter (0.1), each with p 0.5.
* SACo+: SACo whose images are the seven band groups and four textures, eleven groups in all: ``texture_images(
  band_texture(x), group_places(TEXTURE_GROUPS, bands))`` of `mmcd.data.texture`, joined on the group axis.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcd.errors import ConfigError

Denominator = Literal["row", "broadcast"]
Consistency = Literal["cosine", "l2", "margin"]


def moco_loss(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    temperature: float = 0.07,
    first: int = 0,
    denominator: Denominator = "row",
) -> Tensor:
    """Return the InfoNCE of queries with their own keys against a queue, the mean over rows.

    With ``p_n = q_n . k_n / temperature`` it is ``-log(exp(p_n) / (exp(p_n) + sum_u exp(q_n . u / temperature)))``.

    Args:
        queries: Unit vectors, shape (N, D).
        keys: Unit vectors of all processes, shape (M, D).
        queue: Unit vectors, shape (D, K).
        temperature: Divides the cosine.
        first: Where the queries' keys begin.
        denominator: ``row``, or ``broadcast`` to pair every row's positive with every row's negatives, as reference
            system 2 does by mistake.

    Raises:
        ValueError: There are no keys for all queries.

    Source: He et al. 2020.
    """
    with _full_precision(queries):
        scaled = queries.float() / temperature
        positive = (scaled * _rows(keys, len(queries), first)).sum(dim=1)
        negative = (scaled @ queue.float()).logsumexp(dim=1)
        if denominator == "row":
            return F.softplus(negative - positive).mean()
        return F.softplus(negative - positive.unsqueeze(1)).mean()


def seco_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.07, first: int = 0) -> Tensor:
    """Return SeCo's loss of every space, shape (S,); their sum is what is trained on.

    View i is the positive of space i. Negatives are the space's queue and, but for space 0, all rows of all other
    views, the place's own included: what the space must tell apart.

    Args:
        queries: Unit vectors by space, shape (S, N, D).
        keys: Unit vectors of every view in every space, of all processes, shape (S, V, M, D) with V = S.
        queue: Unit vectors by space, shape (S, D, K).
        temperature: Divides the cosine.
        first: Where the queries' rows begin among the keys.

    Raises:
        ValueError: The views are not one for each space, or there are no keys for all queries.

    Source: Mañas et al. 2021.
    """
    with _full_precision(queries):
        scaled, every = queries.float() / temperature, keys.float()
        positive = (scaled * _rows(own_keys(every), queries.shape[1], first)).sum(dim=2)  # (S, N)
        negative = torch.stack([(scaled @ queue.float()).logsumexp(dim=2), _other_views(scaled, every)])
        return F.softplus(negative.logsumexp(dim=0) - positive).mean(dim=1)


def teco_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.07, first: int = 0) -> Tensor:
    """Return TeCo's loss of every space, shape (S,): CACo's with every place taken for changed.

    Args:
        queries: As in `seco_loss`, rows in pairs: the older half of a place, then its recent half.
        keys: As in `seco_loss`, rows in the same pairs.
        queue: As in `seco_loss`.
        temperature: Divides the cosine.
        first: As in `seco_loss`.

    Raises:
        ConfigError: Rows do not come in pairs.
        ValueError: As in `seco_loss`.
    """
    changed = torch.ones(queries.shape[1], dtype=torch.bool, device=queries.device)
    return caco_loss(queries, keys, queue, changed, temperature, first)


def caco_loss(
    queries: Tensor, keys: Tensor, queue: Tensor, changed: Tensor, temperature: float = 0.07, first: int = 0
) -> Tensor:
    """Return CACo's loss of every space, shape (S,); their sum is what is trained on.

    View i is the positive of space i. Negatives of a row of one period are the keys of that period in the space's
    queue (every second one), the space's own view of all places in the *other* period, of the same place only where it
    is believed to have changed, and, but for space 0, all rows of all other views.

    Args:
        queries: As in `seco_loss`, rows in pairs: the older half of a place, then its recent half.
        keys: As in `seco_loss`, rows in the same pairs.
        queue: As in `seco_loss`.
        changed: True where the place is believed to have changed between the halves, shape (N,).
        temperature: Divides the cosine.
        first: As in `seco_loss`.

    Raises:
        ConfigError: Rows do not come in pairs.
        ValueError: As in `seco_loss`.

    Source: Mall, Hariharan and Bala 2023.
    """
    _check_pairs(queries.shape[1], keys.shape[2], queue.shape[2], first)
    with _full_precision(queries):
        scaled, every = queries.float() / temperature, keys.float()
        own = own_keys(every)
        positive = (scaled * _rows(own, queries.shape[1], first)).sum(dim=2)  # (S, N)
        halves = _halves(scaled)  # (S, 2, N / 2, D)
        same_period = (halves @ _halves(queue.float().movedim(1, 2)).mT).logsumexp(dim=3)
        other_period = halves @ _halves(own).flip(1).mT  # (S, 2, N / 2, M / 2)
        same_place = torch.arange(other_period.shape[3], device=queries.device)
        same_place = same_place == same_place[: halves.shape[2], None] + first // 2
        spared = same_place & ~changed.reshape(-1, 2).T.unsqueeze(2)  # (2, N / 2, M / 2)
        # A lone place that did not change leaves no other; beside the queue nothing is missing then.
        apart = other_period.masked_fill(spared, _ABSENT).logsumexp(dim=3)
        by_period = torch.logaddexp(same_period, apart).movedim(1, 2).flatten(1)  # (S, N)
        negative = torch.logaddexp(by_period, _other_views(scaled, every))
        return F.softplus(negative - positive).mean(dim=1)


def own_keys(keys: Tensor) -> Tensor:
    """Return each space's own view, which is its positive and what its queue is fed with.

    Args:
        keys: Every view in every space, shape (S, V, M, D).

    Returns:
        Shape (S, M, D).

    Raises:
        ValueError: There are fewer views than spaces.
    """
    spaces = len(keys)
    if keys.shape[1] < spaces:
        raise ValueError(f"{keys.shape[1]} views for {spaces} spaces: each space needs one of its own")
    return keys[range(spaces), range(spaces)]


def saco_loss(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    groups: Tensor,
    temperature: float = 0.05,
    first: int = 0,
    denominator: Denominator = "row",
    consistency: Consistency = "cosine",
) -> tuple[Tensor, Tensor]:
    """Return the two terms of SACo's loss, which are added: InfoNCE summed over keys, and agreement of band groups.

    Args:
        queries: Unit vectors of the means over groups, shape (N, D).
        keys: Unit vectors of each key view, of all processes, shape (V, M, D).
        queue: Unit vectors, shape (D, K).
        groups: Embeddings of the queries' groups as the head gave them, shape (N, G, D).
        temperature: Divides the cosine.
        first: Where the queries' rows begin among the keys.
        denominator: As in `moco_loss`.
        consistency: As in `band_consistency`.

    Source: Stival, da Silva Torres and Pedrini 2025.
    """
    contrast = [moco_loss(queries, view, queue, temperature, first, denominator) for view in keys]
    return torch.stack(contrast).sum(), band_consistency(groups, queries, consistency)


def band_consistency(groups: Tensor, mean: Tensor, form: Consistency = "cosine", margin: float = 1.0) -> Tensor:
    """Return how far the embeddings of the band groups are from their mean, averaged over groups and rows.

    Args:
        groups: Embeddings as the head gave them, shape (N, G, D).
        mean: Unit vectors of their mean, shape (N, D).
        form: ``cosine``, ``1 - cos``; ``l2``, the squared distance; ``margin``, ``(margin - distance) ** 2``, as
            reference system 2 has it, which drives the distance to the margin and not to 0.
        margin: Of the form ``margin``.
    """
    with _full_precision(groups):
        apart = groups.float() - mean.float().unsqueeze(1)
        if form == "cosine":
            return 1 - F.cosine_similarity(groups.float(), mean.float().unsqueeze(1), dim=2).mean()
        if form == "l2":
            return apart.square().sum(dim=2).mean()
        distance: Tensor = torch.linalg.vector_norm(apart, dim=2)
        return (margin - distance).square().mean()


_ABSENT = -1e8
"""Logit of what is no negative. Finite, so that a row without any negative of a kind still has a gradient."""


def _other_views(scaled: Tensor, keys: Tensor) -> Tensor:
    """Return the log-sum-exp over all rows of all views but the space's own, shape (S, N); absent in space 0."""
    spaces, views = keys.shape[:2]
    if views != spaces:
        raise ValueError(f"{views} views for {spaces} spaces: each space needs one of its own")
    logits = torch.einsum("snd,svmd->snvm", scaled, keys)
    allowed = ~torch.eye(spaces, dtype=torch.bool, device=keys.device)
    allowed[0] = False
    return logits.masked_fill(~allowed[:, None, :, None], _ABSENT).flatten(2).logsumexp(dim=2)


def _halves(rows: Tensor) -> Tensor:
    """Return (S, R, D), rows of the two periods in turn, as (S, 2, R / 2, D)."""
    return rows.reshape(len(rows), -1, 2, rows.shape[2]).transpose(1, 2)


def _rows(keys: Tensor, count: int, first: int) -> Tensor:
    """Return ``count`` rows from ``first`` on, of (..., M, D)."""
    if not 0 <= first <= keys.shape[-2] - count or not count:
        raise ValueError(f"{count} queries from row {first} on have no keys among {keys.shape[-2]} rows")
    return keys[..., first : first + count, :].float()


def _check_pairs(rows: int, keys: int, queue: int, first: int) -> None:
    odd = {"rows of a batch": rows, "keys of all processes": keys, "keys of the queue": queue, "rows before": first}
    for name, number in odd.items():
        if number % 2:
            raise ConfigError(
                f"Rows of older and recent images come in pairs, but the {name} are {number:,}.",
                "Choose an even batch size and an even queue, with both halves of a place side by side.",
            )


def _full_precision(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)
