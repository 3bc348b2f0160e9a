"""Arrays in, probabilities out: the model at one fixed input shape, in one of the engines.

A convolution may add up in another order for another input shape, and then a score changes in its last bit. So every
block of a scene goes through the network at exactly the same shape, in the same memory layout and dtype: block plus
halo on every side. That is what makes the stored bytes independent of how the work is cut.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmcd.cards import Branch, Card, Decision, read_card
from mmcd.inference.backends import Arithmetic, Backend, TorchBackend, open_export
from mmcd.inference.exported import ExportedModel

if TYPE_CHECKING:
    from mmcd.models.devices import Device, Precision


_LARGEST_LOGIT = 60  # Beyond it the exponential leaves single precision, and the probability is 0 or 1 anyway.


@dataclass(frozen=True)
class Probabilities:
    """What a model says of a block.

    Attributes:
        change: Calibrated probability of change, shape (block, block), in [0, 1].
        building: Probability that a building stands or stood there, same shape; None of a model that marks none.
        classes: Likeliest class, same shape, uint8; None where it was not asked for.
        vectors: Unit vectors of both branches at the cells that were asked for, shape (2, N, D); else None.
    """

    change: NDArray[np.float32]
    building: NDArray[np.float32] | None = None
    classes: NDArray[np.uint8] | None = None
    vectors: NDArray[np.float16] | None = None


class Predictor:
    """A loaded model that scores one padded block after another.

    Args:
        backend: The network in one of the engines.
        card: Its card.
        all_classes: Also say which class is the likeliest; only torch does, exports hold no classes.

    Attributes:
        halo: Pixels of context around a block after which its outputs no longer change.
        marks_buildings: Whether it says where buildings are: the card has the classes, the engine their output.
        embedding_dim: Length of the embeddings that it has of each region; 0 of an export or a fusion UNet.
    """

    def __init__(self, backend: Backend, card: Card, all_classes: bool = False) -> None:
        self.card = card
        self._all_classes = all_classes
        self.halo = backend.halo
        self.backend = backend
        self.marks_buildings = card.marks_buildings and backend.has_classes
        self.embedding_dim = backend.embedding_dim if isinstance(backend, TorchBackend) else 0

    @classmethod
    def load(
        cls,
        card_path: Path,
        device: "Device" = "auto",
        precision: "Precision" = "auto",
        export: ExportedModel | None = None,
        all_classes: bool = False,
    ) -> "Predictor":
        """Load the model of a card; the hash of what is loaded is verified.

        Args:
            card_path: The card.
            device: Device to run on.
            precision: Arithmetic to run in.
            export: Run this export of the card in its engine instead of the weights in torch, see
                `mmcd.inference.exported.choose_export`.
            all_classes: Also say which class is the likeliest.

        Raises:
            ConfigError: The device is not there, or the export's runtime is not installed.
            ModelError: The weights or the export are missing, changed or do not fit the architecture.
        """
        card = read_card(card_path)
        if export is not None:
            return cls(open_export(export), card)
        from mmcd.models import zoo

        return cls(TorchBackend(zoo.load(card_path)[1], device, precision), card, all_classes)

    @property
    def arithmetic(self) -> Arithmetic:
        """Device, dtype, threads and engine of this predictor."""
        return self.backend.arithmetic

    def probability(
        self,
        pre: NDArray[np.float32],
        post: NDArray[np.float32],
        pre_valid: NDArray[np.bool_],
        post_valid: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Return the probability of change of a padded block, see `probabilities`; shape (block, block)."""
        return self.probabilities(pre, post, pre_valid, post_valid).change

    def probabilities(
        self,
        pre: NDArray[np.float32],
        post: NDArray[np.float32],
        pre_valid: NDArray[np.bool_],
        post_valid: NDArray[np.bool_],
        cells: NDArray[np.integer] | None = None,
    ) -> Probabilities:
        """Return what the model says of a padded block, without its halo.

        Args:
            pre: Stretched values in [0, 1], shape (bands, block + 2 halo, block + 2 halo).
            post: The same for the image after, same height and width.
            pre_valid: Pixels of ``pre`` that hold data, shape (block + 2 halo, block + 2 halo).
            post_valid: The same for ``post``.
            cells: Row and column at stride 8, halo included, of the regions whose embeddings are returned too, shape
                (N, 2); only where there is an ``embedding_dim``.
        """
        images = normalise(pre, pre_valid, self.card.pre), normalise(post, post_valid, self.card.post)
        likeliest = vectors = None
        if isinstance(self.backend, TorchBackend):
            classify = self._all_classes and self.backend.has_classes
            answer, likeliest, vectors = self.backend.compare(*images, classify, cells)
        else:
            answer = self.backend.run(*images)
        inner = (slice(self.halo, -self.halo or None),) * 2
        change = change_probability(answer.logit[inner], answer.distance[inner], self.card.decision)
        building = None
        if self.marks_buildings and answer.building is not None:
            building = _sigmoid(answer.building[inner])
        classes = None if likeliest is None else likeliest[inner]
        return Probabilities(change, building, classes, vectors)


def normalise(values: NDArray[np.float32], valid: NDArray[np.bool_], branch: Branch) -> NDArray[np.float32]:
    """Return values in the units of the training set, 0 (the mean) where there is no data.

    Args:
        values: Stretched values in [0, 1], shape (bands, H, W).
        valid: Pixels that hold data, shape (H, W).
        branch: The card's description of this input.
    """
    mean = np.asarray(branch.mean, np.float32)[:, None, None]
    std = np.asarray(branch.std, np.float32)[:, None, None]
    return np.where(valid, (values - mean) / std, np.float32(0)).astype(np.float32, copy=False)


def change_probability(
    logit: NDArray[np.float32], distance: NDArray[np.float32], decision: Decision
) -> NDArray[np.float32]:
    """Return the calibrated probability of change from head logit and embedding distance, both of any one shape."""
    raw = decision.head_weight * logit + decision.cosine_weight * distance
    z = decision.slope * raw + decision.intercept
    if decision.beta is not None:
        a, b, c = decision.beta
        # ln p and ln(1 - p) of p = sigmoid(z), without loss where p is next to 0 or 1.
        z = -a * np.logaddexp(0, -z) + b * np.logaddexp(0, z) + c
    return _sigmoid(z)


def _sigmoid(logit: NDArray[np.floating]) -> NDArray[np.float32]:
    z = np.clip(logit, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    probability: NDArray[np.float32] = (1 / (1 + np.exp(-z))).astype(np.float32)
    return probability
