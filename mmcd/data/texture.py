"""Texture as local binary patterns, whole batches at once on any device; equal to scikit-image's to the last code.

Ojala, Pietikäinen and Mäenpää 2002. A code counts how many points on a circle are at least as bright as its middle;
circles that change more than twice between darker and brighter share the last code.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from mmcd.errors import DataError

CODES = 18
"""Codes of 16 points: 0 to 16 bright points in one piece, and 17 for everything else."""

_CACHED_PIXELS = 2**15
"""Pixels that a processor handles at once: 256 KiB in double precision, a few times over."""


def local_binary_pattern(images: Tensor, points: int = 16, radius: float = 2.0) -> Tensor:
    """Return the uniform, rotation-invariant pattern of every pixel.

    Beyond the border lies 0. The sums are scikit-image's (``method="uniform"``) in its order and in double precision:
    where ground is flat the last bit of an interpolation decides, so neither may differ.

    Args:
        images: Finite grey values of any range, shape (..., H, W), any real dtype.
        points: Points on the circle, 3 to 254.
        radius: Radius of the circle in pixels.

    Returns:
        Codes 0 to ``points + 1``, shape (..., H, W), uint8.

    Raises:
        DataError: A device cannot compute in double precision, or the points do not fit a byte.
    """
    if not 3 <= points <= 254:
        raise DataError(f"A pattern of {points} points has no code of one byte.", "Choose 3 to 254 points.")
    if images.device.type == "mps":
        raise DataError("This device has no double precision, which texture needs.", "Compute texture on the CPU.")
    if not images.numel():
        return images.new_zeros(images.shape, dtype=torch.uint8)
    height, width = images.shape[-2:]
    planes = images.reshape(-1, height, width)
    # Few planes at a time stay in a processor's cache; a GPU wants as much as possible at once.
    at_once = max(1, _CACHED_PIXELS // (height * width)) if images.device.type == "cpu" else len(planes)
    parts = [planes[start : start + at_once] for start in range(0, len(planes), at_once)]
    return torch.cat([_codes(part.double(), points, radius) for part in parts]).reshape(images.shape)


@dataclass(frozen=True)
class _Step:
    """One coordinate of a point on the circle, seen from every pixel along that axis.

    Attributes:
        low: Whole pixels to the nearer side.
        high: Whole pixels to the farther side; the same where the point falls on a pixel.
        offset: The coordinate.
    """

    low: int
    high: int
    offset: float

    @classmethod
    def of(cls, offset: float) -> "_Step":
        return cls(math.floor(offset), math.ceil(offset), offset)

    def between(self, padded: Tensor, axis: int, margin: int) -> Tensor:
        """Return values interpolated at this step from every pixel along an axis that is padded by ``margin``."""
        length = padded.shape[axis] - 2 * margin
        near = padded.narrow(axis, margin + self.low, length)
        if self.low == self.high:
            return near
        far = padded.narrow(axis, margin + self.high, length)
        # The share is computed per pixel: 100 + 0.765 - 100 is not 0.765, and ties are decided by the difference.
        places = torch.arange(length, dtype=torch.float64, device=padded.device)
        share = places + self.offset
        share = share - share.floor()
        share = share if axis == padded.ndim - 1 else share[:, None]
        return (1 - share) * near + share * far


@cache
def _circle(points: int, radius: float) -> tuple[tuple[_Step, tuple[tuple[int, _Step], ...]], ...]:
    """Return the circle by columns: a step across, and which points lie there with their steps down.

    Coordinates are rounded to 5 digits, as scikit-image does.
    """
    angles = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    down = [round(-radius * math.sin(angle), 5) for angle in angles.tolist()]
    across = [round(radius * math.cos(angle), 5) for angle in angles.tolist()]
    order = sorted(range(points), key=lambda point: across[point])
    return tuple(
        (_Step.of(column), tuple((point, _Step.of(down[point])) for point in members))
        for column, members in groupby(order, key=lambda point: across[point])
    )


def _codes(planes: Tensor, points: int, radius: float) -> Tensor:
    """Return the codes of (N, H, W) in double precision."""
    margin = math.ceil(radius)
    padded = F.pad(planes, (margin,) * 4)
    brighter: dict[int, Tensor] = {}
    for column, members in _circle(points, radius):
        shifted = column.between(padded, 2, margin)  # (N, H + 2 margin, W)
        for point, row in members:
            brighter[point] = (row.between(shifted, 1, margin) >= planes).view(torch.uint8)
    bright = torch.zeros_like(brighter[0])
    changes = torch.zeros_like(bright)
    for point in range(points):
        bright += brighter[point]
        if point:
            changes += brighter[point] ^ brighter[point - 1]
    return bright.masked_fill_(changes > 2, points + 1)


def band_texture(images: Tensor) -> Tensor:
    """Return the texture of every band.

    Args:
        images: Bands with values in [0, 1], shape (..., H, W); they are cut to the 256 steps of a byte first, as
            reference system 2 does.

    Returns:
        Codes of 16 points at radius 2, shape (..., H, W), uint8.
    """
    return local_binary_pattern((images * 255).to(torch.int16))


def texture_images(codes: Tensor, places: Tensor) -> Tensor:
    """Return textures as images for an encoder, three bands an image, in [0, 1].

    Reference system 2 scales each by the least and greatest code of the batch, which are 0 and 17 in nearly every one;
    those are taken here, so that an image does not depend on its neighbours in the batch.

    Args:
        codes: Codes by band, shape (B, C, H, W), uint8.
        places: Places of the bands of each image, shape (G, 3), int64.

    Returns:
        Shape (B, G, 3, H, W), float32.
    """
    return codes[:, places].float() / (CODES - 1)


def texture_histograms(codes: Tensor, bins: int = 16) -> Tensor:
    """Return how many pixels have each code.

    Args:
        codes: Codes by band, shape (B, C, H, W), uint8.
        bins: Codes that are counted, from 0; reference system 2 leaves out the last two of 18.

    Returns:
        Counts, band after band, shape (B, C * bins), float32.
    """
    planes = codes.flatten(0, 1).flatten(1).long()  # (B C, H W)
    counts = torch.zeros(len(planes), max(bins, CODES), device=codes.device)
    counts.scatter_add_(1, planes, torch.ones((), device=codes.device).expand(planes.shape))
    return counts[:, :bins].reshape(len(codes), codes.shape[1] * bins)


def scaled_to_batch(values: Tensor) -> Tensor:
    """Return values scaled to [0, 1] by the least and greatest of the batch, as reference system 2 does; 0 if equal."""
    low, high = values.aminmax()
    return (values - low) / torch.where(high > low, high - low, 1)
