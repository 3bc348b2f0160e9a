"""OMBRIA's Sentinel-2 images before and after a flood as series of two dates, for pretraining: the *two-date mode*.

A tile is a place. SeCo draws its dates with replacement. CACo and TeCo take each date for a half; the other acquisition
of a half, which is to look alike but for the season, is the same date again, of which its view is another crop. So it
is with SACo, whose two acquisitions are to look alike too: by both dates it would be taught not to see a flood (what
was measured stands in ``docs/reference-systems.md``). MoCo+TP sees both dates, which is what it is. Only the main set
is read: the later events stay unseen.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmcd.data.ombria import BANDS_PRE, MAIN, OmbriaTile, index_ombria, read_dates
from mmcd.data.seasonal import DRAWS, WHOLE, SeasonalSample
from mmcd.errors import ConfigError, DataError
from mmcd.models.moco import Method
from mmcd.progress import Progress, silent

DATES = 2
_ONE_DATE: tuple[Method, ...] = ("saco", "saco_plus")

OMBRIA_QUANTILES: dict[str, tuple[float, float]] = {"B11": (1, 135), "B8": (4, 134), "B3": (6, 115)}
"""Percentiles 2 and 98 of both dates of the main set, stored numbers."""


class OmbriaDates(Dataset[SeasonalSample]):
    """Both dates of OMBRIA's main set, kept decoded in memory (0.27 GB), drawn as a method of pretraining needs them.

    Items are those of `mmcd.data.seasonal.SeasonalSeries`, which see. What is drawn depends on seed, epoch and index
    only; both halves of a place show the same window in an epoch.

    Args:
        root: Folder of OMBRIA.
        method: Which dates an item has, see `mmcd.data.seasonal.DRAWS`.
        window: Side of the square that is cut out of a tile anew in every epoch, pixels; None keeps all of it.
        seed: Seed of the draws.
        progress: Told of the stage, tiles read and tiles in all.

    Attributes:
        places: The tiles.
        bands: Names of the bands of an image.
        warnings: None here.

    Raises:
        ConfigError: The window is larger than a tile.
        DataError: There is no main set, or a file is missing, damaged or of another size.
    """

    bands = BANDS_PRE
    warnings: tuple[str, ...] = ()

    def __init__(
        self, root: Path, method: Method, *, window: int | None = None, seed: int = 0, progress: Progress = silent
    ) -> None:
        self.method, self.draw, self.seed = method, DRAWS[method], seed
        self.places: tuple[OmbriaTile, ...] = tuple(tile for tile in index_ombria(root).tiles if tile.event == MAIN)
        if not self.places:
            raise DataError(f"{root} has no main set of OMBRIA.", "Give the folder with OmbriaS1 and OmbriaS2.")
        self._pixels = self._read(progress)
        side = min(self._pixels.shape[-2:])
        if window is not None and not 1 <= window <= side:
            raise ConfigError(f"A window of {window} px does not fit tiles of {side} px.", "Choose a smaller window.")
        self._window = window
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # running loader processes see it change

    def _read(self, progress: Progress) -> Tensor:
        """Return all pixels, shape (P, 2, 3, H, W), uint8."""
        pixels: Tensor | None = None
        for number, (tile, dates) in enumerate(zip(self.places, read_dates(self.places), strict=True)):
            progress("reading", number, len(self.places))
            if pixels is None:
                pixels = torch.empty((len(self.places), *dates.shape), dtype=torch.uint8)
            if pixels.shape[1:] != dates.shape:
                raise DataError(f"Tile {tile.id} is not of the size of the first one.", "Restore the published files.")
            pixels[number] = torch.from_numpy(dates)
        if pixels is None:
            raise DataError("There is no tile to read.")
        return pixels

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose dates and windows are drawn next, in running loader processes too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.places) * (2 if self.draw.halves else 1)

    def __getitem__(self, index: int) -> SeasonalSample:
        """Draw one item."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        place, half = divmod(index, 2) if self.draw.halves else (index, WHOLE)
        image = self._pixels[place]
        if self._window is not None:
            room = np.array(image.shape[-2:]) - self._window + 1
            row, col = np.random.default_rng([self.seed, int(self._epoch), place, 0]).integers(0, room).tolist()
            image = image[..., row : row + self._window, col : col + self._window]
        return SeasonalSample(
            images=image[self.drawn(index)],
            place=torch.tensor(place),
            half=torch.tensor(half),
            index=torch.tensor(index),
        )

    def drawn(self, index: int) -> list[int]:
        """Return which dates an item has in this epoch, 0 before and 1 after."""
        if self.draw.halves:
            return [index % 2] * self.draw.count
        random = np.random.default_rng([self.seed, int(self._epoch), index, 1])
        if self.method in _ONE_DATE:
            return [int(random.integers(DATES))] * self.draw.count
        numbers: list[int] = random.choice(DATES, self.draw.count, replace=self.draw.repeats).tolist()
        return numbers
