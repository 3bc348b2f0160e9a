import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmcd.losses.overlap import combined_iou, combined_iou_classes, soft_iou, soft_iou_classes

KNOWN = torch.tensor([True, True, True, False])


def logit_of(probability: list[float]) -> torch.Tensor:
    return torch.tensor(probability, dtype=torch.float64).logit()


def test_soft_iou_closed_form():
    logit = logit_of([0.8, 0.3, 0.5, 0.9])
    target = torch.tensor([True, False, True, False])
    # intersection 0.8 + 0.5, union 1.6 + 2 - 1.3
    assert float(soft_iou(logit, target, KNOWN, smooth=0)) == pytest.approx(1 - 1.3 / 2.3)
    assert float(soft_iou(logit, target, KNOWN, smooth=0.7)) == pytest.approx(1 - 2.0 / 3.0)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_combined_loss_is_the_weighted_sum(alpha):
    logit = logit_of([0.8, 0.3, 0.5, 0.9])
    target = torch.tensor([True, False, True, False])
    entropy = -(math.log(0.8) + math.log(0.7) + math.log(0.5)) / 3
    expected = alpha * entropy + (1 - alpha) * (1 - 1.3 / 2.3)
    assert float(combined_iou(logit, target, KNOWN, alpha)) == pytest.approx(expected, rel=1e-5)


def test_default_weight_is_one_half():
    logit, target = logit_of([0.8, 0.3, 0.5, 0.9]), torch.tensor([1, 0, 1, 0])
    assert combined_iou(logit, target, KNOWN) == combined_iou(logit, target, KNOWN, alpha=0.5)


def test_ratio_is_taken_over_the_batch_and_not_by_image():
    logit = torch.tensor([[40.0, -40.0], [-40.0, 40.0]])
    target = torch.tensor([[True, False], [False, False]])
    both = soft_iou(logit, target, torch.ones_like(target))
    assert float(both) == pytest.approx(0.5, abs=1e-5)  # by image: the mean of 0 and 1 - 1e-6


def test_two_classes_agree_with_the_binary_form():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 2, 5, 6).double(), torch.randint(0, 2, (2, 5, 6))
    valid = torch.rand(2, 5, 6) < 0.8
    change = logits[:, 1] - logits[:, 0]
    expected = (soft_iou(change, target == 1, valid) + soft_iou(-change, target == 0, valid)) / 2
    assert float(soft_iou_classes(logits, target, valid)) == pytest.approx(float(expected))
    entropy = combined_iou_classes(logits, target, valid, alpha=1.0)
    assert float(entropy) == pytest.approx(float(combined_iou(change, target, valid, alpha=1.0)))


def test_absent_classes_do_not_count():
    logits = torch.full((1, 3, 1, 2), -40.0)
    logits[0, 0] = 40.0
    target, valid = torch.zeros(1, 1, 2, dtype=torch.long), torch.ones(1, 1, 2, dtype=torch.bool)
    assert float(soft_iou_classes(logits, target, valid)) == pytest.approx(0)


@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans(), st.booleans()), min_size=1, max_size=20), st.floats(0, 1))
def test_losses_are_finite_and_have_a_gradient(pixels, alpha):
    logit = torch.tensor([p[0] for p in pixels], requires_grad=True)
    target, valid = torch.tensor([p[1] for p in pixels]), torch.tensor([p[2] for p in pixels])
    loss = combined_iou(logit, target, valid, alpha)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logit.grad).all()
    assert float(loss.detach()) >= -1e-6
    assert not logit.grad[~valid].any()


def test_nothing_known_gives_zero():
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = combined_iou_classes(logits, torch.full((1, 2, 2), -1), nothing)
    loss.backward()
    assert float(loss.detach()) == 0 and not logits.grad.any()
    assert float(soft_iou(logits[:, 0].detach(), nothing, nothing)) == 0
