"""Configuration of the downstream tasks that are a classifier of whole images."""

from typing import Literal

from pydantic import Field

from mmcd.config import Config
from mmcd.data.band_groups import Preset
from mmcd.models.probe import Mean
from mmcd.training.downstream import DownstreamConfig, DownstreamData

GROUP_BANDS = ("B4", "B3", "B2")
"""Channels of a trunk that groups are shown to as red, green and blue."""


class ProbeHead(Config):
    """What follows the trunk.

    Attributes:
        groups: Show the trunk seven groups of three bands and average the answers (reference system 2): by the README,
            or one of its code's; the code's for these 13 bands is ``saco_code_eurosat``. None shows it one image.
        bands: Bands of that one image, in channel order.
        texture: Join every group's features with histograms of local binary patterns, 16 codes of every band.
        texture_scale: ``pixels``: shares of the pixels; ``batch``: counts stretched from the least to the greatest of
            the batch, as reference system 2 does, where an answer depends on the images beside it.
        mean_of: What is averaged over groups; ``probabilities`` reproduces reference system 2, which then takes the
            cross-entropy of these as if they were logits.
        bn: ``train`` reproduces reference system 3, whose frozen trunk normalises by the batch and lets its statistics
            drift while the linear layer learns; ``eval`` leaves them as they were pretrained.
        augment: ``saco`` varies images as reference system 2 does: shear, turn and mirror, each with probability 0.5.
        dropout: Share of the linear layer's input that is left out in training.
    """

    groups: Preset | None = None
    bands: tuple[str, ...] = Field(default=GROUP_BANDS, min_length=1)
    texture: bool = False
    texture_scale: Literal["pixels", "batch"] = "pixels"
    mean_of: Mean = "logits"
    bn: Literal["eval", "train"] = "eval"
    augment: Literal["none", "saco"] = "none"
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ProbeData(DownstreamData):
    """Which images; each task adds its own options.

    Attributes:
        scaling: Bring values to [0, 1] as the task's protocol does, whatever the trunk learned from; or as the trunk's
            card says.
    """

    scaling: Literal["protocol", "trunk"] = "protocol"


class ProbeConfig(DownstreamConfig):
    """A downstream task that is a classifier of whole images.

    Attributes:
        data: Images.
        head: What follows the trunk.
    """

    data: ProbeData
    head: ProbeHead = ProbeHead()

    @property
    def cached(self) -> bool:
        """Whether an image has the same features in every epoch."""
        return self.start.frozen and self.head.bn == "eval" and self.head.augment == "none"
