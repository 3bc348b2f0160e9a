"""Where the trunk of a downstream task comes from, whether it goes on learning, and how it wants its images."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import lightning as L
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmcd.config import Config
from mmcd.data.seasonal_views import IMAGENET_MEAN, IMAGENET_STD
from mmcd.geo.sensors import standard_name
from mmcd.models.pretrained import fetch_imagenet
from mmcd.models.trunk_features import TrunkFeatures
from mmcd.models.trunk_weights import adapt_bands, load_trunk
from mmcd.models.trunks import FeatureTrunk
from mmcd.trunk_cards import Normalisation, TrunkCard, find_trunk, read_trunk_card

RANDOM: Literal["random"] = "random"
IMAGENET: Literal["imagenet"] = "imagenet"

IMAGENET_BANDS = ("B4", "B3", "B2")
IMAGENET_NORMALISATION = Normalisation(
    lower=(0.0,) * 3,
    upper=(255.0,) * 3,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    words="8-bit red, green and blue / 255, less ImageNet's mean, through its deviation",
)


class TrunkStart(Config):
    """Which trunk a task begins with.

    Attributes:
        trunk: Name or card of pretrained weights, ``random`` or ``imagenet``.
        architecture: Body of a random or ImageNet trunk; a card knows its own.
        frozen: Leave the trunk as it is and learn only what follows it; else all of it is fine-tuned.
        seeds: Seeds that ``mmcd evaluate`` repeats the task with; ``mmcd train start`` takes the first one.
    """

    trunk: str = RANDOM
    architecture: FeatureTrunk = "resnet18"
    frozen: bool = True
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))} have to be different and not negative")
        return self


def trunk_card(start: TrunkStart) -> TrunkCard | None:
    """Return the card of pretrained weights, None for a random or ImageNet trunk; no weights are read.

    Raises:
        ModelError: There is no such card, or it is damaged.
    """
    return None if start.trunk in (RANDOM, IMAGENET) else read_trunk_card(find_trunk(start.trunk))


def start_trunk(start: TrunkStart, bands: Sequence[str], seed: int) -> TrunkFeatures:
    """Return the trunk of a task, fixed and in evaluation mode if it is frozen.

    The first convolution is adapted where the weights were learned from other bands, see
    `mmcd.models.trunk_weights.adapt_bands`. All generators are seeded first, so that a random trunk and the head that
    is made after it depend on ``seed`` alone.

    Args:
        start: Where it comes from.
        bands: Names of the bands of an image in channel order, standard or not.
        seed: Seed of this run.

    Raises:
        ModelError: The weights are missing, damaged or of another trunk.
        ConfigError: ImageNet weights cannot be fetched.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    named = tuple(standard_name(band) or band for band in bands)
    if start.trunk == RANDOM:
        features = TrunkFeatures(start.architecture, named)
    elif start.trunk == IMAGENET:
        features = TrunkFeatures(start.architecture, named)
        features.load(adapt_bands(fetch_imagenet(start.architecture), IMAGENET_BANDS, named))
    else:
        card, weights = load_trunk(find_trunk(start.trunk))
        features = TrunkFeatures(card.trunk, named)
        features.load(adapt_bands(weights, card.bands, named))
    return features.freeze() if start.frozen else features


class TrunkScaling(nn.Module):
    """Brings images to what a trunk was pretrained on: clipped, stretched to [0, 1], less mean through deviation.

    Args:
        normalisation: As the card says.
        had: Bands of the card.
        wanted: Bands of the images; one that the card does not know gets the average of its values.
    """

    lower: Tensor
    upper: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, normalisation: Normalisation, had: Sequence[str], wanted: Sequence[str]) -> None:
        super().__init__()
        places = {standard_name(band) or band: place for place, band in enumerate(had)}
        for name in ("lower", "upper", "mean", "std"):
            values: tuple[float, ...] = getattr(normalisation, name)
            spare = sum(values) / len(values)
            chosen = [places.get(standard_name(band) or band) for band in wanted]
            column = torch.tensor([spare if place is None else values[place] for place in chosen])
            self.register_buffer(name, column[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return scaled images.

        Args:
            images: In the card's units (8 bit unless it says otherwise), shape (N, C, H, W).
        """
        stretched = ((images - self.lower) / (self.upper - self.lower)).clamp(0, 1)
        scaled: Tensor = (stretched - self.mean) / self.std
        return scaled


def trunk_scaling(start: TrunkStart, bands: Sequence[str]) -> TrunkScaling | None:
    """Return how a trunk wants images of these bands, None for a random one, which has no wish.

    Raises:
        ModelError: There is no such card.
    """
    if start.trunk == IMAGENET:
        return TrunkScaling(IMAGENET_NORMALISATION, IMAGENET_BANDS, bands)
    card = trunk_card(start)
    return None if card is None else TrunkScaling(card.normalisation, card.bands, bands)


def trunk_words(start: TrunkStart) -> Mapping[str, str]:
    """Return what a result says of its trunk: name, version, method, body, and whether it learned."""
    card = trunk_card(start)
    named = {"trunk": start.trunk, "architecture": start.architecture}
    if card is not None:
        named = {
            "trunk": card.name,
            "version": card.version,
            "method": card.method,
            "architecture": card.trunk,
            "bands": " ".join(card.bands),
        }
    return named | {"learned": "the head" if start.frozen else "trunk and head"}
