"""BigEarthNet's task: figures by hand, a share of the train part, and a run of a few epochs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmcd.data.bigearthnet import CLASSES
from mmcd.training.bigearthnet_task import BigEarthNetConfig, class_precision, land_figures, run_bigearthnet
from mmcd.training.downstream import RunPlace


def test_average_precision_is_pooled_and_by_class() -> None:
    answers, labels = torch.full((4, 19), -9.0), torch.zeros(4, 19)
    answers[:, 0], labels[:, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    answers[:, 1], labels[:, 1] = torch.tensor([0.5, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    precision = class_precision(answers, labels)
    assert precision[CLASSES[0]] == pytest.approx((1 + 2 / 3) / 2) and precision[CLASSES[1]] == 1
    assert precision[CLASSES[2]] is None
    figures = land_figures(answers, labels)
    assert figures["macro_ap"] == pytest.approx((5 / 6 + 1) / 2)
    assert figures["micro_ap"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)  # 4, 3, 2, 1, 0.5 are right, wrong, right ...
    assert np.isnan(land_figures(answers, torch.zeros(4, 19))["micro_ap"])


def test_kinds_of_land_that_differ_in_colour_are_told_apart(bigearthnet_tree: Path, tmp_path: Path) -> None:
    config = BigEarthNetConfig.model_validate(
        {
            "data": {"root": bigearthnet_tree},
            "head": {"dropout": 0.0},
            "optimiser": {"lr": 0.02},
            "trainer": {"epochs": 30, "device": "cpu", "keep": "best"},
        }
    )
    assert config.trainer.batch_size == 256 and config.optimiser.milestones == (60, 80)
    outcome = run_bigearthnet(config, 0, RunPlace(tmp_path / "all"))
    assert outcome.figures["micro_ap"] > 0.95 and outcome.samples == {"train": 12, "val": 4, "test": 4}
    assert outcome.details["bands"] == ["B4", "B3", "B2"] and "patch by patch" in outcome.unit
    less = config.model_copy(update={"data": config.data.model_copy(update={"train_share": 0.25})})
    less = less.model_copy(update={"trainer": less.trainer.model_copy(update={"epochs": 1, "keep": "last"})})
    assert run_bigearthnet(less, 0, RunPlace(tmp_path / "less")).samples == {"train": 3, "test": 4}
