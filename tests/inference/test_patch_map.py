"""The change map of the reference: equal to a direct sliding window, whatever is cut or interrupted."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcd.data.patch_index import PatchRules
from mmcd.errors import Cancelled, InputError, ModelError
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid, Window
from mmcd.inference.engine import Journal
from mmcd.inference.patch_map import PairImages, PatchScorer, Places, roi_weights, score_places, spread
from mmcd.models.siamese import ContextSiamese

SMALL = PatchRules(context_patch_size=32)
SIZE = (56, 72)  # four by six places of 32 px
Scores = dict[tuple[int, int], float]


def direct_scores(pre: np.ndarray, post: np.ndarray, network: ContextSiamese, rules: PatchRules) -> Scores:
    """Return the score of every ROI's corner by the words of the specification alone: one context after another."""
    height, width = pre.shape[1:]
    roi, pad = rules.roi_patch_size, (rules.context_patch_size - rules.roi_patch_size) // 2
    scores = {}
    for y in range(pad, height - pad - roi + 1, rules.patch_stride):
        for x in range(pad, width - pad - roi + 1, rules.patch_stride):
            box = np.s_[:, y - pad : y + roi + pad, x - pad : x + roi + pad]
            scores[y, x] = direct_score(pre[box].astype(np.float64), post[box].astype(np.float64), network)
    return scores


def direct_map(scores: Scores, size: tuple[int, int], weighting: str, roi: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and weight of the map."""
    total, weight = np.zeros(size), np.zeros(size)
    share = np.ones((roi, roi))
    if weighting == "dome":
        for row in range(roi):
            for col in range(roi):
                y, x = -1 + 2 * row / (roi - 1), -1 + 2 * col / (roi - 1)
                share[row, col] = max(0.0, 1 - (math.sqrt(y * y + x * x) / math.sqrt(2)) ** 2.0)
    for (y, x), score in scores.items():
        total[y : y + roi, x : x + roi] += score * share
        weight[y : y + roi, x : x + roi] += share
    return total, weight


def direct_score(pre: np.ndarray, post: np.ndarray, network: ContextSiamese) -> float:
    post = np.log1p(post)
    inputs = [
        (image - image.mean((1, 2), keepdims=True)) / (image.std((1, 2), keepdims=True) + 1e-8) for image in (pre, post)
    ]
    with torch.no_grad():
        before, after = (torch.from_numpy(image[None].astype(np.float32)) for image in inputs)
        optical = network.optical_projector(network.optical_encoder(before)[-1].mean((2, 3)))
        sar = network.sar_projector(network.sar_encoder(after)[-1].mean((2, 3)))
        return 1 - float(torch.nn.functional.cosine_similarity(optical, sar))


@pytest.fixture(scope="module")
def network() -> ContextSiamese:
    torch.manual_seed(0)
    network = ContextSiamese(3, 1, "resnet18", embedding_dim=8)
    for module in network.modules():  # as after training; fresh statistics hide mistakes
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def write(folder: Path, size: tuple[int, int], nodata: float | None = None) -> tuple[np.ndarray, np.ndarray, Grid]:
    random = np.random.default_rng(1)
    rows, cols = np.indices(size)
    pre = (rows / 2 + random.integers(0, 90, (3, *size))).astype(np.uint8)
    post = (cols / 3 + random.gamma(1.0, 30, (1, *size))).clip(1, 255).astype(np.uint8)
    grid = Grid("EPSG:32632", Affine(1, 0, 500_000, 0, -1, 5_000_000), *size)
    if nodata is not None:
        post[:, 12:30, 40:] = nodata
    write_cog(folder / "pre.tif", pre, grid, Band(names=("red", "green", "blue")))
    write_cog(folder / "post.tif", post, grid, Band(nodata=nodata))
    return pre, post, grid


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray, Grid]:
    folder = tmp_path_factory.mktemp("small")
    return folder, *write(folder, SIZE)


@pytest.fixture
def images(small: tuple[Path, np.ndarray, np.ndarray, Grid]) -> Iterator[PairImages]:
    with opened(small[0], small[3]) as images:
        yield images


def opened(folder: Path, grid: Grid) -> PairImages:
    return PairImages(folder / "pre.tif", folder / "post.tif", grid, (1, 2, 3), (1,))


def scored(
    images: PairImages,
    network: ContextSiamese,
    folder: Path,
    rules: PatchRules = SMALL,
    within: Window | None = None,
    **more: object,
) -> np.ndarray:
    places = Places(images.grid.shape, rules)
    distances = np.full(places.shape, np.nan, np.float32)
    scorer = PatchScorer(network, "cpu")
    journal = Journal(folder / "journal", "key")
    score_places(images, places, within or images.grid.window, scorer, distances, journal, **more)
    return distances


@pytest.fixture(scope="module")
def whole(
    small: tuple[Path, np.ndarray, np.ndarray, Grid], network: ContextSiamese, tmp_path_factory: pytest.TempPathFactory
) -> np.ndarray:
    with opened(small[0], small[3]) as images:
        return scored(images, network, tmp_path_factory.mktemp("whole"), batch_size=16)


def assert_equal(found: np.ndarray, total: np.ndarray, weight: np.ndarray) -> None:
    covered = weight > 1e-12
    np.testing.assert_array_equal(np.isfinite(found), covered)
    np.testing.assert_allclose(found[covered], total[covered] / weight[covered], atol=1e-5, rtol=0)
    assert np.ptp(found[covered]) > 1e-4  # not a constant, which any map would equal


def test_the_map_equals_a_direct_sliding_window(
    small: tuple[Path, np.ndarray, np.ndarray, Grid], network: ContextSiamese, whole: np.ndarray
) -> None:
    _, pre, post, grid = small
    assert whole.shape == (4, 6)
    scores = direct_scores(pre, post, network, SMALL)
    for weighting in ("classic", "dome"):
        found = spread(whole, Places(SIZE, SMALL), grid.window, roi_weights(weighting, 2.0, 16))
        assert_equal(found, *direct_map(scores, SIZE, weighting))


def test_so_it_does_at_the_sides_of_the_reference(network: ContextSiamese, tmp_path: Path) -> None:
    rules = PatchRules()
    pre, post, grid = write(tmp_path, (264, 256))
    with opened(tmp_path, grid) as images:
        distances = scored(images, network, tmp_path, rules)
    assert distances.shape == (2, 1)
    scores = direct_scores(pre, post, network, rules)
    for weighting in ("dome", "classic"):
        found = spread(distances, Places(grid.shape, rules), grid.window, roi_weights(weighting, 2.0, 16))
        assert_equal(found, *direct_map(scores, grid.shape, weighting))
    rows, cols = np.nonzero(np.isfinite(found))
    assert (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1) == (120, 144, 120, 136)


@given(
    size=st.tuples(st.integers(64, 120), st.integers(64, 120)),
    stride=st.integers(1, 24),
    roi=st.sampled_from([2, 8, 16]),
    corner=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    side=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    missing=st.floats(0, 0.6),
)
@settings(max_examples=40, deadline=None)
def test_any_window_of_a_spread_equals_the_same_pixels_of_a_plain_loop(
    size: tuple[int, int],
    stride: int,
    roi: int,
    corner: tuple[int, int],
    side: tuple[int, int],
    missing: float,
) -> None:
    rules = PatchRules(context_patch_size=64, roi_patch_size=roi, patch_stride=stride)
    places = Places(size, rules)
    random = np.random.default_rng(0)
    distances = random.uniform(0, 2, places.shape)
    distances[random.random(places.shape) < missing] = np.nan
    weights = roi_weights("dome", 1.5, roi)
    total, weight = np.zeros(size), np.zeros(size)
    for (row, col), value in np.ndenumerate(distances):
        if math.isfinite(value):
            y, x = rules.pad + row * stride, rules.pad + col * stride
            total[y : y + roi, x : x + roi] += value * weights
            weight[y : y + roi, x : x + roi] += weights
    expected = np.divide(total, weight, out=np.full(size, np.nan), where=weight > 0)
    window = Window(*corner, *side).intersection(Window(0, 0, *size))
    np.testing.assert_allclose(spread(distances, places, window, weights), expected[window.slices], atol=1e-6)


def test_a_dome_is_highest_in_the_middle_and_nothing_in_the_corners() -> None:
    dome = roi_weights("dome", 2.0, 17)
    assert dome[8, 8] == 1 and dome[0, 8] == pytest.approx(0.5)
    assert dome[0, 0] == dome[0, 16] == dome[16, 0] == dome[16, 16] == 0
    assert (roi_weights("dome", 8.0, 17) >= dome).all()


def test_a_region_has_the_bytes_of_the_whole(
    images: PairImages, network: ContextSiamese, whole: np.ndarray, tmp_path: Path
) -> None:
    part = scored(images, network, tmp_path, within=Window(20, 58, 12, 5), batch_size=16)
    known = np.isfinite(part)
    assert 0 < known.sum() < whole.size
    np.testing.assert_array_equal(part[known], whole[known])
    near = Places(SIZE, SMALL).touching(Window(20, 58, 12, 5))
    assert known[near.slices].all()


def test_a_run_that_was_stopped_goes_on_where_it_was(
    images: PairImages, network: ContextSiamese, whole: np.ndarray, tmp_path: Path
) -> None:
    places, scorer = Places(SIZE, SMALL), PatchScorer(network, "cpu")
    distances = np.lib.format.open_memmap(tmp_path / "d.npy", mode="w+", dtype=np.float32, shape=places.shape)
    distances[:] = np.nan
    heard: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        assert total == whole.size
        if done:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        score_places(images, places, images.grid.window, scorer, distances, Journal(tmp_path / "j", "k"), 16, stop)
    kept = np.load(tmp_path / "d.npy")
    assert np.isfinite(kept).sum() == 16
    journal = Journal(tmp_path / "j", "k")
    kept[:4, :4] = 7  # what is done is not computed again
    score_places(images, places, images.grid.window, scorer, kept, journal, 16, lambda *news: heard.append(news[1]))
    assert (kept[:4, :4] == 7).all()
    np.testing.assert_array_equal(kept[:, 4:], whole[:, 4:])
    assert heard[0] == 0 and heard[-1] == whole.size


def test_places_with_too_little_measured_are_left_out(network: ContextSiamese, tmp_path: Path) -> None:
    _, post, grid = write(tmp_path, SIZE, nodata=0)
    with opened(tmp_path, grid) as images:
        distances = scored(images, network, tmp_path)
        measured = images.measured(grid.window)
    np.testing.assert_array_equal(measured, post[0] != 0)
    for (row, col), value in np.ndenumerate(distances):
        share = measured[row * 8 : row * 8 + 32, col * 8 : col * 8 + 32].mean()
        assert math.isfinite(value) == (share >= 0.8), (row, col, share)
    assert 0 < np.isfinite(distances).sum() < distances.size


def test_decibels_are_refused(network: ContextSiamese, tmp_path: Path) -> None:
    _, post, grid = write(tmp_path, SIZE)
    write_cog(tmp_path / "post.tif", -post.astype(np.float32), grid, Band(dtype="float32"))
    with opened(tmp_path, grid) as images, pytest.raises(InputError, match="takes SAR amplitudes"):
        scored(images, network, tmp_path)


def test_a_network_that_answers_nonsense_is_named(network: ContextSiamese) -> None:
    broken = ContextSiamese(3, 1, "resnet18", embedding_dim=2)
    broken.optical_projector.layer2[0].bias.data.fill_(math.nan)
    with pytest.raises(ModelError, match="no numbers"):
        PatchScorer(broken, "cpu").distances(torch.ones(2, 3, 32, 32), torch.ones(2, 1, 32, 32))


def test_a_scene_below_a_context_has_no_place() -> None:
    places = Places((255, 600), PatchRules())
    assert places.shape[0] == 0
    assert places.touching(Window(0, 0, 255, 600)).empty
    assert np.isnan(spread(np.zeros(places.shape), places, Window(0, 0, 9, 9), np.ones((16, 16)))).all()
