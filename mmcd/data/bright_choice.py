"""Which tiles of a BRIGHT folder are scored, and which of those that a list names are not, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcd.data.bright import NOT_SHARED, BrightIndex, BrightTile, event_of, index_bright
from mmcd.data.bright_splits import PARTS, BrightSplit, Protocol, cross_event_split, read_split, resolve_split
from mmcd.errors import DataError

LISTS_FOLDER = "splits"


@dataclass(frozen=True)
class TileChoice:
    """Tiles to score.

    Attributes:
        name: What they are, for people.
        tiles: Labelled tiles on disk, by id.
        missing: Why each other listed tile is not scored, by id.
        warnings: What was left out and why, one sentence each.
    """

    name: str
    tiles: tuple[BrightTile, ...]
    missing: dict[str, str]
    warnings: tuple[str, ...]


def lists_folder(root: Path, lists: Path | None) -> Path:
    """Return the folder of the split lists: the one that is given, else ``splits`` in the data set's folder.

    Raises:
        DataError: Neither is there.
    """
    folder = lists or root / LISTS_FOLDER
    if not folder.is_dir():
        raise DataError(
            f"There are no split lists in {folder}.",
            "Give the folder of BRIGHT's lists (standard_ML, dfc25, few_shot) with --lists.",
        )
    return folder


def held_out_split(lists: Path, event: str, one_shot: bool) -> BrightSplit:
    """Return the cross-event split of an event; the tiles of a one-shot split are those of the few-shot lists.

    Raises:
        DataError: There is no standard list, or it holds no such event or no other one.
    """
    few_shot = read_split(lists, "few_shot") if one_shot and (lists / "few_shot").is_dir() else None
    return cross_event_split(read_split(lists, "standard_ML"), event, 1 if one_shot else 0, few_shot)


def choose_part(root: Path, lists: Path, protocol: Protocol, part: str, event: str | None = None) -> TileChoice:
    """Return the labelled tiles of a list.

    Args:
        root: Folder of the data set.
        lists: Folder of the split lists.
        protocol: Which lists.
        part: Which of its lists.
        event: Only the tiles of this event.

    Raises:
        DataError: The list is empty, or no tile of it is on disk with a label.
    """
    return choose_of_split(index_bright(root), read_split(lists, protocol), part, event)


def choose_of_split(index: BrightIndex, split: BrightSplit, part: str, event: str | None = None) -> TileChoice:
    """Return the labelled tiles of a part of a split, see `choose_part`."""
    ids = [i for i in split.parts.get(part, ()) if event is None or event_of(i) == event]
    if not ids:
        parts = ", ".join(f"{name} {len(split.parts[name])}" for name in PARTS if name in split.parts)
        of_event = f" of event {event!r}" if event else ""
        raise DataError(
            f"The {part} list of {split.name} names no tile{of_event}.", f"Choose another part or protocol: {parts}."
        )
    wanted = BrightSplit(split.name, {part: tuple(ids)}, split.warnings)
    found, warnings = resolve_split(wanted, index)
    name = f"{split.name} {part}"
    return _labelled(name, ids, found[part], index, (*split.warnings, *warnings))


def choose_all(root: Path, event: str | None = None) -> TileChoice:
    """Return all labelled tiles of a folder, or those of one event.

    Raises:
        DataError: There is none.
    """
    index = index_bright(root)
    tiles = {tile.id: tile for tile in index.tiles if event is None or tile.event == event}
    if not tiles:
        known = ", ".join(sorted({tile.event for tile in index.tiles}))
        raise DataError(f"{root} has no tile of event {event!r}.", f"Events there: {known}.")
    ids = {*tiles, *(file.id for file in index.missing if event is None or event_of(file.id) == event)}
    lost = sorted(ids - tiles.keys())
    warnings = (f"{len(lost):,} tiles lack an image and are left out: {_events(lost)}.",) if lost else ()
    return _labelled("all tiles", sorted(ids), list(tiles.values()), index, warnings)


def _labelled(
    name: str, ids: Sequence[str], tiles: Sequence[BrightTile], index: BrightIndex, warnings: tuple[str, ...]
) -> TileChoice:
    labelled = tuple(tile for tile in tiles if tile.label is not None)
    bare = [tile.id for tile in tiles if tile.label is None]
    if not labelled:
        raise DataError(
            f"None of the {len(bare):,} tiles of {name} in {index.root} has a label.",
            "Download the target folder; the contest's zip has labels of train and holdout alone.",
        )
    if bare:
        warnings += (f"{len(bare):,} of {len(ids):,} tiles of {name} have no label and are left out: {_events(bare)}.",)
    here = {tile.id for tile in tiles}
    absent = {file.id: file.layer for file in reversed(index.missing)}
    missing = {i: _reason(i, absent.get(i)) for i in ids if i not in here} | dict.fromkeys(bare, "no label file")
    return TileChoice(name, labelled, dict(sorted(missing.items())), warnings)


def _reason(image_id: str, layer: str | None) -> str:
    if layer is None:
        return "not on disk"
    if layer == "pre" and event_of(image_id) in NOT_SHARED:
        return "no optical file: the images of this event may not be passed on"
    return f"no {'optical' if layer == 'pre' else 'SAR'} file"


def _events(ids: Sequence[str]) -> str:
    return ", ".join(sorted({event_of(i) for i in ids}))
