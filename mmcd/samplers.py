"""Which samples meet in a batch."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class GroupBatchSampler(Sampler[list[int]]):
    """Batches that mix groups: no group fills an epoch, and every batch holds several.

    A group of n samples gets a share of the epoch in proportion to ``n ** power``. Its samples are drawn without
    replacement until all were seen, and spread evenly over the epoch, so that every batch has nearly the mix of the
    epoch. Otherwise a network learns which scene it sees instead of what changed.

    Args:
        groups: Group of each sample.
        batch_size: Samples of a batch; every batch is full.
        power: 1 keeps the data set's mix, 0 gives every group the same share.
        seed: Seed of the order; the order of an epoch depends only on it and on the epoch's number.
    """

    def __init__(self, groups: Sequence[str], batch_size: int, power: float, seed: int) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        names = np.asarray(groups)
        self._members = [np.flatnonzero(names == name) for name in sorted(set(groups))]
        weight = np.array([len(members) for members in self._members], dtype=np.float64) ** power
        self._batches = max(1, len(names) // batch_size)
        self._quota = weight / weight.sum() * self._batches * batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        drawn, places = [], []
        for members, quota in zip(self._members, self._quota, strict=True):
            count = int(quota + random.random())  # the expected count is the quota
            drawn.append(_cycle(members, count, random))
            places.append((np.arange(count) + random.random(count)) / max(count, 1))
        order = np.concatenate(drawn)[np.argsort(np.concatenate(places))]
        order = np.resize(order, self._batches * self.batch_size)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def _cycle(members: NDArray[np.intp], count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Return ``count`` members, each as often as any other but for one."""
    rounds = -(-count // len(members))
    return np.concatenate([random.permutation(members) for _ in range(rounds)] or [members[:0]])[:count]
