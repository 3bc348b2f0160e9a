"""Large images cut into squares that do not overlap: a ragged edge is filled with 0 and says that it is no data."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Corner(NamedTuple):
    """Where a square begins.

    Attributes:
        top: Row of its first pixel.
        left: Column of its first pixel.
    """

    top: int
    left: int


def corners(height: int, width: int, side: int) -> list[Corner]:
    """Return where the squares of a grid begin, row by row; the last of a row or column may reach beyond the image.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        side: Side of the squares in pixels.
    """
    return [Corner(top, left) for top in range(0, height, side) for left in range(0, width, side)]


def cut(image: NDArray[Any], corner: Corner, side: int) -> NDArray[Any]:
    """Return a square of an image, filled with 0 beyond its edge, shape (..., side, side).

    Args:
        image: Shape (..., H, W).
        corner: Where the square begins, inside the image.
        side: Side in pixels.
    """
    top, left = corner
    part = image[..., top : top + side, left : left + side]
    if part.shape[-2:] == (side, side):
        return part
    filled = np.zeros((*image.shape[:-2], side, side), image.dtype)
    filled[..., : part.shape[-2], : part.shape[-1]] = part
    return filled


def inside(shape: tuple[int, int], corner: Corner, side: int) -> NDArray[np.bool_]:
    """Return where a square lies on the image, shape (side, side).

    Args:
        shape: Height and width of the image.
        corner: Where the square begins.
        side: Side in pixels.
    """
    rows, columns = (np.arange(side) < length - start for length, start in zip(shape, corner, strict=True))
    return np.asarray(rows[:, None] & columns)
