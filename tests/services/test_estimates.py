"""The time and disk said before a run: from earlier runs where there are some, else from a speed test."""

import json
import platform
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch.utils.flop_counter import FlopCounterMode

from mmcd.cards import list_cards, read_card
from mmcd.errors import RegionError
from mmcd.geo.catalog import Scene
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid
from mmcd.geo.raster import output_grid
from mmcd.inference import adaptation
from mmcd.inference.alignment import find_alignment
from mmcd.inference.backends import TorchBackend
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.models import zoo
from mmcd.services import estimates
from mmcd.services.estimates import estimate_run, fitting_pixels, flop_a_pixel


@pytest.fixture
def scene(pair) -> Scene:
    return Scene("s", "S", "", "", "", *pair)


@pytest.fixture
def card(card_path):
    return read_card(card_path)


def remember(workspace, name: str, number: int, score_seconds: float, **changes) -> None:
    """Leave the manifest of a run of four blocks of 512 px behind."""
    folder = workspace / "runs" / f"{number:032x}"
    folder.mkdir(parents=True)
    manifest = {
        "model": {"name": name},
        "platform": platform.platform(),
        "resumed": False,
        "block": {"size": 512, "halo": 128, "count": 4},
        "seconds": {"load model": 1.0, "score": score_seconds, "write": 0.5},
        "finished": f"2026-01-01T00:00:{number:02d}",
        "inputs": {"scene": None},
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_earlier_runs_of_the_model_set_the_pace(workspace, scene, card):
    for number, seconds in enumerate((8.0, 4.0, 40.0)):
        remember(workspace, card.name, number, seconds)
    estimate = estimate_run(card, scene)
    # 700 × 900 px are 2 × 2 blocks; the median run took 2 s a block and 1.5 s around them.
    assert estimate.seconds == pytest.approx(4 * 2.0 + 1.5)
    assert (estimate.pixels, estimate.runs) == (700 * 900, 3)
    assert estimate.disk_bytes == 4 * 700 * 900


def test_the_pace_is_one_of_pixels_read_in_the_same_engine(workspace, scene, card):
    remember(workspace, card.name, 1, 4 * 2.0)
    # As fast a run in blocks that read 512 × 512 px instead of 768 × 768, and one of an engine that is not used here.
    remember(workspace, card.name, 2, 4 * 2.0 * (512 / 768) ** 2, block={"size": 256, "halo": 128, "count": 4})
    remember(workspace, card.name, 3, 1000.0, arithmetic={"backend": "openvino 2026.1"})
    estimate = estimate_run(card, scene)
    assert estimate.runs == 2
    # 700 × 900 px are 3 × 4 blocks of 256 px, the size of the newest run.
    assert estimate.seconds == pytest.approx(12 * 2.0 * (512 / 768) ** 2 + 1.5)


@pytest.mark.parametrize(
    "changes", [{"platform": "another machine"}, {"resumed": True}, {"model": {"name": "another model"}}]
)
def test_runs_that_say_nothing_of_this_one_are_left_out(workspace, scene, card, changes):
    remember(workspace, card.name, 1, 1000.0, **changes)
    estimate = estimate_run(card, scene)
    assert estimate.runs == 0
    assert estimate.seconds < 1000


def test_without_runs_the_speed_of_the_machine_sets_the_pace(workspace, scene, card, monkeypatch):
    monkeypatch.setattr(estimates, "matrix_speed", lambda: 1e11)
    slow = estimate_run(card, scene).seconds
    monkeypatch.setattr(estimates, "matrix_speed", lambda: 1e12)
    fast = estimate_run(card, scene).seconds
    work = 128_000 * 768**2 * 4
    assert slow - fast == pytest.approx((work / 1e11 - work / 1e12) / 0.8)


def test_a_region_needs_less_and_one_outside_is_refused(workspace, scene, card):
    bounds = "19.80,41.51,19.83,41.53"
    assert 0 < estimate_run(card, scene, bounds).pixels < 700 * 900 / 4
    with pytest.raises(RegionError):
        estimate_run(card, scene, "0,0,1,1")


def test_aligning_and_adapting_take_their_time_whatever_the_region(workspace, scene, card, monkeypatch):
    monkeypatch.setattr(estimates, "matrix_speed", lambda: 1e11)
    a_pixel = 128_000 / (0.8 * 1e11)
    for region in (None, "19.80,41.51,19.83,41.53"):
        plain = estimate_run(card, scene, region).seconds
        aligned = estimate_run(card, scene, region, align=True).seconds
        adapted = estimate_run(card, scene, region, adapt=True).seconds
        # 700 × 900 px have nine windows of 256 px for the one, and 3 × 4 for the other.
        assert aligned - plain == pytest.approx(9 * 256**2 * 15 * 0.44 * a_pixel)
        assert adapted - plain == pytest.approx(4 * 12 * 256**2 * a_pixel)
        both = estimate_run(card, scene, region, align=True, adapt=True).seconds
        assert both - plain == pytest.approx(aligned - plain + adapted - plain)


def test_earlier_runs_tell_how_long_fitting_takes_and_it_counts_only_where_it_is_asked_for(workspace, scene, card):
    seconds = {"load model": 1.0, "align": 30.0, "adapt": 8.0, "score": 8.0, "write": 0.5}
    whole = {"region": None, "grid": {"shape": [700, 900]}, "align": {"applied": False}, "adapt": {"alpha": 0.9}}
    remember(workspace, card.name, 1, 8.0, seconds=seconds, **whole)
    # Only a part was answered for, so nobody knows how large the scene was.
    remember(workspace, card.name, 2, 8.0, seconds=seconds | {"align": 99.0}, **whole | {"region": "0,0,1,1"})
    assert estimate_run(card, scene).seconds == pytest.approx(8.0 + 1.5)
    assert estimate_run(card, scene, align=True).seconds == pytest.approx(8.0 + 1.5 + 30.0)
    assert estimate_run(card, scene, align=True, adapt=True).seconds == pytest.approx(8.0 + 1.5 + 38.0)


def test_a_model_that_is_adapted_stays_in_torch(workspace, scene, card, monkeypatch):
    monkeypatch.setattr(estimates, "choose_export", lambda card: SimpleNamespace(backend="openvino"))
    remember(workspace, card.name, 1, 2.0, arithmetic={"backend": "openvino 2026.1"})
    remember(workspace, card.name, 2, 8.0)
    remember(workspace, card.name, 3, 8.0)
    assert estimate_run(card, scene).seconds == pytest.approx(2.0 + 1.5)
    assert estimate_run(card, scene, align=True).seconds > 2.0 + 1.5 + 8.0  # its embeddings are torch's
    adapted = estimate_run(card, scene, adapt=True)
    assert adapted.runs == 2
    assert adapted.seconds == pytest.approx(8.0 + 1.5 + 4 * 12 * 256**2 * 8.0 / (4 * 768**2))


@pytest.mark.parametrize("shape", [(150, 200), (100, 300), (60, 60)])
def test_what_is_counted_is_what_aligning_and_adapting_run(small_pair, card_path, tmp_path, monkeypatch, shape):
    pair = _cut(small_pair, tmp_path, shape)
    predictor = Predictor.load(card_path, "cpu", "fp32")
    embedded, run = [], []
    embed, mix = TorchBackend.embed, adaptation._mix_statistics

    def count(self, image, side):
        embedded.append(image[0].size)
        return embed(self, image, side)

    monkeypatch.setattr(TorchBackend, "embed", count)
    monkeypatch.setattr(adaptation, "_mix_statistics", lambda *words: run.append(words[1][:, 0].numel()) or mix(*words))
    with PairReader(*pair, predictor.card, output_grid(*pair)) as reader:
        find_alignment(predictor, reader)
        adaptation.adapt(predictor, reader, 0.9)
    # The search begins in place with 14 offsets and may go on to 17.
    assert 1 <= (sum(embedded) * 0.44 + 1) / (fitting_pixels("align", shape) + 1) <= 18 / 15
    assert sum(run) == fitting_pixels("adapt", shape)


def _cut(pair, folder, shape):
    """Write the upper left part of a pair, repeated where it is too small."""
    grid = Grid("EPSG:32634", Affine(10, 0, 400_000, 0, -10, 4_600_000), *shape)
    cut = []
    for path, band in zip(pair, (Band(names=("B11", "B8", "B3")), Band(names=("VV",), nodata=0)), strict=True):
        with rasterio.open(path) as file:
            values = np.pad(file.read(), ((0, 0), (0, 200), (0, 200)), mode="reflect")[:, : shape[0], : shape[1]]
        cut.append(write_cog(folder / path.name, values, grid, band))
    return cut


def test_one_embedding_is_counted_as_its_share_of_the_network():
    for card in (card for _, card in list_cards() if card.has_embeddings):
        model = zoo.build(card.architecture, len(card.pre.bands), len(card.post.bands), card.settings).eval()
        for side, bands in (("pre", card.pre.bands), ("post", card.post.bands)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model.embed(torch.zeros(1, len(bands), 128, 128), side)
            share = counter.get_total_flops() / 128**2 / estimates._FLOP_A_PIXEL
            assert share == pytest.approx(estimates._EMBEDDING_SHARE, rel=0.05)


def test_the_work_a_pixel_is_what_the_shipped_models_need():
    for _, card in list_cards():
        model = zoo.build(card.architecture, len(card.pre.bands), len(card.post.bands), card.settings).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, len(card.pre.bands), 128, 128), torch.zeros(1, len(card.post.bands), 128, 128))
        assert counter.get_total_flops() / 128**2 == pytest.approx(flop_a_pixel(card), rel=0.02)
