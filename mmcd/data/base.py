"""The sample contract: what every source of training pairs hands to the training code."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UNKNOWN = -1
"""Class of a pixel whose label is missing; it enters no loss and no metric."""


class Sample(TypedDict):
    """One aligned pair of tiles, or a batch of them with a leading axis.

    Values:
        pre: Image before, stretched to [0, 1], shape (C1, H, W), float32.
        post: Image after, stretched to [0, 1], shape (C2, H, W), float32.
        target: Class of every pixel, 0 unchanged, `UNKNOWN` where the label is missing, shape (H, W), int64.
        valid: True where both images hold data, shape (H, W), bool.
        index: Position in the data set, int64.
    """

    pre: Tensor
    post: Tensor
    target: Tensor
    valid: Tensor
    index: Tensor


class PairDataset(Protocol):
    """A source of samples that knows where each comes from, so that splits do not leak."""

    @property
    def ids(self) -> Sequence[str]:
        """Name of each sample, unique in the data set."""
        ...

    @property
    def groups(self) -> Sequence[str]:
        """Group of each sample; samples of one group touch or share an event and stay on one side of a split."""
        ...

    @property
    def changed_share(self) -> NDArray[np.float64]:
        """Share of changed pixels of each sample in [0, 1], shape (N,)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def to_sample(
    pre: NDArray[np.float32],
    post: NDArray[np.float32],
    target: NDArray[np.integer],
    valid: NDArray[np.bool_],
    index: int,
) -> Sample:
    """Return a sample of stretched tiles.

    Args:
        pre: Stretched values in [0, 1], shape (C1, H, W).
        post: Stretched values in [0, 1], shape (C2, H, W).
        target: Class of every pixel, shape (H, W).
        valid: Shape (H, W).
        index: Position in the data set.
    """
    return Sample(
        pre=torch.from_numpy(pre),
        post=torch.from_numpy(post),
        target=torch.from_numpy(target).long(),
        valid=torch.from_numpy(valid),
        index=torch.tensor(index),
    )
