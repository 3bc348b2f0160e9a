"""Damage must need both images: the radar shows rubble, only the optical image says that a house stood there."""

import importlib.util
from pathlib import Path

import pytest
import torch

_SPEC = importlib.util.spec_from_file_location("modality_probe", Path(__file__).with_name("modality_probe.py"))
assert _SPEC and _SPEC.loader
probe = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(probe)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_neither_image_alone_comes_near_the_pair():
    """Three networks of one schedule, scored on scenes that none of them saw."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pre, post, damage = probe.scenes(0, 120)
        unseen_pre, unseen_post, unseen_damage = probe.scenes(1000, 40)
        pair, radar, optical = (
            probe.train_and_score((images, damage), (unseen, unseen_damage), steps=200)
            for images, unseen in (
                (torch.cat([pre, post], dim=1), torch.cat([unseen_pre, unseen_post], dim=1)),
                (post, unseen_post),
                (pre, unseen_pre),
            )
        )
    finally:
        torch.set_num_threads(threads)
    assert pair > 0.35  # the task can be learned; chance is the damaged share, below 0.05
    assert radar < 0.8 * pair
    assert optical < 0.8 * pair
