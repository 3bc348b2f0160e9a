"""The patch network by name or file: a card whose model pools its whole context, or a checkpoint of the reference."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Card, Decision, file_sha256, find_card
from mmcd.errors import ModelError
from mmcd.geo.raster import RasterSource
from mmcd.geo.sensors import select_bands
from mmcd.inference.predictor import change_probability

if TYPE_CHECKING:
    from mmcd.models.siamese import ContextSiamese

SUFFIXES = (".pth", ".pt", ".ckpt")
"""How names of files that torch wrote end."""

LARGEST_DISTANCE = 2.0
"""``1 - cosine`` of two opposite vectors."""

DEFAULT_DISTANCE = 1.0
"""Distance from which change is reported by a model without a calibration, as in the reference's training: there the
two vectors are at right angles.
"""

UNCALIBRATED = (
    "The model has no calibration: the stored value is half its distance, not a probability of change. Find its best "
    "threshold with mmcd infer threshold."
)

_SURE = 1e-6  # Probabilities closer to 0 or 1 than this have no finite distance.


@dataclass(frozen=True)
class PatchModel:
    """A network that compares contexts, and how its distance becomes the stored probability.

    Attributes:
        name: Name of the card or of the file.
        version: Version of the card, or the epoch of the checkpoint.
        sha256: Hash of the weight file.
        network: The network, in its patch form.
        card: The card; None of a checkpoint.
    """

    name: str
    version: str
    sha256: str
    network: "ContextSiamese"
    card: Card | None = None

    @property
    def decision(self) -> Decision | None:
        """The calibration; None of a checkpoint."""
        return self.card.decision if self.card else None

    @property
    def distance_threshold(self) -> float:
        """Distance from which change is reported unless another one is asked for: the card's cut, brought to it.

        Raises:
            ModelError: The card's probability does not grow with the distance.
        """
        if self.decision is None:
            return DEFAULT_DISTANCE
        slope = self.decision.slope * self.decision.cosine_weight
        if slope <= 0:
            raise ModelError(f"The probability of {self.name} does not grow with the distance.", "Fit its card anew.")
        cut = min(max(self.decision.threshold, _SURE), 1 - _SURE)
        return min(max((math.log(cut / (1 - cut)) - self.decision.intercept) / slope, 0.0), LARGEST_DISTANCE)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the stored values."""
        return () if self.decision else (UNCALIBRATED,)

    def probability(self, distance: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return what is stored of a distance in [0, 2], same shape, in [0, 1], NaN where the distance is.

        Of a calibrated model it is the probability of change; without a calibration ``distance / 2``, which keeps the
        order of the distances and nothing more.
        """
        if self.decision is None:
            half: NDArray[np.float32] = np.clip(distance / LARGEST_DISTANCE, 0, 1).astype(np.float32)
            return half
        return change_probability(np.zeros_like(distance, np.float32), distance.astype(np.float32), self.decision)

    def probability_of(self, distance: float) -> float:
        """Return what is stored of one distance."""
        return distance / LARGEST_DISTANCE if self.decision is None else float(self.probability(np.array(distance)))

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says of the model."""
        how = "p = distance / 2, not calibrated" if self.decision is None else self.decision.model_dump(mode="json")
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "why": "it was asked for",
            "calibration": how,
        }

    def bands(self, pre: Path, post: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the bands of both files that the network takes, from 1: a card's by name, else the first ones.

        Raises:
            InputError: A file cannot be read or lacks a band of the card.
        """
        if self.card is None:
            encoders = self.network.optical_encoder, self.network.sar_encoder
            before, after = (tuple(range(1, encoder.conv1.in_channels + 1)) for encoder in encoders)
            return before, after
        with RasterSource(pre) as before_file, RasterSource(post) as after_file:
            chosen = [
                select_bands(file, branch.bands).indexes
                for file, branch in ((before_file, self.card.pre), (after_file, self.card.post))
            ]
        return chosen[0], chosen[1]


def is_checkpoint(model: str) -> bool:
    """Return whether a model is given as a file of torch's."""
    return Path(model).suffix in SUFFIXES


def load_patch_model(model: str) -> PatchModel:
    """Return the patch network of a checkpoint in the reference's layout, of a card or of the name of one.

    Raises:
        ModelError: It is missing, damaged, or not a patch network.
    """
    from mmcd.models import zoo
    from mmcd.models.checkpoints import context_siamese, read_checkpoint

    if is_checkpoint(model):
        checkpoint = read_checkpoint(Path(model))
        network = context_siamese(checkpoint)
        epoch = checkpoint.figures.get("epoch")
        version = "" if epoch is None else f"epoch {epoch}"
        return PatchModel(Path(model).stem, version, file_sha256(Path(model)), network)
    path, card = find_card(model)
    if card.settings.get("pool", "roi") == "roi" or card.settings.get("form", "patch") != "patch":
        raise ModelError(
            f"{card.name} is a dense model, not a patch model.",
            "Use --method dense, whose threshold is in the card, or give a checkpoint such as best_model.pth.",
        )
    loaded, module = zoo.load(path)
    return PatchModel(loaded.name, loaded.version, loaded.sha256, cast("ContextSiamese", module), loaded)
