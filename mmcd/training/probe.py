"""Classifying images by a trunk's features: EuroSAT's and BigEarthNet's tasks differ in little but labels and figures.

A frozen trunk sees every image once: its features are computed in evaluation mode and kept in memory, and the linear
layer learns from them. Only where images or statistics change from epoch to epoch (a trunk that learns, varied images,
``bn: train``) does the trunk run in every step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from mmcd.data.texture import scaled_to_batch
from mmcd.errors import ConfigError
from mmcd.models.probe import GroupClassifier
from mmcd.samplers import GroupBatchSampler
from mmcd.training.downstream import RunPlace, fit_downstream, make_optimiser
from mmcd.training.probe_config import GROUP_BANDS, ProbeConfig
from mmcd.training.probe_features import ProbeFeatures, ProbeImages, Rows, extract, saco_transform
from mmcd.training.trunk_start import start_trunk, trunk_scaling


@dataclass(frozen=True)
class Judge:
    """What a kind of label needs.

    Attributes:
        classes: How many classes there are.
        loss: Of answers (N, classes) and labels.
        figures: Of answers and labels of a whole part.
        monitor: Which of these figures chooses the best epoch; more of it is better.
    """

    classes: int
    loss: Callable[[Tensor, Tensor], Tensor]
    figures: Callable[[Tensor, Tensor], dict[str, float]]
    monitor: str


class ProbeTask(L.LightningModule):  # type: ignore[misc]
    """Trains a linear layer, and a trunk that changes with it.

    Args:
        config: How.
        judge: Loss and figures.
        features: Makes features of images; None where batches bring features. With a frozen trunk, which is no part of
            the state then.
        sizes: Length of a group's features, and of the textures.
        seed: Of the dropout and of how images are varied.
    """

    def __init__(
        self, config: ProbeConfig, judge: Judge, features: ProbeFeatures | None, sizes: tuple[int, int], seed: int
    ) -> None:
        super().__init__()
        self.seed = seed
        self.config, self.judge = config, judge
        self._fixed = (features,) if features is not None and features.trunk.frozen else ()
        self.features = None if self._fixed else features
        options = config.head
        self._vary = saco_transform() if options.augment == "saco" else None
        self.head = GroupClassifier(*sizes, judge.classes, options.dropout, options.mean_of)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def answer(self, features: Tensor, textures: Tensor) -> Tensor:
        """Return one answer a class, shape (N, classes), of features (N, G, F) and textures (N, T)."""
        if self.config.head.texture_scale == "batch" and textures.numel():
            textures = scaled_to_batch(textures)
        answers: Tensor = self.head(features, textures)
        return answers

    def forward(self, batch: Sequence[Tensor]) -> Tensor:
        """Return the answers for a batch of images and labels, or of features, textures and labels."""
        features = self._fixed[0].to(self.device) if self._fixed else self.features
        return self.answer(*(batch[:2] if features is None else features(batch[0])))

    def on_train_batch_start(self, *_: Any) -> None:
        """Let all that is random depend on seed and step alone, so that a resumed run goes on as it would have."""
        torch.manual_seed(self.seed * 1_000_003 + self.global_step)

    def training_step(self, batch: Sequence[Tensor], _: int) -> Tensor:
        """Return the loss of a batch."""
        if self._vary is not None:
            batch = [torch.stack([self._vary(image) for image in batch[0]]), *batch[1:]]
        loss = self.judge.loss(self(batch), batch[-1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[-1]))
        return loss

    def validation_step(self, batch: Sequence[Tensor], _: int) -> None:
        """Keep the answers for a batch."""
        self._seen.append((self(batch).float().cpu(), batch[-1].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole validation part."""
        answers, labels = (torch.cat(column) for column in zip(*self._seen, strict=True))
        self._seen.clear()
        self.log_dict({f"val/{name}": value for name, value in self.judge.figures(answers, labels).items()})

    def configure_optimizers(self) -> Any:
        """Return optimiser and schedule."""
        return make_optimiser(self.config.optimiser, self.parameters())


@dataclass(frozen=True)
class Probed:
    """What a trained probe says of the test part.

    Attributes:
        rows: Its features and labels.
        answers: One answer a class, shape (N, classes).
        weights: What was learned.
        how: How features came about, for people.
    """

    rows: Rows
    answers: Tensor
    weights: Mapping[str, Tensor]
    how: str


def run_probe(
    config: ProbeConfig, judge: Judge, parts: Mapping[str, ProbeImages], seed: int, place: RunPlace
) -> Probed:
    """Train a classifier on the part ``train`` and apply it to the part ``test``; ``val`` may choose the epoch.

    Raises:
        ConfigError: The best epoch is asked for, but there is no ``val``.
        DataError: An image is damaged or lacks a band.
        ModelError: The trunk cannot be had.
        Cancelled: ``place.progress`` asked to stop.
    """
    if config.trainer.keep == "best" and "val" not in parts:
        raise ConfigError(
            "trainer.keep best needs a validation part, which these lists do not have: the test part may not choose.",
            "Set trainer.keep last, or take another data.split.",
        )
    train = parts["train"]
    wanted = GROUP_BANDS if config.head.groups is not None else config.head.bands
    trunk = start_trunk(config.start, wanted, seed)
    trunk.frozen = config.start.frozen and config.head.bn == "eval"
    trunk.train()  # Lightning leaves modes as they are; a frozen trunk stays in evaluation mode
    scaling = trunk_scaling(config.start, wanted) if config.data.scaling == "trunk" else None
    features = ProbeFeatures(config, trunk, scaling, train.bands)
    task = ProbeTask(config, judge, None if config.cached else features, (trunk.width, features.textures), seed)
    used = {name: images for name, images in parts.items() if name == "train" or config.trainer.keep == "best"}
    data = {name: _data(config, features, images, name, place) for name, images in used.items() if name != "test"}
    fit_downstream(
        task,
        _loader(config, data["train"], seed),
        _loader(config, data["val"], None) if "val" in data else None,
        config,
        place,
        (f"val/{judge.monitor}", "max"),
    )
    rows = extract(features, parts["test"], config, "features of test", place)
    learned = {f"head.{name}": tensor for name, tensor in task.head.state_dict().items()}
    if not trunk.frozen:
        learned |= {f"trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    return Probed(rows, _answers(task, rows, config.trainer.batch_size), learned, _how(config))


def _data(
    config: ProbeConfig, features: ProbeFeatures, images: ProbeImages, part: str, place: RunPlace
) -> Rows | ProbeImages:
    """Return what a part is learned from: its features, or the images themselves."""
    return extract(features, images, config, f"features of {part}", place) if config.cached else images


def _loader(config: ProbeConfig, data: Rows | ProbeImages, seed: int | None) -> DataLoader[Any]:
    """Return batches: full ones whose order depends on seed and epoch, or, without a seed, all samples in order."""
    sampler: Any = BatchSampler(range(len(data)), config.trainer.batch_size, drop_last=False)  # type: ignore[arg-type]
    if seed is not None:
        sampler = GroupBatchSampler(["all"] * len(data), config.trainer.batch_size, 1.0, seed)  # type: ignore[arg-type]
    if isinstance(data, Rows):
        return DataLoader(data, batch_sampler=sampler, collate_fn=_as_it_is)  # type: ignore[arg-type]
    return DataLoader(data, batch_sampler=sampler, num_workers=config.data.workers)  # type: ignore[arg-type]


def _as_it_is(batch: Any) -> Any:
    """Return a batch that was put together already."""
    return batch


def _answers(task: ProbeTask, rows: Rows, batch_size: int) -> Tensor:
    """Return the answers for a part, batch by batch, which matters where textures are scaled to the batch."""
    task = task.eval().cpu()
    with torch.inference_mode():
        starts = range(0, len(rows), batch_size)
        parts = [rows.__getitems__(range(start, min(start + batch_size, len(rows)))) for start in starts]
        return torch.cat([task.answer(features, textures) for features, textures, _ in parts])


def _how(config: ProbeConfig) -> str:
    if config.cached:
        return "computed once in evaluation mode, the linear layer learned from them"
    if not config.start.frozen:
        return "of a trunk that was fine-tuned"
    if config.head.bn == "train":
        return "of a frozen trunk whose statistics drifted (bn: train)"
    return "of a frozen trunk on images varied anew in every epoch"
