"""From files to a loss: simulated series, drawn by place, made into the views that each method of pretraining needs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mmcd.data.band_groups import group_places, groups_of, select_groups
from mmcd.data.seasonal import DRAWS, SeasonalSeries
from mmcd.data.seasonal_files import RGB, index_seasonal, read_acquisition
from mmcd.data.seasonal_views import BandViewConfig, SeasonViewConfig, band_views, season_views
from mmcd.losses.pretraining import caco_loss, moco_loss, own_keys, saco_loss, seco_loss, teco_loss
from mmcd.models.moco import METHODS, MomentumEncoder, MomentumSettings, group_mean
from mmcd.samplers import ChangeAwareSampler, PlaceBatchSampler, ResumableLoader
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_seasonal import simulate_seasonal
from mmcd.training.change_labels import ChangeLabels, change_distances

PLACES, SIDE, BATCH = 4, 36, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series") / "set"
    simulate_seasonal(SimulateRequest(out=folder, scenes=PLACES, size=SIDE, gsd=10, layout="seasonal"))
    return folder


def network(method: str) -> MomentumEncoder:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    spaces = METHODS[method].subspaces  # type: ignore[index]
    return MomentumEncoder(trunk, 8, MomentumSettings(subspaces=spaces, dim=6, queue=8)).train()


@pytest.mark.parametrize("method", ["moco", "moco_tp", "seco", "teco", "caco"])
def test_rgb_methods_take_a_step(root: Path, method: str) -> None:
    data = SeasonalSeries(index_seasonal(root, RGB), method)  # type: ignore[arg-type]
    halves = DRAWS[method].halves  # type: ignore[index]
    sampler = (ChangeAwareSampler if halves else PlaceBatchSampler)(PLACES, BATCH, halves=halves)
    net, beliefs, generator = network(method), ChangeLabels(PLACES), torch.Generator().manual_seed(1)
    for batch in ResumableLoader(data, batch_sampler=sampler):
        if halves:
            assert batch["half"].tolist() == [0, 1, 0, 1] and batch["place"][0] == batch["place"][1]
        views = season_views(batch["images"], method, generator, SeasonViewConfig(crop=16))  # type: ignore[arg-type]
        queries = net.embed_query(views.query)
        keys = net.embed_keys(*views.keys, views.query)
        if method.startswith("moco"):
            loss = moco_loss(queries[0], keys[0, 0], net.negatives()[0])
        elif method == "caco":
            changed = beliefs.changed(batch["place"], batch["half"])
            loss = caco_loss(queries, keys[:, :3], net.negatives(), changed).sum()
            beliefs.update(batch["place"], batch["half"], *change_distances(keys[1, 3], keys[1, 1]))
        else:
            loss = (teco_loss if halves else seco_loss)(queries, keys[:, :3], net.negatives()).sum()
        loss.backward()
        net.enqueue(own_keys(keys[:, :-1]))
    gradients = [parameter.grad for parameter in net.encoder_q.parameters()]
    assert loss.isfinite() and all(grad is not None and grad.abs().sum() > 0 for grad in gradients)
    if method == "caco":
        ratios = beliefs.running[..., 2]
        assert ratios.isfinite().all()
        sampler.set_estimate(ratios.numpy())  # type: ignore[union-attr]
        assert len(list(sampler)) == 2


def test_saco_takes_a_step_on_all_bands(root: Path) -> None:
    data = SeasonalSeries(index_seasonal(root), "saco", size=18)
    sampler = PlaceBatchSampler(PLACES, BATCH, halves=False)
    (batch,) = DataLoader(data, batch_sampler=sampler)
    assert batch["images"].shape == (BATCH, 2, 12, 18, 18)
    views = band_views(batch["images"], torch.Generator().manual_seed(0), BandViewConfig(crop=16))
    places = group_places(groups_of("saco_code"), data.bands)
    query, *keys = (select_groups(view, places) for view in (views.query, *views.keys))
    net = network("saco")
    embedded = net.embed_groups(query)[0]
    terms = saco_loss(group_mean(embedded), net.embed_keys(*keys)[0], net.negatives()[0], embedded)
    sum(terms).backward()  # type: ignore[union-attr]
    assert query.shape == (BATCH, 7, 3, 16, 16) and all(term.isfinite() for term in terms)


def test_truth_and_numbers_of_places_agree(root: Path) -> None:
    """Where the truth says so, and only there, ground was green in the older half and never is in the recent one."""
    places = SeasonalSeries(index_seasonal(root, ("B8", "B4")), "caco").places
    rows = [line.split(",") for line in (root / "changed.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == [place.id for place in places]
    lost = []
    for place in places:
        images = np.stack([read_acquisition(files) for files in place.files]).astype(float)
        index = (images[:, 0] - images[:, 1]) / images.sum(axis=1)
        older, recent = (index[list(half)].max(axis=0) for half in place.halves())
        lost.append(((older > 0.45) & (recent < 0.3)).mean())
    changed = np.array([row[1] == "1" for row in rows])
    assert changed.sum() == 2
    assert np.array(lost)[changed].min() > 5 * np.array(lost)[~changed].max() and min(np.array(lost)[changed]) > 0.05
