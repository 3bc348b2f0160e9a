"""The time and disk said before a run: from earlier runs where there are some, else from a speed test."""

import json
import platform

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmcd.cards import list_cards, read_card
from mmcd.errors import RegionError
from mmcd.geo.catalog import Scene
from mmcd.models import zoo
from mmcd.services import estimates
from mmcd.services.estimates import estimate_run


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


def test_the_work_a_pixel_is_what_the_shipped_models_need():
    for _, card in list_cards():
        model = zoo.build(card.architecture, len(card.pre.bands), len(card.post.bands), card.settings).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, len(card.pre.bands), 128, 128), torch.zeros(1, len(card.post.bands), 128, 128))
        assert counter.get_total_flops() / 128**2 == pytest.approx(estimates._FLOP_A_PIXEL, rel=0.02)
