"""Land cover from one image: crops of PASTIS, classes of GID. A decoder learns over a trunk's features.

Accuracy and mean IoU come from one confusion matrix of all pixels of the test part. A published table may be made with
a mean of single images' IoU to which 0.2 was added; that is reproduced nowhere.
"""

from collections.abc import Callable
from datetime import date
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmcd.config import Config
from mmcd.data import gid, pastis
from mmcd.data.segments import SegmentDataset, class_counts
from mmcd.errors import ConfigError, DataError
from mmcd.losses.land_cover import soft_dice_classes, weighted_cross_entropy
from mmcd.models.decoders import DecoderName
from mmcd.segmentation_metrics import ConfusionMatrix
from mmcd.training.decoding import (
    DecoderConfig,
    PixelConfig,
    PixelJob,
    PixelLoss,
    PixelTask,
    PixelTrainer,
    build_model,
    measure_groups,
    plain_batches,
    pooled,
    training_batches,
)
from mmcd.training.downstream import (
    DownstreamData,
    DownstreamOptimiser,
    Outcome,
    RunPlace,
    fit_downstream,
)


class LandCoverLoss(Config):
    """What is minimised: a cross entropy, and the Dice loss if it is given a weight.

    Attributes:
        class_weights: All classes alike, each by the inverse of its share of the training labels, or by these weights.
        dice: Weight of the Dice loss in the first epoch, by which it grows every epoch; reference system 2 uses 0.01.
    """

    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    dice: float = Field(default=0.0, ge=0)


class PastisData(DownstreamData):
    """Which images of PASTIS.

    Attributes:
        source: The data set.
        bands: Names of the bands, in channel order.
        mono_date: Of each patch only the image nearest to this day; else each image of the series is a sample.
        train: Folds that are trained on.
        val: Folds that choose the epoch.
        test: Folds that are measured.
        ignored: Classes that enter no loss. No label (255) never does; background and void are learned, as published.
    """

    source: Literal["pastis"] = "pastis"
    bands: tuple[str, ...] = pastis.BANDS
    mono_date: date | None = None
    train: tuple[int, ...] = Field(default=pastis.TRAIN, min_length=1)
    val: tuple[int, ...] = Field(default=pastis.VAL, min_length=1)
    test: tuple[int, ...] = Field(default=pastis.TEST, min_length=1)
    ignored: tuple[int, ...] = ()


class PastisDecoder(DecoderConfig):
    """The decoder of SACo; images are mirrored, as published."""

    decoder: DecoderName = "joined_conv"
    turns: Literal["quarters", "mirrors", "none"] = "mirrors"


class PastisOptimiser(DownstreamOptimiser):
    """As published: Adam at 1e-4."""

    lr: float = Field(default=1e-4, gt=0)


class PastisTrainer(PixelTrainer):
    """As published: batches of three series, which are some 43 images each."""

    batch_size: int = Field(default=128, ge=1)


class PastisConfig(PixelConfig):
    """PASTIS; the defaults are the protocol of SACo, with a frozen trunk.

    Attributes:
        name: Name of the run.
        data: Data set.
        model: Decoder and how it is fed.
        optimiser: Optimiser.
        trainer: Duration and device.
        loss: What is minimised.
    """

    name: str = Field(default="pastis", pattern=r"^[\w.-]+$")
    data: PastisData
    model: PastisDecoder = PastisDecoder()
    optimiser: PastisOptimiser = PastisOptimiser()
    trainer: PastisTrainer = PastisTrainer()
    loss: LandCoverLoss = LandCoverLoss()


class GidData(DownstreamData):
    """Which images of GID.

    Attributes:
        source: The data set.
        classes: 15, or 5, which 15 are merged to.
        side: Side of a square in pixels.
        held_out: Share of the training images, by name and not by square, that choose the epoch, drawn by the seed.
    """

    source: Literal["gid"] = "gid"
    classes: gid.Classes = 15
    side: int = Field(default=gid.SIDE, ge=32, multiple_of=32)
    held_out: float = Field(default=0.1, gt=0, lt=1)


class GidDecoder(DecoderConfig):
    """The decoder; images are 8 bit in red, green and blue, as most trunks had them."""

    standardise: bool = True


class GidConfig(PixelConfig):
    """GID; no protocol was published with the reference systems.

    Attributes:
        name: Name of the run.
        data: Data set.
        model: Decoder and how it is fed.
        loss: What is minimised.
    """

    name: str = Field(default="gid", pattern=r"^[\w.-]+$")
    data: GidData
    model: GidDecoder = GidDecoder()
    loss: LandCoverLoss = LandCoverLoss()


def run_pastis(config: PastisConfig, seed: int, place: RunPlace) -> Outcome:
    """Train on the train folds, choose the epoch on the val folds and measure on the test folds.

    Raises:
        ConfigError: A fold is in two parts, or PASTIS lacks a band.
        DataError: The data set is not there, not whole or damaged.
        ModelError: There is no such trunk, or it is damaged.
    """
    data = config.data
    folds = (data.train, data.val, data.test)
    if len(set().union(*folds)) < sum(map(len, folds)):
        raise ConfigError(f"Folds {folds} of train, val and test overlap.", "Give each fold once.")
    training, choosing, testing = (
        pastis.PastisImages(data.root, part, data.bands, data.mono_date, data.train, data.ignored) for part in folds
    )
    figures = pastis_figures
    task, matrix = _trained(config, config.loss, (training, choosing, testing), data.bands, figures, (seed, place))
    return Outcome(
        figures=figures(matrix),
        weights=task.model.state_dict(),
        samples={"train": len(training), "val": len(choosing), "test": len(testing)},
        unit=_PASTIS_UNIT,
        details=_told(matrix.of_labels(range(pastis.VOID)), training.classes),
    )


def run_gid(config: GidConfig, seed: int, place: RunPlace) -> Outcome:
    """Train on images of the train part without the held-out ones, and measure on the val part, the labelled one.

    Raises:
        DataError: The data set is not there, not whole or damaged.
        ModelError: There is no such trunk, or it is damaged.
    """
    data = config.data
    images = gid.index_gid(data.root, "train", data.classes)
    count = max(1, round(data.held_out * len(images)))
    if len(images) <= count:
        raise DataError(
            f"{data.root} has {len(images)} training images, of which {count} would be held out to choose the epoch.",
            "Give at least two.",
        )
    held = set(np.random.default_rng(seed).permutation(len(images))[:count].tolist())
    learning, choosing = ([image for n, image in enumerate(images) if (n in held) == part] for part in (False, True))
    parts = tuple(
        gid.GidPatches(part, data.classes, data.side)
        for part in (learning, choosing, gid.index_gid(data.root, "val", data.classes))
    )
    task, matrix = _trained(config, config.loss, parts, gid.BANDS, land_cover_figures, (seed, place))
    return Outcome(
        figures=land_cover_figures(matrix),
        weights=task.model.state_dict(),
        samples=dict(zip(("train", "held out", "val"), map(len, parts), strict=True)),
        unit=_GID_UNIT,
        details=_told(matrix, parts[0].classes) | {"held_out_images": [image.id for image in choosing]},
    )


def _trained(
    config: PixelConfig,
    loss: LandCoverLoss,
    parts: tuple[SegmentDataset, ...],
    bands: tuple[str, ...],
    figures: Callable[[ConfusionMatrix], dict[str, float]],
    run: tuple[int, RunPlace],
) -> tuple[PixelTask, ConfusionMatrix]:
    """Return the trained task and its confusion matrix over the last of three parts."""
    training, choosing, testing = parts
    seed, place = run
    classes = len(training.classes)
    job = PixelJob(("image",), classes, land_cover_loss(loss, training), lambda seen: figures(seen)["miou"], "miou")
    task = PixelTask(build_model(config, bands, classes, seed), job, config, seed)
    batches = training_batches(training, config, seed), plain_batches(choosing, config)
    fit_downstream(task, *batches, config, place, ("val/miou", "max"))
    return task, pooled(measure_groups(task, testing, config), classes)


def land_cover_loss(config: LandCoverLoss, training: SegmentDataset) -> PixelLoss:
    """Return the loss of a configuration.

    Args:
        config: What is minimised.
        training: Its labels are counted for balanced weights.

    Raises:
        ConfigError: There are not as many weights as classes, or one is negative.
    """
    weights = None
    if config.class_weights == "balanced":
        counts = class_counts(training)
        weights = torch.tensor(np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / (counts > 0).sum(), 0.0))
    elif config.class_weights != "none":
        if len(config.class_weights) != len(training.classes) or min(config.class_weights) < 0:
            raise ConfigError(
                f"There are {len(config.class_weights)} class weights, from {min(config.class_weights, default=0)}.",
                f"Give {len(training.classes)}, none of them negative: for {', '.join(training.classes)}.",
            )
        weights = torch.tensor(config.class_weights)

    def loss(logits: Tensor, target: Tensor, valid: Tensor, epoch: int) -> Tensor:
        entropy = weighted_cross_entropy(logits, target, valid, weights)
        if not config.dice:
            return entropy
        return entropy + config.dice * (epoch + 1) * soft_dice_classes(logits, target, valid)

    return loss


def land_cover_figures(matrix: ConfusionMatrix) -> dict[str, float]:
    """Return overall accuracy and mean IoU; classes that neither labels nor map hold are left out of the mean."""
    return {"oa": matrix.accuracy, "miou": _mean(matrix.iou)}


def pastis_figures(matrix: ConfusionMatrix) -> dict[str, float]:
    """Return accuracy and mean IoU over the crops, and with background; pixels labelled as void count nowhere.

    ``oa`` looks at pixels that are labelled as a crop, as reference system 2 does. ``miou`` is that of the 18 crops,
    and background that is mapped as a crop counts against it.
    """
    labelled = matrix.of_labels(range(pastis.VOID))
    crops = slice(pastis.BACKGROUND + 1, pastis.VOID)
    return {
        "oa": matrix.of_labels(range(pastis.BACKGROUND + 1, pastis.VOID)).accuracy,
        "miou": _mean(labelled.iou[crops]),
        "oa_with_background": labelled.accuracy,
        "miou_with_background": _mean(labelled.iou[: pastis.VOID]),
    }


def _mean(values: "np.typing.NDArray[np.float64]") -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _told(matrix: ConfusionMatrix, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "iou": {
            name: None if np.isnan(value) else value for name, value in zip(classes, matrix.iou.tolist(), strict=True)
        },
        "labelled_px": dict(zip(classes, matrix.labelled.tolist(), strict=True)),
    }


_PASTIS_UNIT = (
    "share of pixels of all images of the test folds pooled in one confusion matrix, void and unlabelled left out; oa "
    "over crops, miou over 18 crops; nothing is added to it, while published tables may contain +0.2"
)
_GID_UNIT = (
    "share of labelled pixels of all squares of the val part pooled in one confusion matrix; the val part chooses "
    "nothing, since labels of the test part were never published"
)
