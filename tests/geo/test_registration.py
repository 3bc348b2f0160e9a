"""Known shifts are measured back; unrelated places are not believed."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from scipy.ndimage import gaussian_filter, shift

from mmcd.geo.registration import correlate_edges, measure_offset

from .conftest import WriteRaster


def city(rng: np.random.Generator, size: int = 300) -> np.ndarray:
    """Blocks of different brightness: edges everywhere, like streets and houses."""
    image = np.zeros((size, size), np.float32)
    for _ in range(250):
        row, col, height, width = rng.integers((0, 0, 5, 5), (size, size, 40, 40))
        image[row : row + height, col : col + width] = rng.uniform(40, 200)
    return image


def moved(source: Path, target: Path, rows: float, cols: float) -> Path:
    """A copy whose georeference is wrong by some pixels: its content appears ``rows`` lower and ``cols`` right."""
    with rasterio.open(source) as file:
        profile, values = file.profile, file.read()
    profile["transform"] = profile["transform"] @ Affine.translation(cols, rows)
    with rasterio.open(target, "w", **profile) as file:
        file.write(values)
    return target


@pytest.mark.parametrize(("rows", "cols"), [(0, 0), (5, -3), (-12, 9), (2.5, 1.5)])
def test_inverted_contrast_and_speckle_do_not_matter(rng: np.random.Generator, rows: float, cols: float) -> None:
    optical = city(rng)
    radar = (250 - optical) * np.sqrt(rng.gamma(9, 1 / 9, optical.shape))
    valid = np.ones(optical.shape, bool)
    displaced = shift(gaussian_filter(optical, 0.5), (rows, cols), order=1, mode="nearest").astype(np.float32)
    dy, dx, confidence = correlate_edges((displaced, valid), (radar.astype(np.float32), valid))
    assert (dy, dx) == pytest.approx((rows, cols), abs=0.7)
    assert confidence > 0.5


def test_pixels_without_data_do_not_pull(rng: np.random.Generator) -> None:
    image, valid = city(rng), np.ones((300, 300), bool)
    holed, measured = image.copy(), valid.copy()
    holed[:, :120], measured[:, :120] = 0, False
    rolled = np.roll(image, (4, 4), axis=(0, 1))
    dy, dx, confidence = correlate_edges((rolled, valid), (holed, measured))
    assert (dy, dx) == pytest.approx((4, 4), abs=0.3) and confidence > 0.9


def test_unrelated_small_or_empty_images_give_no_confidence(rng: np.random.Generator) -> None:
    first, second, valid = city(rng), city(rng), np.ones((300, 300), bool)
    assert correlate_edges((first, valid), (second, valid))[2] < 0.3
    assert correlate_edges((first[:40, :40], valid[:40, :40]), (first[:40, :40], valid[:40, :40]))[2] == 0
    assert correlate_edges((first, valid), (first, ~valid))[2] == 0
    assert correlate_edges((np.ones_like(first), valid), (np.ones_like(first), valid))[2] == 0


def test_large_offsets_are_found_at_the_coarse_scale(
    write_raster: WriteRaster, rng: np.random.Generator, tmp_path: Path
) -> None:
    image = np.kron(city(rng, 200), np.ones((4, 4))).astype(np.float32)
    post = write_raster("post.tif", image)
    offset = measure_offset(moved(post, tmp_path / "pre.tif", 30, -40), post)
    assert (offset.dy_px, offset.dx_px) == pytest.approx((30, -40), abs=2)
    assert (offset.dx_m, offset.dy_m) == pytest.approx((-400, -300), abs=20)


@pytest.mark.real_data
@pytest.mark.parametrize(("rows", "cols"), [(0, 0), (5, -3), (-8, 6), (12, 12)])
def test_optical_against_radar_of_rotterdam(shared_data: Path, tmp_path: Path, rows: int, cols: int) -> None:
    """The two are registered to about half a pixel; a known shift on top is found within one."""
    folder = shared_data / "spacenet6_rotterdam"
    offset = measure_offset(
        moved(folder / "rgb_unmasked.tif", tmp_path / "pre.tif", rows, cols), folder / "sar_masked.tif"
    )
    assert (offset.dy_px, offset.dx_px) == pytest.approx((rows, cols), abs=1)
    assert offset.confidence > 0.5
    assert offset.dx_m == pytest.approx(offset.dx_px * 4.4997, rel=1e-3)
    assert offset.dy_m == pytest.approx(-offset.dy_px * 4.4997, rel=1e-3)


@pytest.mark.real_data
def test_sentinel_1_and_2_agree(shared_data: Path) -> None:
    folder = shared_data / "sen1floods11_sample"
    offset = measure_offset(folder / "S2/Spain_7370579_S2Hand.tif", folder / "S1/Spain_7370579_S1Hand.tif")
    assert offset.confidence > 0.9
    assert max(abs(offset.dx_px), abs(offset.dy_px)) < 1.5
