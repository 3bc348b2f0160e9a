"""Which classes of a label raster mean change."""

import functools
from pathlib import Path

import numpy as np

from mmcd.errors import InputError
from mmcd.geo.raster import RasterSource

LABEL_PIXELS = 4_000_000
MAX_LABELS = 128  # label files remembered; one is a single number


def changed_from(label: Path) -> int:
    """Return the smallest class of a label raster that means change.

    BRIGHT's classes are 0 background, 1 intact, 2 damaged and 3 destroyed; masks mark change by 1 or 255 alone.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        modified = label.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"The labels {label} cannot be read: {error.strerror}.", "Put the file back.") from error
    return _measured_classes(label, modified)


@functools.lru_cache(maxsize=MAX_LABELS)
def _measured_classes(label: Path, modified: int) -> int:
    with RasterSource(label, [1]) as source:
        sample = source.read_decimated(LABEL_PIXELS)
    values = set(np.unique(sample.data[0][sample.valid]).astype(int).tolist())
    return 2 if values & {2, 3} else 1
