"""Configuration of a change-detection training run."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmcd.cards import Branch, Gsd
from mmcd.config import Config
from mmcd.data.bright import CLASSES
from mmcd.data.bright_pairs import BrightConfig, BrightPairs
from mmcd.data.levir import LabelResize
from mmcd.data.levir_files import BANDS
from mmcd.data.pair_augment import PairAugmentConfig
from mmcd.data.simulated import SimulatedConfig
from mmcd.data.transforms import AugmentConfig
from mmcd.models.devices import Device, Precision
from mmcd.models.zoo import Architecture
from mmcd.simulate.events import DAMAGED
from mmcd.training.trunk_init import TrunkInit
from mmcd.training.validation import SHIFTS


class BatchConfig(Config):
    """How samples are mixed, and for which shares of change they are validated.

    Attributes:
        batch_size: Samples of a training batch.
        group_power: How much large groups fill an epoch: 1 as in the data, 0 every group alike.
        workers: Loader processes; 0 where the processor trains too.
        shifts: Shares of change in use, as parts of the data's share: the first is what the probabilities are
            calibrated for, the threshold is the best over all.
    """

    batch_size: int = Field(default=16, ge=1)
    group_power: float = Field(default=0.5, ge=0, le=1)
    workers: int = Field(default=0, ge=0)
    shifts: tuple[float, ...] = Field(default=SHIFTS, min_length=1)

    @property
    def validation_batch(self) -> int:
        """Samples of a batch that is only looked at."""
        return self.batch_size

    @property
    def calibrating(self) -> int | None:
        """Validation tiles at most that calibrate the card; None for all."""
        return None


class DataConfig(BatchConfig):
    """Where samples come from and how they are split.

    Attributes:
        source: Reader of ``mmcd.data``.
        root: Folder of the data set, relative to the working directory.
        event: Part of the data set to train on.
        folds: Number of grouped folds.
        fold: Fold that is held out for validation; none trains on everything and keeps the last weights.
    """

    source: Literal["ombria"]
    root: Path
    event: str = "main"
    folds: int = Field(default=5, ge=2)
    fold: int | None = Field(default=0, ge=0)


class SimulatedDataConfig(BatchConfig):
    """Scenes that are simulated for training; held-out families validate, at the share of change they have.

    Attributes:
        source: Reader of ``mmcd.data``.
        scenes: Which scenes, and how tiles are cut.
    """

    source: Literal["simulated"]
    scenes: SimulatedConfig
    shifts: tuple[float, ...] = Field(default=(1.0,), min_length=1)


class BrightDataConfig(BatchConfig, BrightConfig):
    """BRIGHT, by its official or its cross-event lists: crops train, whole val tiles validate by mIoU of the classes.

    Attributes:
        source: Reader of ``mmcd.data``.
        validation_batch_size: Whole tiles of a batch in validation.
        calibration_tiles: Val tiles at most, evenly chosen, that calibrate the card: a tile of 1024 px takes 5 MB.
    """

    source: Literal["bright"]
    group_power: float = Field(default=1.0, ge=0, le=1)
    validation_batch_size: int = Field(default=1, ge=1)
    calibration_tiles: int = Field(default=120, ge=1)
    shifts: tuple[float, ...] = Field(default=(1.0,), min_length=1)

    @property
    def validation_batch(self) -> int:
        """Samples of a batch that is only looked at."""
        return self.validation_batch_size

    @property
    def calibrating(self) -> int | None:
        """Validation tiles at most that calibrate the card."""
        return self.calibration_tiles


class LevirDataConfig(BatchConfig):
    """LEVIR-CD or whatever has its layout: the part ``train`` trains, ``val`` validates at the share of change it has.

    Attributes:
        source: Reader of ``mmcd.data``.
        root: Folder of the data set, relative to the working directory.
        size: Height and width that everything is resized to; none keeps what is on disk, which is then of one size.
        label_resize: How labels are resized; ``bilinear`` loses the rim of changes, as reference system 1 does.
        strict: Refuse files without a partner and grey labels; else the first are left out, the others cut at one half,
            and both are told.
        augment: How pairs are varied; ``aug: reference`` leaves out geometry, as reference system 1 does.
        validation_batch_size: Pairs of a batch in validation.
    """

    source: Literal["levir"]
    root: Path
    size: int | None = Field(default=512, ge=32)
    label_resize: LabelResize = "nearest"
    strict: bool = True
    augment: PairAugmentConfig = PairAugmentConfig()
    group_power: float = Field(default=1.0, ge=0, le=1)
    validation_batch_size: int = Field(default=4, ge=1)
    shifts: tuple[float, ...] = Field(default=(1.0,), min_length=1)

    @property
    def validation_batch(self) -> int:
        """Samples of a batch that is only looked at."""
        return self.validation_batch_size


class ModelConfig(Config):
    """Which network.

    Attributes:
        architecture: Name in ``mmcd.models.zoo``.
        settings: Arguments of its class.
        pretrained: What the trunk of a ``fusion_unet`` starts from: random weights, or ImageNet's, which are fetched.
        init: Pretrained trunks to start from, by name or card (``mmcd weights list``): one for both branches, or
            ``{pre: ..., post: ...}``. For a ``siamese`` or a ``fusion_unet``.
        checkpoint: Checkpoint of reference system 1, or a state dict of this form, to start from; all of it must fit.
        force_random_trunk: Train even if the trunk is frozen and random, to test the machinery.
    """

    architecture: Architecture
    settings: dict[str, Any] = Field(default_factory=dict)
    pretrained: Literal["none", "imagenet"] = "none"
    init: TrunkInit | None = None
    checkpoint: Path | None = None
    force_random_trunk: bool = False

    @model_validator(mode="after")
    def _trunks_that_can_start(self) -> Self:
        started = self.pretrained != "none" or self.checkpoint is not None or self.force_random_trunk
        if self.architecture != "fusion_unet" and started:
            raise ValueError(
                f"pretrained, checkpoint and force_random_trunk are for a fusion_unet, not a {self.architecture}"
            )
        if self.init is not None and self.architecture == "early_fusion_unet":
            raise ValueError("init is for a siamese or a fusion_unet: an early_fusion_unet has no trunk of an image")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.init is not None and (self.pretrained != "none" or self.checkpoint is not None):
            other = "checkpoint" if self.checkpoint is not None else "pretrained imagenet"
            raise ValueError(f"init and {other} are two beginnings: take one, such as model.pretrained none with init")
        return self


class LossConfig(Config):
    """Weights of the parts of the loss; 0 switches a part off.

    Attributes:
        bce: Cross entropy of the head: of change, or of its classes where it has several.
        dice: Soft Dice of the head.
        lovasz: Lovász-Softmax of the head's classes, or the Lovász hinge of change where it has one output.
        combined_iou: Cross entropy and soft IoU of the head, mixed by ``alpha``: the loss of reference system 1.
        alpha: Weight of the cross entropy in ``combined_iou``; the rest is that of the IoU.
        infonce: Supervised InfoNCE of ROI embeddings.
        temperature: Temperature of the InfoNCE.
        rois_per_class: Changed and unchanged ROIs that are drawn from a batch.
        own_negatives: Push the two embeddings of a changed ROI apart in the InfoNCE.
    """

    bce: float = Field(default=1.0, ge=0)
    dice: float = Field(default=0.5, ge=0)
    lovasz: float = Field(default=0.0, ge=0)
    combined_iou: float = Field(default=0.0, ge=0)
    alpha: float = Field(default=0.7, ge=0, le=1)
    infonce: float = Field(default=0.1, ge=0)
    temperature: float = Field(default=0.1, gt=0)
    rois_per_class: int = Field(default=256, ge=1)
    own_negatives: bool = True


class OptimiserConfig(Config):
    """Adam with linear warm-up and a schedule, and a running average of the weights.

    Attributes:
        kind: ``adamw`` decays weights by themselves, ``adam`` through the gradient.
        lr: Highest learning rate.
        weight_decay: Weight decay of everything but norms and biases.
        schedule: What follows the warm-up: a cosine down to 0, or the highest rate to the end.
        warmup: Part of all steps in which the rate rises.
        ema: Decay of the running average that is validated and shipped.
        clip: Largest norm of the gradient; none leaves it as it is.
    """

    kind: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    ema: float = Field(default=0.98, ge=0, lt=1)
    clip: float | None = Field(default=1.0, gt=0)


class TrainerConfig(Config):
    """How long and on what to train.

    Attributes:
        epochs: Passes over as many samples as the training folds hold; the learning rate is 0 at their end.
        steps: Length in steps of the optimiser instead; an epoch is then what lies between two validations.
        validate_every: Steps between two validations, of which ``steps`` is a multiple.
        stop_after: Epochs after which to stop before that, for a run without a held-out fold: what grouped
            validation of the same schedule found best.
        early_stop: Epochs without a lower validation loss that are waited for; the next one of them is the last, as in
            reference system 1. None trains to the end.
        keep: Which epoch's weights a run with a held-out fold leaves: the one that did best on the fold, or the last
            one, as a run without a fold does. Where folds calibrate the weights of such a run, it has to be the last.
        device: Device to run on.
        precision: Arithmetic; ``auto`` is bf16 where the device has it.
        loggers: Where losses and metrics are written.
        artifacts: Also copy the kept checkpoint, the weights, the configuration and TensorBoard's logs to MLflow; they
            stay in the run's folder too.
        cache_features: Compute the features of a frozen trunk once and train what follows it from files in the run's
            folder; for pairs that are not augmented, and as many as fit on the disk: see
            `mmcd.training.feature_cache`.
    """

    epochs: int = Field(default=15, ge=1)
    steps: int | None = Field(default=None, ge=1)
    validate_every: int | None = Field(default=None, ge=1)
    stop_after: int | None = Field(default=None, ge=1)
    early_stop: int | None = Field(default=None, ge=0)
    keep: Literal["best", "last"] = "best"
    device: Device = "auto"
    precision: Precision = "auto"
    loggers: tuple[Literal["tensorboard", "mlflow"], ...] = ("tensorboard", "mlflow")
    artifacts: bool = False
    cache_features: bool = False

    @property
    def lengths(self) -> tuple[int, int | None]:
        """Epochs, and steps of each; None for a pass over as many samples as train."""
        if self.steps is None or self.validate_every is None:
            return self.epochs, None
        return self.steps // self.validate_every, self.validate_every

    @model_validator(mode="after")
    def _whole_validations(self) -> Self:
        if (self.steps is None) != (self.validate_every is None):
            raise ValueError("steps and validate_every go together")
        if self.steps and self.validate_every and self.steps % self.validate_every:
            raise ValueError(f"steps is {self.steps}, which is no multiple of validate_every, {self.validate_every}")
        return self


class ExportConfig(Config):
    """What the card of the trained weights says beyond what training knows.

    Attributes:
        version: Version of the weights.
        title: One line for people.
        description: What it finds and what it cannot do.
        event_types: Event types it was trained for.
        simulated: Whether the samples are simulated, all of them; those of the source ``simulated`` always are.
        gsd: Ground sample distances.
        classes: Class names, index 0 unchanged.
        licence: Rights of weights and data.
        selection: How the recipe was chosen, with every look at test data before that.
    """

    version: str
    title: str
    description: str
    event_types: tuple[str, ...] = ()
    simulated: bool = False
    gsd: Gsd
    classes: tuple[str, ...] = ("unchanged", "changed")
    licence: dict[str, str]
    selection: str = ""


class ChangeTraining(Config):
    """One training run of a two-image change detector.

    Attributes:
        name: Name of the run and of its folder in the workspace.
        seed: Seed of weights, order and augmentation.
        pre: Input before: bands, units, stretch and statistics, as they go into the card.
        post: Input after.
        data: Samples.
        model: Network.
        loss: Loss.
        changed_from: First class of the labels that counts as changed.
        augment: Augmentation.
        optimiser: Optimiser.
        trainer: Duration and device.
        export: The card; none for a model that is not shipped.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = 0
    pre: Branch
    post: Branch
    data: Annotated[
        DataConfig | SimulatedDataConfig | BrightDataConfig | LevirDataConfig, Field(discriminator="source")
    ]
    model: ModelConfig
    loss: LossConfig = LossConfig()
    changed_from: int = Field(default=1, ge=1)
    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    trainer: TrainerConfig = TrainerConfig()
    export: ExportConfig | None = None

    @model_validator(mode="after")
    def _validated_by_its_loss(self) -> Self:
        if self.trainer.early_stop is not None and not isinstance(self.data, LevirDataConfig):
            raise ValueError(f"early_stop watches the validation loss, which {self.data.source} runs do not have")
        if self.export is not None and self.model.architecture == "early_fusion_unet":
            raise ValueError("the baseline early_fusion_unet has no card: leave out export")
        return self

    @model_validator(mode="after")
    def _features_that_stay(self) -> Self:
        if not self.trainer.cache_features:
            return self
        if self.model.architecture != "fusion_unet" or self.model.settings.get("finetune", False):
            raise ValueError("cache_features is for a fusion_unet whose trunk is frozen: finetune false")
        if not self.model.settings.get("frozen_statistics", True):
            raise ValueError("cache_features needs a trunk whose statistics stay: frozen_statistics true")
        if not isinstance(self.data, LevirDataConfig) or self.data.augment.aug != "none":
            raise ValueError("cache_features is for pairs of levir that are not augmented: data.augment.aug none")
        return self

    @model_validator(mode="after")
    def _one_meaning_of_change(self) -> Self:
        usual = 1 if self.model.architecture == "fusion_unet" else self.changed_from
        head = self.model.settings.get("changed_from", usual)
        if self.model.settings.get("classes", 1) > 1 and head != self.changed_from:
            raise ValueError(f"changed_from is {self.changed_from} for the labels and {head} for the head")
        if isinstance(self.data, SimulatedDataConfig) and self.changed_from != DAMAGED:
            raise ValueError(f"changed_from must be {DAMAGED} for simulated labels: 1 is an intact building")
        return self

    @model_validator(mode="after")
    def _what_bright_has(self) -> Self:
        if not isinstance(self.data, BrightDataConfig):
            return self
        classes = self.model.settings.get("classes", 1)
        if classes != len(CLASSES) or self.changed_from != DAMAGED:
            raise ValueError(f"bright has {len(CLASSES)} classes, changed from {DAMAGED}: settings say {classes}")
        bands = len(self.pre.bands), len(self.post.bands)
        if bands != (len(BrightPairs.pre_bands), len(BrightPairs.post_bands)):
            raise ValueError(f"bright has 3 bands before and 1 after, not {bands[0]} and {bands[1]}")
        if {self.pre.unit, self.post.unit} != {"uint8"} or self.pre.level or self.post.level:
            raise ValueError("bright is read as value / 255: give unit uint8 and no level")
        return self

    @model_validator(mode="after")
    def _what_levir_has(self) -> Self:
        if not isinstance(self.data, LevirDataConfig):
            return self
        if self.model.settings.get("classes", 1) != 1 or self.changed_from != 1:
            raise ValueError("levir knows changed and unchanged only: give classes 1 and changed_from 1")
        if (self.pre.bands, self.post.bands) != (BANDS, BANDS) or {self.pre.unit, self.post.unit} != {"uint8"}:
            raise ValueError(f"levir has the bands {', '.join(BANDS)} before and after, in uint8")
        if self.pre.level or self.post.level:
            raise ValueError("levir is read as value / 255: give no level")
        if self.augment != AugmentConfig():
            raise ValueError("levir is varied by data.augment: leave out augment, which is for optical and SAR")
        return self
