import numpy as np
import pytest
import torch

from mmcd.errors import ConfigError
from mmcd.evaluation import ScoreCounts, metrics_at
from mmcd.score import encode_score
from mmcd.training.change_metrics import ChangeMetrics


def masks(found: list[int], wanted: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logit = torch.where(torch.tensor(found, dtype=torch.bool), 1.0, -1.0).reshape(1, 1, 1, -1)
    target = torch.tensor(wanted).reshape(1, 1, -1)
    return logit, target, target >= 0


def test_closed_form_with_unknown_pixels():
    metrics = ChangeMetrics()
    metrics.update(*masks([1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0, 0, -1]))
    # hit 2, false 1, missed 1, rightly unchanged 3
    assert metrics.compute() == pytest.approx(
        {"change_iou": 2 / 4, "change_f1": 4 / 6, "macro_dice_with_background": (4 / 6 + 6 / 8) / 2}
    )


def test_macro_dice_of_rare_change_looks_better_than_its_f1():
    """The spec's example: a positive IoU of 0.7 is an F1 of 0.82 and a macro Dice above 0.9."""
    metrics = ChangeMetrics()
    metrics.update(*masks([1] * 85 + [0] * 915, [1] * 70 + [0] * 15 + [1] * 15 + [0] * 900))
    values = metrics.compute()
    assert values["change_iou"] == pytest.approx(0.7)
    assert values["change_f1"] == pytest.approx(0.8235, abs=1e-4)
    assert values["macro_dice_with_background"] > 0.9


def test_counts_of_the_set_and_not_means_of_batches():
    first, second = masks([1, 0], [1, 0]), masks([1] * 6, [0] * 6)
    metrics, whole = ChangeMetrics(), ChangeMetrics()
    for batch in (first, second):
        metrics.update(*batch)
    whole.update(*(torch.cat(parts, dim=-1) for parts in zip(first, second, strict=True)))
    assert metrics.compute() == pytest.approx(whole.compute())
    assert metrics.compute()["change_iou"] == pytest.approx(1 / 7)
    metrics.reset()
    metrics.update(*first)
    assert metrics.compute()["change_iou"] == 1


def test_equal_to_the_project_s_own_figures():
    random = torch.Generator().manual_seed(0)
    logit = torch.randn(2, 1, 30, 40, generator=random)
    target = torch.randint(0, 2, (2, 30, 40), generator=random)
    metrics = ChangeMetrics()
    metrics.update(logit, target, torch.ones_like(target, dtype=torch.bool))
    found = encode_score((logit[:, 0] > 0).float().numpy(), np.ones((2, 30, 40), bool))
    expected = metrics_at(ScoreCounts.of(found, target.bool().numpy()), 0.5)
    values = metrics.compute()
    assert (values["change_iou"], values["change_f1"]) == pytest.approx((expected["iou"], expected["f1"]))


def test_several_classes_are_reported_one_by_one():
    metrics = ChangeMetrics(("background", "intact", "damaged", "destroyed"), changed_from=2)
    likeliest = torch.tensor([0, 1, 2, 2, 3, 0])
    logits = torch.nn.functional.one_hot(likeliest, 4).float().T.reshape(1, 4, 1, -1) * 9
    target = torch.tensor([0, 1, 2, 3, 3, 1]).reshape(1, 1, -1)
    metrics.update(logits, target, torch.ones_like(target, dtype=torch.bool))
    values = metrics.compute()
    by_class = {"background": 1 / 2, "intact": 1 / 2, "damaged": 1 / 2, "destroyed": 1 / 2}
    assert {name: values[f"iou/{name}"] for name in by_class} == pytest.approx(by_class)
    assert values["f1/damaged"] == pytest.approx(2 / 3)
    assert values["miou"] == pytest.approx(0.5)
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["change_iou"] == 1  # damaged and destroyed are mixed up, change is not


def test_change_is_what_its_classes_make_likelier_than_not():
    metrics = ChangeMetrics(("background", "damaged", "destroyed"))
    logits = torch.tensor([1.0, 0.9, 0.9]).reshape(1, 3, 1, 1)  # the background is the likeliest single class
    metrics.update(logits, torch.ones(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1, dtype=torch.bool))
    assert metrics.compute()["change_iou"] == 1 and metrics.compute()["iou/damaged"] == 0


@pytest.mark.parametrize("changed_from", [0, 2])
def test_senseless_classes_are_refused(changed_from):
    with pytest.raises(ConfigError):
        ChangeMetrics(changed_from=changed_from)
