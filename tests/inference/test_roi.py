"""The embeddings that a run keeps: which patch pairs, and the same bytes however the work is cut or interrupted."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcd.cards import read_card
from mmcd.errors import Cancelled, ConfigError
from mmcd.geo.cog import SCORE_BAND, CogWriter
from mmcd.geo.grid import Window
from mmcd.geo.raster import output_grid
from mmcd.inference import engine
from mmcd.inference.backends import TorchBackend
from mmcd.inference.engine import Journal, plan_blocks, score_region
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor, normalise
from mmcd.inference.roi import VectorFile, choose_rois
from mmcd.models import zoo
from mmcd.progress import Progress, silent

Pair = tuple[Path, Path]


@given(
    row=st.integers(0, 100),
    col=st.integers(0, 100),
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    most=st.integers(1, 400),
)
def test_chosen_rois_lie_in_the_region_once_and_are_spread(row, col, height, width, most):
    region = Window(row, col, height, width)
    found = choose_rois(region, most)
    every = choose_rois(region, 10**6)
    assert len(found) == len(np.unique(found, axis=0)) <= min(most, len(every))
    assert (found % 16 == 0).all()
    assert (found >= (row, col)).all() and (found + 16 <= (row + height, col + width)).all()
    if len(every) <= most:
        np.testing.assert_array_equal(found, every)
    elif len(every):
        assert len(found) > most / 4
    np.testing.assert_array_equal(found, choose_rois(region, most))


def test_a_thinned_choice_has_a_pair_in_every_part_and_another_seed_has_others():
    found = choose_rois(Window(0, 0, 3200, 6400), 800)
    assert len(found) == 800
    counts = np.histogram2d(found[:, 0], found[:, 1], bins=(10, 20), range=((0, 3200), (0, 6400)))[0]
    assert (counts == 4).all()
    assert not np.array_equal(found, choose_rois(Window(0, 0, 3200, 6400), 800, seed=1))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory, card_path: Path) -> Predictor:
    """A narrow network, so that each block takes little."""
    card = read_card(card_path)
    return Predictor(TorchBackend(zoo.build("siamese", 3, 1, {"width": 16, "embedding_dim": 8}), "cpu"), card)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LARGEST_BLOCK", 64)


REGION = Window(8, 20, 52, 130)


def vectors(
    pair: Pair, predictor: Predictor, folder: Path, tile: int, progress: Progress = silent, region: Window = REGION
) -> np.ndarray:
    """Score a region into a folder; return the vectors of its ROIs."""
    grid = output_grid(*pair)
    kept = VectorFile(folder / "embeddings.part", choose_rois(region), predictor.embedding_dim)
    plan = plan_blocks(grid, region, tile)
    with (
        PairReader(*pair, predictor.card, grid) as reader,
        CogWriter(folder / "score.tif", grid.crop(region), SCORE_BAND, partial=folder / "score.part") as writer,
    ):
        journal = Journal(folder / "journal", "key")
        score_region(plan, reader, predictor, writer, journal, progress, vectors=kept)
        writer.commit()
    return kept.read()


@pytest.fixture(scope="module")
def whole(small_pair: Pair, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "LARGEST_BLOCK", 64)
        return vectors(small_pair, predictor, tmp_path_factory.mktemp("whole"), 10_000)


def test_vectors_are_those_of_both_branches_alone(small_pair, predictor, whole):
    """The vector of a ROI is what `embed` says of its block."""
    grid, halo = output_grid(*small_pair), predictor.halo
    origins = choose_rois(REGION)
    assert whole.shape == (2, len(origins), 8)
    np.testing.assert_allclose(np.linalg.norm(whole.astype(np.float32), axis=2), 1, atol=2e-3)
    with PairReader(*small_pair, predictor.card, grid) as reader:
        inputs = reader.read(Window(0, 64, 64, 64).padded(halo))
    for side, branch, image, valid in (
        ("pre", predictor.card.pre, inputs.pre, inputs.pre_valid),
        ("post", predictor.card.post, inputs.post, inputs.post_valid),
    ):
        dense = predictor.backend.embed(normalise(image, valid, branch), side)
        for number, (row, col) in enumerate(origins):
            if 64 <= col < 128:
                cell = dense[:, (row + halo) // 8, (col - 64 + halo) // 8]
                np.testing.assert_allclose(whole[int(side == "post"), number], cell, atol=2e-3)


@pytest.mark.parametrize("tile", [16, 100])
def test_vectors_are_the_same_bytes_for_every_tile(small_pair, predictor, whole, tmp_path, tile):
    np.testing.assert_array_equal(vectors(small_pair, predictor, tmp_path, tile), whole)


def test_vectors_of_a_region_are_those_of_the_whole(small_pair, predictor, whole, tmp_path):
    part = Window(8, 60, 52, 60)
    found = vectors(small_pair, predictor, tmp_path, 64, region=part)
    inside = [tuple(origin) in {tuple(o) for o in choose_rois(part)} for origin in choose_rois(REGION)]
    np.testing.assert_array_equal(found, whole[:, inside])


def test_an_interrupted_run_keeps_the_vectors_of_its_finished_tiles(small_pair, predictor, whole, tmp_path):
    def stop_after_two(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        vectors(small_pair, predictor, tmp_path, 64, stop_after_two)
    half = np.load(tmp_path / "embeddings.part")
    assert half.any() and not half[:, -1].any()
    seen: list[int] = []
    again = vectors(small_pair, predictor, tmp_path, 64, lambda stage, done, total: seen.append(done))
    assert seen[0] == 1, "the finished tile is not computed again"
    np.testing.assert_array_equal(again, whole)


def test_a_working_file_of_other_rois_is_not_taken_up(tmp_path):
    origins = choose_rois(REGION)
    path = tmp_path / "embeddings.part"
    assert not VectorFile.holds(path, origins, 8)
    VectorFile(path, origins, 8)
    assert VectorFile.holds(path, origins, 8)
    assert not VectorFile.holds(path, origins[1:], 8)
    path.with_name("empty").touch()
    assert not VectorFile.holds(path.with_name("empty"), origins, 8), "killed before it wrote anything"
    path.write_bytes(b"cut")
    assert not VectorFile.holds(path, origins, 8)


def test_a_network_without_embeddings_says_so(optical_card_path, predictor):
    fusion = Predictor.load(optical_card_path, "cpu")
    assert fusion.embedding_dim == 0
    assert predictor.embedding_dim == 8
    image = np.zeros((3, 64, 64), np.float32)
    with pytest.raises(ConfigError, match="no embeddings"):
        fusion.backend.compare(image, image, cells=np.zeros((1, 2), np.int64))
