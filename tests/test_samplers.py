from itertools import chain

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmcd.errors import ConfigError, DataError
from mmcd.samplers import (
    ChangeAwareSampler,
    GroupBatchSampler,
    PlaceBatchSampler,
    RatioBatchSampler,
    ResumableLoader,
)
from mmcd.training.steps import StepBatches

GROUPS = ["large"] * 80 + ["middle"] * 20 + [f"single{i}" for i in range(4)]


def epochs(sampler, count):
    for epoch in range(count):
        sampler.set_epoch(epoch)
        yield list(sampler)


def test_batches_are_full_and_counted():
    sampler = GroupBatchSampler(GROUPS, 8, 0.5, seed=0)
    for batches in epochs(sampler, 5):
        assert len(batches) == len(sampler) == len(GROUPS) // 8
        assert all(len(batch) == 8 for batch in batches)


def test_every_batch_mixes_groups():
    sampler = GroupBatchSampler(GROUPS, 8, 0.5, seed=0)
    for batches in epochs(sampler, 5):
        assert all(len({GROUPS[index] for index in batch}) >= 2 for batch in batches)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_groups_fill_the_epoch_in_proportion_to_their_power(power):
    drawn = [GROUPS[i] for epoch in epochs(GroupBatchSampler(GROUPS, 8, power, 0), 40) for b in epoch for i in b]
    names, sizes = np.unique(GROUPS, return_counts=True)
    expected = sizes**power / (sizes**power).sum()
    found = [drawn.count(name) / len(drawn) for name in names]
    assert found == pytest.approx(expected, abs=0.02)


def test_members_of_a_group_take_turns():
    for batches in epochs(GroupBatchSampler(GROUPS, 8, 0.0, 0), 5):
        counts = np.bincount([index for batch in batches for index in batch], minlength=len(GROUPS))
        assert counts[:80].max() <= 1 and counts[80:100].max() - counts[80:100].min() <= 1


def test_order_depends_on_seed_and_epoch_only():
    sampler, twin, other = (GroupBatchSampler(GROUPS, 8, 0.5, seed) for seed in (3, 3, 4))
    first = list(epochs(sampler, 3))
    twin.set_epoch(2)
    assert first[2] == list(twin)
    assert first[0] != first[1] and first[0] != next(epochs(other, 1))


# --- a fixed share of damaged patches ------------------------------------------------------------------------------

POSITIVE = np.arange(1000) >= 50


def test_ratio_batches_hold_the_share_exactly():
    sampler = RatioBatchSampler(POSITIVE, 64, 0.8)
    for batches in epochs(sampler, 3):
        assert len(batches) == len(sampler) == 16  # 1000 / 64, rounded up
        for batch in batches:
            assert len(batch) == 64 and int((~POSITIVE[batch]).sum()) == 51
    assert sampler.enforced


def test_members_of_a_class_take_turns_in_ratio_batches():
    (batches,) = epochs(RatioBatchSampler(POSITIVE, 10, 0.29, seed=1), 1)  # 2 of 10; 28.999... must not become 1
    counts = np.bincount(np.concatenate(batches), minlength=1000)
    assert set(counts[:50].tolist()) == {4} and set(counts[50:].tolist()) == {0, 1}
    assert int(counts[:50].sum()) == 200
    assert len(RatioBatchSampler(POSITIVE, 100, 0.29).__iter__().__next__()) == 100
    assert int((~POSITIVE[next(iter(RatioBatchSampler(POSITIVE, 100, 0.29)))]).sum()) == 29


def test_classes_are_mixed_within_a_batch():
    batch = next(iter(RatioBatchSampler(POSITIVE, 64, 0.5)))
    assert 0 < int(POSITIVE[batch[:32]].sum()) < 32


def test_every_epoch_has_an_order_of_its_own_unless_told_otherwise():
    sampler = RatioBatchSampler(POSITIVE, 64, 0.8, seed=7)
    first, second = epochs(sampler, 2)
    sampler.set_epoch(1)
    assert first != second and list(sampler) == second
    fixed, again = epochs(RatioBatchSampler(POSITIVE, 64, 0.8, seed=7, reseed=False), 2)
    assert fixed == again == first


@pytest.mark.parametrize(("count", "sizes"), [(128, [64, 64]), (130, [64, 64, 2]), (129, [64, 65]), (7, [7])])
def test_within_the_tolerance_patches_are_shuffled_as_they_are(count, sizes):
    positive = np.arange(count) >= round(0.75 * count)
    sampler = RatioBatchSampler(positive, 64, 0.8, tolerance=0.1)
    (batches,) = epochs(sampler, 1)
    assert not sampler.enforced and [len(batch) for batch in batches] == sizes and len(sampler) == len(sizes)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert RatioBatchSampler(positive, 64, 0.6, tolerance=0.1).enforced
    assert RatioBatchSampler(positive, 64, 0.8).enforced


def test_an_interrupted_epoch_goes_on_where_it_was():
    whole = RatioBatchSampler(POSITIVE, 64, 0.8)
    whole.set_epoch(2)
    batches = list(whole)
    resumed = RatioBatchSampler(POSITIVE, 64, 0.8)
    resumed.resume(2, 5)
    assert list(resumed) == batches[5:] and len(resumed) == 16
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert list(resumed) == list(whole)


def test_a_loader_tells_and_takes_back_where_it_was():
    def loader():
        data = torch.arange(1000)
        return ResumableLoader(data, batch_sampler=RatioBatchSampler(POSITIVE, 64, 0.8), num_workers=0)

    first = loader()
    first.batch_sampler.set_epoch(1)
    whole = [batch.tolist() for batch in first]
    assert first.state_dict() == {"epoch": 1, "batches": 16}
    drawn = iter(first)
    for _ in range(3):
        next(drawn)
    state = first.state_dict()
    assert state == {"epoch": 1, "batches": 3}
    second = loader()
    second.load_state_dict(state)
    rest = iter(second)
    assert next(rest).tolist() == whole[3] and second.state_dict() == {"epoch": 1, "batches": 4}
    assert [batch.tolist() for batch in rest] == whole[4:]


@pytest.mark.parametrize(
    ("positive", "size", "ratio", "words"),
    [
        (np.ones(9, bool), 4, 0.5, r"None of 9 patches is negative \(damaged\)"),
        (np.zeros(9, bool), 4, 0.5, r"None of 9 patches is positive \(unchanged\)"),
        (POSITIVE, 4, 0.2, "would lack a class"),
        (POSITIVE, 4, 1.0, "would lack a class"),
    ],
)
def test_batches_that_would_lack_a_class_are_told(positive, size, ratio, words):
    with pytest.raises(DataError, match=words):
        RatioBatchSampler(positive, size, ratio)


# --- as Lightning asks for them ------------------------------------------------------------------------------------


class Numbers(Dataset):
    """Numbers that say the epoch they are drawn in: 1000 more for each."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index + 1000 * self.epoch


class Listener(L.LightningModule):
    """Learns nothing and notes the batches it is given; saves a checkpoint after some step."""

    def __init__(self, save_at=None, path=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.save_at, self.path = save_at, path
        self.seen = []

    def training_step(self, batch, number):
        self.seen.append(batch.tolist())
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_batch_end(self, *_):
        if self.global_step == self.save_at:
            self.trainer.save_checkpoint(self.path)


def heard(loader, checkpoint=None, **options):
    module = Listener(**options)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=4, logger=False, **quiet)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=False)
    return module.seen


@pytest.mark.parametrize("kind", ["groups", "ratio", "steps"])
def test_lightning_tells_every_batch_sampler_the_epoch(kind):
    groups = GroupBatchSampler(["a", "b"] * 20, 8, 1.0, 0)
    samplers = {
        "groups": groups,
        "ratio": RatioBatchSampler(np.arange(40) < 20, 8, 0.5),
        "steps": StepBatches(groups, 3),
    }
    sampler = samplers[kind]
    seen = heard(DataLoader(range(40), batch_sampler=sampler))
    assert seen == [batch for batches in epochs(sampler, 4) for batch in batches]
    length = len(sampler)
    assert seen[:length] != seen[length : 2 * length]


@pytest.mark.parametrize("step", [5, 7, 10])  # 5 batches an epoch: after one, within the next, and after two
def test_a_resumed_run_is_given_what_an_uninterrupted_one_is(tmp_path, step):
    def loader():
        return ResumableLoader(Numbers(), batch_sampler=RatioBatchSampler(np.arange(40) < 20, 8, 0.5))

    whole = heard(loader(), save_at=step, path=tmp_path / "last.ckpt")
    assert [{value // 1000 for value in batch} for batch in whole] == [{epoch} for epoch in range(4) for _ in range(5)]
    assert heard(loader(), tmp_path / "last.ckpt") == whole[step:]


# --- places, and places that changed ------------------------------------------------------------------------------


@pytest.mark.parametrize(("halves", "size", "count"), [(True, 8, 5), (False, 8, 2), (False, 1, 23), (True, 46, 1)])
def test_place_batches_are_full_and_hold_both_halves_side_by_side(halves, size, count):
    sampler = PlaceBatchSampler(23, size, halves=halves, seed=1)
    left_out = set()
    for batches in epochs(sampler, 6):
        assert len(batches) == len(sampler) == count and all(len(batch) == size for batch in batches)
        items = np.concatenate(batches)
        if halves:
            assert (items[::2] % 2 == 0).all() and (items[1::2] == items[::2] + 1).all()
            items = items[::2] // 2
        assert len(set(items.tolist())) == len(items) and items.max() < 23
        left_out |= set(range(23)) - set(items.tolist())
    assert len(left_out) > 2 or len(items) == 23


@pytest.mark.parametrize("make", [PlaceBatchSampler, ChangeAwareSampler])
def test_processes_share_a_step_and_never_a_place(make):
    estimate = np.random.default_rng(0).exponential(size=50)
    ranks = [make(50, 8, halves=True, seed=3, ranks=(rank, 3)) for rank in range(3)]
    alone = make(50, 24, halves=True, seed=3)
    for sampler in (*ranks, alone):
        sampler.set_epoch(2)
        if isinstance(sampler, ChangeAwareSampler):
            sampler.set_estimate(estimate)
    steps = list(zip(*ranks, strict=True))
    assert len(steps) == len(alone) == len(ranks[0]) == 4
    for parts, whole in zip(steps, alone, strict=True):
        assert list(chain(*parts)) == whole and len(set(whole)) == 24


def test_processes_are_asked_for_when_an_epoch_begins(monkeypatch):
    sampler = PlaceBatchSampler(20, 4, halves=True)
    alone = list(sampler)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    assert len(sampler) == 5 and len(alone) == 10
    assert list(sampler) == list(PlaceBatchSampler(20, 4, halves=True, ranks=(1, 2))) != alone[:5]


def test_places_are_drawn_in_proportion_to_their_change():
    change = np.array([0.0] * 40 + [1.0] * 40 + [3.0] * 20)
    for even, expected in ((0.0, change / 1.0), (0.5, 0.5 + 0.5 * change), (1.0, np.ones(100))):
        sampler = ChangeAwareSampler(100, 20, even=even, seed=5)
        sampler.set_estimate(change)
        counts = np.zeros(100)
        for batches in epochs(sampler, 60):
            for batch in batches:
                assert len(set(batch)) == 20, "a place never meets itself"
            drawn = np.bincount(np.concatenate(batches)[::2] // 2, minlength=100)
            quota = expected * 100 / expected.sum()
            assert (np.abs(drawn - quota) < 1).all(), "every place gets its quota, rounded up or down"
            counts += drawn
        wanted = 60 * quota
        for group in (slice(0, 40), slice(40, 80), slice(80, 100)):
            assert counts[group].mean() == pytest.approx(wanted[group].mean(), rel=0.02, abs=0.1)


def test_a_single_changed_place_comes_once_a_batch_at_most():
    change = np.zeros(30)
    change[7] = 5.0
    sampler = ChangeAwareSampler(30, 6, halves=False, even=0.0)
    sampler.set_estimate(change)
    (batches,) = epochs(sampler, 1)
    assert len(batches) == 5 and all(batch.count(7) == 1 and len(set(batch)) == 6 for batch in batches)


def test_what_is_not_known_counts_as_the_mean_and_halves_by_the_greater():
    nan = np.nan
    sampler, flat = (ChangeAwareSampler(4, 2, even=0.0, seed=9) for _ in range(2))
    sampler.set_estimate(np.array([[nan, 1.0], [2.0, nan], [nan, nan], [3.0, 0.5]]))
    flat.set_estimate(np.array([1.0, 2.0, 2.0, 3.0]))
    plain = PlaceBatchSampler(4, 2, halves=True, seed=9)
    assert list(sampler) == list(flat)
    fresh = ChangeAwareSampler(4, 2, seed=9)
    assert list(fresh) == list(plain)
    for nothing in (np.full(4, nan), np.zeros((4, 2))):
        fresh.set_estimate(nothing)
        assert list(fresh) == list(plain)


def test_a_resumed_epoch_of_places_is_drawn_by_the_estimate_it_began_with():
    def loader(sampler):
        return ResumableLoader(torch.arange(80), batch_sampler=sampler)

    change = np.random.default_rng(1).exponential(size=(40, 2))
    first = loader(ChangeAwareSampler(40, 8, seed=2))
    first.batch_sampler.set_epoch(3)
    first.batch_sampler.set_estimate(change)
    whole = [batch.tolist() for batch in first]
    batches = iter(first)
    next(batches), next(batches)
    state = first.state_dict()
    second = loader(ChangeAwareSampler(40, 8, seed=2))
    second.load_state_dict(state)
    assert [batch.tolist() for batch in second] == whole[2:] and len(whole) == 10
    second.batch_sampler.set_estimate(change[::-1])
    second.batch_sampler.set_epoch(4)
    assert len(list(second)) == 10


def test_places_that_cannot_be_drawn_are_refused():
    for size in (0, 7):
        with pytest.raises(ConfigError, match="even batch size"):
            PlaceBatchSampler(10, size, halves=True)
    with pytest.raises(DataError, match="10 places do not fill a batch of 12 on each of 2 processes: 12 are needed"):
        list(PlaceBatchSampler(10, 12, halves=True, ranks=(0, 2)))
    with pytest.raises(ConfigError, match="no share"):
        ChangeAwareSampler(10, 4, even=1.5)
    sampler = ChangeAwareSampler(3, 2)
    for estimate in ([1.0, 2.0], [1.0, -1.0, 2.0], [1.0, np.inf, 1.0], [[1.0] * 3] * 3):
        with pytest.raises(DataError, match="each of 3 places"):
            sampler.set_estimate(np.array(estimate))
