import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcd.simulate.shapes import Boxes, Sweep, blurred, expand, fill_convex, in_shadow, smooth_noise

SHAPE = (37, 53)


def test_expand_counts_each_run():
    values, owner = expand(np.array([5, 0, 2]), np.array([2, 0, 3]))
    assert values.tolist() == [5, 6, 2, 3, 4]
    assert owner.tolist() == [0, 0, 2, 2, 2]


@settings(max_examples=60, deadline=None)
@given(
    centre=st.tuples(st.floats(-10, 60), st.floats(-10, 45)),
    radius=st.floats(0.3, 25),
    sides=st.integers(3, 9),
    turn=st.floats(0, 6.28),
    clockwise=st.booleans(),
)
def test_convex_fill_is_the_pixels_whose_centres_are_inside(centre, radius, sides, turn, clockwise):
    angles = turn + np.arange(sides) * 2 * np.pi / sides * (1 if clockwise else -1)
    corners = np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)
    index, owner = fill_convex(corners[None], SHAPE)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    edge = np.roll(corners, -1, axis=0) - corners
    side = [
        e[0] * (y - c[1]) - e[1] * (x - c[0]) for e, c in zip(edge, corners, strict=True)
    ]  # fmt: skip
    sign = 1 if clockwise else -1
    worst = np.min([sign * s for s in side], axis=0)
    found = np.zeros(SHAPE, bool)
    found.ravel()[index] = True
    assert len(np.unique(index)) == len(index)
    assert (owner == 0).all()
    # centres on an edge may fall either way
    assert (found >= (worst > 1e-6)).all()
    assert (found <= (worst > -1e-6)).all()


def test_box_pixels_know_their_place_in_the_box():
    box = Boxes(*(np.array([value]) for value in (10.0, 8.0, 9.0, 4.0, 0.6)))
    pixels = box.pixels((40, 40), 0.5)
    assert len(pixels.flat) == pytest.approx(9 * 4 / 0.25, rel=0.05)
    assert np.abs(pixels.u).max() <= 4.5
    assert np.abs(pixels.v).max() <= 2.0
    row, col = np.divmod(pixels.flat, 40)
    x, y = box.at(pixels.u[None], pixels.v[None])
    np.testing.assert_allclose(x[0], (col + 0.5) * 0.5)
    np.testing.assert_allclose(y[0], (row + 0.5) * 0.5)


@pytest.mark.parametrize("azimuth", [0, 31, 45, 90, 133, 180, 225, 262.5, 315, 359])
def test_sweep_and_back_is_the_image_itself(azimuth):
    image = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    sweep = Sweep(SHAPE, azimuth)
    lines = sweep.along(image, fill=-1)
    np.testing.assert_array_equal(sweep.back(lines), image)
    assert (lines == -1).sum() == lines.size - image.size


@pytest.mark.parametrize("azimuth", [0, 60, 90, 180, 200, 270, 300])
def test_shadow_lies_away_from_the_light_and_is_as_long_as_height_over_tangent(azimuth):
    height = np.zeros((201, 201), np.float32)
    height[99:102, 99:102] = 20.0
    sweep = Sweep((201, 201), azimuth)
    dark = sweep.back(in_shadow(sweep.along(height), sweep.step * np.tan(np.radians(30))))
    row, col = np.nonzero(dark)
    away = np.array([-np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth))])
    distance = (col - 100) * away[0] + (row - 100) * away[1]
    assert distance.min() > -2.5
    assert distance.max() == pytest.approx(20 / np.tan(np.radians(30)) + 1.5, abs=2.5)


def test_smooth_noise_has_unit_spread_and_is_smooth():
    noise = smooth_noise(np.random.default_rng(1), (600, 600), 6.0)
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=0.12)
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.3


def test_blur_keeps_the_mean():
    image = np.random.default_rng(2).random((20, 30), dtype=np.float32)
    assert blurred(image, 0.6).mean() == pytest.approx(image.mean(), abs=1e-6)
    assert blurred(image, 0.6).std() < image.std()
