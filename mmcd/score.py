"""The stored score: a calibrated probability of change in one byte, and the cut that an analyst moves over it.

``0`` means not assessed; ``1 ... 255`` is the probability ``(value - 1) / 254``. Thresholds, areas and curves are
look-ups in a table of 256 counts, so moving a threshold never runs a model again.
"""

import math

import numpy as np
from numpy.typing import NDArray

NOT_ASSESSED = 0
SCALE = 1 / 254
OFFSET = -1 / 254


def encode_score(probability: NDArray[np.floating], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the stored bytes of a probability map.

    Args:
        probability: Probability of change in [0, 1], any shape.
        valid: Pixels that were assessed, same shape.
    """
    values = np.rint(np.clip(np.nan_to_num(probability), 0, 1) * 254).astype(np.uint8) + np.uint8(1)
    return np.where(valid, values, np.uint8(NOT_ASSESSED))


def decode_score(value: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities of stored bytes in [0, 1], float32, NaN where not assessed."""
    return np.where(value == NOT_ASSESSED, np.nan, (value.astype(np.float32) - 1) / 254).astype(np.float32)


def threshold_value(threshold: float) -> int:
    """Return the smallest stored byte whose probability reaches ``threshold``; pixels from it on count as changed."""
    return min(255, max(1, math.ceil(round(threshold * 254, 6)) + 1))


def score_counts(value: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each byte occurs, shape (256,)."""
    return np.bincount(value.ravel(), minlength=256)
