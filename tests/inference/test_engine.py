"""The promise of the engine: how the work is cut never changes a byte."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from mmcd.errors import Cancelled
from mmcd.geo.cog import SCORE_BAND, CogWriter
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import output_grid
from mmcd.inference import engine
from mmcd.inference.engine import Journal, plan_blocks, score_region, score_whole
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.progress import Progress, silent

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def predictor(card_path: Path) -> Predictor:
    return Predictor.load(card_path, device="cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 256 px, so that a small scene has several."""
    monkeypatch.setattr(engine, "LARGEST_BLOCK", 256)


def score(
    pair: Pair,
    predictor: Predictor,
    out: Path,
    region: Window | None = None,
    tile: int = 512,
    progress: Progress = silent,
) -> np.ndarray:
    grid = output_grid(*pair)
    region = region or grid.window
    with PairReader(*pair, predictor.card, grid) as reader:
        plan = plan_blocks(grid, region, tile)
        with CogWriter(out, grid.crop(region), SCORE_BAND, partial=out.with_suffix(".part")) as writer:
            score_region(plan, reader, predictor, writer, Journal(out.with_suffix(".journal"), "key"), progress)
            writer.commit()
    with rasterio.open(out) as written:
        return written.read(1)


@pytest.fixture(scope="module")
def whole(pair: Pair, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "LARGEST_BLOCK", 256)
        return score(pair, predictor, tmp_path_factory.mktemp("whole") / "score.tif")


def test_scores_vary_and_holes_are_not_assessed(whole: np.ndarray) -> None:
    assert len(np.unique(whole)) > 20
    assert (whole[:, :40] == 0).all()
    assert (whole[300:340, 500:560] == 0).all()
    assert (whole[400:, 100:] > 0).all()


@pytest.mark.parametrize("tile", [16, 300, 10_000])
def test_bytes_are_the_same_for_every_tile(
    pair: Pair, predictor: Predictor, whole: np.ndarray, tmp_path: Path, tile: int
) -> None:
    np.testing.assert_array_equal(score(pair, predictor, tmp_path / "score.tif", tile=tile), whole)


@pytest.mark.parametrize("region", [Window(0, 0, 100, 900), Window(250, 300, 77, 310), Window(699, 899, 1, 1)])
def test_a_region_is_cut_from_the_whole(
    pair: Pair, predictor: Predictor, whole: np.ndarray, tmp_path: Path, region: Window
) -> None:
    np.testing.assert_array_equal(score(pair, predictor, tmp_path / "score.tif", region), whole[region.slices])


def test_in_memory_equals_on_disk(pair: Pair, predictor: Predictor, whole: np.ndarray) -> None:
    with PairReader(*pair, predictor.card, output_grid(*pair)) as reader:
        np.testing.assert_array_equal(score_whole(reader, predictor), whole)


def test_an_interrupted_run_goes_on_from_its_last_tile(
    pair: Pair, predictor: Predictor, whole: np.ndarray, tmp_path: Path
) -> None:
    def stop_after_five(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise Cancelled("stop")

    out = tmp_path / "score.tif"
    with pytest.raises(Cancelled):
        score(pair, predictor, out, tile=256, progress=stop_after_five)
    assert not out.exists()
    seen: list[int] = []
    resumed = score(pair, predictor, out, tile=256, progress=lambda stage, done, total: seen.append(done))
    assert seen[0] == 4, "the four finished tiles are not computed again"
    np.testing.assert_array_equal(resumed, whole)


def test_pixels_far_from_a_block_do_not_reach_it(predictor: Predictor) -> None:
    """The halo is wide enough: what lies beyond it changes nothing."""
    rng = np.random.default_rng(0)
    side = 64 + 2 * predictor.halo
    pre, post = rng.random((3, side, side), np.float32), rng.random((1, side, side), np.float32)
    valid = np.ones((side, side), bool)
    before = predictor.probability(pre, post, valid, valid)
    assert before.shape == (64, 64)
    pre[:, 0], post[:, :, -1] = 1 - pre[:, 0], 1 - post[:, :, -1]
    assert np.ptp(before) > 0
    np.testing.assert_array_equal(
        predictor.probability(pre, post, valid, valid)[16:-16, 16:-16], before[16:-16, 16:-16]
    )


def test_a_tile_without_georeference_is_scored_in_its_own_size(predictor: Predictor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, bands in (("pre.png", 3), ("post.png", 1)):
        with rasterio.open(
            tmp_path / name, "w", driver="PNG", height=250, width=240, count=bands, dtype="uint8"
        ) as file:
            file.write(rng.integers(0, 256, (bands, 250, 240), np.uint8))
    pair = tmp_path / "pre.png", tmp_path / "post.png"
    grid = output_grid(*pair)
    assert grid == Grid.in_pixels(250, 240)
    with PairReader(*pair, predictor.card, grid) as reader:
        scores = score_whole(reader, predictor)
        assert any("does not name its bands" in note for note in reader.notes)
    assert scores.shape == (250, 240)
    assert (scores > 0).all()
