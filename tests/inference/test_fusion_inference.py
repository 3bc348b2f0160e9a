"""A network without embeddings that sees further than its halo keeps the engine's promises all the same."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from mmcd.cards import file_sha256, read_card
from mmcd.errors import ConfigError, ModelError
from mmcd.geo.cog import SCORE_BAND, CogWriter
from mmcd.geo.grid import Window
from mmcd.geo.raster import output_grid
from mmcd.inference import adaptation, backends, engine
from mmcd.inference.adaptation import adapt
from mmcd.inference.alignment import find_alignment
from mmcd.inference.answers import answers_of
from mmcd.inference.backends import HALO, OnnxBackend, TorchBackend
from mmcd.inference.convert import convert
from mmcd.inference.engine import Journal, plan_blocks, score_region, score_whole
from mmcd.inference.exported import ExportedModel
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.models import zoo
from mmcd.models.siamese import ContextSiamese
from mmcd.progress import silent

Pair = tuple[Path, Path]
NARROW = 32


@pytest.fixture(scope="module")
def predictor(optical_card_path: Path) -> Predictor:
    """The model with so narrow a halo that it sees further."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "HALO", NARROW)
        return Predictor.load(optical_card_path, device="cpu")


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Blocks of 64 px, so that a small scene has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "LARGEST_BLOCK", 64)
        yield


def reader_of(pair: Pair, predictor: Predictor) -> PairReader:
    return PairReader(*pair, predictor.card, output_grid(*pair))


def written(pair: Pair, predictor: Predictor, out: Path, region: Window | None = None, tile: int = 64) -> np.ndarray:
    grid = output_grid(*pair)
    region = region or grid.window
    plan, journal = plan_blocks(grid, region, tile), Journal(out.with_suffix(".journal"), "key")
    partial = out.with_suffix(".part")
    with reader_of(pair, predictor) as reader, CogWriter(out, grid.crop(region), SCORE_BAND, partial=partial) as writer:
        score_region(plan, reader, predictor, writer, journal, silent)
        writer.commit()
    with rasterio.open(out) as file:
        return file.read(1)


@pytest.fixture(scope="module")
def whole(optical_pair: Pair, predictor: Predictor) -> np.ndarray:
    with reader_of(optical_pair, predictor) as reader:
        return score_whole(reader, predictor)


def test_the_model_sees_further_than_its_halo(predictor: Predictor) -> None:
    """Else equal bytes would prove nothing new."""
    assert predictor.halo == NARROW
    rng = np.random.default_rng(0)
    side = 64 + 2 * NARROW
    pre, post = rng.random((2, 3, side, side), np.float32)
    valid = np.ones((side, side), bool)
    before = predictor.probability(pre, post, valid, valid)
    pre[:, 0] = 1 - pre[:, 0]
    assert before.shape == (64, 64)
    assert (predictor.probability(pre, post, valid, valid) != before).any()


@pytest.mark.parametrize("tile", [16, 10_000])
def test_bytes_are_the_same_for_every_tile(
    optical_pair: Pair, predictor: Predictor, whole: np.ndarray, tmp_path: Path, tile: int
) -> None:
    assert len(np.unique(whole)) > 20
    np.testing.assert_array_equal(written(optical_pair, predictor, tmp_path / "score.tif", tile=tile), whole)


@pytest.mark.parametrize("region", [Window(0, 0, 40, 200), Window(50, 60, 33, 75), Window(149, 199, 1, 1)])
def test_a_region_is_cut_from_the_whole(
    optical_pair: Pair, predictor: Predictor, whole: np.ndarray, tmp_path: Path, region: Window
) -> None:
    found = written(optical_pair, predictor, tmp_path / "score.tif", region)
    np.testing.assert_array_equal(found, whole[region.slices])


def test_holes_are_not_assessed(whole: np.ndarray) -> None:
    assert (whole[70:90, 100:130] == 0).all()
    assert (whole[:70] > 0).all()


def test_without_embeddings_there_is_no_distance(optical_card_path: Path) -> None:
    backend = TorchBackend(zoo.load(optical_card_path)[1], "cpu", "fp32")
    assert (backend.halo, backend.has_embeddings) == (HALO, False)
    image = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    answer = backend.run(image, -image)
    assert not answer.distance.any()
    assert np.ptp(answer.logit) > 1e-3
    with pytest.raises(ConfigError, match="no embeddings"):
        backend.embed(image, "pre")


def test_several_classes_give_one_logit_of_change() -> None:
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = answers_of(nn.Identity(), logits)
    torch.testing.assert_close(answers.logit.sigmoid(), logits.softmax(dim=1)[:, 1:].sum(dim=1, keepdim=True))
    assert answers.classes is logits


def test_a_network_that_does_not_answer_for_every_pixel_is_refused() -> None:
    model = ContextSiamese(3, 1, "resnet18").eval()
    with pytest.raises(ModelError, match="every pixel"):
        answers_of(model, model(torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)))


def test_it_cannot_align(optical_pair: Pair, predictor: Predictor) -> None:
    with reader_of(optical_pair, predictor) as reader, pytest.raises(ConfigError, match="no embeddings to align"):
        find_alignment(predictor, reader)


def test_a_shared_trunk_is_adapted_to_both_images(optical_pair: Pair, predictor: Predictor) -> None:
    """With no weight on the training set its first layer has the statistics of both images together."""
    assert isinstance(predictor.backend, TorchBackend)
    model = copy.deepcopy(predictor.backend.model)
    pre, post = torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 3.0]
    ).reshape(2, 1, 1, 1, 1)
    drifts = adaptation._mix_statistics(model, pre, post, torch.ones(1, 1, 64, 64), 0.0)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(drifts) == len(norms), "one drift a layer, though the trunk runs twice"
    stem = model.get_submodule("encoder1")
    features = stem[0](torch.cat([pre, post]))
    torch.testing.assert_close(stem[1].running_mean, features.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stem[1].running_var, features.var(dim=(0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_adapting_changes_scores_and_leaves_the_model_as_it_was(
    optical_pair: Pair, predictor: Predictor, whole: np.ndarray
) -> None:
    with reader_of(optical_pair, predictor) as reader:
        adapted, report = adapt(predictor, reader, 0.5)
        assert report.layers > 10 and np.isfinite(report.drift)
        block = reader.read(Window(0, 0, 64, 64).padded(NARROW))
        valid = block.pre_valid & block.post_valid
        before, after = (one.probability(block.pre, block.post, valid, valid) for one in (predictor, adapted))
        assert (before != after).any()
        np.testing.assert_array_equal(score_whole(reader, predictor), whole)


def test_an_export_answers_as_torch_does(optical_card_path: Path, tmp_path: Path) -> None:
    card, model = zoo.load(optical_card_path)
    files = convert(model, card, "onnx", "fp32", tmp_path / "net.onnx")
    record = ExportedModel(
        model=card.name,
        version="0",
        weights_sha256=card.sha256,
        settings=card.settings,
        backend="onnx",
        precision="fp32",
        files={str(file): file_sha256(file) for file in files},
        halo=HALO,
        created="",
    )
    rng = np.random.default_rng(0)
    for shape in ((96, 96), (64, 112)):
        pre, post = rng.normal(size=(2, 3, *shape)).astype(np.float32)
        exact, found = TorchBackend(model, "cpu", "fp32").run(pre, post), OnnxBackend(record).run(pre, post)
        np.testing.assert_allclose(found.logit, exact.logit, atol=1e-4)
        assert not found.distance.any()


@pytest.mark.parametrize(
    "settings", [{"trunk": "swin_t"}, {"post_trunk": "convnext_tiny"}, {"fusion": "cross_attention"}]
)
def test_what_depends_on_the_size_of_an_image_is_not_exported(
    optical_card_path: Path, tmp_path: Path, settings: dict[str, str]
) -> None:
    card = read_card(optical_card_path).model_copy(update={"settings": settings})
    with pytest.raises(ModelError, match="cannot be exported"):
        convert(nn.Identity(), card, "onnx", "fp32", tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
