"""Which samples meet in a batch."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import DataLoader, Sampler

from mmcd.errors import ConfigError, DataError


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


class ResumableBatchSampler(EpochBatchSampler):
    """Batches that go on within an epoch."""

    _resumed = (0, 0)  # epoch, and how many of its batches are left out

    def resume(self, epoch: int, batches: int) -> None:
        """Go on within an epoch: leave out its first batches, which were already trained on."""
        self.epoch = epoch
        self._resumed = (epoch, batches)

    @property
    def skipped(self) -> int:
        """Batches of the chosen epoch that are left out."""
        epoch, batches = self._resumed
        return batches if epoch == self.epoch else 0

    def state_dict(self) -> dict[str, Any]:
        """Return what the order depends on beside seed and epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


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


class RatioBatchSampler(ResumableBatchSampler):
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
        self._total = len(is_positive)
        self._negatives, self._positives = np.flatnonzero(~is_positive), np.flatnonzero(is_positive)
        share = len(self._negatives) / max(self._total, 1)
        self.enforced = tolerance is None or abs(share - neg_ratio) > tolerance
        self._per_batch = math.floor(batch_size * neg_ratio + 1e-9)  # 0.29 * 100 is 28.999...
        if self.enforced:
            self._check(neg_ratio)

    def __len__(self) -> int:
        # All batches of an epoch, also of one that is resumed. A batch of one patch has no batch statistics, so a
        # lone last patch joins the batch before.
        return math.ceil(self._total / self.batch_size) if self.enforced else len(self._plain_starts())

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng(self.seed + (self.epoch if self.reseed else 0))
        batches = self._enforced(random) if self.enforced else self._shuffled(random)
        yield from islice(batches, self.skipped, None)

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


class PlaceBatchSampler(ResumableBatchSampler):
    """Full batches of different places; with halves, the older and the recent half of each side by side.

    Every place is drawn at most once an epoch; those that do not fill a batch are left out. Under several processes all
    draw the same order and each takes its own places of it, as many batches everywhere, so that no two processes see
    a place in one step. (Lightning has to be told ``use_distributed_sampler=False``.)

    Args:
        places: Number of places. With halves, items ``2 * place`` and ``2 * place + 1`` are its older and recent half,
            as in `mmcd.data.seasonal.SeasonalSeries`.
        batch_size: Items of a batch on one process; even with halves.
        halves: Whether items are halves, which TeCo and CACo need.
        seed: Seed of the order, the same on every process.
        ranks: Number of this process and of all; None asks `torch.distributed` when an epoch begins.

    Raises:
        ConfigError: A batch of halves is odd.
    """

    def __init__(
        self, places: int, batch_size: int, *, halves: bool, seed: int = 0, ranks: tuple[int, int] | None = None
    ) -> None:
        self.places, self.batch_size, self.halves, self.seed = places, batch_size, halves, seed
        self._ranks = ranks
        self._items = 2 if halves else 1
        if batch_size < 1 or batch_size % self._items:
            raise ConfigError(
                f"A batch of {batch_size} cannot hold both halves of every place.", "Choose an even batch size."
            )

    def __len__(self) -> int:
        step, (_, processes) = self._step(), self._process()
        if self.places < step:
            raise DataError(
                f"{self.places:,} places do not fill a batch of {self.batch_size} on each of {processes} processes: "
                f"{step:,} are needed.",
                "Choose a smaller batch size, or give more places.",
            )
        return self.places // step

    def __iter__(self) -> Iterator[list[int]]:
        rank, processes = self._process()
        random = np.random.default_rng([self.seed, self.epoch])
        own = self._drawn(random).reshape(len(self), processes, -1)[:, rank]
        for batch in own[self.skipped :]:
            yield (self._items * batch[:, None] + np.arange(self._items)).ravel().tolist()

    def _drawn(self, random: np.random.Generator) -> NDArray[np.intp]:
        """Return the places of every batch of all processes, shape (batches, places of a step)."""
        batches, step = len(self), self._step()
        order = random.permutation(self.places)
        quota = _capped(self._weights()[order], batches * step, batches)
        # One random start for all: every place gets its quota, rounded up or down, and all get what is needed.
        ends = np.floor(np.cumsum(quota) + random.random()).astype(np.intp)
        ends[-1] = batches * step
        copies = np.repeat(order, np.diff(np.minimum(ends, ends[-1]), prepend=0))
        # Dealt like cards: copies of a place, never more than there are batches, fall into different ones.
        dealt = copies.reshape(step, batches).T
        return random.permuted(random.permutation(dealt), axis=1)

    def _weights(self) -> NDArray[np.float64]:
        """Return how often each place is drawn, in proportion."""
        return np.ones(self.places)

    def _step(self) -> int:
        """Return the places of a step on all processes."""
        return self.batch_size // self._items * self._process()[1]

    def _process(self) -> tuple[int, int]:
        if self._ranks is not None:
            return self._ranks
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1


class ChangeAwareSampler(PlaceBatchSampler):
    """Draws the places more often that are believed to have changed more; else a `PlaceBatchSampler`.

    A place may come several times an epoch, but never twice in a step of all processes. Until there is an estimate all
    places are drawn alike.

    Args:
        places: As in `PlaceBatchSampler`.
        batch_size: As in `PlaceBatchSampler`.
        halves: As in `PlaceBatchSampler`.
        even: Share of the draws that does not look at the estimate, so that unchanged places stay seen.
        seed: As in `PlaceBatchSampler`.
        ranks: As in `PlaceBatchSampler`.

    Raises:
        ConfigError: A batch of halves is odd, or the share is none.
    """

    def __init__(
        self,
        places: int,
        batch_size: int,
        *,
        halves: bool = True,
        even: float = 0.5,
        seed: int = 0,
        ranks: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(places, batch_size, halves=halves, seed=seed, ranks=ranks)
        if not 0 <= even <= 1:
            raise ConfigError(f"{even:g} is no share of the draws.", "Choose from 0 to 1, such as 0.5.")
        self.even = even
        self._relative = np.ones(places)

    def set_estimate(self, change: NDArray[np.floating[Any]]) -> None:
        """Choose the estimate that the next epoch is drawn by, between epochs and the same on every process.

        Args:
            change: How much each place changed, at least 0; NaN where nothing is known, which counts as the mean. Shape
                (places,), or (places, 2) by half, of which the greater counts: ``beliefs.running[..., 2]`` of
                `mmcd.training.change_labels.ChangeLabels`.

        Raises:
            DataError: There is not one number for each place, or one is negative or infinite.
        """
        values = np.asarray(change, dtype=np.float64)
        if values.shape not in ((self.places,), (self.places, 2)) or np.isinf(values).any() or (values < 0).any():
            raise DataError(
                f"An estimate of shape {values.shape} does not say how much each of {self.places:,} places changed.",
                "Give numbers from 0 on, one for each place or for both of its halves.",
            )
        values = np.fmax.reduce(values.reshape(self.places, -1), axis=1)
        known = values[~np.isnan(values)]
        mean = known.mean() if len(known) else 0.0
        self._relative = np.nan_to_num(values / mean, nan=1.0) if mean > 0 else np.ones(self.places)

    def state_dict(self) -> dict[str, Any]:
        """Return the estimate that the epoch is drawn by: the running one has moved on since it began."""
        return {"relative_change": torch.from_numpy(self._relative.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._relative = np.asarray(state["relative_change"])

    def _weights(self) -> NDArray[np.float64]:
        return self.even + (1 - self.even) * self._relative


def _capped(weights: NDArray[np.float64], total: int, most: int) -> NDArray[np.float64]:
    """Return numbers in proportion to weights that add up to ``total``, none above ``most``."""
    quota = np.full(len(weights), float(most))
    free = np.ones(len(weights), dtype=bool)
    while free.any():
        rest = weights[free] if weights[free].any() else np.ones(int(free.sum()))
        quota[free] = (total - most * (len(weights) - free.sum())) * rest / rest.sum()
        above = free & (quota > most)
        if not above.any():
            break
        quota[above] = most
        free &= ~above
    return quota


@runtime_checkable
class FollowsEpoch(Protocol):
    """A data set whose samples depend on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose samples are drawn next."""


class ResumableLoader(DataLoader[Any]):
    """A loader that knows how many batches it has handed out, so that a run goes on in the middle of an epoch.

    Its batch sampler has to be a `ResumableBatchSampler`. A data set that augments by the epoch is told its number.
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

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, how many of its batches were handed out, and what their order depends on."""
        return {"epoch": self._order().epoch, "batches": self._handed, **self._order().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches that were handed out."""
        self._order().load_state_dict(state)
        self._order().resume(state["epoch"], state["batches"])

    def _order(self) -> ResumableBatchSampler:
        if not isinstance(self.batch_sampler, ResumableBatchSampler):
            raise TypeError("a ResumableLoader needs a ResumableBatchSampler")
        return self.batch_sampler
