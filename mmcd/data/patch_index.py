"""Which patch pairs a labelled tile holds, by the rules of the reference system, and how they are split.

A patch pair is a region of interest (ROI) of 16 px in the middle of a context of 256 px. *Positive* here means an
unchanged pair: hardly any damaged pixel in the ROI. Arrays in, arrays out; files are in `mmcd.data.patch_files`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mmcd.config import Config
from mmcd.data.bright import DAMAGED, UNLABELLED
from mmcd.errors import DataError

SplitBy = Literal["event", "group", "image", "patch", "lists"]
SPLITS_BY: tuple[SplitBy, ...] = get_args(SplitBy)

_FEWEST_EVENTS = 3  # With two, validation would be one event and say little about any other.
_SHOWN = 5


class PatchRules(Config):
    """What makes a patch pair, and on which side it falls.

    Attributes:
        roi_patch_size: Side of the ROI in pixels.
        context_patch_size: Side of the square that is cut around it; exceeds the ROI by an even number.
        patch_stride: Pixels from one ROI to the next.
        pos_threshold: Largest share of damaged pixels in the ROI of a positive (unchanged) pair.
        min_valid_pixels: Smallest share of measured optical pixels in the ROI. 8-bit tiles have no other pixels, so
            it turns nothing away there, as in the reference.
        building_threshold: Smallest share of building pixels in an ROI that "has a building"; filters nothing.
    """

    roi_patch_size: int = Field(default=16, ge=1)
    context_patch_size: int = Field(default=256, ge=1)
    patch_stride: int = Field(default=8, ge=1)
    pos_threshold: float = Field(default=0.05, ge=0, le=1)
    min_valid_pixels: float = Field(default=0.8, ge=0, le=1)
    building_threshold: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _centred(self) -> Self:
        more = self.context_patch_size - self.roi_patch_size
        if more < 0 or more % 2:
            raise ValueError("context_patch_size must exceed roi_patch_size by an even number")
        return self

    @property
    def pad(self) -> int:
        """Pixels of context on each side of the ROI."""
        return (self.context_patch_size - self.roi_patch_size) // 2

    def candidates(self, length: int) -> range:
        """Return the first rows (or columns) of all ROIs in a tile of ``length`` pixels; empty below the context."""
        return range(self.pad, length - self.pad - self.roi_patch_size + 1, self.patch_stride)


@dataclass(frozen=True)
class PatchTable:
    """Patch pairs of some tiles.

    Attributes:
        image_ids: Ids of the tiles.
        image: Tile of each patch, an index into ``image_ids``, shape (N,), int32.
        position: First row and column of each ROI, shape (N, 2), int32.
        damage_ratio: Share of damaged pixels in the ROI, of all labelled ones, in [0, 1], shape (N,), float32.
        is_positive: True for an unchanged pair, shape (N,), bool.
        has_building: True where enough of the ROI is building, shape (N,), bool.
    """

    image_ids: tuple[str, ...]
    image: NDArray[np.int32]
    position: NDArray[np.int32]
    damage_ratio: NDArray[np.float32]
    is_positive: NDArray[np.bool_]
    has_building: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.image)

    def take(self, indices: NDArray[np.integer]) -> "PatchTable":
        """Return some of the patches, in the order of ``indices``; the tiles keep their numbers."""
        return PatchTable(
            self.image_ids,
            self.image[indices],
            self.position[indices],
            self.damage_ratio[indices],
            self.is_positive[indices],
            self.has_building[indices],
        )

    def summary(self) -> dict[str, Any]:
        """Return the counts and shares that the reference writes beside its arrays."""
        total, positive, building = len(self), int(self.is_positive.sum()), int(self.has_building.sum())
        return {
            "total_patches": total,
            "positive_patches": positive,
            "negative_patches": total - positive,
            "positive_ratio": positive / total if total else 0.0,
            "building_patches": building,
            "non_building_patches": total - building,
            "building_ratio": building / total if total else 0.0,
        }


@dataclass(frozen=True)
class PatchSplit:
    """Patch pairs to learn from and to validate on; neither is empty, and both number the same tiles.

    Attributes:
        train: Patches to learn from.
        val: Patches to validate on.
        split_by: What was kept on one side.
        warnings: What the user should know about it, one sentence each.
    """

    train: PatchTable
    val: PatchTable
    split_by: SplitBy
    warnings: tuple[str, ...] = ()


def tile_patches(
    image_id: str, label: NDArray[np.uint8], rules: PatchRules, measured: NDArray[np.bool_] | None = None
) -> PatchTable:
    """Return the patch pairs of one tile: every ROI with at least one building pixel.

    Args:
        image_id: Id of the tile.
        label: Class of `mmcd.data.bright.CLASSES` or `UNLABELLED`, shape (H, W), uint8.
        rules: What makes a patch.
        measured: Where the optical image holds a value, shape (H, W); None everywhere.
    """
    known = label != UNLABELLED
    building = _roi_sums(known & (label > 0), rules)
    damaged = _roi_sums(known & (label >= DAMAGED), rules)
    labelled = _roi_sums(known, rules)
    kept = building > 0
    if measured is not None:
        kept &= _roi_sums(measured, rules) / rules.roi_patch_size**2 >= rules.min_valid_pixels
    places = np.argwhere(kept).astype(np.int32)
    damage_ratio, building_ratio = damaged[kept] / labelled[kept], building[kept] / labelled[kept]
    return PatchTable(
        (image_id,),
        np.zeros(len(places), dtype=np.int32),
        places * np.int32(rules.patch_stride) + np.int32(rules.pad),
        damage_ratio.astype(np.float32),
        damage_ratio <= rules.pos_threshold,
        building_ratio >= rules.building_threshold,
    )


def pool(tables: Sequence[PatchTable]) -> PatchTable:
    """Return the patches of all tables as one, in their order."""
    starts = np.cumsum([0, *(len(table.image_ids) for table in tables)])[:-1]
    image = [table.image + np.int32(start) for table, start in zip(tables, starts, strict=True)]
    return PatchTable(
        tuple(image_id for table in tables for image_id in table.image_ids),
        np.concatenate([np.empty(0, np.int32), *image]),
        np.concatenate([np.empty((0, 2), np.int32), *(table.position for table in tables)]),
        np.concatenate([np.empty(0, np.float32), *(table.damage_ratio for table in tables)]),
        np.concatenate([np.empty(0, np.bool_), *(table.is_positive for table in tables)]),
        np.concatenate([np.empty(0, np.bool_), *(table.has_building for table in tables)]),
    )


def context_boxes(position: NDArray[np.int32], rules: PatchRules) -> NDArray[np.int32]:
    """Return the context of each ROI: first row and column, and those after the last, shape (N, 4), int32.

    Args:
        position: First row and column of each ROI, shape (N, 2).
        rules: The sides of ROI and context.
    """
    corner = position - np.int32(rules.pad)
    return np.hstack([corner, corner + np.int32(rules.context_patch_size)]).astype(np.int32)


def split_patches(
    table: PatchTable,
    split_by: SplitBy,
    members: Sequence[str],
    train_ratio: float,
    seed: int,
) -> PatchSplit:
    """Split patches so that what belongs together stays on one side.

    By event, group and image, whole units go to validation in a random order as long as they fit into its share; the
    shares of both sides are therefore met as nearly as the units allow. By patch, the reference's way, patches of one
    tile fall on both sides and share most of their context, so that validation measures memory.

    Args:
        table: All patches.
        split_by: What is kept on one side; ``lists`` puts a tile where ``members`` says.
        members: For each tile its event, group, id or (``lists``) ``train`` or ``val``.
        train_ratio: Share of the patches to learn from, between 0 and 1.
        seed: Seed of the order.

    Raises:
        DataError: A side would be empty.
    """
    warnings: list[str] = []
    if split_by == "patch":
        order = np.random.RandomState(seed).permutation(len(table))
        cut = int(len(table) * train_ratio)
        train, val = order[:cut], order[cut:]
        warnings.append("Split by patch: training and validation share context, so validation scores are too good.")
    else:
        split_by, members = _usable(table, split_by, members, warnings)
        counts = np.bincount(table.image, minlength=len(members))
        units: dict[str, int] = {}
        for member, count in zip(members, counts, strict=True):
            if count:
                units[member] = units.get(member, 0) + int(count)
        chosen = {"val"} if split_by == "lists" else _validation_units(units, split_by, train_ratio, seed)
        in_val = np.array([member in chosen for member in members], dtype=np.bool_)[table.image]
        train, val = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    parts = {"train": table.take(train), "val": table.take(val)}
    for name, part in parts.items():
        if not len(part):
            raise DataError(
                f"The {name} split would be empty: {len(table):,} patches, split by {split_by}.",
                "Index more tiles, or choose another --train-ratio or --split-by.",
            )
        warnings += _lacking(name, part)
    return PatchSplit(parts["train"], parts["val"], split_by, tuple(warnings))


def _usable(
    table: PatchTable, split_by: SplitBy, members: Sequence[str], warnings: list[str]
) -> tuple[SplitBy, Sequence[str]]:
    """Return what to split by: images where there are too few events or groups."""
    present = sorted({members[number] for number in np.unique(table.image)})
    fewest = {"event": _FEWEST_EVENTS, "group": 2}.get(split_by, 0)
    if len(present) >= fewest:
        return split_by, members
    shown = ", ".join(present[:_SHOWN])
    warnings.append(
        f"{len(present)} {split_by}s with patches ({shown}) are too few to split by {split_by}: split by image, so "
        "validation tells little about another event."
    )
    return "image", table.image_ids


def _validation_units(units: dict[str, int], split_by: SplitBy, train_ratio: float, seed: int) -> set[str]:
    """Return the events, groups or images to validate on: in random order all that fit, at least the smallest."""
    if len(units) < 2:
        raise DataError(
            f"Only {len(units)} {split_by} holds patches, which cannot be split by {split_by}.",
            "Index more tiles, or split by patch, with scores that are too good.",
        )
    names = sorted(units)
    room = (1 - train_ratio) * sum(units.values())
    chosen: set[str] = set()
    for number in np.random.default_rng(seed).permutation(len(names)):
        if units[names[number]] <= room:
            chosen.add(names[number])
            room -= units[names[number]]
    return chosen or {min(names, key=lambda name: units[name])}


def _lacking(name: str, part: PatchTable) -> list[str]:
    """Return a warning for a class that a split lacks."""
    lines = []
    if part.is_positive.all():
        lines.append(f"The {name} split holds no damaged patch, so nothing of damage is learned or measured there.")
    if not part.is_positive.any():
        lines.append(f"The {name} split holds no unchanged patch.")
    return lines


def _roi_sums(mask: NDArray[np.bool_], rules: PatchRules) -> NDArray[np.int64]:
    """Count the pixels of a mask in every candidate ROI, shape (rows, columns) of candidates.

    Pixels are counted once in cells that ROIs and steps are made of (8 x 8 by default), and cells summed.
    """
    cell = gcd(rules.roi_patch_size, rules.patch_stride)
    starts = [rules.candidates(length) for length in mask.shape]
    if not all(starts):
        return np.zeros((len(starts[0]), len(starts[1])), dtype=np.int64)
    rows, cols = (slice(rules.pad, start[-1] + rules.roi_patch_size) for start in starts)
    part = mask[rows, cols]
    high, wide = (length // cell for length in part.shape)
    narrow = np.uint8 if cell < 256 else np.int64  # a column of a cell holds at most that many
    columns = part.reshape(high, cell, wide * cell).sum(axis=1, dtype=narrow)
    cells = columns.reshape(high, wide, cell).sum(axis=2, dtype=np.int64)
    width, step = rules.roi_patch_size // cell, rules.patch_stride // cell
    return _sliding(_sliding(cells, width, 0), width, 1)[::step, ::step]


def _sliding(values: NDArray[np.int64], width: int, axis: int) -> NDArray[np.int64]:
    """Sum ``width`` neighbours along an axis."""
    sums = np.cumsum(np.moveaxis(values, axis, 0), axis=0)
    sums = np.concatenate([np.zeros_like(sums[:1]), sums])
    return np.moveaxis(sums[width:] - sums[:-width], 0, axis)
