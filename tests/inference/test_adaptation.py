"""Adapting to a scene: the statistics are the scene's, the mixture is the one asked for, the model stays as it was."""

import copy
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from mmcd.errors import ConfigError
from mmcd.geo.raster import output_grid
from mmcd.inference import adaptation
from mmcd.inference.adaptation import adapt
from mmcd.inference.backends import TorchBackend
from mmcd.inference.engine import score_whole
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.inference.survey import sample_windows

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def predictor(card_path: Path) -> Predictor:
    return Predictor.load(card_path, device="cpu", precision="fp32")


def reader_of(pair: Pair, predictor: Predictor) -> PairReader:
    return PairReader(*pair, predictor.card, output_grid(*pair))


def statistics(predictor: Predictor) -> list[torch.Tensor]:
    assert isinstance(predictor.backend, TorchBackend)
    layers = (layer for layer in predictor.backend.model.modules() if isinstance(layer, nn.BatchNorm2d))
    return [values.clone() for layer in layers for values in (layer.running_mean, layer.running_var)]


def test_the_moments_leave_out_cells_with_a_missing_pixel() -> None:
    features = torch.tensor([[[[1.0, 100.0], [3.0, 5.0]], [[2.0, -7.0], [2.0, 2.0]]]])  # (1, 2, 2, 2)
    missing = torch.zeros(1, 1, 4, 4)
    missing[0, 0, 1, 2] = 1  # one pixel of the cell at (0, 1)
    moments = adaptation._moments(features, missing)
    assert moments is not None
    torch.testing.assert_close(moments[0], torch.tensor([3.0, 2.0]))
    torch.testing.assert_close(moments[1], torch.tensor([8 / 3, 0.0]))
    assert adaptation._moments(features, torch.ones(1, 1, 4, 4)) is None


def test_the_scene_alone_is_what_batch_norm_would_measure(pair: Pair, predictor: Predictor) -> None:
    """With no weight on the training set, every layer is as after one step of training on the same windows."""
    with reader_of(pair, predictor) as reader:
        windows = sample_windows(reader.grid.shape, 64, 4)
        pre, post, _ = adaptation._sample(predictor, reader, windows)
        assert isinstance(predictor.backend, TorchBackend)
        learner, measured = (copy.deepcopy(predictor.backend.model) for _ in range(2))
    drifts = adaptation._mix_statistics(measured, pre, post, torch.ones(len(windows), 1, 64, 64), 0.0)
    learner.train()
    for layer in learner.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        learner(pre, post)
    layers = [
        pair
        for pair in zip(learner.modules(), measured.modules(), strict=True)
        if isinstance(pair[0], nn.BatchNorm2d) and isinstance(pair[1], nn.BatchNorm2d)
    ]
    assert len(layers) == len(drifts) > 30
    for trained, mixed in layers:
        torch.testing.assert_close(mixed.running_mean, trained.running_mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(mixed.running_var, trained.running_var, rtol=2e-2, atol=1e-4)  # it divides by n - 1


def test_all_weight_on_the_training_set_changes_no_byte(pair: Pair, predictor: Predictor) -> None:
    with reader_of(pair, predictor) as reader:
        same, found = adapt(predictor, reader, 1.0)
        assert found.layers > 30
        assert found.drift > 0
        for ours, theirs in zip(statistics(same), statistics(predictor), strict=True):
            assert torch.equal(ours, theirs)


def test_a_mixture_changes_the_copy_and_not_the_model(pair: Pair, predictor: Predictor) -> None:
    before = statistics(predictor)
    with reader_of(pair, predictor) as reader:
        adapted, found = adapt(predictor, reader, 0.5)
        again, _ = adapt(predictor, reader, 0.5)
    assert found.pixels < found.windows * 256 * 256, "the hole and the empty edge are left out"
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(statistics(adapted), before, strict=True))
    for ours, theirs in zip(statistics(predictor), before, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(statistics(adapted), statistics(again), strict=True):
        assert torch.equal(ours, theirs)


def test_a_scene_without_enough_data_is_left_alone(predictor: Predictor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, bands in (("pre.png", 3), ("post.png", 1)):
        with rasterio.open(tmp_path / name, "w", driver="PNG", height=96, width=96, count=bands, dtype="uint8") as file:
            file.write(rng.integers(1, 256, (bands, 96, 96), np.uint8))
    with reader_of((tmp_path / "pre.png", tmp_path / "post.png"), predictor) as reader:
        same, found = adapt(predictor, reader, 0.5)
        assert same is predictor
        assert found.layers == 0
        assert "9,216 px" in found.notes[0]
        assert score_whole(reader, same).shape == (96, 96)


def test_an_exported_model_cannot_be_adapted(pair: Pair, predictor: Predictor) -> None:
    class Exported:
        halo = predictor.halo

    with reader_of(pair, predictor) as reader, pytest.raises(ConfigError, match="torch"):
        adapt(Predictor(Exported(), predictor.card), reader, 0.9)  # type: ignore[arg-type]
