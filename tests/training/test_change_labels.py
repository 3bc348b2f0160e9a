import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.nn import functional as F

from mmcd.errors import DataError
from mmcd.losses.pretraining import caco_loss, own_keys
from mmcd.models.moco import MomentumEncoder, MomentumSettings
from mmcd.training.change_labels import CHANGED, UNCHANGED, UNSEEN, ChangeLabels, change_distances


def rows(*numbers):
    return torch.tensor(numbers)


def with_ratios(ratios):
    """Labels of places whose halves have these ratios."""
    labels = ChangeLabels(len(ratios))
    labels.running[..., 2] = torch.as_tensor(ratios, dtype=torch.float32)
    return labels


@pytest.fixture
def two_classes():
    random = np.random.default_rng(0)
    return np.concatenate([random.normal(1, 0.1, (60, 2)), random.normal(3, 0.3, (20, 2))])


def test_distances_to_the_other_half_and_within_a_half():
    queries, later = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(4, 8), dim=1)
    long, short = change_distances(queries, later)
    for row, other in enumerate((1, 0, 3, 2)):
        assert float(long[row]) == pytest.approx(float((queries[row] - queries[other]).norm()), rel=1e-5)
        assert float(short[row]) == pytest.approx(float((queries[row] - later[row]).norm()), rel=1e-5)


def test_the_first_value_is_taken_and_later_ones_count_a_fifth():
    labels = ChangeLabels(3)
    labels.update(rows(1, 1), rows(0, 1), torch.tensor([0.6, 0.9]), torch.tensor([0.3, 0.3]))
    first = torch.tensor([0.6, 0.3, 0.6 / 0.3001])
    torch.testing.assert_close(labels.running[1, 0], first)
    labels.update(rows(1), rows(0), torch.tensor([0.1]), torch.tensor([0.2]))
    expected = (4 * first + torch.tensor([0.1, 0.2, 0.1 / 0.2001])) / 5
    torch.testing.assert_close(labels.running[1, 0], expected)
    assert labels.running[[0, 2]].isnan().all() and not labels.running[1].isnan().any()


def test_a_place_twice_in_a_batch_counts_by_its_mean():
    labels = ChangeLabels(1)
    labels.update(rows(0, 0), rows(0, 0), torch.tensor([0.2, 0.4]), torch.tensor([1.0, 1.0]))
    assert float(labels.running[0, 0, 0]) == pytest.approx(0.3)


def test_no_short_distance_divides_by_zero():
    labels = ChangeLabels(1)
    labels.update(rows(0), rows(0), torch.tensor([0.5]), torch.tensor([0.0]))
    assert float(labels.running[0, 0, 2]) == pytest.approx(5000)


def test_the_class_of_greater_ratio_is_changed(two_classes):
    two_classes[5, 1] = np.nan
    labels = with_ratios(two_classes)
    found = labels.fit()
    assert (labels.labels[60:] == CHANGED).all()
    assert int((labels.labels[:60] == UNCHANGED).sum()) == 119 and int(labels.labels[5, 1]) == UNSEEN
    assert found.means == pytest.approx((1, 3), abs=0.1) and found.deviations == pytest.approx((0.1, 0.3), abs=0.05)
    assert (found.changed, found.seen) == (40, 159) and sum(found.shares) == pytest.approx(1)
    changed = labels.changed(rows(0, 70, 5), rows(0, 1, 1))
    assert changed.tolist() == [False, True, False]


def test_labels_are_those_of_the_mixture(two_classes):
    labels = with_ratios(two_classes)
    labels.fit(seed=3)
    values = two_classes.astype(np.float32).astype(np.float64).reshape(-1, 1)
    mixture = GaussianMixture(2, random_state=3).fit(values)
    expected = mixture.predict(values) == mixture.means_.argmax()
    assert np.array_equal(labels.labels.numpy().ravel() == CHANGED, expected)


def test_the_lowest_ratios_are_never_changed():
    """A wide class of changed places is likelier at 0 than a narrow class around 1, to the mixture."""
    random = np.random.default_rng(0)
    ratios = np.concatenate([random.normal(1, 0.05, 300), random.normal(1.6, 0.6, 100), [0.1, 0.2]]).reshape(-1, 2)
    labels = with_ratios(ratios)
    labels.fit()
    values = ratios.reshape(-1, 1)
    mixture = GaussianMixture(2, random_state=0).fit(values)
    assert (mixture.predict(values)[-2:] == mixture.means_.argmax()).all()
    assert (labels.labels[-1] == UNCHANGED).all() and (labels.labels == CHANGED).any()


def test_nothing_is_believed_before_the_first_fit():
    labels = ChangeLabels(4)
    labels.update(rows(0, 0), rows(0, 1), torch.tensor([9.0, 9.0]), torch.tensor([0.1, 0.1]))
    assert not labels.changed(rows(0, 0, 3), rows(0, 1, 0)).any()


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        (np.full((4, 2), np.nan), "of 0 halves of places make one class and not two"),
        ([[1.5, np.nan]], "of 1 halves of places, all from 1.5 to 1.5, make one class"),
        (np.full((50, 2), 1.25), "of 100 halves of places, all from 1.25 to 1.25"),
        (np.full((50, 2), 1.25) + np.random.default_rng(0).normal(0, 1e-9, (50, 2)), "one class and not two"),
    ],
)
def test_one_class_of_change_is_named_and_leaves_the_labels(ratios, words):
    labels = with_ratios(ratios)
    labels.labels.fill_(CHANGED)
    with pytest.raises(DataError, match=words) as caught:
        labels.fit()
    assert "or train TeCo" in caught.value.hint
    assert (labels.labels == CHANGED).all()


def test_caco_finds_the_places_that_changed():
    """Places of smooth ground under changing light; a third of them is rebuilt between the halves."""
    torch.manual_seed(0)
    count, rebuilt = 48, torch.arange(48) < 16
    ground = torch.randn(count, 1, 3, 4, 4).repeat(1, 2, 1, 1, 1)
    ground[rebuilt, 1] = torch.randn(16, 3, 4, 4)
    net = MomentumEncoder(
        nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ReLU()), 64, MomentumSettings(3, 16, queue=192, momentum=0.99)
    )
    beliefs = ChangeLabels(count)
    optimiser = torch.optim.SGD([each for each in net.parameters() if each.requires_grad], lr=0.05, momentum=0.9)
    for _ in range(25):
        for chosen in torch.randperm(count).chunk(2):
            places, halves = chosen.repeat_interleave(2), torch.arange(count) % 2
            views = [ground[places, halves] + 0.4 * torch.randn(count, 3, 1, 1) for _ in range(3)]
            keys = net.embed_keys(*views, views[2])
            changed = beliefs.changed(places, halves)
            loss = caco_loss(net.embed_query(views[2]), keys[:, :3], net.negatives(), changed).sum()
            beliefs.update(places, halves, *change_distances(keys[1, 3], keys[1, 1]))
            net.enqueue(own_keys(keys))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        beliefs.fit()
    right = (beliefs.labels == CHANGED) == rebuilt.unsqueeze(1)
    assert float(right.float().mean()) > 0.95


def test_beliefs_survive_a_checkpoint(two_classes):
    labels = with_ratios(two_classes)
    labels.fit()
    again = ChangeLabels(len(two_classes))
    again.load_state_dict(labels.state_dict())
    for each in (labels, again):
        each.update(rows(3, 4), rows(0, 1), torch.tensor([0.5, 0.4]), torch.tensor([0.1, 0.2]))
        each.fit()
    torch.testing.assert_close(labels.running, again.running, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(labels.labels, again.labels)
