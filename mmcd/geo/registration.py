"""How far two images of one place are apart, measured from the images themselves.

Optical and radar brightness have little to do with each other, but both change at the edges of fields, roads and
buildings. So the logarithm of the gradient magnitude is compared, without its slow variation, by normalised
cross-correlation over valid pixels only (D. Padfield, "Masked Object Registration in the Fourier Domain", IEEE TIP
2012).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import binary_erosion, gaussian_filter, gaussian_gradient_magnitude

from mmcd.geo.grid import Window
from mmcd.geo.raster import Raster, RasterSource, output_grid
from mmcd.geo.sensors import detect_radiometry, to_unit

MaskedImage = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Brightness and measured pixels of one image, both of shape (H, W)."""

SEARCH = 16
"""Largest offset that is looked for at each scale, in pixels."""

_SIDE = 1024  # The centre of a scene is enough for one offset, and keeps the measurement below a second or two.
_COARSE = 4  # The second scale, for offsets beyond the first one's reach.
_SMALLEST = 64  # Fewer pixels than this along a side leave too little overlap at the largest offset.
_EDGE_SIGMA = 1.0  # Pixels. Wider edges are more robust to speckle, but their peak is blunter.
_SLOW_SIGMA = 6.0  # Pixels. Variation slower than this is land cover, which peaks everywhere.
_CHANCE_Z = 3.5  # Unrelated places peak at 2.4 to 3.5 standard deviations of the surface, related ones from 4.4 on.
_SURE_Z = 6.0
_PEAK_RADIUS = 1


@dataclass(frozen=True)
class Offset:
    """Where the content of pre lies, seen from the same content in post.

    It is the offset of what has edges. In a radar image of fine GSD these are walls, which lean towards the sensor by
    about their height (layover): a well-registered town may be metres off.

    Attributes:
        dx_m: Metres to the east; None where metres are not known.
        dy_m: Metres to the north; None where metres are not known.
        dx_px: Pixels to the right, in the pair's common grid.
        dy_px: Pixels downwards, in the pair's common grid.
        confidence: 0 when the peak is what chance gives, 1 when it cannot be chance.
    """

    dx_m: float | None
    dy_m: float | None
    dx_px: float
    dy_px: float
    confidence: float


def measure_offset(pre: Path, post: Path) -> Offset:
    """Measure the offset in the centre of a pair, up to 16 pixels at full resolution and up to 64 at a quarter of it.

    Args:
        pre: Image before.
        post: Image after.

    Returns:
        The offset; its confidence is 0 when the images are too small, too empty or too unlike.

    Raises:
        InputError: A file cannot be read or the two do not overlap.
    """
    grid = output_grid(pre, post)
    side_y, side_x = min(grid.height, _SIDE), min(grid.width, _SIDE)
    window = Window((grid.height - side_y) // 2, (grid.width - side_x) // 2, side_y, side_x)
    images = []
    for path in (pre, post):
        with RasterSource(path) as source:
            images.append(_brightness(source.aligned(grid).read(window), source.dtype))
    dy, dx, confidence = _best(images[0], images[1])
    if grid.gsd is None:
        return Offset(None, None, dx, dy, confidence)
    return Offset(round(dx * grid.gsd, 3), round(-dy * grid.gsd, 3), dx, dy, confidence)


def correlate_edges(first: MaskedImage, second: MaskedImage) -> tuple[float, float, float]:
    """Return (rows, columns) by which the content of ``first`` lies off that of ``second``, and the confidence.

    Args:
        first: Brightness and measured pixels, both of shape (H, W).
        second: The same of the other image, of the same shape.
    """
    if min(first[0].shape) < _SMALLEST:
        return 0.0, 0.0, 0.0
    edges, inside = _edges(*first)
    other_edges, other_inside = _edges(*second)
    if min(inside.sum(), other_inside.sum()) < _SMALLEST**2:
        return 0.0, 0.0, 0.0
    surface = _masked_correlation(edges, inside, other_edges, other_inside)
    spread = float(surface.std())
    if spread == 0:
        return 0.0, 0.0, 0.0
    row, col = (int(i) for i in np.unravel_index(int(surface.argmax()), surface.shape))
    z = (float(surface[row, col]) - float(surface.mean())) / spread
    confidence = float(np.clip((z - _CHANCE_Z) / (_SURE_Z - _CHANCE_Z), 0, 1))
    dy = row - SEARCH + _vertex(surface[:, col], row)
    dx = col - SEARCH + _vertex(surface[row], col)
    return round(dy, 2), round(dx, 2), round(confidence, 3)


def _best(pre: MaskedImage, post: MaskedImage) -> tuple[float, float, float]:
    """The fine scale, unless only the coarse one sees a peak."""
    fine = correlate_edges(pre, post)
    coarse = correlate_edges(_shrunk(*pre), _shrunk(*post))
    if coarse[2] > fine[2] and fine[2] == 0:
        return coarse[0] * _COARSE, coarse[1] * _COARSE, coarse[2]
    return fine


def _brightness(raster: Raster, dtype: str) -> MaskedImage:
    """Mean over the bands; radar power in dB, where speckle is additive."""
    radiometry = detect_radiometry(raster, dtype)
    values = to_unit(raster.data, radiometry, "db") if raster.data.shape[0] <= 2 else raster.data
    bright = values.mean(axis=0)
    valid = raster.valid & np.isfinite(bright)
    return np.where(valid, bright, 0).astype(np.float32), valid


def _shrunk(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> MaskedImage:
    height, width = (side // _COARSE * _COARSE for side in image.shape)
    cells = (height // _COARSE, _COARSE, width // _COARSE, _COARSE)
    mean = image[:height, :width].reshape(cells).mean(axis=(1, 3))
    return mean.astype(np.float32), np.logical_and.reduce(valid[:height, :width].reshape(cells), axis=(1, 3))


def _edges(image: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Logarithm of the gradient magnitude without its slow variation, and where it is not touched by an edge."""
    inside = binary_erosion(valid, iterations=int(2 * _EDGE_SIGMA) + 1, border_value=0)
    if not inside.any():
        return np.zeros(image.shape), inside
    low, high = np.percentile(image[valid], (1, 99))
    clipped = np.clip(np.where(valid, image, np.median(image[valid])).astype(np.float64), low, high)
    gradient = gaussian_gradient_magnitude(clipped, _EDGE_SIGMA)
    floor = 0.3 * np.median(gradient[inside]) + 1e-9  # Keeps the logarithm quiet where there is no edge.
    logarithm = np.where(inside, np.log(gradient + floor), 0)
    weight = gaussian_filter(inside.astype(np.float64), _SLOW_SIGMA)
    slow = gaussian_filter(logarithm, _SLOW_SIGMA) / np.maximum(weight, 1e-3)
    return np.where(inside, logarithm - slow, 0), inside


def _masked_correlation(
    first: NDArray[np.float64], first_in: NDArray[np.bool_], second: NDArray[np.float64], second_in: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Normalised cross-correlation for offsets of -16 ... 16 rows and columns, shape (33, 33)."""
    size = [next_fast_len(side + SEARCH, real=True) for side in first.shape]
    a, b = np.where(first_in, first, 0), np.where(second_in, second, 0)
    fa, fa2, fm = (rfft2(x, size) for x in (a, a * a, first_in.astype(np.float64)))
    gb, gb2, gm = (np.conj(rfft2(x, size)) for x in (b, b * b, second_in.astype(np.float64)))

    def lags(product: NDArray[np.complex128]) -> NDArray[np.float64]:
        span = 2 * SEARCH + 1
        surface = np.roll(irfft2(product, size), (SEARCH, SEARCH), axis=(0, 1))[:span, :span]
        return np.asarray(surface, dtype=np.float64)

    count = np.maximum(lags(fm * gm), 1.0)
    sum_a, sum_b = lags(fa * gm), lags(fm * gb)
    variance_a = np.maximum(lags(fa2 * gm) - sum_a**2 / count, 0)
    variance_b = np.maximum(lags(fm * gb2) - sum_b**2 / count, 0)
    scale = np.sqrt(variance_a * variance_b)
    covariance = lags(fa * gb) - sum_a * sum_b / count
    return np.where(scale > 1e-9, covariance / np.maximum(scale, 1e-9), 0)


def _vertex(profile: NDArray[np.float64], peak: int) -> float:
    """Part of a pixel by which the parabola through a peak and its neighbours is higher elsewhere."""
    if not _PEAK_RADIUS <= peak < profile.size - _PEAK_RADIUS:
        return 0.0
    before, top, after = (float(profile[peak + step]) for step in (-1, 0, 1))
    bend = before - 2 * top + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
