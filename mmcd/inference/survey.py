"""The fixed sample of a scene that is looked at before a run, to measure what holds for the whole of it.

It depends on the scene's size alone, never on the region or the tile, so neither can change what is measured.
"""

import math

from mmcd.geo.grid import LATTICE, Window

LARGEST_SAMPLE = 16
"""Windows of a sample. Beyond about a million pixels the statistics of a scene move no more."""


def sample_windows(shape: tuple[int, int], side: int, count: int = LARGEST_SAMPLE) -> tuple[Window, ...]:
    """Return windows spread evenly over a scene: all of it where it is small.

    Args:
        shape: Rows and columns of the scene.
        side: Side of a window in pixels, a multiple of 16. Scenes that are narrower have smaller windows; they then
            may overlap, and only in a scene below 16 px do they reach beyond its edge.
        count: Largest number of windows.
    """
    side = max(min(side, min(shape) // LATTICE * LATTICE), LATTICE)
    most = math.isqrt(count)
    rows, cols = (_starts(extent, side, most) for extent in shape)
    return tuple(Window(row, col, side, side) for row in rows for col in cols)


def _starts(extent: int, side: int, most: int) -> list[int]:
    """Return the first pixels of windows along one axis, on the lattice, from one edge to the other."""
    number = min(-(-extent // side), most)
    free = max(extent - side, 0)
    return [free * place // max(number - 1, 1) // LATTICE * LATTICE for place in range(number)]
