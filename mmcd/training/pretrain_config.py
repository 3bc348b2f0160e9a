"""Configuration of pretraining without labels on series of images: MoCo, SeCo, TeCo, CACo, SACo."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmcd.config import Config
from mmcd.data.band_groups import TEXTURE_GROUPS, Groups, Preset, groups_of
from mmcd.data.ombria_dates import OMBRIA_QUANTILES
from mmcd.data.patches import CACHE_BYTES
from mmcd.data.seasonal import DRAWS
from mmcd.data.seasonal_files import LEAST, RECENT, RGB
from mmcd.data.seasonal_views import QUANTILES, BandViewConfig, SeasonViewConfig
from mmcd.geo.sensors import SENTINEL2_L2A
from mmcd.losses.pretraining import Consistency, Denominator
from mmcd.models.devices import Device, Precision
from mmcd.models.moco import METHODS, Method, MomentumSettings
from mmcd.models.trunk_weights import Stored
from mmcd.models.trunks import FeatureTrunk
from mmcd.training.runs import LoggerName

Quantiles = dict[str, tuple[float, float]]


class SeriesConfig(Config):
    """What all series have.

    Attributes:
        root: Folder of the data set, relative to the working directory.
        batch_size: Items of a batch on one process; for TeCo and CACo an item is one half of a place, so it is even.
        change_aware: CACo only: draw places more often that changed more by the running estimate, and this share of the
            draws evenly. None draws all places alike.
        workers: Loader processes.
    """

    root: Path
    batch_size: int = Field(default=256, ge=2)
    change_aware: float | None = Field(default=None, ge=0, le=1)
    workers: int = Field(default=4, ge=0)


class SeasonalSourceConfig(SeriesConfig):
    """A folder of locations in the layout of SeCo and CACo.

    Attributes:
        source: Reader of ``mmcd.data``.
        bands: Bands to read; None reads B4, B3, B2, and for SACo all twelve.
        size: Side that all acquisitions are resampled to; None keeps theirs.
        recent: Newest acquisitions that make the recent half.
        stretch: Reflectance times 255 that becomes 0 and 1, by band; SACo takes reflectance as it is.
        cache_bytes: Budget of the decoded acquisitions in all loader processes together.
    """

    source: Literal["seasonal"]
    bands: tuple[str, ...] | None = None
    size: int | None = Field(default=None, ge=16)
    recent: int = Field(default=RECENT, ge=LEAST)
    stretch: Quantiles = QUANTILES
    cache_bytes: int = Field(default=CACHE_BYTES, ge=0)


class OmbriaSourceConfig(SeriesConfig):
    """Both Sentinel-2 dates of OMBRIA's main set, in memory: the two-date mode, see `mmcd.data.ombria_dates`.

    Attributes:
        source: Reader of ``mmcd.data``.
        window: Side of the square that is cut out of a tile anew in every epoch, pixels; None keeps all of it.
        stretch: Stored number that becomes 0 and 1, by band; SACo takes value / 255.
    """

    source: Literal["ombria_dates"]
    window: int | None = Field(default=None, ge=16)
    stretch: Quantiles = OMBRIA_QUANTILES
    workers: int = Field(default=0, ge=0)


class GroupConfig(Config):
    """SACo: the groups of three bands that one network sees, by name.

    Attributes:
        preset: Whose groups.
        leave_out: Groups of the preset to do without.
        own: Groups of your own instead of a preset's, one at least.
        textures: Groups of bands whose textures (LBP) are images too; None are SACo+'s four for ``saco_plus`` and none
            for ``saco``.
        vegetation: Whether NDVI, EVI and SAVI are one more group.
    """

    preset: Preset = "readme"
    leave_out: tuple[str, ...] = ()
    own: Annotated[dict[str, tuple[str, str, str]], Field(min_length=1)] | None = None
    textures: dict[str, tuple[str, str, str]] | None = None
    vegetation: bool = False

    @property
    def bands(self) -> Groups:
        """The groups of bands."""
        return self.own if self.own is not None else groups_of(self.preset, self.leave_out)

    def texture_groups(self, method: Method) -> Groups:
        """Return the groups of textures of a method; none at all for an empty mapping."""
        if self.textures is not None:
            return self.textures
        return TEXTURE_GROUPS if method == "saco_plus" else {}


class MomentumConfig(Config):
    """Momentum encoder and queue; None takes what the method was published with (`mmcd.models.moco.METHODS`).

    Attributes:
        queue: Keys that a queue holds, a multiple of the rows of a batch on all processes.
        dim: Dimensions of an embedding.
        hidden: Widths of a head's hidden layers.
        momentum: Share of the key encoder that a step keeps.
        shuffle: Exchange rows between processes before keys are embedded.
    """

    queue: int | None = Field(default=None, ge=1)
    dim: int | None = Field(default=None, ge=1)
    hidden: tuple[int, ...] | None = None
    momentum: float | None = Field(default=None, ge=0, le=1)
    shuffle: bool = True


class ContrastConfig(Config):
    """The loss.

    Attributes:
        temperature: Divides the cosine; None is 0.05 for SACo and 0.07 for all others.
        denominator: ``broadcast`` pairs every row's positive with every row's negatives, as reference system 2 does by
            mistake; for MoCo and SACo.
        consistency: How band groups are kept together in SACo; ``margin`` is what the code of reference system 2 does.
    """

    temperature: float | None = Field(default=None, gt=0)
    denominator: Denominator = "row"
    consistency: Consistency = "cosine"


class PretrainOptimiserConfig(Config):
    """The optimiser; None takes the method's: SGD 0.03, or Adam 1e-4 for SACo.

    Attributes:
        kind: Which.
        lr: Highest learning rate.
        momentum: Momentum of SGD.
        weight_decay: Added to the gradient.
        schedule: ``drops`` multiplies the rate by 0.1 at parts of the training, ``cosine`` takes it down to 0.
        drops: Parts of the training, not epochs, after which it drops; None are 0.6 and 0.8 for SGD and none for Adam.
        warmup: Part of the training in which the rate rises.
    """

    kind: Literal["sgd", "adam"] | None = None
    lr: float | None = Field(default=None, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0)
    schedule: Literal["drops", "cosine"] = "drops"
    drops: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None
    warmup: float = Field(default=0.0, ge=0, lt=1)


class PretrainTrainerConfig(Config):
    """How long and on what to train.

    Attributes:
        epochs: Passes over the places.
        steps: Length in steps instead; CACo's change labels are still made anew after every pass.
        checkpoint_batches: Batches from one checkpoint to the next within an epoch.
        device: Device to run on.
        devices: Devices of this kind, one process each; batch and queue count all of them.
        nodes: Machines.
        precision: Arithmetic of the network; losses and views are always fp32.
        loggers: Where losses are written.
    """

    epochs: int = Field(default=200, ge=1)
    steps: int | None = Field(default=None, ge=1)
    checkpoint_batches: int = Field(default=1000, ge=1)
    device: Device = "auto"
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    precision: Precision = "auto"
    loggers: tuple[LoggerName, ...] = ("tensorboard", "mlflow")

    @property
    def processes(self) -> int:
        """Processes that train together."""
        return self.devices * self.nodes


class TrunkExportConfig(Config):
    """What the card of the trained trunk says beyond what training knows.

    Attributes:
        version: Version of the weights.
        title: One line for people; empty names method, trunk and data.
        description: What it learned from and what it is good for.
        stored: How weights are kept.
        licence: Rights of the weights and of their training data.
    """

    version: str = "0"
    title: str = ""
    description: str = "Trained without labels by `mmcd train start`."
    stored: Stored = "float32"
    licence: dict[str, str] = Field(default_factory=lambda: {"weights": "not stated", "data": "not stated"})


@dataclass(frozen=True)
class OptimiserChoice:
    """The optimiser that a configuration comes to; see `PretrainOptimiserConfig`."""

    kind: Literal["sgd", "adam"]
    lr: float
    weight_decay: float
    drops: tuple[float, ...]


class PretrainTraining(Config):
    """One pretraining run.

    Attributes:
        task: Tells this configuration from others.
        name: Name of the run, of its folder in the workspace and of the trunk.
        seed: Seed of weights, order, draws and views.
        method: How to pretrain.
        trunk: Which body.
        data: Series of images.
        views: Views of all methods but SACo.
        band_views: Views of SACo.
        groups: Band groups of SACo.
        momentum: Momentum encoder and queue.
        loss: Loss.
        optimiser: Optimiser.
        trainer: Duration and device.
        export: The trunk's card.
    """

    task: Literal["pretrain"]
    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = Field(default=0, ge=0)
    method: Method
    trunk: FeatureTrunk = "resnet18"
    data: Annotated[SeasonalSourceConfig | OmbriaSourceConfig, Field(discriminator="source")]
    views: SeasonViewConfig = SeasonViewConfig()
    band_views: BandViewConfig = BandViewConfig()
    groups: GroupConfig = GroupConfig()
    momentum: MomentumConfig = MomentumConfig()
    loss: ContrastConfig = ContrastConfig()
    optimiser: PretrainOptimiserConfig = PretrainOptimiserConfig()
    trainer: PretrainTrainerConfig = PretrainTrainerConfig()
    export: TrunkExportConfig = TrunkExportConfig()

    @property
    def grouped(self) -> bool:
        """Whether the method sees band groups: SACo and SACo+."""
        return self.method in ("saco", "saco_plus")

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that a seasonal root is read with."""
        asked = getattr(self.data, "bands", None)
        return asked if asked is not None else SENTINEL2_L2A if self.grouped else RGB

    @property
    def settings(self) -> MomentumSettings:
        """Sizes of the momentum encoder."""
        given = {name: value for name, value in self.momentum.model_dump().items() if value is not None}
        return replace(METHODS[self.method], seed=self.seed, **given)

    @property
    def temperature(self) -> float:
        """What divides the cosine."""
        return self.loss.temperature or (0.05 if self.grouped else 0.07)

    @property
    def optimising(self) -> OptimiserChoice:
        """The optimiser, with the method's values where none are given."""
        asked = self.optimiser
        kind = asked.kind or ("adam" if self.grouped else "sgd")
        lr, decay, drops = (0.03, 1e-4, (0.6, 0.8)) if kind == "sgd" else (1e-4, 1e-5, ())
        return OptimiserChoice(
            kind,
            asked.lr or lr,
            decay if asked.weight_decay is None else asked.weight_decay,
            drops if asked.drops is None else asked.drops,
        )

    @property
    def record(self) -> dict[str, Any]:
        """What the card says of the training."""
        return self.model_dump(
            mode="json", exclude={"export": True, "name": True, "task": True, "data": {"root"}}, exclude_none=True
        )

    @model_validator(mode="after")
    def _batches_that_fit(self) -> Self:
        if DRAWS[self.method].halves and self.data.batch_size % 2:
            raise ValueError(f"{self.method} needs an even data.batch_size: both halves of a place are side by side")
        if self.data.change_aware is not None and self.method != "caco":
            raise ValueError(f"data.change_aware follows CACo's estimate of change, which {self.method} does not make")
        if not self.grouped and len(self.bands) != 3:
            raise ValueError(
                f"{self.method} sees three bands as colours, not the {len(self.bands)} of data.bands: give three with "
                "data.stretch, or train saco, which sees all bands in groups"
            )
        return self
