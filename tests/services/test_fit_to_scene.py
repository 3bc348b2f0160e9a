"""Aligning and adapting as options of a run: off by default, recorded, and no threat to the promise of equal bytes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine

from mmcd.errors import UsageError
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid
from mmcd.inference import alignment, engine
from mmcd.inference.alignment import Alignment
from mmcd.inference.predictor import Predictor
from mmcd.progress import silent
from mmcd.services import inference
from mmcd.services.inference import ADAPT_WEIGHT, PredictRequest, RunResult, predict
from mmcd.services.run_output import Clock

pytestmark = pytest.mark.usefixtures("workspace")
SIDE = 304
REGION = "19.8110,41.5280,19.8250,41.5390"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 160 px, so that a small scene has several."""
    monkeypatch.setattr(engine, "LARGEST_BLOCK", 160)


@pytest.fixture(scope="module")
def small(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A part of the pair that holds a hole."""
    folder, rows, cols = tmp_path_factory.mktemp("small"), slice(200, 200 + SIDE), slice(400, 400 + SIDE)
    grid = Grid("EPSG:32634", Affine(10, 0, 400_000, 0, -10, 4_600_000), SIDE, SIDE)
    with rasterio.open(pair[0]) as pre, rasterio.open(pair[1]) as post:
        before, after = pre.read()[:, rows, cols], post.read()[:, rows, cols]
    return (
        write_cog(folder / "pre.tif", before, grid, Band(names=("B11", "B8", "B3"))),
        write_cog(folder / "post.tif", after, grid, Band(names=("VV",), nodata=0)),
    )


def run(small: tuple[Path, Path], card_path: Path, out: Path, **more: object) -> tuple[RunResult, np.ndarray]:
    asked = {"pre": small[0], "post": small[1], "model": str(card_path), "device": "cpu", "out": out} | more
    result = predict(PredictRequest.checked(**asked))
    with rasterio.open(out / "score.tif") as file:
        return result, file.read(1)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Alignment:
    """Let the search find a displacement: the test model is untrained and sees none."""
    reason = "The image after is displaced by 8 px."
    result = Alignment(-3, 8, -30.0, -80.0, 0.1, 0.9, 36, True, reason)
    monkeypatch.setattr(alignment, "find_alignment", lambda *_: result)
    return result


def test_without_a_clear_displacement_or_weight_the_bytes_are_those_without_the_options(
    small: tuple[Path, Path], card_path: Path, tmp_path: Path
) -> None:
    plain, expected = run(small, card_path, tmp_path / "plain")
    assert (plain.manifest["align"], plain.manifest["adapt"]) == (None, None)
    tried, scores = run(small, card_path, tmp_path / "tried", align=True, adapt=True, adapt_weight=0)
    np.testing.assert_array_equal(scores, expected)
    assert tried.manifest["align"]["applied"] is False
    assert tried.manifest["adapt"]["alpha"] == 1
    assert {"align", "adapt"} <= tried.manifest["seconds"].keys()
    assert tried.manifest["key"] != plain.manifest["key"]


def test_bytes_do_not_depend_on_tile_or_region_with_both_options(
    small: tuple[Path, Path], card_path: Path, tmp_path: Path, found: Alignment
) -> None:
    options = {"align": True, "adapt": True, "adapt_weight": 0.5}
    whole, scores = run(small, card_path, tmp_path / "whole", **options)
    _, tiled = run(small, card_path, tmp_path / "tiled", tile=16, **options)
    np.testing.assert_array_equal(tiled, scores)
    part, _ = run(small, card_path, tmp_path / "part", region=REGION, **options)
    with rasterio.open(whole.folder / "score.tif") as a, rasterio.open(part.folder / "score.tif") as b:
        window = rasterio.windows.from_bounds(*b.bounds, a.transform).round_lengths().round_offsets()
        assert 0 < window.width < a.width
        np.testing.assert_array_equal(a.read(1, window=window), b.read(1))
    assert (scores[-8:] == 0).all(), "the displaced image does not show the last rows"
    assert (scores[:, :3] == 0).all()
    assert (scores[40:-8, 3:] > 0).mean() > 0.9
    assert whole.manifest["align"] == found.to_dict()
    assert whole.manifest["adapt"]["alpha"] == 0.5
    assert whole.manifest["adapt"]["layers"] > 30
    assert found.reason in whole.warnings


def test_an_exported_model_is_refused_before_anything_is_read(small: tuple[Path, Path], card_path: Path) -> None:
    with pytest.raises(UsageError, match="--backend torch"):
        run(small, card_path, Path("never"), adapt=True, backend="onnx")


def test_an_exported_model_is_aligned_in_torch_on_the_device_and_in_the_precision_asked_for(
    small: tuple[Path, Path], card_path: Path, found: Alignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[object, ...]] = []
    monkeypatch.setattr(Predictor, "load", lambda *words: loaded.append(words))
    asked = {"pre": small[0], "post": small[1], "device": "cpu", "precision": "fp32", "align": True}
    job = SimpleNamespace(export="an export", choice=SimpleNamespace(card_path=card_path))
    reader = SimpleNamespace(shift=(0, 0))
    inference._fit_to_scene(job, PredictRequest.checked(**asked), reader, None, Clock(), silent)
    assert loaded == [(card_path, "cpu", "fp32")]
    assert reader.shift == found.shift


def test_the_weight_of_a_scene_is_small_and_a_share() -> None:
    assert 0 < ADAPT_WEIGHT <= 0.3
    with pytest.raises(UsageError, match="--adapt-weight"):
        PredictRequest.checked(pre="a.tif", post="b.tif", adapt_weight=1.5)
