"""Which samples meet in a batch."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from mmcd.errors import DataError


class EpochBatchSampler(Sampler[list[int]]):
    """Batches whose order depends on the number of the epoch.

    Attributes:
        epoch: The epoch whose order is drawn next.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch

    @property
    def sampler(self) -> Self:
        """Itself: of a batch sampler Lightning tells the epoch to nothing but its ``sampler``."""
        return self


class GroupBatchSampler(EpochBatchSampler):
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
        names = np.asarray(groups)
        self._members = [np.flatnonzero(names == name) for name in sorted(set(groups))]
        weight = np.array([len(members) for members in self._members], dtype=np.float64) ** power
        self._batches = max(1, len(names) // batch_size)
        self._quota = weight / weight.sum() * self._batches * batch_size

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


class RatioBatchSampler(EpochBatchSampler):
    """Full batches with a fixed share of negative (damaged) patches, as many as it takes to count all patches once.

    Each class is drawn without replacement until all its patches were seen, then again in a new order. With a
    ``tolerance`` this is done only where the share of the data differs from the wanted one by more, as in reference
    system 0; otherwise the patches are shuffled as they are, and a batch may lack a class.

    Args:
        is_positive: True for unchanged pairs, shape (N,).
        batch_size: Patches of a batch, at least 2.
        neg_ratio: Share of negative patches in a batch, rounded down to whole patches.
        tolerance: Difference that is left as it is; None always enforces the share.
        seed: Seed of the order; the order of an epoch depends only on it and on the epoch's number.
        reseed: Give every epoch an order of its own; False repeats the first, for validation.

    Raises:
        DataError: A class is absent, or too few of it fall into a batch.

    Attributes:
        enforced: Whether every batch has the wanted share.
    """

    def __init__(
        self,
        is_positive: NDArray[np.bool_],
        batch_size: int = 64,
        neg_ratio: float = 0.8,
        *,
        tolerance: float | None = None,
        seed: int = 42,
        reseed: bool = True,
    ) -> None:
        self.batch_size, self.seed, self.reseed = batch_size, seed, reseed
        self._resumed = (0, 0)  # epoch, and how many of its batches are left out
        self._total = len(is_positive)
        self._negatives, self._positives = np.flatnonzero(~is_positive), np.flatnonzero(is_positive)
        share = len(self._negatives) / max(self._total, 1)
        self.enforced = tolerance is None or abs(share - neg_ratio) > tolerance
        self._per_batch = math.floor(batch_size * neg_ratio + 1e-9)  # 0.29 * 100 is 28.999...
        if self.enforced:
            self._check(neg_ratio)

    def resume(self, epoch: int, batches: int) -> None:
        """Go on within an epoch: leave out its first batches, which were already trained on."""
        self.epoch = epoch
        self._resumed = (epoch, batches)

    def __len__(self) -> int:
        # All batches of an epoch, also of one that is resumed. A batch of one patch has no batch statistics, so a
        # lone last patch joins the batch before.
        return math.ceil(self._total / self.batch_size) if self.enforced else len(self._plain_starts())

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng(self.seed + (self.epoch if self.reseed else 0))
        batches = self._enforced(random) if self.enforced else self._shuffled(random)
        yield from islice(batches, self.skipped, None)

    @property
    def skipped(self) -> int:
        """Batches of the chosen epoch that are left out."""
        epoch, batches = self._resumed
        return batches if epoch == self.epoch else 0

    def _enforced(self, random: np.random.Generator) -> Iterator[list[int]]:
        negatives = _cycle(self._negatives, len(self) * self._per_batch, random).reshape(len(self), -1)
        kept = self.batch_size - self._per_batch
        positives = _cycle(self._positives, len(self) * kept, random).reshape(len(self), -1)
        for pair in zip(negatives, positives, strict=True):
            yield random.permutation(np.concatenate(pair)).tolist()

    def _shuffled(self, random: np.random.Generator) -> Iterator[list[int]]:
        order = random.permutation(self._total)
        for batch in np.split(order, self._plain_starts()[1:]):
            yield batch.tolist()

    def _plain_starts(self) -> range:
        return range(0, max(self._total - 1, 1), self.batch_size)

    def _check(self, neg_ratio: float) -> None:
        classes = {"negative (damaged)": self._negatives, "positive (unchanged)": self._positives}
        for name, members in classes.items():
            if not len(members):
                raise DataError(
                    f"None of {self._total:,} patches is {name}, but every batch asks for a share of {neg_ratio:g} "
                    "damaged ones.",
                    "Index tiles that hold both classes, or split otherwise, with mmcd data index.",
                )
        if not 0 < self._per_batch < self.batch_size:
            raise DataError(
                f"A batch of {self.batch_size} with a share of {neg_ratio:g} damaged patches would lack a class.",
                "Choose larger batches or another share.",
            )


@runtime_checkable
class FollowsEpoch(Protocol):
    """A data set whose samples depend on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose samples are drawn next."""


class ResumableLoader(DataLoader[Any]):
    """A loader that knows how many batches it has handed out, so that a run goes on in the middle of an epoch.

    Its batch sampler has to be a `RatioBatchSampler`. A data set that augments by the epoch is told its number.
    """

    _handed = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Runs when the first batch is asked for: of a resumed run Lightning tells the epoch after making the iterator.
        if isinstance(self.dataset, FollowsEpoch):
            self.dataset.set_epoch(self._order().epoch)
        self._handed = self._order().skipped
        for batch in super().__iter__():
            self._handed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were handed out."""
        return {"epoch": self._order().epoch, "batches": self._handed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the batches that were handed out."""
        self._order().resume(state["epoch"], state["batches"])

    def _order(self) -> RatioBatchSampler:
        if not isinstance(self.batch_sampler, RatioBatchSampler):
            raise TypeError("a ResumableLoader needs a RatioBatchSampler")
        return self.batch_sampler
