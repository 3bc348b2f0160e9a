"""What tasks on pixels share: a decoder learns over a trunk, one confusion matrix says how well it maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmcd.config import Config
from mmcd.data.base import UNKNOWN
from mmcd.data.turns import turn_samples
from mmcd.models.decoders import DecodedTrunk, DecoderName
from mmcd.models.devices import choose_device, choose_precision
from mmcd.samplers import GroupBatchSampler
from mmcd.segmentation_metrics import ConfusionMatrix
from mmcd.training.downstream import DownstreamConfig, DownstreamTrainer, make_optimiser
from mmcd.training.trunk_start import start_trunk, trunk_scaling

PixelLoss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Loss of logits (N, K, H, W), target (N, H, W), valid (N, H, W) and the number of the epoch."""

Images = Literal["pre", "post", "image"]


class DecoderConfig(Config):
    """What turns a trunk's maps into a map of classes.

    Attributes:
        decoder: ``unet``: SeCo's (reference system 3); ``double_conv`` and ``joined_conv``: SACo's (reference system 2)
            of change and of PASTIS.
        standardise: Take the trunk's mean off the images and divide by its deviation, as its card says; the published
            protocols of OSCD and PASTIS do not.
        turns: How training samples are varied: mirrored, mirrored and turned by quarters, or not.
    """

    decoder: DecoderName = "unet"
    standardise: bool = False
    turns: Literal["quarters", "mirrors", "none"] = "quarters"


class PixelTrainer(DownstreamTrainer):
    """Duration and device; the epoch that does best on the validation part is measured."""

    keep: Literal["last", "best"] = "best"


class PixelConfig(DownstreamConfig):
    """A task on pixels.

    Attributes:
        model: Decoder and how it is fed.
        trainer: Duration and device.
    """

    model: DecoderConfig = DecoderConfig()
    trainer: PixelTrainer = PixelTrainer()


@dataclass(frozen=True)
class PixelJob:
    """What distinguishes one task on pixels from another.

    Attributes:
        images: Names of the images of a sample: one, or the two whose difference is looked at.
        classes: Classes on a map; two have one logit, of the second.
        loss: What is minimised.
        score: Figure of a confusion matrix that chooses the epoch, the higher the better.
        name: Its name, as logged under ``val/``.
    """

    images: Sequence[Images]
    classes: int
    loss: PixelLoss
    score: Callable[[ConfusionMatrix], float]
    name: str


def build_model(config: PixelConfig, bands: Sequence[str], classes: int, seed: int) -> DecodedTrunk:
    """Return an untrained decoder over the trunk of a task.

    Args:
        config: The task.
        bands: Names of the bands of an image.
        classes: Classes on a map; two have one logit.
        seed: Seed of this run.

    Raises:
        ModelError: There is no such trunk, or it is damaged.
        ConfigError: ImageNet weights cannot be fetched.
    """
    trunk = start_trunk(config.start, bands, seed)
    scaling = trunk_scaling(config.start, bands) if config.model.standardise else None
    apart = {} if scaling is None else {"mean": scaling.mean, "std": scaling.std}
    return DecodedTrunk(trunk, 1 if classes == 2 else classes, config.model.decoder, **apart)


class PixelTask(L.LightningModule):  # type: ignore[misc]
    """Trains a decoder, and the trunk if it is not frozen.

    Args:
        model: Trunk and decoder.
        job: The task.
        config: Optimiser and augmentation.
        seed: Seed of the augmentation.
    """

    def __init__(self, model: DecodedTrunk, job: PixelJob, config: PixelConfig, seed: int) -> None:
        super().__init__()
        self.model, self.job, self.config, self.seed = model, job, config, seed
        self._seen = ConfusionMatrix.none(job.classes)

    def training_step(self, batch: Mapping[str, Tensor], number: int) -> Tensor:
        """Return the loss of a batch; what is random depends on seed, epoch and step alone, so runs can be resumed."""
        drawn = int(np.random.default_rng([self.seed, self.current_epoch, number]).integers(2**63 - 1))
        torch.manual_seed(drawn)  # what dropout draws from
        if self.config.model.turns != "none":
            generator = torch.Generator().manual_seed(drawn)
            named = [*self.job.images, "target", "valid"]
            batch = turn_samples(batch, named, generator, self.config.model.turns == "quarters")
        loss = self._loss(batch, self._logits(batch))
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["target"]))
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], number: int) -> None:
        """Count a batch of the validation part."""
        logits = self._logits(batch)
        self.log("val/loss", self._loss(batch, logits), batch_size=len(batch["target"]))
        self._seen += counted(logits, batch["target"], self.job.classes)

    def on_validation_epoch_end(self) -> None:
        """Log the figure of the whole part; a part that has no such figure counts as 0."""
        score = self.job.score(self._seen)
        self.log(f"val/{self.job.name}", 0.0 if np.isnan(score) else score)
        self._seen = ConfusionMatrix.none(self.job.classes)

    def configure_optimizers(self) -> Any:
        """Return optimiser and schedule over what learns."""
        return make_optimiser(self.config.optimiser, self.model.parameters())

    def _logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(*(batch[name] for name in self.job.images))
        return logits

    def _loss(self, batch: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        return self.job.loss(logits, batch["target"], batch["valid"], self.current_epoch)


def counted(logits: Tensor, target: Tensor, classes: int) -> ConfusionMatrix:
    """Return the confusion matrix of a batch.

    Args:
        logits: Shape (N, K, H, W), or (N, 1, H, W) of the second of two classes, which is mapped from a probability of
            one half.
        target: Class of every pixel, shape (N, H, W); negative where there is none, which counts nowhere.
        classes: Number of classes.
    """
    mapped = (logits[:, 0] >= 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
    pairs = (target * classes + mapped)[target != UNKNOWN]
    counts = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return ConfusionMatrix(counts.cpu().numpy())


def training_batches(data: Any, config: PixelConfig, seed: int) -> "DataLoader[Any]":
    """Return full batches of all samples in a new order every epoch."""
    sampler: Any = GroupBatchSampler(["all"] * len(data), config.trainer.batch_size, 1.0, seed)
    return DataLoader(data, batch_sampler=sampler, num_workers=config.data.workers)


def plain_batches(data: Any, config: PixelConfig) -> "DataLoader[Any]":
    """Return all samples in order, none left out."""
    return DataLoader(data, batch_size=config.trainer.batch_size, num_workers=config.data.workers)


def measure_groups(task: PixelTask, data: Any, config: PixelConfig) -> dict[str, ConfusionMatrix]:
    """Return the confusion matrix of each group of samples, counted from all of their labelled pixels.

    Args:
        task: Trained.
        data: Samples with ``groups``.
        config: Device, arithmetic and batch size.
    """
    device = choose_device(config.trainer.device)
    dtype = choose_precision(config.trainer.precision, device)
    model = task.model.eval().to(device)
    found = {group: ConfusionMatrix.none(task.job.classes) for group in data.groups}
    for batch in plain_batches(data, config):
        moved = [batch[name].to(device) for name in task.job.images]
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(*moved)
        for number, index in enumerate(batch["index"].tolist()):
            one = slice(number, number + 1)
            found[data.groups[index]] += counted(logits[one].cpu(), batch["target"][one], task.job.classes)
    return found


def pooled(matrices: Mapping[str, ConfusionMatrix], classes: int) -> ConfusionMatrix:
    """Return one matrix of all groups."""
    return sum(matrices.values(), ConfusionMatrix.none(classes))
