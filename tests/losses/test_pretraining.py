import math
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from mmcd.errors import ConfigError
from mmcd.losses.pretraining import (
    band_consistency,
    caco_loss,
    moco_loss,
    own_keys,
    saco_loss,
    seco_loss,
    teco_loss,
)

SPACES, ROWS, DIM, QUEUE, TAU = 3, 6, 5, 8, 0.07


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def batch():
    """Queries (S, N, D), keys (S, V, N, D) and queues (S, D, K)."""
    queue = unit(SPACES, QUEUE, DIM, seed=3).mT.contiguous()
    return unit(SPACES, ROWS, DIM, seed=1), unit(SPACES, SPACES, ROWS, DIM, seed=2), queue


def slow(query, positive, negatives, tau=TAU):
    """One row, in double precision and without a trick."""
    numerator = math.exp(float(query.double() @ positive.double()) / tau)
    return -math.log(
        numerator / (numerator + sum(math.exp(float(query.double() @ other.double()) / tau) for other in negatives))
    )


def slow_caco(queries, keys, queue, changed):
    """The formula of the method, row by row."""
    losses = []
    for space in range(SPACES):
        rows = []
        for row in range(ROWS):
            period, place = row % 2, row // 2
            negatives = [queue[space, :, at] for at in range(period, QUEUE, 2)]
            if space > 0:
                negatives += [
                    keys[space, view, other] for view, other in product(range(SPACES), range(ROWS)) if view != space
                ]
            for other in range(ROWS // 2):
                if other != place or changed[row]:
                    negatives.append(keys[space, space, 2 * other + 1 - period])
            rows.append(slow(queries[space, row], keys[space, space, row], negatives))
        losses.append(sum(rows) / ROWS)
    return losses


def test_moco_of_a_query_that_is_its_key_and_a_queue_that_is_orthogonal():
    axes = torch.eye(4)
    found = moco_loss(axes[:1], axes[:1], axes[1:].T, TAU)
    assert float(found) == pytest.approx(math.log1p(3 * math.exp(-1 / TAU)), rel=1e-4)


def test_moco_is_the_slow_form(batch):
    queries, keys, queue = batch
    expected = [slow(queries[0, row], keys[0, 0, row], queue[0].T) for row in range(ROWS)]
    assert float(moco_loss(queries[0], keys[0, 0], queue[0], TAU)) == pytest.approx(sum(expected) / ROWS, rel=1e-5)


def test_broadcast_denominators_are_all_pairs_of_positives_and_negatives(batch):
    queries, keys, queue = (tensor[0].double() for tensor in batch)
    positive = ((queries * keys[0]).sum(1) / TAU).exp()
    negative = (queries @ queue / TAU).exp().sum(1)
    expected = -torch.stack([(p / (p + n)).log() for p, n in product(positive, negative)]).mean()
    found = moco_loss(queries, keys[0], queue, TAU, denominator="broadcast")
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(found) != pytest.approx(float(moco_loss(queries, keys[0], queue, TAU)), rel=1e-3)


def test_seco_is_the_slow_form(batch):
    queries, keys, queue = batch
    expected = []
    for space in range(SPACES):
        others = [keys[space, view] for view in range(SPACES) if view != space and space > 0]
        negatives = torch.cat([queue[space].T, *others])
        rows = [slow(queries[space, row], keys[space, space, row], negatives) for row in range(ROWS)]
        expected.append(sum(rows) / ROWS)
    assert seco_loss(queries, keys, queue, TAU).tolist() == pytest.approx(expected, rel=1e-5)


def test_one_space_of_seco_is_moco(batch):
    queries, keys, queue = batch
    found = seco_loss(queries[:1], keys[:1, :1], queue[:1], TAU)
    torch.testing.assert_close(found[0], moco_loss(queries[0], keys[0, 0], queue[0], TAU))


@pytest.mark.parametrize("changed", [[False] * 6, [True] * 6, [True, False, False, True, True, True]])
def test_caco_is_the_slow_form(batch, changed):
    found = caco_loss(*batch, torch.tensor(changed), TAU)
    assert found.tolist() == pytest.approx(slow_caco(*batch, changed), rel=1e-5)


def test_teco_takes_every_place_for_changed(batch):
    assert teco_loss(*batch, TAU).tolist() == pytest.approx(slow_caco(*batch, [True] * ROWS), rel=1e-5)


def test_a_place_is_its_own_negative_only_where_it_changed():
    """Both periods of a place alike, everything else opposite: only a believed change makes a loss."""
    axis = torch.tensor([1.0, 0.0])
    queries, keys = axis.expand(1, 2, 2), axis.expand(1, 1, 2, 2)
    queue = -axis.view(1, 2, 1).expand(1, 2, 4)
    unchanged = caco_loss(queries, keys, queue, torch.tensor([False, False]), TAU)
    changed = caco_loss(queries, keys, queue, torch.tensor([True, True]), TAU)
    assert float(unchanged) == pytest.approx(0, abs=1e-6)
    assert float(changed) == pytest.approx(math.log(2), rel=1e-5)


def test_periods_do_not_share_the_queue(batch):
    queries, keys, queue = batch
    queue = queue.clone().requires_grad_()
    scaled = queries.clone()
    scaled[:, 1::2] = 0  # Rows of the recent half weigh every key alike: only the older half tells keys apart.
    caco_loss(scaled, keys, queue, torch.zeros(ROWS, dtype=torch.bool), TAU).sum().backward()
    assert (queue.grad[..., 0::2].abs().sum(dim=1) > 0).all()
    assert float(queue.grad[..., 1::2].abs().max()) == 0


@pytest.mark.parametrize("loss", [seco_loss, teco_loss])
def test_processes_average_to_one(batch, loss):
    queries, keys, queue = batch
    whole = loss(queries, keys, queue, TAU)
    parts = [(queries[:, :2], 0), (queries[:, 2:4], 2), (queries[:, 4:], 4)]
    torch.testing.assert_close(
        torch.stack([loss(part, keys, queue, TAU, first) for part, first in parts]).mean(0), whole
    )


def test_change_of_a_place_follows_its_rows_on_another_process(batch):
    queries, keys, queue = batch
    changed = torch.tensor([True, False, False, True, True, True])
    parts = [caco_loss(queries[:, at : at + 2], keys, queue, changed[at : at + 2], TAU, at) for at in range(0, ROWS, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(0), caco_loss(queries, keys, queue, changed, TAU))


def test_half_precision_around_it_changes_nothing(batch):
    changed = torch.tensor([True, False] * 3)
    expected = caco_loss(*batch, changed, TAU), seco_loss(*batch, TAU)
    with torch.autocast("cpu", torch.bfloat16):
        found = caco_loss(*batch, changed, TAU), seco_loss(*batch, TAU)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_sharp_temperatures_overflow_nothing(batch):
    queries = batch[0].clone().requires_grad_()
    losses = [
        moco_loss(queries[0], batch[1][0, 0], batch[2][0], 1e-4),
        moco_loss(queries[0], batch[1][0, 0], batch[2][0], 1e-4, denominator="broadcast"),
        seco_loss(queries, *batch[1:], 1e-4).sum(),
        caco_loss(queries, *batch[1:], torch.tensor([False] * ROWS), 1e-4).sum(),
    ]
    sum(losses).backward()
    assert all(math.isfinite(loss.item()) and loss.item() > 100 for loss in losses)
    assert queries.grad.isfinite().all()


def test_a_lone_place_that_did_not_change_has_a_finite_gradient(batch):
    queries = batch[0][:, :2].clone().requires_grad_()
    caco_loss(queries, batch[1][:, :, :2], batch[2], torch.tensor([False, False]), TAU).sum().backward()
    assert queries.grad.isfinite().all() and queries.grad.abs().sum() > 0


def test_each_space_feeds_its_queue_with_its_own_view(batch):
    keys = batch[1]
    assert torch.equal(own_keys(keys), torch.stack([keys[space, space] for space in range(SPACES)]))


def test_saco_sums_its_keys_and_adds_the_agreement_of_groups(batch):
    queries, keys, queue = batch
    groups = torch.randn(ROWS, 7, DIM)
    contrast, agreement = saco_loss(queries[0], keys[0, :2], queue[0], groups)
    expected = sum(moco_loss(queries[0], keys[0, view], queue[0], 0.05) for view in (0, 1))
    torch.testing.assert_close(contrast, expected)
    torch.testing.assert_close(agreement, band_consistency(groups, queries[0]))


def test_agreement_of_groups():
    mean = F.normalize(torch.tensor([[3.0, 4.0]]), dim=1)
    groups = torch.stack([torch.tensor([[3.0, 4.0], [-0.8, 0.6]])])  # at five times the mean, and across it
    assert float(band_consistency(groups, mean, "cosine")) == pytest.approx((0 + 1) / 2, abs=1e-6)
    assert float(band_consistency(groups, mean, "l2")) == pytest.approx((16 + 2) / 2, rel=1e-6)
    expected = ((1 - 4) ** 2 + (1 - math.sqrt(2)) ** 2) / 2
    assert float(band_consistency(groups, mean, "margin")) == pytest.approx(expected, rel=1e-6)
    assert float(band_consistency(groups, mean, "margin", margin=4)) == pytest.approx((4 - math.sqrt(2)) ** 2 / 2)


@pytest.mark.parametrize("form", ["cosine", "l2", "margin"])
def test_groups_that_agree_have_a_finite_gradient(form):
    mean = unit(4, 8)
    groups = mean.unsqueeze(1).repeat(1, 3, 1).requires_grad_()
    band_consistency(groups, mean, form).backward()
    assert groups.grad.isfinite().all()


def test_rows_that_do_not_come_in_pairs_are_refused(batch):
    queries, keys, queue = batch
    with pytest.raises(ConfigError, match=r"rows of a batch are 5\. Choose an even batch size"):
        teco_loss(queries[:, :5], keys, queue)
    with pytest.raises(ConfigError, match="keys of the queue are 7"):
        teco_loss(queries, keys, queue[..., :7])


def test_queries_without_keys_are_an_error(batch):
    queries, keys, queue = batch
    with pytest.raises(ValueError, match="6 queries from row 2 on have no keys among 6 rows"):
        seco_loss(queries, keys, queue, first=2)
    with pytest.raises(ValueError, match="2 views for 3 spaces"):
        seco_loss(queries, keys[:, :2], queue)
    with pytest.raises(ValueError, match="no keys"):
        moco_loss(queries[0, :0], keys[0, 0], queue[0])
