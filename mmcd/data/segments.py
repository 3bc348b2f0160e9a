"""The sample of a land cover task: one image and the class of every pixel."""

from collections.abc import Sequence
from typing import Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SegmentSample(TypedDict):
    """One image with its classes, or a batch of them with a leading axis.

    Values:
        image: Prepared values, shape (C, H, W), float32.
        target: Class of every pixel, `mmcd.data.base.UNKNOWN` where there is none, shape (H, W), int64.
        valid: True where the loss looks at the pixel, shape (H, W), bool.
        index: Position in the data set, int64.
    """

    image: Tensor
    target: Tensor
    valid: Tensor
    index: Tensor


class SegmentDataset(Protocol):
    """A source of such samples."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        ...

    @property
    def groups(self) -> Sequence[str]:
        """What each sample was cut from."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SegmentSample: ...

    def labels(self, index: int) -> NDArray[np.int64]:
        """Return the classes of a sample as `SegmentSample` holds them, without reading its image."""
        ...


def to_segment(
    image: NDArray[np.float32], target: NDArray[np.int64], index: int, ignored: tuple[int, ...] = ()
) -> SegmentSample:
    """Return a sample.

    Args:
        image: Prepared values, shape (C, H, W).
        target: Class of every pixel, negative where there is none, shape (H, W).
        index: Position in the data set.
        ignored: Classes that enter no loss.
    """
    valid = (target >= 0) & ~np.isin(target, ignored)
    return SegmentSample(
        image=torch.from_numpy(np.ascontiguousarray(image)),
        target=torch.from_numpy(target),
        valid=torch.from_numpy(valid),
        index=torch.tensor(index),
    )


def class_counts(data: SegmentDataset) -> NDArray[np.int64]:
    """Return how many pixels of each class the labels hold, shape (K,)."""
    total = np.zeros(len(data.classes), np.int64)
    for index in range(len(data)):
        target = data.labels(index)
        total += np.bincount(target[target >= 0], minlength=len(total))
    return total
