import numpy as np
import pytest

from mmcd.samplers import GroupBatchSampler

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
