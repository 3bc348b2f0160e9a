import math

import pytest
import torch
from torch.nn import functional as F

from mmcd.losses.contrastive import reference_infonce, sample_rois, supervised_infonce


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_closed_form_of_two_unchanged_and_one_changed_pair():
    pre = unit([1, 0, 0], [0, 1, 0], [0, 0, 1])
    post = unit([1, 1, 0], [0, 1, 0], [0, 1, 1])
    tau = 0.5
    s = (pre @ post.T / tau).tolist()
    rows = [math.log(sum(math.exp(v) for v in s[i])) - s[i][i] for i in (0, 1)]
    columns = [math.log(sum(math.exp(s[j][i]) for j in range(3))) - s[i][i] for i in (0, 1)]
    own = [math.log(1 + math.exp(s[2][2] - s[i][i])) for i in (0, 1)]
    expected = (sum(rows) + sum(columns)) / 4 + sum(own) / 2
    found = supervised_infonce(pre, post, torch.tensor([False, False, True]), tau)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_without_own_negatives_only_the_alignment_of_unchanged_pairs_is_left():
    pre, post = (
        F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)), dim=1) for seed in (1, 2)
    )
    changed = torch.tensor([True, False, False, True, False, False])
    own = (pre * post).sum(dim=1) / 0.1
    term = F.softplus(own[changed].logsumexp(dim=0) - own[~changed]).mean()
    with_term, without = (supervised_infonce(pre, post, changed, 0.1, own) for own in (True, False))
    torch.testing.assert_close(with_term - without, term)


def test_denominators_belong_to_rows():
    """A far row must not lower another row's loss: with one denominator for all, both rows would share it."""
    pre = unit([1, 0], [1, 0.01])
    post = unit([1, 0], [-1, 0])
    s = (pre @ post.T / 0.1).double()
    per_row = (s.logsumexp(1) - s.diagonal()).mean()
    per_column = (s.logsumexp(0) - s.diagonal()).mean()
    found = supervised_infonce(pre, post, torch.tensor([False, False]), 0.1)
    assert float(found) == pytest.approx(float((per_row + per_column) / 2), rel=1e-5)


@pytest.mark.parametrize("changed", [[True, True, True], [False, False, False], [True, False, False]])
def test_finite_when_a_class_is_absent(changed):
    torch.manual_seed(0)
    pre = torch.randn(3, 8, requires_grad=True)
    loss = supervised_infonce(F.normalize(pre, dim=1), F.normalize(torch.randn(3, 8), dim=1), torch.tensor(changed))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(pre.grad).all() and pre.grad.abs().sum() > 0


def test_no_pair_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        supervised_infonce(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool))


def test_a_step_down_the_gradient_pulls_unchanged_together_and_pushes_changed_apart():
    torch.manual_seed(0)
    raw = torch.randn(2, 8, 16, requires_grad=True)
    changed = torch.arange(8) < 4

    def cosines():
        return F.cosine_similarity(raw[0], raw[1], dim=1).detach()

    before = cosines()
    for _ in range(50):
        loss = supervised_infonce(F.normalize(raw[0], dim=1), F.normalize(raw[1], dim=1), changed)
        (gradient,) = torch.autograd.grad(loss, raw)
        raw.data -= 0.5 * gradient
    assert (cosines()[~changed] > before[~changed]).all()
    assert cosines()[changed].max() < cosines()[~changed].min()


def test_reference_form():
    optical, sar = unit([1, 0], [0, 1], [1, 1]) * 3, unit([1, 0.2], [1, 1], [0.5, 1]) * 2
    unchanged = torch.tensor([True, False, False])
    s = F.normalize(optical, dim=1) @ F.normalize(sar, dim=1).T / 0.07
    e = s.double().exp()
    positive = -torch.log(e[0, 0] / (e[0, 0] + e[0, 1] + e[0, 2] + 1e-8))
    negative = torch.log1p(e.diagonal()[1:]).mean()
    found = reference_infonce(optical, sar, unchanged)
    assert float(found[0]) == pytest.approx(float(positive), rel=1e-4)
    assert float(found[1]) == pytest.approx(float(negative), rel=1e-4)


def test_reference_form_without_a_class():
    vectors = unit([1, 0], [0, 1])
    positive, negative = reference_infonce(vectors, vectors, torch.tensor([True, True]))
    assert float(positive) == pytest.approx(-1 / 0.07) and float(negative) == 0
    positive, negative = reference_infonce(vectors, vectors, torch.tensor([False, False]))
    assert float(positive) == 0 and float(negative) == pytest.approx(math.log1p(math.exp(1 / 0.07)), rel=1e-5)


def test_rois_are_drawn_by_label_and_keep_their_pairs():
    embeddings = torch.arange(2 * 1 * 4 * 4, dtype=torch.float32).reshape(2, 1, 4, 4)
    share = torch.zeros(2, 4, 4)
    share[0, 0] = 0.75
    share[1, 1] = 0.2
    known = torch.ones(2, 4, 4, dtype=torch.bool)
    known[:, 3] = False
    pre, post, changed = sample_rois(embeddings, embeddings + 100, share, known, 3, torch.Generator().manual_seed(0))
    assert changed.tolist() == [True] * 3 + [False] * 3
    assert torch.equal(post, pre + 100)
    assert set(pre[:3, 0].tolist()) <= {0, 1, 2, 3}
    border_and_unknown = {20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31}
    assert not set(pre[3:, 0].tolist()) & (border_and_unknown | {0, 1, 2, 3})


# --- the forms beside slow ones in double precision ----------------------------------------------------------------


def slow_reference(optical, sar, unchanged, tau):
    """The reference's two terms, one exponential after the other."""
    optical, sar = ([row / row.norm() for row in side.double()] for side in (optical, sar))
    s = [[float(one @ other) / tau for other in sar] for one in optical]
    changed = [i for i in range(len(s)) if not unchanged[i]]
    terms = {True: [], False: []}
    for i in range(len(s)):
        if unchanged[i]:
            below = math.exp(s[i][i]) + sum(math.exp(s[i][j]) for j in changed) + 1e-8
            terms[True].append(-math.log(math.exp(s[i][i]) / below) if changed else -s[i][i])
        else:
            terms[False].append(math.log(1 + math.exp(s[i][i])))
    return [sum(terms[kind]) / len(terms[kind]) if terms[kind] else 0.0 for kind in (True, False)]


def slow_supervised(pre, post, changed, tau):
    """The dense form's loss, one exponential after the other."""
    s = (pre.double() @ post.double().T / tau).tolist()
    n, far = range(len(s)), [k for k in range(len(s)) if changed[k]]
    near = [i for i in n if not changed[i]]
    if not near:
        return sum(math.log(1 + math.exp(s[k][k])) for k in far) / len(far)
    total = 0.0
    for i in near:
        row = -math.log(math.exp(s[i][i]) / sum(math.exp(s[i][j]) for j in n))
        column = -math.log(math.exp(s[i][i]) / sum(math.exp(s[j][i]) for j in n))
        own = -math.log(math.exp(s[i][i]) / (math.exp(s[i][i]) + sum(math.exp(s[k][k]) for k in far)))
        total += (row + column) / 2 + own
    return total / len(near)


@pytest.mark.parametrize("tau", [0.07, 0.1, 1.0])
@pytest.mark.parametrize("changed", [0, 1, 13, 63, 64])
def test_fast_forms_equal_slow_ones(tau, changed):
    torch.manual_seed(changed)
    one, other = torch.randn(64, 16), torch.randn(64, 16)
    other[:40] += 2 * one[:40]  # some pairs are alike, so that no term is all but constant
    flags = torch.randperm(64) < changed
    found = reference_infonce(3 * one, other, ~flags, tau)
    assert [float(term) for term in found] == pytest.approx(slow_reference(one, other, ~flags, tau), rel=1e-5, abs=1e-6)
    one, other = F.normalize(one, dim=1), F.normalize(other, dim=1)
    found = supervised_infonce(one, other, flags, tau)
    assert float(found) == pytest.approx(slow_supervised(one, other, flags, tau), rel=1e-5)


def test_reference_form_of_one_pair_of_each_class_is_closed():
    """Orthogonal vectors: every similarity is 0, so the terms are log 2 each; opposite and equal ones by hand."""
    optical, sar = unit([1, 0, 0, 0], [0, 1, 0, 0]), unit([0, 0, 1, 0], [0, 0, 0, 1])
    positive, negative = reference_infonce(optical, sar, torch.tensor([True, False]))
    assert float(positive) == pytest.approx(math.log(2), rel=1e-5) and float(negative) == pytest.approx(math.log(2))
    optical, sar = unit([1, 0], [0, 1]), unit([1, 0], [0, -1])
    positive, negative = reference_infonce(optical, sar, torch.tensor([True, False]), 0.5)
    assert float(positive) == pytest.approx(math.log1p(math.exp(-2)), rel=1e-5)
    assert float(negative) == pytest.approx(math.log1p(math.exp(-2)), rel=1e-5)


@pytest.mark.parametrize("unchanged", [[True, True, True], [False, False, False], [True, False, False]])
def test_the_reference_form_learns_from_batches_of_one_class(unchanged):
    torch.manual_seed(0)
    optical, sar = torch.randn(3, 8, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    sum(reference_infonce(optical, sar, torch.tensor(unchanged))).backward()
    for vectors in (optical, sar):
        assert torch.isfinite(vectors.grad).all() and vectors.grad.abs().sum() > 0


def test_other_unchanged_pairs_are_no_negatives_of_the_reference():
    torch.manual_seed(0)
    optical, sar = torch.randn(3, 8), torch.randn(3, 8)
    alone = reference_infonce(optical[[0, 2]], sar[[0, 2]], torch.tensor([True, False]))[0]
    other = reference_infonce(optical[[1, 2]], sar[[1, 2]], torch.tensor([True, False]))[0]
    both = reference_infonce(optical, sar, torch.tensor([True, True, False]))[0]
    torch.testing.assert_close(both, (alone + other) / 2)
