"""Configuration of a training run on patch pairs, as reference system 0 trains."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mmcd.cards import Branch
from mmcd.config import Config
from mmcd.data.patch_index import PatchRules
from mmcd.data.patches import CACHE_BYTES
from mmcd.models.devices import Device, Precision
from mmcd.models.encoders import TrunkName
from mmcd.models.siamese import CONTEXT, EMBEDDING_STRIDE, ROI, ContextPool
from mmcd.training.config import ExportConfig
from mmcd.training.runs import LoggerName
from mmcd.training.trunk_init import TrunkInit


class PatchDataConfig(Config):
    """Which patches are learned from, and how they are put into batches.

    Attributes:
        root: Folder of BRIGHT or of the contest's tiles, relative to the working directory.
        metadata: Folder that ``mmcd data index`` wrote.
        subset_fraction: Share of the patches of each split that is used.
        target_neg_ratio: Share of negative (damaged) patches that is drawn from each split; none takes them as they
            are.
        subset_seed: Seed of that draw.
        batch_size: Patches of a batch.
        neg_ratio: Share of negative patches in every batch.
        tolerance: Leave the order to chance where the share of the drawn patches is this near to ``neg_ratio``, as the
            reference does with 0.1; none always enforces the share.
        transforms: Mirror and turn the patches that are learned from.
        workers: Loader processes.
        cache_bytes: Decoded tiles that are kept in memory, in all loader processes of a split together.
    """

    root: Path
    metadata: Path
    subset_fraction: float = Field(default=1.0, gt=0, le=1)
    target_neg_ratio: float | None = Field(default=0.8, ge=0, le=1)
    subset_seed: int = Field(default=42, ge=0)
    batch_size: int = Field(default=64, ge=2)
    neg_ratio: float = Field(default=0.8, gt=0, lt=1)
    tolerance: float | None = Field(default=None, ge=0)
    transforms: bool = False
    workers: int = Field(default=4, ge=0)
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)


class PatchModelConfig(Config):
    """The network: two trunks and two projectors.

    Attributes:
        trunk: ResNet-18 or ResNet-34.
        embedding_dim: Length of the embeddings.
        pool: What of a context is averaged: all of it, or the ROI in its middle.
        pretrained: Where the trunks start from.
        init: Pretrained trunks to start from instead, by name or card: one for both branches, or
            ``{pre: ..., post: ...}``; with ``pretrained: none``.
        freeze_resnet: Learn only the last stage of the trunks and the projectors.
    """

    trunk: TrunkName = "resnet34"
    embedding_dim: int = Field(default=128, ge=1)
    pool: ContextPool = "global"
    pretrained: Literal["imagenet", "none"] = "imagenet"
    init: TrunkInit | None = None
    freeze_resnet: bool = False


class PatchLossConfig(Config):
    """The two terms of the reference's loss, see `mmcd.losses.contrastive.reference_infonce`.

    Attributes:
        temperature: Divides the cosine.
        negative_weight: Weight of the term of damaged pairs; 0 leaves only the term of unchanged pairs.
    """

    temperature: float = Field(default=0.07, gt=0)
    negative_weight: float = Field(default=1.0, ge=0)


class PatchOptimiserConfig(Config):
    """Adam, whose rate is cut when the validation loss stands still.

    Attributes:
        lr: Learning rate.
        weight_decay: Added to the gradient.
        factor: What the rate is multiplied by.
        patience: Epochs without a better validation loss before that.
    """

    lr: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    factor: float = Field(default=0.5, gt=0, lt=1)
    patience: int = Field(default=5, ge=0)


class MonitorConfig(Config):
    """What is watched while gradients flow.

    Attributes:
        log_interval: Batches from one record to the next.
        not_finite: Stop at the first value that is no number, naming the layer, or only warn.
    """

    log_interval: int = Field(default=10, ge=1)
    not_finite: Literal["raise", "warn"] = "raise"


class PatchTrainerConfig(Config):
    """How long and on what to train.

    Attributes:
        epochs: Passes over as many batches as count every drawn patch once.
        checkpoint_batches: Batches from one checkpoint to the next within an epoch, so that a long epoch can be
            resumed; there is one at the end of every epoch anyway.
        device: Device to run on.
        precision: Arithmetic; the reference has fp32.
        loggers: Where losses and metrics are written.
        monitor_gradients: Record gradients and activations of the deep layers, and raise an alarm when one is no
            number.
        monitor: How.
    """

    epochs: int = Field(default=9, ge=1)
    checkpoint_batches: int = Field(default=1000, ge=1)
    device: Device = "auto"
    precision: Precision = "fp32"
    loggers: tuple[LoggerName, ...] = ("tensorboard", "mlflow")
    monitor_gradients: bool = False
    monitor: MonitorConfig = MonitorConfig()


class PatchTraining(PatchRules):
    """One training run on patch pairs. The rules of the patches stand at the top: ``data index`` reads them too.

    Attributes:
        task: Tells this configuration from others.
        name: Name of the run and of its folder in the workspace.
        seed: Seed of weights, order and augmentation.
        pre: Image before, as it goes into the card.
        post: Image after.
        data: Patches.
        model: Network.
        loss: Loss.
        optimiser: Optimiser.
        trainer: Duration and device.
        export: The card; none for a model that is not shipped.
    """

    task: Literal["patches"]
    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = Field(default=42, ge=0)
    pre: Branch
    post: Branch
    data: PatchDataConfig
    model: PatchModelConfig = PatchModelConfig()
    loss: PatchLossConfig = PatchLossConfig()
    optimiser: PatchOptimiserConfig = PatchOptimiserConfig()
    trainer: PatchTrainerConfig = PatchTrainerConfig()
    export: ExportConfig | None = None

    @model_validator(mode="after")
    def _fits_the_network(self) -> Self:
        if {self.pre.scaling, self.post.scaling} != {"patch"}:
            raise ValueError("patches are scaled one by one: pre.scaling and post.scaling must be `patch`")
        if (len(self.pre.bands), len(self.post.bands)) != (3, 1):
            raise ValueError("a patch has three optical bands and one SAR band")
        if self.roi_patch_size != ROI or self.context_patch_size % (2 * EMBEDDING_STRIDE):
            raise ValueError(
                f"the network needs roi_patch_size {ROI} and a context_patch_size that is a multiple of 16"
            )
        if self.model.init is not None and self.model.pretrained != "none":
            raise ValueError("model.init and model.pretrained imagenet are two beginnings: set model.pretrained none")
        started = self.model.pretrained != "none" or (self.model.init is not None and self.model.init.both)
        if self.model.freeze_resnet and not started:
            raise ValueError(
                "model.freeze_resnet would keep random trunks: it needs model.pretrained imagenet, or model.init"
            )
        return self

    @property
    def rules(self) -> PatchRules:
        """What the patches were made by."""
        return PatchRules(**{name: getattr(self, name) for name in PatchRules.model_fields})

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the network as they go into the card."""
        settings: dict[str, Any] = self.model.model_dump(include={"trunk", "pool", "embedding_dim"})
        return settings if self.context_patch_size == CONTEXT else settings | {"context": self.context_patch_size}
