"""BigEarthNet: which of 19 kinds of land are in a patch.

The defaults are the frozen probe of reference system 3: red, green and blue, a linear layer behind a dropout of 0.2,
Adam 1e-3 cut after 60 and 80 of 100 epochs. Fine-tuning there has a rate of 1e-5.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from mmcd.data.band_groups import groups_of
from mmcd.data.bigearthnet import CLASSES, BigEarthNetImages, Part, index_bigearthnet
from mmcd.geo.sensors import standard_name
from mmcd.training.downstream import DownstreamOptimiser, DownstreamTrainer, Outcome, RunPlace
from mmcd.training.probe import Judge, run_probe
from mmcd.training.probe_config import ProbeConfig, ProbeData, ProbeHead
from mmcd.training.probe_features import ProbeImages

UNIT = "classes of patches of the test part pooled; published lists, patch by patch: neighbours can be on both sides"


class BigEarthNetData(ProbeData):
    """Which patches.

    Attributes:
        source: Name of the data set.
        train_share: Share of the train part that is learned from, drawn by the run's seed; published with 0.1 and 1.
    """

    source: Literal["bigearthnet"] = "bigearthnet"
    train_share: float = Field(default=1.0, gt=0, le=1)


class BigEarthNetHead(ProbeHead):
    """A linear layer behind a dropout."""

    dropout: float = Field(default=0.2, ge=0, lt=1)


class BigEarthNetOptimiser(DownstreamOptimiser):
    """Adam whose rate is cut after 60 and 80 epochs."""

    schedule: Literal["constant", "multistep", "exponential"] = "multistep"


class BigEarthNetTrainer(DownstreamTrainer):
    """Batches of 256."""

    batch_size: int = Field(default=256, ge=1)


class BigEarthNetConfig(ProbeConfig):
    """BigEarthNet's task.

    Attributes:
        data: Patches.
        head: What follows the trunk.
        optimiser: Optimiser.
        trainer: Duration and device.
    """

    name: str = "bigearthnet"
    data: BigEarthNetData
    head: BigEarthNetHead = BigEarthNetHead()
    optimiser: BigEarthNetOptimiser = BigEarthNetOptimiser()
    trainer: BigEarthNetTrainer = BigEarthNetTrainer()


def run_bigearthnet(config: BigEarthNetConfig, seed: int, place: RunPlace) -> Outcome:
    """Train a classifier on the train part and return its figures on the test part.

    Figures: ``micro_ap``, the average precision of all answers of all classes pooled, as published, and ``macro_ap``,
    the mean over the classes that occur.

    Raises:
        DataError: The data set is not as published.
        MmcdError: As `mmcd.training.probe.run_probe`.
    """
    wanted: tuple[Part, ...] = ("train", "val", "test") if config.trainer.keep == "best" else ("train", "test")
    index = index_bigearthnet(config.data.root, wanted)
    bands = _bands(config)
    chosen = dict(index.folders)
    if config.data.train_share < 1:
        count = max(1, round(len(chosen["train"]) * config.data.train_share))
        drawn = np.sort(np.random.default_rng(seed).permutation(len(chosen["train"]))[:count])
        chosen["train"] = tuple(chosen["train"][row] for row in drawn)
    parts: dict[str, ProbeImages] = {
        part: BigEarthNetImages(folders, bands, config.data.scaling) for part, folders in chosen.items()
    }
    judge = Judge(len(CLASSES), F.multilabel_soft_margin_loss, land_figures, "micro_ap")
    probed = run_probe(config, judge, parts, seed, place)
    precision = class_precision(probed.answers, probed.rows.labels)
    return Outcome(
        land_figures(probed.answers, probed.rows.labels),
        probed.weights,
        {part: len(images) for part, images in parts.items()},
        UNIT,
        {"average_precision": precision, "bands": list(bands), "features": probed.how},
        index.warnings,
    )


def _bands(config: BigEarthNetConfig) -> tuple[str, ...]:
    """Return the bands that are read: those of the image, or of any group."""
    if config.head.groups is None:
        return tuple(standard_name(band) or band for band in config.head.bands)
    return tuple(sorted({band for bands in groups_of(config.head.groups).values() for band in bands}))


def land_figures(answers: Tensor, labels: Tensor) -> dict[str, float]:
    """Return average precision of answers (N, classes) to labels (N, classes), pooled and by class; NaN without one."""
    known = [value for value in class_precision(answers, labels).values() if value is not None]
    pooled = average_precision_score(labels.numpy().ravel(), answers.numpy().ravel()) if labels.any() else float("nan")
    return {"micro_ap": float(pooled), "macro_ap": float(np.mean(known)) if known else float("nan")}


def class_precision(answers: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return the average precision of each class, None for one that does not occur."""
    columns = zip(CLASSES, answers.T.numpy(), labels.T.to(torch.int64).numpy(), strict=True)
    return {
        name: float(average_precision_score(truth, scores)) if truth.any() else None for name, scores, truth in columns
    }
