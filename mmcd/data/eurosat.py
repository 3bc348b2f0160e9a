"""EuroSAT as images for a classifier, prepared as the protocols of reference systems 2 and 3 or as a trunk wants it."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcd.data.eurosat_files import BANDS, Form, read_bands

Scaling = Literal["protocol", "trunk"]
REFLECTANCE = 10_000


class EuroSatImages:
    """Images of one part.

    Args:
        files: Images.
        labels: Place of each in the classes.
        form: Colour or all bands.
        scaling: ``protocol``: colour is divided by 255 (reference system 3); of all bands, each image is stretched from
            the least to the greatest value of all its bands together (reference system 2). ``trunk``: 8-bit values, 255
            being a reflectance of 1, for `mmcd.training.trunk_start.TrunkScaling`.

    Attributes:
        bands: Standard names, in channel order.
    """

    def __init__(self, files: tuple[Path, ...], labels: tuple[int, ...], form: Form, scaling: Scaling) -> None:
        self.files, self.labels, self.form, self.scaling = files, labels, form, scaling
        self.bands = BANDS[form]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image, shape (C, 64, 64), float32, in [0, 1] or 8 bit, and its class, int64.

        Raises:
            DataError: The file is damaged or not as published.
        """
        values = read_bands(self.files[index], self.form, self.bands).astype(np.float32)
        return torch.from_numpy(self._scaled(values)), torch.tensor(self.labels[index])

    def _scaled(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.form == "rgb":
            return values if self.scaling == "trunk" else values / np.float32(255)
        if self.scaling == "trunk":
            return values * np.float32(255 / REFLECTANCE)
        low, high = values.min(), values.max()
        # An image of one value has no contrast: it becomes 0 rather than NaN.
        scaled: NDArray[np.float32] = (values - low) / (high - low if high > low else np.float32(1))
        return scaled
