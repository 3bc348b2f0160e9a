import math

import pytest
import torch

from mmcd.losses.segmentation import binary_cross_entropy, cross_entropy, lovasz_hinge, lovasz_softmax, soft_dice


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


def jaccard_loss(missed, inside):
    """Return 1 - |inside without missed| / |inside with missed|, as the set function of Berman et al. 2018."""
    union = (inside | missed).sum()
    return 1 - float((inside & ~missed).sum() / union) if union else 0.0


def slow_extension(errors, inside):
    """Return the Lovász extension by its definition: sum of errors times growth of the set function, in O(n^2)."""
    total, missed = 0.0, torch.zeros_like(inside)
    for pixel in errors.argsort(descending=True).tolist():
        before = jaccard_loss(missed, inside)
        missed[pixel] = True
        total += float(errors[pixel]) * (jaccard_loss(missed, inside) - before)
    return total


@pytest.fixture
def scenes():
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn((3, 4, 5, 6), generator=random)
    target = torch.randint(0, 3, (3, 5, 6), generator=random)  # class 3 is absent
    return logits, target, torch.rand((3, 5, 6), generator=random) < 0.8


def test_lovasz_softmax_is_the_extension_over_the_classes_present(scenes):
    logits, target, valid = scenes
    probability = logits.softmax(dim=1).transpose(0, 1)[:, valid]
    slow = [
        slow_extension((inside.float() - probability[number]).abs(), inside)
        for number in range(3)
        for inside in [target[valid] == number]
    ]
    assert float(lovasz_softmax(logits, target, valid)) == pytest.approx(sum(slow) / 3, abs=1e-5)


@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_hinge_is_the_extension(scenes, per_image):
    logits, target, valid = scenes
    logit, changed = logits[:, 0], target == 2
    changed[1] = False  # an image in which nothing changed
    sides = [slice(number, number + 1) for number in range(3)] if per_image else [slice(None)]
    slow = []
    for side in sides:
        values, inside = logit[side][valid[side]], changed[side][valid[side]]
        slow.append(slow_extension((1 - torch.where(inside, values, -values)).clamp(min=0), inside))
    assert float(lovasz_hinge(logit, changed, valid, per_image)) == pytest.approx(sum(slow) / len(slow), abs=1e-5)


def test_lovasz_of_hard_answers_is_one_minus_iou():
    target = torch.tensor([[[0, 0, 0, 1, 1, 1, 1, 1]]])
    answer = torch.tensor([[[0, 1, 1, 1, 1, 1, 1, 0]]])
    logits = 200.0 * torch.nn.functional.one_hot(answer, 2).movedim(-1, 1).float()
    everywhere = torch.ones_like(target, dtype=torch.bool)
    expected = 1 - (1 / 4 + 4 / 7) / 2
    assert float(lovasz_softmax(logits, target, everywhere)) == pytest.approx(expected)
    assert float(lovasz_softmax(logits, answer, everywhere)) == pytest.approx(0)
    # the hinge of an answer of -1 or 1 is 2 where it is wrong
    hinge = lovasz_hinge(2.0 * answer - 1, target, everywhere)
    assert float(hinge) == pytest.approx(2 * (1 - 4 / 7))
    assert float(lovasz_hinge(2.0 * answer - 1, answer, everywhere)) == 0
    # nothing changed: the largest hinge, and not the mean
    nothing = torch.zeros_like(target)
    assert float(lovasz_hinge(torch.tensor([[-3.0, 0.5, -0.5]]), nothing[0, :, :3], everywhere[0, :, :3])) == 1.5


def test_lovasz_keeps_its_figures_over_many_pixels():
    random = torch.Generator().manual_seed(1)
    logit = torch.randn((1, 2**20), generator=random)
    changed = torch.rand((1, 2**20), generator=random) < 0.3
    errors, order = (1 - torch.where(changed, logit, -logit)).clamp(min=0).double()[0].sort(descending=True)
    hit = changed[0][order].double()
    jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
    expected = float((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    found = float(lovasz_hinge(logit, changed, torch.ones_like(changed)))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [lovasz_softmax, lovasz_hinge])
def test_lovasz_learns_from_known_pixels_only(scenes, loss):
    logits, target, valid = scenes
    logits = (logits if loss is lovasz_softmax else logits[:, 0]).clone().requires_grad_()
    loss(logits, target if loss is lovasz_softmax else target == 2, valid).backward()
    unknown = (~valid[:, None]).expand_as(logits) if loss is lovasz_softmax else ~valid
    assert logits.grad[unknown].abs().sum() == 0 and logits.grad[~unknown].abs().sum() > 0
    logits.grad = None
    nothing = torch.zeros_like(valid)
    value = loss(logits, target, nothing)
    value.backward()
    assert float(value) == 0 and logits.grad.abs().sum() == 0
