"""Finding and undoing a displacement of the image after."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from scipy.ndimage import gaussian_filter

from mmcd.cards import Card, find_card, read_card
from mmcd.errors import ConfigError
from mmcd.evaluation import ScoreCounts, average_precision
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import output_grid
from mmcd.inference import engine
from mmcd.inference.alignment import Alignment, find_alignment, likeness
from mmcd.inference.backends import TorchBackend
from mmcd.inference.engine import score_whole
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.models import zoo
from mmcd.simulate import SceneSpec, simulate_scene

Pair = tuple[Path, Path]
GSD = 0.5
MARGIN = 16


@pytest.fixture(scope="module")
def twins(card_path: Path) -> Predictor:
    """A model of two equal branches for one band each: it knows the same ground when it sees it."""
    tiny = read_card(card_path)
    card = tiny.model_copy(update={"pre": tiny.post.model_copy(update={"unit": "uint8"}), "post": tiny.post})
    card = card.model_copy(update={"post": card.pre})
    model = zoo.build("siamese", 1, 1, {})
    weights = model.state_dict()
    model.load_state_dict(weights | {k.replace("pre", "post", 1): v for k, v in weights.items() if k.startswith("pre")})
    return Predictor(TorchBackend(model, "cpu", "fp32"), card)


def displaced_pair(folder: Path, rows: int, cols: int, side: int = 256) -> Pair:
    """Write two noisy images of one ground; the content of the second lies some rows and columns further on."""
    rng = np.random.default_rng(5)
    shape = side + 2 * MARGIN, side + 2 * MARGIN
    ground = sum(sigma * gaussian_filter(rng.normal(size=shape), sigma) for sigma in (3, 6, 12))
    ground = 128 + 45 * ground / np.std(ground)
    moved = ground[MARGIN - rows : MARGIN - rows + side, MARGIN - cols : MARGIN - cols + side]
    images = {"pre": ground[MARGIN:-MARGIN, MARGIN:-MARGIN], "post": moved}
    grid = Grid("EPSG:32634", Affine(GSD, 0, 400_000, 0, -GSD, 4_600_000), side, side)
    paths = []
    for name, image in images.items():
        stored = np.clip(image + rng.normal(0, 5, image.shape), 1, 255).astype(np.uint8)
        paths.append(write_cog(folder / f"{name}.tif", stored, grid, Band(names=("VV",), nodata=0)))
    return paths[0], paths[1]


def find(pair: Pair, predictor: Predictor) -> Alignment:
    with PairReader(*pair, predictor.card, output_grid(*pair)) as reader:
        return find_alignment(predictor, reader)


@pytest.mark.parametrize(("rows", "cols"), [(9, -13), (-16, 16), (0, 6)])
def test_a_displacement_is_found(twins: Predictor, tmp_path: Path, rows: int, cols: int) -> None:
    found = find(displaced_pair(tmp_path, rows, cols), twins)
    assert abs(found.dy_px - rows) <= 1
    assert abs(found.dx_px - cols) <= 1
    assert found.applied
    assert found.shift == (found.dy_px, found.dx_px)
    assert found.confidence > 0.9
    assert (found.dx_m, found.dy_m) == (found.dx_px * GSD, -found.dy_px * GSD)
    assert "moved back" in found.notes[0]


def test_images_in_place_stay_there(twins: Predictor, tmp_path: Path) -> None:
    found = find(displaced_pair(tmp_path, 0, 1), twins)
    assert not found.applied
    assert found.shift == (0, 0)
    assert found.notes == ()


def test_unlike_images_stay_there(pair: Pair, card_path: Path) -> None:
    found = find(pair, Predictor.load(card_path, device="cpu"))
    assert found.shift == (0, 0)


def test_a_scene_that_is_too_small_says_so(twins: Predictor, tmp_path: Path) -> None:
    found = find(displaced_pair(tmp_path, 9, 0, side=96), twins)
    assert found.shift == (0, 0)
    assert "too small" in found.notes[0]


def test_changed_ground_does_not_decide() -> None:
    cosine = np.full((2, 10, 10), 0.9, np.float32)
    cosine[0, :5] = -1  # a quarter of the regions
    cosine[1, 0, 0] = np.nan
    assert likeness(cosine) == pytest.approx(0.9, abs=0.02)
    assert likeness(np.full((1, 2, 2), np.nan, np.float32)) == -1


def test_an_exported_model_has_no_embeddings(twins: Predictor, tmp_path: Path) -> None:
    class Exported:
        halo = twins.halo

    with pytest.raises(ConfigError, match="torch"):
        find(displaced_pair(tmp_path, 9, 0), Predictor(Exported(), twins.card))  # type: ignore[arg-type]


def test_a_shift_reads_other_pixels_and_none_beyond_the_edge(twins: Predictor, tmp_path: Path) -> None:
    pair = displaced_pair(tmp_path, 0, 0)
    with PairReader(*pair, twins.card, output_grid(*pair)) as reader, rasterio.open(pair[1]) as stored:
        values = stored.read(1).astype(np.float32) / 255
        reader.shift = (5, -7)
        block = reader.read(reader.grid.window)
        np.testing.assert_allclose(block.post[0, :-5, 7:], values[5:, :-7], atol=1e-6)
        expected = np.zeros(values.shape, bool)
        expected[:-5, 7:] = True
        np.testing.assert_array_equal(block.post_valid, expected)
        assert block.pre_valid.all()


@pytest.mark.parametrize("region", [Window(0, 0, 60, 256), Window(100, 90, 120, 33)])
def test_a_region_of_a_shifted_scene_is_cut_from_the_whole(
    twins: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region: Window
) -> None:
    """Each block reads the shifted image with its halo, so blocks and regions meet without a seam."""
    monkeypatch.setattr(engine, "LARGEST_BLOCK", 96)
    pair = displaced_pair(tmp_path, 8, 3)
    with PairReader(*pair, twins.card, output_grid(*pair)) as reader:
        reader.shift = (8, 3)
        plan = engine.plan_blocks(reader.grid, region, 96)
        whole = score_whole(reader, twins)
        for tile in plan.tiles:
            for block, inputs in engine._ahead(tile, plan, reader, twins.halo):
                scores = engine.score_block(inputs, twins)[: block.height, : block.width]
                np.testing.assert_array_equal(scores, whole[block.slices])
    assert (whole[-8:] == 0).all()
    assert (whole[:, -3:] == 0).all()
    assert (whole[:-8, :-3] > 0).all()


def shipped() -> tuple[Card, Predictor]:
    path, card = find_card("damage-vhr-sim")
    return card, Predictor.load(path, device="cpu")


def test_alignment_brings_the_damage_map_back(tmp_path: Path) -> None:
    """With the weights that are shipped: a radar image 12 px off costs accuracy, and alignment regains most of it."""
    card, predictor = shipped()
    side = 320
    scene = simulate_scene(SceneSpec(size=side + 2 * MARGIN, seed=3_000_011, event="wildfire", layout="grid"))
    kept = slice(MARGIN, MARGIN + side)
    grid = Grid("EPSG:32634", Affine(GSD, 0, 400_000, 0, -GSD, 4_600_000), side, side)
    pre = write_cog(tmp_path / "pre.tif", scene.pre[:, kept, kept], grid, Band(names=("red", "green", "blue")))
    post = write_cog(tmp_path / "post.tif", scene.post[0, 4 : 4 + side, kept], grid, Band(names=("VV",)))
    changed = scene.label[kept, kept] >= 2
    with PairReader(pre, post, card, grid) as reader:
        displaced = score_whole(reader, predictor)
        found = find_alignment(predictor, reader)
        reader.shift = found.shift
        aligned = score_whole(reader, predictor)
        reader.shift = (12, 0)
        perfect = score_whole(reader, predictor)
    assert found.applied
    assert np.hypot(found.dy_px - 12, found.dx_px) <= 5
    before, after, best = (average_precision(ScoreCounts.of(s, changed)) for s in (displaced, aligned, perfect))
    assert after > before + 0.5 * (best - before)
    assert best > before + 0.1
