"""Which places CACo believes to have changed: running distances of embeddings, and a mixture of two after an epoch.

Reference system 3: the distance between the older and the recent half of a place is compared with that between two
acquisitions of one half. Where the years made a greater difference than the seasons, something was built or lost.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from mmcd.errors import DataError
from mmcd.models.moco import gather_rows

UNSEEN, UNCHANGED, CHANGED = -1, 0, 1

_EPSILON = 1e-4
"""Added to the short distance before it divides."""

_SPREAD = 1e-6
"""Ratios that lie closer than this share of their size are one class."""


@torch.no_grad()
def change_distances(queries: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far places lie from their other half, and from another acquisition of the same half.

    Args:
        queries: Unit vectors of the queries by the key encoder in the space that ignores time, shape (N, D), rows in
            pairs: the older half of a place, then its recent half.
        later: Those of the other acquisition, shape (N, D).

    Returns:
        Long and short distance, shape (N,) each.
    """
    other = queries.reshape(-1, 2, queries.shape[1]).flip(1).reshape(queries.shape)
    return torch.linalg.vector_norm(queries - other, dim=1), torch.linalg.vector_norm(queries - later, dim=1)


@dataclass(frozen=True)
class ChangeMixture:
    """The two classes of change that a fit found.

    Attributes:
        means: Mean ratio of unchanged and of changed places.
        deviations: Standard deviation of each.
        shares: Share of each in the mixture.
        changed: How many places and halves are believed changed now.
        seen: How many have a ratio.
    """

    means: tuple[float, float]
    deviations: tuple[float, float]
    shares: tuple[float, float]
    changed: int
    seen: int


class ChangeLabels(nn.Module):
    """Running distances of every place and half, and whether it is believed changed. All of it is in the state dict.

    Args:
        places: Number of places.
        memory: Share of the old value in a running one; 0.8 is the reference's four to one.

    Attributes:
        running: Long distance, short distance and their ratio, shape (places, 2, 3), float32; NaN until seen. The
            halves are 0, older, and 1, recent.
        labels: `UNSEEN`, `UNCHANGED` or `CHANGED`, shape (places, 2), int8.
    """

    running: Tensor
    labels: Tensor

    def __init__(self, places: int, memory: float = 0.8) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("running", torch.full((places, 2, 3), torch.nan))
        self.register_buffer("labels", torch.full((places, 2), UNSEEN, dtype=torch.int8))

    def changed(self, places: Tensor, halves: Tensor) -> Tensor:
        """Return where change is believed, shape (N,), bool; nowhere before the first fit.

        Args:
            places: Indices, shape (N,), int64.
            halves: 0 for the older half, 1 for the recent one, shape (N,), int64.
        """
        return self.labels[places, halves] == CHANGED

    @torch.no_grad()
    def update(self, places: Tensor, halves: Tensor, long: Tensor, short: Tensor) -> None:
        """Take in the distances of a batch, those of all processes; the first of a place is taken as it is.

        Args:
            places: Indices, shape (N,), int64, as many on every process.
            halves: 0 for the older half, 1 for the recent one, shape (N,), int64.
            long: Distance to the other half, shape (N,).
            short: Distance to another acquisition of the same half, shape (N,).
        """
        values = torch.stack([long, short, long / (short + _EPSILON)], dim=1).to(self.running)
        cells, inverse = torch.unique(gather_rows(2 * places + halves), return_inverse=True)
        sums = self.running.new_zeros(len(cells), 3).index_add_(0, inverse, gather_rows(values))
        new = sums / inverse.bincount(minlength=len(cells)).unsqueeze(1)
        old = self.running.view(-1, 3)[cells]
        self.running.view(-1, 3)[cells] = torch.where(old.isnan(), new, torch.lerp(new, old, self.memory))

    def fit(self, seed: int = 0) -> ChangeMixture:
        """Fit two classes to all ratios and label the places by them; call it after every epoch.

        The class of greater mean is changed. Unlike the reference's, a ratio below the mean of the other class is
        never: a wide class of changed places would else claim the lowest ratios too.

        Args:
            seed: Of the mixture's start, the same on every process.

        Raises:
            DataError: The ratios make one class only. The labels stay as they were.
        """
        ratios = self.running[..., 2].double().cpu().numpy()
        seen = np.isfinite(ratios)
        values: NDArray[np.float64] = ratios[seen]
        if len(values) < 2 or np.ptp(values) <= _SPREAD * abs(values).max():
            raise _one_class(values)
        mixture = GaussianMixture(2, random_state=seed).fit(values[:, None])
        means: NDArray[np.float64] = mixture.means_[:, 0]
        low, high = np.argsort(means)
        found = (mixture.predict(values[:, None]) == high) & (values > means[low])
        if found.all() or not found.any():
            raise _one_class(values)
        labels = np.full(ratios.shape, UNSEEN, dtype=np.int8)
        labels[seen] = np.where(found, CHANGED, UNCHANGED)
        self.labels.copy_(torch.from_numpy(labels))
        deviations = np.sqrt(mixture.covariances_[:, 0, 0])
        first, second = ((float(column[low]), float(column[high])) for column in (means, deviations))
        shares = float(mixture.weights_[low]), float(mixture.weights_[high])
        return ChangeMixture(first, second, shares, int(found.sum()), len(values))


def _one_class(values: NDArray[np.float64]) -> DataError:
    span = f", all from {values.min():.3g} to {values.max():.3g}," if len(values) else ""
    return DataError(
        f"Ratios of change of {len(values):,} halves of places{span} make one class and not two: changed and unchanged "
        "places cannot be told apart.",
        "Train longer before the first fit, give more places or a longer gap between their halves, or train TeCo, "
        "which takes every place for changed.",
    )
