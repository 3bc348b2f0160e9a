"""Palettes of the score: even steps of lightness, dark to light, whose order every kind of colour vision sees."""

from typing import Literal

import numpy as np

PaletteName = Literal["magma", "viridis", "cividis", "grey"]

# Nine evenly spaced samples of matplotlib's maps of these names (CC0); grey runs from dark to light.
_STOPS: dict[PaletteName, tuple[str, ...]] = {
    "magma": ("000004", "1d1147", "51127c", "832681", "b73779", "e75263", "fc8961", "fec488", "fcfdbf"),
    "viridis": ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"),
    "cividis": ("00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "fee838"),
    "grey": ("202020", "ffffff"),
}
PALETTES: tuple[PaletteName, ...] = tuple(_STOPS)


def score_colours(name: PaletteName) -> list[tuple[int, int, int]]:
    """Return the red, green and blue of each stored score value, 256 triples; value 0 is unused and black.

    The darkest tenth of a map is skipped: on a dark radar image it would not be seen.
    """
    stops = np.array([[int(stop[i : i + 2], 16) for i in (0, 2, 4)] for stop in _STOPS[name]], dtype=float)
    probability = np.concatenate([[0.0], np.linspace(0.1, 1.0, 255)])
    position = probability * (len(stops) - 1)
    channels = [np.interp(position, np.arange(len(stops)), stops[:, c]) for c in range(3)]
    rounded = np.rint(np.stack(channels, axis=1)).astype(int)
    rounded[0] = 0
    return [(int(red), int(green), int(blue)) for red, green, blue in rounded]
