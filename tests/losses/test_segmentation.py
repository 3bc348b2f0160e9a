import math

import pytest
import torch

from mmcd.losses.segmentation import binary_cross_entropy, cross_entropy, soft_dice


def test_cross_entropy_of_known_pixels():
    logit = torch.tensor([[0.0, 2.0, -50.0]])
    target = torch.tensor([[True, False, True]])
    valid = torch.tensor([[True, True, False]])
    expected = (math.log(2) + math.log(1 + math.exp(2))) / 2
    assert float(binary_cross_entropy(logit, target, valid)) == pytest.approx(expected)


def test_cross_entropy_of_classes_leaves_out_unknown_pixels():
    logits = torch.tensor([[[[2.0, 9.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])
    target, valid = torch.tensor([[[1, -1]]]), torch.tensor([[[True, False]]])
    assert float(cross_entropy(logits, target, valid)) == pytest.approx(math.log(math.exp(2) + 2))


def test_dice_closed_form():
    logit = torch.tensor([0.0, 0.0, 40.0])
    target = torch.tensor([True, False, False])
    valid = torch.tensor([True, True, False])
    # overlap 0.5, sizes 1 and 1
    assert float(soft_dice(logit, target, valid, smooth=0)) == pytest.approx(1 - 2 * 0.5 / 2)


def test_dice_bounds():
    target = torch.tensor([True, False])
    valid = torch.ones(2, dtype=torch.bool)
    assert float(soft_dice(torch.tensor([60.0, -60.0]), target, valid)) == pytest.approx(0)
    assert float(soft_dice(torch.tensor([-60.0, 60.0]), target, valid, smooth=0)) == pytest.approx(1)


def test_nothing_known_gives_zero_gradient():
    logit = torch.ones(4, requires_grad=True)
    nothing = torch.zeros(4, dtype=torch.bool)
    loss = binary_cross_entropy(logit, nothing, nothing) + soft_dice(logit, nothing, nothing)
    loss.backward()
    assert float(loss) == 0 and logit.grad.abs().sum() == 0
