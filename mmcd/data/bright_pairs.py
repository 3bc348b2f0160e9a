"""BRIGHT as training samples: crops of the train tiles as the official recipe draws them, whole val tiles.

A group is an event. Images are value / 255, and every pixel of a tile counts as measured, as in the published protocol.

Source: Chen et al. 2025, ESSD 17, 6217-6253, and its official baseline protocol.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch.utils.data import Dataset

from mmcd.config import Config
from mmcd.data.base import UNKNOWN, Sample, to_sample
from mmcd.data.bright import CLASSES, DAMAGED, UNLABELLED, BrightTile, check_headers, index_bright, read_layer
from mmcd.data.bright_choice import TileChoice, choose_of_split, held_out_split, lists_folder
from mmcd.data.bright_splits import Protocol, read_split
from mmcd.errors import DataError
from mmcd.geo.grid import Window
from mmcd.progress import Progress, silent

_LATTICE = 16
"""Whole tiles are filled to a multiple of it, which networks ask for; 1024 px is one."""


class BrightConfig(Config):
    """Which tiles, and how crops are drawn from them.

    Attributes:
        root: Folder of the data set, in either layout.
        lists: Folder of the split lists; ``splits`` in the data set's folder when left out.
        protocol: Which lists.
        hold_out: Event that is not learned from: the other events' train and test tiles train, their val tiles
            validate.
        one_shot: One train and one val tile of that event are shown all the same.
        validate_on: List that validates: the contest's zip has labels of ``holdout`` and none of ``val``.
        crop: Side of a training crop in pixels.
        tries: Crops that are drawn until one is not mostly of one class; the last one is taken as it is.
        majority: Share of the labelled pixels from which one class is most of a crop.
    """

    root: Path
    lists: Path | None = None
    protocol: Protocol = "standard_ML"
    hold_out: str | None = None
    one_shot: bool = False
    validate_on: Literal["val", "holdout"] = "val"
    crop: int = Field(default=640, ge=32, multiple_of=_LATTICE)
    tries: int = Field(default=10, ge=1)
    majority: float = Field(default=0.75, gt=0, le=1)

    @model_validator(mode="after")
    def _lists_that_go_together(self) -> Self:
        if self.one_shot and self.hold_out is None:
            raise ValueError("one_shot needs the event that is hardly seen: give hold_out")
        if self.hold_out is not None and (self.protocol, self.validate_on) != ("standard_ML", "val"):
            raise ValueError("hold_out is of the protocol standard_ML and validates on its val list")
        return self


class BrightPairs:
    """Whole tiles of the train and the val list, opened when they are asked for.

    Args:
        config: Which tiles.
        progress: Told of the tiles whose files are checked; may raise to stop.

    Attributes:
        config: Which tiles.
        ids: Id of each tile.
        groups: Event of each tile.
        training: Indices of the train tiles.
        validation: Indices of the val or holdout tiles.
        labelled: Pixels of each tile that are labelled as each class, shape (N, 4), int64.
        warnings: What was left out and why, and which class a list lacks, one sentence each.

    Raises:
        DataError: A list is empty, a tile is damaged, one has another size than the others, or a label another value.
    """

    pre_bands = ("B4", "B3", "B2")
    post_bands = ("VV",)

    def __init__(self, config: BrightConfig, progress: Progress = silent) -> None:
        self.config = config
        learnt, checked = _chosen(config)
        self._tiles = (*learnt.tiles, *checked.tiles)
        self.ids: Sequence[str] = [tile.id for tile in self._tiles]
        self.groups: Sequence[str] = [tile.event for tile in self._tiles]
        self.training = np.arange(len(learnt.tiles))
        self.validation = np.arange(len(learnt.tiles), len(self._tiles))
        self.labelled, self._pixels = _checked(self._tiles, progress)
        lacking = (
            *_lacking("train", self.labelled[self.training]),
            *_lacking(config.validate_on, self.labelled[self.validation]),
        )
        self.warnings = tuple(dict.fromkeys((*learnt.warnings, *checked.warnings, *lacking)))

    @property
    def changed_share(self) -> NDArray[np.float64]:
        """Share of damaged and destroyed pixels of each tile in [0, 1], shape (N,)."""
        return self.shares(np.arange(len(self)))

    def shares(self, indices: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the share of damaged and destroyed pixels of some tiles, in [0, 1]."""
        shares: NDArray[np.float64] = self.labelled[indices, DAMAGED:].sum(axis=1) / self._pixels
        return shares

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Sample:
        label = self._label(index)
        sides = [-(-side // _LATTICE) * _LATTICE for side in label.shape]
        return self._cut(index, label, Window(0, 0, *label.shape), (sides[0], sides[1]))

    def crop(self, index: int, random: np.random.Generator) -> Sample:
        """Return a random crop of a tile that is not mostly of one class, if a few draws find one.

        Args:
            index: The tile.
            random: Source of its place.
        """
        label, side = self._label(index), self.config.crop
        for _ in range(self.config.tries):
            row, col = (int(random.integers(0, max(extent - side, 0) + 1)) for extent in label.shape)
            window = Window(row, col, min(side, label.shape[0]), min(side, label.shape[1]))
            if _largest_share(label[window.slices]) < self.config.majority:
                break
        return self._cut(index, label, window, (side, side))

    def _label(self, index: int) -> NDArray[np.uint8]:
        return _label_of(self._tiles[index])

    def _cut(self, index: int, label: NDArray[np.uint8], window: Window, shape: tuple[int, int]) -> Sample:
        """Return a window of a tile as a sample; what is missing to the shape holds no data and no label."""
        tile = self._tiles[index]
        pre, post = (
            np.divide(read_layer(tile, "pre", window)[0], 255, dtype=np.float32),
            np.divide(read_layer(tile, "post", window)[0], 255, dtype=np.float32),
        )
        part = label[window.slices]
        target = np.where(part == UNLABELLED, np.int64(UNKNOWN), part)
        valid = np.ones(part.shape, np.bool_)
        return to_sample(
            _filled(pre, shape, 0),
            _filled(post, shape, 0),
            _filled(target, shape, UNKNOWN),
            _filled(valid, shape, 0),
            index,
        )


class BrightCrops(Dataset[Sample]):
    """Random crops of some tiles of `BrightPairs`; the number of a draw decides its place.

    Args:
        pairs: The tiles.
        indices: Those that are drawn from.
        seed: Seed of the places.
    """

    def __init__(self, pairs: BrightPairs, indices: NDArray[np.intp], seed: int) -> None:
        self._pairs = pairs
        self._indices = indices
        self._seed = seed

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, draw: int) -> Sample:
        """Return the crop of a draw: its rest by the number of tiles is the tile, so each has any number of crops."""
        number, position = divmod(draw, len(self._indices))
        random = np.random.default_rng([self._seed, position, number])
        return self._pairs.crop(int(self._indices[position]), random)


def _chosen(config: BrightConfig) -> tuple[TileChoice, TileChoice]:
    """Return the tiles that train and those that validate."""
    if not config.root.is_dir():
        raise DataError(f"{config.root} is not a folder.", "Give the folder of BRIGHT with --set data.root=DIR.")
    lists = lists_folder(config.root, config.lists)
    if config.hold_out is None:
        split = read_split(lists, config.protocol)
    else:
        split = held_out_split(lists, config.hold_out, config.one_shot)
    index = index_bright(config.root)
    return choose_of_split(index, split, "train"), choose_of_split(index, split, config.validate_on)


def _checked(tiles: Sequence[BrightTile], progress: Progress) -> tuple[NDArray[np.int64], int]:
    """Open every file of the tiles and read every label, so that what is wrong is said before hours of training.

    Returns:
        Pixels that are labelled as each class, shape (N, 4), and pixels of a tile.

    Raises:
        DataError: A file is damaged or not as published, or a tile has another size than the first.
    """
    first: tuple[int, int] | None = None
    counts = np.zeros((len(tiles), len(CLASSES)), np.int64)
    for number, tile in enumerate(tiles):
        progress("check", number, len(tiles))
        shape = check_headers(tile).shape
        first = first or shape
        if shape != first:
            raise DataError(
                f"Tile {tile.id} has {shape[1]} × {shape[0]} px, {tiles[0].id} has {first[1]} × {first[0]} px.",
                "Restore the published file, or take its id out of the lists.",
            )
        counts[number] = _class_counts(_label_of(tile))
    progress("check", len(tiles), len(tiles))
    return counts, math.prod(first or ())


def _lacking(part: str, labelled: NDArray[np.int64]) -> list[str]:
    """Return a warning for each class that no tile of a list holds, from the counts of its tiles."""
    absent = [name for name, count in zip(CLASSES, labelled.sum(axis=0), strict=True) if not count]
    return [f"No {part} tile is labelled {name}: take tiles that are into the {part} list." for name in absent]


def _label_of(tile: BrightTile) -> NDArray[np.uint8]:
    values, _ = read_layer(tile, "label")
    return np.asarray(values[0], np.uint8)


def _class_counts(label: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the pixels of each class, shape (4,), without those that are not labelled."""
    return np.bincount(label.ravel(), minlength=UNLABELLED + 1)[: len(CLASSES)]


def _largest_share(label: NDArray[np.uint8]) -> float:
    """Return the share of the commonest class among labelled pixels; 1 where there are none."""
    counts = _class_counts(label)
    return float(counts.max() / counts.sum()) if counts.sum() else 1.0


def _filled(values: NDArray[Any], shape: tuple[int, int], value: int) -> NDArray[Any]:
    """Return values of shape (..., h, w) filled below and to the right to a height and width."""
    missing = [(0, 0)] * (values.ndim - 2) + [(0, shape[axis] - values.shape[axis - 2]) for axis in (0, 1)]
    return np.pad(values, missing, constant_values=value)
