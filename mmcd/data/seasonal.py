"""Seasonal series as training items: the acquisitions of a place, or of one half of its years.

Files and layout are `mmcd.data.seasonal_files`'. Items carry numbers as stored; crops, colours and normalisation are
`mmcd.data.seasonal_views`', for whole batches on their device.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mmcd.data.patches import CACHE_BYTES, TileCache
from mmcd.data.seasonal_files import (
    LEAST,
    RECENT,
    SCALES,
    THREADS,
    Location,
    SeasonalIndex,
    acquisition_type,
    read_acquisition,
)
from mmcd.errors import DataError
from mmcd.models.moco import Method
from mmcd.progress import Progress, silent

OLDER_HALF, RECENT_HALF, WHOLE = 0, 1, -1
"""What an item was drawn from."""

_LOOKED_AT = 3
"""Locations whose headers say what size and data type is usual."""


@dataclass(frozen=True)
class Draw:
    """How a method draws the acquisitions of an item.

    Attributes:
        count: Acquisitions of an item.
        halves: Whether they are of one half of a location; an item is a half then.
        repeats: Whether one acquisition may be drawn twice, as in the reference.
    """

    count: int
    halves: bool
    repeats: bool


DRAWS: dict[Method, Draw] = {
    "moco": Draw(1, halves=False, repeats=False),
    "moco_tp": Draw(2, halves=False, repeats=False),
    "seco": Draw(3, halves=False, repeats=True),
    "teco": Draw(3, halves=True, repeats=True),
    "caco": Draw(3, halves=True, repeats=False),
    "saco": Draw(2, halves=False, repeats=False),
    "saco_plus": Draw(2, halves=False, repeats=False),
}
"""What the steps in `mmcd.losses.pretraining` need: the query's acquisition first, then those of the keys."""


class SeasonalSample(TypedDict):
    """One item, or a batch of them with a leading axis.

    Values:
        images: Acquisitions as stored, the query's first, shape (T, C, H, W), uint8 or int16; see `reflectance`.
        place: Number of the location, int64.
        half: `OLDER_HALF`, `RECENT_HALF` or `WHOLE`, int64.
        index: Position in the data set, int64.
    """

    images: Tensor
    place: Tensor
    half: Tensor
    index: Tensor


class SeasonalSeries(Dataset[SeasonalSample]):
    """Acquisitions of places, drawn as a method of pretraining needs them.

    For TeCo and CACo item ``2 * place`` is the older half of a place and ``2 * place + 1`` the recent one; for all
    others an item is a place. What is drawn depends on seed, epoch and index only, so a resumed run draws what an
    uninterrupted one would have. Batches are put together by `mmcd.samplers.PlaceBatchSampler`; crops and colours are
    `mmcd.data.seasonal_views`', for whole batches.

    Args:
        index: What the folder holds.
        method: Which acquisitions an item has, see `DRAWS`.
        size: Side that all acquisitions are resampled to; None keeps theirs, which then has to be the same everywhere.
        recent: Newest acquisitions that make the recent half.
        cache_bytes: Budget of the decoded acquisitions in all loader processes together.
        seed: Seed of the draws.

    Attributes:
        places: The locations that items are drawn from.
        bands: Names of the bands of an image.
        warnings: A line for every location left out here because a half of it is too short.

    Raises:
        DataError: No location has two halves of three acquisitions, where the method needs them.
    """

    def __init__(
        self,
        index: SeasonalIndex,
        method: Method,
        *,
        size: int | None = None,
        recent: int = RECENT,
        cache_bytes: int = CACHE_BYTES,
        seed: int = 0,
    ) -> None:
        self.bands, self.method, self.seed, self.recent = index.bands, method, seed, recent
        self.draw = DRAWS[method]
        self.places: tuple[Location, ...] = index.locations
        self.warnings: tuple[str, ...] = ()
        if self.draw.halves:
            self._keep_halves(index)
        self._size = size
        self._expected = _usual(self.places)
        self._cache: TileCache[tuple[NDArray[Any]]] = TileCache(cache_bytes)
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # running loader processes see it change

    def _keep_halves(self, index: SeasonalIndex) -> None:
        """Leave out the locations that have no two halves."""
        short = [
            (location, counts)
            for location in index.locations
            if min(counts := tuple(map(len, location.halves(self.recent)))) < LEAST
        ]
        left_out = {location.id for location, _ in short}
        self.places = tuple(location for location in index.locations if location.id not in left_out)
        self.warnings = tuple(
            f"{location.id} is left out: {older} older and {newer} recent acquisitions, but {self.method} needs "
            f"{LEAST} of each."
            for location, (older, newer) in short
        )
        if not self.places:
            raise DataError(
                f"{index.root} has no location with two halves. {self.warnings[0]}",
                f"Give longer series, make the recent half shorter than {self.recent}, or train seco, which needs no "
                "halves.",
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose acquisitions are drawn next, in running loader processes too."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.places) * (2 if self.draw.halves else 1)

    def __getitem__(self, index: int) -> SeasonalSample:
        """Draw and read one item.

        Raises:
            DataError: A file is damaged, or not of the size or data type of the others.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        place, half = divmod(index, 2) if self.draw.halves else (index, WHOLE)
        images = np.stack([self._image(place, number) for number in self.drawn(index)])
        return SeasonalSample(
            images=torch.from_numpy(images),
            place=torch.tensor(place),
            half=torch.tensor(half),
            index=torch.tensor(index),
        )

    def drawn(self, index: int) -> list[int]:
        """Return the numbers of an item's acquisitions within its location, in this epoch."""
        place, half = divmod(index, 2) if self.draw.halves else (index, WHOLE)
        location = self.places[place]
        among = range(len(location.files)) if half == WHOLE else location.halves(self.recent)[half]
        random = np.random.default_rng([self.seed, int(self._epoch), index])
        numbers: list[int] = random.choice(among, self.draw.count, replace=self.draw.repeats).tolist()
        return numbers

    def faults(self, progress: Progress = silent) -> Iterator[str]:
        """Read every acquisition once and yield a line for each that an item could not be made of.

        Args:
            progress: Told of the stage, acquisitions done and acquisitions in all; may raise to stop.
        """
        work = [(place, number) for place, home in enumerate(self.places) for number in range(len(home.files))]
        with ThreadPoolExecutor(THREADS) as pool:
            for done, fault in enumerate(pool.map(lambda which: self._fault(*which), work)):
                progress("checking", done, len(work))
                if fault:
                    yield fault
        progress("checking", len(work), len(work))

    def _fault(self, place: int, number: int) -> str:
        try:
            self._read(place, number)
        except DataError as error:
            return str(error)
        return ""

    def _image(self, place: int, number: int) -> NDArray[Any]:
        return self._cache.get((place, number), lambda: (self._read(place, number),))[0]

    def _read(self, place: int, number: int) -> NDArray[Any]:
        """Read an acquisition; uint16 becomes int16, which torch can compute with: a reflectance of 3.3 is enough."""
        files = self.places[place].files[number]
        image = read_acquisition(files, self._size)
        dtype, shape = self._expected
        if str(image.dtype) != dtype:
            raise DataError(
                f"{files[0].parent} holds {image.dtype}, others hold {dtype}.",
                "Train on data sets of uint8 and uint16 apart, or take the folder out.",
            )
        if self._size is None and image.shape[1:] != shape:
            raise DataError(
                f"{files[0].parent} is {image.shape[2]} × {image.shape[1]} px, others are {shape[1]} × {shape[0]}.",
                "Set one size for all, such as 264, or take the folder out.",
            )
        return image if image.dtype == np.uint8 else np.minimum(image, np.iinfo(np.int16).max).astype(np.int16)


def _usual(places: Sequence[Location]) -> tuple[str, tuple[int, int]]:
    """Return data type and shape that most acquisitions of the first locations have."""
    found: Counter[tuple[str, tuple[int, int]]] = Counter()
    fault: DataError | None = None
    for files in (files for location in places[:_LOOKED_AT] for files in location.files):
        try:
            found[acquisition_type(files)] += 1
        except DataError as error:  # `faults` lists it, and so does reading it
            fault = error
    if fault is not None and not found:
        raise fault
    return found.most_common(1)[0][0]


def reflectance(images: Tensor) -> Tensor:
    """Return stored numbers as reflectance, cut to [0, 1].

    Args:
        images: uint8 (times 255) or int16 (times 10000), any shape.

    Returns:
        The same shape, float32.
    """
    scale = SCALES["uint8"] if images.dtype == torch.uint8 else SCALES["uint16"]
    return images.to(torch.float32, copy=True).div_(scale).clamp_(0, 1)
