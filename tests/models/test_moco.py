import importlib.util
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmcd.errors import ConfigError, ModelError
from mmcd.losses.pretraining import moco_loss
from mmcd.models.moco import METHODS, MomentumEncoder, MomentumSettings, group_mean, pooled_trunk, trunk_width

SCRIPT = Path(__file__).with_name("moco_ranks.py")
_SPEC = importlib.util.spec_from_file_location("moco_ranks", SCRIPT)
ranks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ranks)


def small(**settings):
    return MomentumEncoder(ranks.encoder(), 10, MomentumSettings(**{"dim": 6, "queue": 8, **settings}))


def images(rows=4, seed=0, groups=None):
    shape = (rows, ranks.BANDS, 9, 9) if groups is None else (rows, groups, ranks.BANDS, 9, 9)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def keys(rows, value, spaces=1, dim=6):
    """Keys that can be told apart: row r is value + r everywhere."""
    return (value + torch.arange(rows)).view(1, -1, 1).expand(spaces, rows, dim).float()


@pytest.mark.parametrize(
    ("trunk", "bands", "norm"),
    [
        ("resnet18", 3, "batch"),
        ("resnet18", 12, "group"),
        ("resnet50", 2, "batch"),
        ("swin_t", 4, "batch"),
        ("convnext_tiny", 1, "batch"),
    ],
)
def test_trunks_give_a_vector_an_image(trunk, bands, norm):
    with torch.device("meta"):
        body = pooled_trunk(trunk, bands, norm).eval()
        assert body(torch.zeros(2, bands, 64, 64)).shape == (2, trunk_width(trunk))
    if norm == "group":
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in body.modules())


def test_resnets_are_named_as_the_public_weights_are():
    with torch.device("meta"):
        net = MomentumEncoder(pooled_trunk("resnet18", 3), 512, METHODS["caco"])
    trunk = {name.removeprefix("encoder_q.") for name in net.state_dict() if name.startswith("encoder_q.")}
    assert {name.split(".")[0] for name in trunk} == {"0", "1", "4", "5", "6", "7"}
    assert {"0.weight", "1.running_mean", "4.0.conv1.weight", "5.0.downsample.0.weight"} <= trunk
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["heads_q.2.0.weight"] == (512, 512) and shapes["heads_k.0.2.bias"] == (128,)
    assert shapes["queue"] == (3, 128, 16384) and shapes["queue_ptr"] == (3, 1)


def test_methods_have_their_published_sizes():
    with torch.device("meta"):
        net = MomentumEncoder(pooled_trunk("resnet18", 3), 512, METHODS["saco"])
    shapes = [tuple(weight.shape) for weight in net.heads_q.parameters() if weight.ndim == 2]
    assert shapes == [(1024, 512), (512, 1024), (256, 512)]
    assert {name: settings.subspaces for name, settings in METHODS.items()} == {
        "moco": 1, "moco_tp": 1, "seco": 3, "teco": 3, "caco": 3, "saco": 1, "saco_plus": 1,
    }  # fmt: skip


def test_embeddings_are_unit_vectors_and_only_queries_learn():
    net = small(subspaces=2)
    queries, found = net.embed_query(images()), net.embed_keys(images(seed=1), images(seed=2), images(seed=3))
    assert queries.shape == (2, 4, 6) and found.shape == (2, 3, 4, 6)
    for vectors in (queries, found, net.queue.mT):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    assert queries.requires_grad and not found.requires_grad
    learning = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {"encoder_q", "heads_q"}


def test_key_encoder_follows_once_a_step_however_many_views():
    net = small(momentum=0.75)
    start = {name: weight.clone() for name, weight in net.state_dict().items()}
    with torch.no_grad():
        for weight in (*net.encoder_q.parameters(), *net.heads_q.parameters()):
            weight += 1
    net.embed_keys(images(), images())
    net.embed_keys(images())
    moved = 1 - 0.75**2
    for part in ("encoder_k.0.weight", "heads_k.0.2.bias"):
        torch.testing.assert_close(net.state_dict()[part], start[part] + moved)
    assert int(net.steps) == 2
    net.eval().embed_keys(images())
    assert int(net.steps) == 2


def test_batch_statistics_of_the_keys_are_their_own():
    net = MomentumEncoder(ranks.encoder(nn.BatchNorm2d(10)), 10, MomentumSettings(dim=6, queue=8))
    net.embed_query(images())
    net.embed_keys(10 + images())
    ours, theirs = (trunk[1].running_mean for trunk in (net.encoder_q, net.encoder_k))
    assert float((ours - theirs).abs().max()) > 0.05


def test_groups_are_embedded_by_one_network_and_averaged():
    net = small(subspaces=2).eval()
    pictures = images(3, groups=5)
    groups = net.embed_groups(pictures)
    assert groups.shape == (2, 3, 5, 6)
    one = [net.heads_q[1](net.encoder_q(pictures[:, group])) for group in range(5)]
    torch.testing.assert_close(groups[1], torch.stack(one, dim=1))
    torch.testing.assert_close(net.embed_query(pictures)[1], F.normalize(torch.stack(one).mean(0), dim=1))
    torch.testing.assert_close(net.embed_keys(pictures)[:, 0], group_mean(groups))


def test_queue_is_a_ring():
    net = small(subspaces=2)
    net.enqueue(keys(8, 0, spaces=2))
    expected, place = [float(value) for value in range(8)], 0
    for number, rows in enumerate((4, 2, 4, 1, 8, 2), start=1):  # The third batch and the fifth pass the end.
        net.enqueue(keys(rows, 10 * number, spaces=2))
        for row in range(rows):
            expected[place] = 10.0 * number + row
            place = (place + 1) % 8
        assert net.queue.tolist() == [[expected] * 6] * 2
        assert net.queue_ptr.flatten().tolist() == [place] * 2


def test_spaces_have_their_own_queues():
    net = small(subspaces=2)
    net.enqueue(torch.stack([keys(4, 10)[0], keys(4, 50)[0]]))
    assert net.queue[:, 0, :4].tolist() == [[10, 11, 12, 13], [50, 51, 52, 53]]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (3, r"queue of 8 keys is not a multiple of the 3 rows .* Choose a queue of 6 or another"),
        (16, r"not a multiple of the 16 rows .* Choose a queue of 16"),
        (0, "not a multiple of the 0 rows"),
    ],
)
def test_a_queue_that_is_no_multiple_of_the_batch_is_refused(rows, words):
    net = small()
    before = net.queue.clone()
    with pytest.raises(ConfigError, match=words):
        net.enqueue(keys(rows, 10))
    assert torch.equal(net.queue, before)


def test_keys_may_be_enqueued_before_the_gradient_is_taken():
    gradients = []
    for early in (True, False):
        torch.manual_seed(0)
        net = small()
        queries, found = net.embed_query(images()), net.embed_keys(images(seed=1))
        loss = moco_loss(queries[0], found[0, 0], net.negatives()[0])
        if early:
            net.enqueue(found[:, 0])
        loss.backward()
        gradients.append(net.encoder_q[0].weight.grad)
    assert torch.equal(*gradients) and float(gradients[0].abs().sum()) > 0


def test_embeddings_are_single_precision_in_a_half_precision_step():
    net = small()
    with torch.autocast("cpu", torch.bfloat16):
        queries, found = net.embed_query(images()), net.embed_keys(images())
    assert queries.dtype == found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(1, 1, 4))


def test_a_trunk_of_other_features_is_named():
    net = MomentumEncoder(ranks.encoder(), 12, MomentumSettings(dim=6, queue=8))
    with pytest.raises(ModelError, match=r"gives \(10,\) for an image, not the 12 features"):
        net.embed_query(images())


@pytest.mark.parametrize("settings", [{"subspaces": 0}, {"queue": 0}, {"hidden": (0,)}, {"momentum": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError):
        small(**settings)


@pytest.fixture(scope="module")
def whole_run():
    run = ranks.Run()
    run.train(range(ranks.STEPS))
    return run.model.state_dict()


def test_resumed_is_uninterrupted(whole_run):
    first = ranks.Run()
    first.train(range(2))
    saved = deepcopy((first.model.state_dict(), first.optimiser.state_dict()))
    second = ranks.Run()
    second.model.load_state_dict(saved[0])
    second.optimiser.load_state_dict(saved[1])
    second.train(range(2, ranks.STEPS))
    for name, tensor in second.model.state_dict().items():
        torch.testing.assert_close(tensor, whole_run[name], rtol=0, atol=0, equal_nan=True, msg=name)
    assert set(whole_run["beliefs.labels"].flatten().tolist()) >= {0, 1}, "the run never believed in a change"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(SCRIPT), "2", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=SCRIPT.parents[2], check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_are_one(two_processes, whole_run):
    ours, others = (result["state"] for result in two_processes)
    for name, expected in whole_run.items():
        torch.testing.assert_close(ours[name], others[name], rtol=0, atol=0, equal_nan=True, msg=name)
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_keys_of_all_processes_are_gathered_without_an_exchange(two_processes):
    expected = ranks.some_keys(0, 1, shuffle=False)
    for result in two_processes:
        torch.testing.assert_close(result["kept"], expected)


def test_batches_of_keys_are_mixed_from_all_processes(two_processes):
    """Each process embeds its part of one permutation, and every row finds back to its place."""
    net = MomentumEncoder(ranks.encoder(nn.BatchNorm2d(10)), 10, ranks.SETTINGS).train()
    views, _ = ranks.batch(0)
    generator = torch.Generator().manual_seed(1)  # seed 0, first step
    for number, view in enumerate(views[:2]):
        order = torch.randperm(ranks.BATCH, generator=generator)
        expected = torch.zeros(3, ranks.BATCH, 6)
        for part in order.chunk(2):
            expected[:, part] = group_mean(
                torch.stack([head(net.encoder_k(view[part])) for head in net.heads_k]).unsqueeze(2)
            )
        for result in two_processes:
            torch.testing.assert_close(result["mixed"][:, number], expected)
        unmixed = [group_mean(net.heads_k[0](net.encoder_k(part)).unsqueeze(1)) for part in view.chunk(2)]
        assert float((torch.cat(unmixed) - expected[0]).abs().max()) > 1e-3
