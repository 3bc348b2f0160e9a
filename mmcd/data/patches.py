"""Patch pairs as reference system 0 sees them: 256 px contexts of an optical and a SAR image, each scaled by itself."""

from torch import Tensor

_EPSILON = 1e-8
"""Added to the standard deviation of a patch, as in the reference, so that a constant patch becomes 0."""


def standardise_optical(patches: Tensor) -> Tensor:
    """Return patches with mean 0 and standard deviation 1 in every band of every patch.

    Args:
        patches: Digital numbers, shape (N, C, H, W), any dtype.

    Returns:
        Shape (N, C, H, W), float32.
    """
    values = patches.float()
    mean = values.mean(dim=(2, 3), keepdim=True)
    spread = values.std(dim=(2, 3), keepdim=True, correction=0)
    return (values - mean) / (spread + _EPSILON)


def standardise_sar(patches: Tensor) -> Tensor:
    """Return SAR amplitudes as `standardise_optical` returns optical bands, after ``log(1 + x)``.

    Args:
        patches: Amplitudes, not negative, shape (N, C, H, W), any dtype.

    Returns:
        Shape (N, C, H, W), float32.
    """
    return standardise_optical(patches.float().log1p())
