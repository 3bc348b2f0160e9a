import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.feature import local_binary_pattern as published

from mmcd.data import texture
from mmcd.data.band_groups import TEXTURE_GROUPS, group_places
from mmcd.data.texture import (
    band_texture,
    local_binary_pattern,
    scaled_to_batch,
    texture_histograms,
    texture_images,
)
from mmcd.errors import DataError
from mmcd.geo.sensors import SENTINEL2_L2A

ROWS, COLUMNS = np.mgrid[:41, :57]


def expected(image, points=16, radius=2):
    return published(image, points, radius, method="uniform").astype(np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(0).integers(0, 256, (64, 80)),
        np.random.default_rng(1).integers(0, 3, (300, 41)),  # long: the place decides the last bit of a share
        np.full((50, 33), 77),
        np.zeros((20, 20)),
        ROWS * 3,
        COLUMNS * 3,
        (ROWS + COLUMNS) % 7 * 31,
        ((ROWS // 8 + COLUMNS // 8) % 2) * 255,
        np.where((ROWS == 20) & (COLUMNS == 30), 255, 0),
    ],
    ids=["random", "few values", "constant", "black", "down", "across", "diagonal", "board", "one bright pixel"],
)
def test_codes_are_scikit_images(image):
    image = image.astype(np.uint8)
    found = local_binary_pattern(torch.from_numpy(image)).numpy()
    assert np.array_equal(found, expected(image))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (4, 4)])
def test_images_smaller_than_the_circle(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(local_binary_pattern(torch.from_numpy(image)).numpy(), expected(image))


@pytest.mark.parametrize(("points", "radius"), [(8, 1), (8, 1.5), (24, 3), (16, 2.5), (5, 0.7)])
def test_other_circles(points, radius):
    image = np.random.default_rng(0).integers(0, 8, (30, 31), dtype=np.uint8)
    found = local_binary_pattern(torch.from_numpy(image), points, radius).numpy()
    assert np.array_equal(found, expected(image, points, radius))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 255]))
def test_any_image(seed, height, width, brightest):
    image = np.random.default_rng(seed).integers(0, brightest + 1, (height, width), dtype=np.uint8)
    assert np.array_equal(local_binary_pattern(torch.from_numpy(image)).numpy(), expected(image))


def test_floats_and_negative_values():
    image = np.random.default_rng(0).normal(size=(40, 40)).round(1)
    with pytest.warns(UserWarning, match="floating-point"):
        codes = expected(image)
    assert np.array_equal(local_binary_pattern(torch.from_numpy(image)).numpy(), codes)


@pytest.mark.parametrize("at_once", [1, 50 * 40, 7 * 50 * 40])
def test_batches_are_single_images_whatever_is_computed_at_once(at_once, monkeypatch):
    monkeypatch.setattr(texture, "_CACHED_PIXELS", at_once)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (2, 5, 50, 40), dtype=np.uint8))
    found = local_binary_pattern(images)
    assert found.shape == images.shape and found.dtype == torch.uint8
    for sample, band in np.ndindex(2, 5):
        assert np.array_equal(found[sample, band].numpy(), expected(images[sample, band].numpy()))


def test_nothing_in_nothing_out():
    assert local_binary_pattern(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_too_many_points_are_refused():
    with pytest.raises(DataError, match="255 points has no code of one byte"):
        local_binary_pattern(torch.zeros(4, 4), points=255)


def test_bands_are_cut_to_bytes_first():
    image = np.random.default_rng(0).integers(0, 5, (20, 20), dtype=np.uint8)
    shares = torch.from_numpy((image + 0.4) / 255).expand(1, 1, 20, 20)
    assert np.array_equal(band_texture(shares)[0, 0].numpy(), expected(image))


def test_images_of_texture_take_their_bands_by_name():
    codes = torch.arange(12, dtype=torch.uint8).view(1, 12, 1, 1).expand(2, 12, 4, 4)
    images = texture_images(codes, group_places(TEXTURE_GROUPS, SENTINEL2_L2A))
    assert images.shape == (2, 4, 3, 4, 4)
    place = SENTINEL2_L2A.index("B8A")
    assert float(images[1, 3, 1, 2, 2]) == pytest.approx(place / 17)


def test_histograms_leave_the_last_two_codes_out():
    codes = torch.tensor([0, 0, 15, 16, 17, 3], dtype=torch.uint8).view(1, 1, 2, 3).expand(1, 2, 2, 3)
    found = texture_histograms(codes)
    assert found.shape == (1, 32)
    assert torch.equal(found[0, :16], torch.tensor([2, 0, 0, 1] + [0] * 11 + [1]).float())
    assert torch.equal(found, torch.cat([torch.histc(codes[:, band].float(), 16, 0, 15) for band in (0, 1)])[None])
    assert texture_histograms(codes, bins=18).sum() == 12


def test_scaling_to_a_batch():
    assert torch.equal(scaled_to_batch(torch.tensor([2.0, 4.0, 3.0])), torch.tensor([0.0, 1.0, 0.5]))
    assert torch.equal(scaled_to_batch(torch.full((3,), 5.0)), torch.zeros(3))
