"""Which BRIGHT tiles are for what: the official lists, cross-event protocols and the blacklist."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mmcd.data.bright import BrightIndex, BrightTile, event_of
from mmcd.errors import DataError

Protocol = Literal["standard_ML", "dfc25", "few_shot"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
PARTS = ("train", "val", "holdout", "test")
"""Lists of a split, in the order in which an id gives way: one that is in several stays in the last."""

_ENDINGS = ("_set.txt", "_setlevel.txt", ".txt")
_CONTEST_FOLDERS = {"train": "train", "holdout": "train", "val": "val", "test": "test"}
_SHOWN = 5


@dataclass(frozen=True)
class BrightSplit:
    """Ids of each part of a split; no id is in two of them.

    Attributes:
        name: Protocol, with the event for a cross-event split.
        parts: Sorted ids of each part that there is.
        warnings: What was dropped and why, one sentence each.
    """

    name: str
    parts: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...] = field(default=())

    def part_of(self) -> dict[str, str]:
        """Return the part of each id."""
        return {image_id: part for part, ids in self.parts.items() for image_id in ids}


def read_split(folder: Path, protocol: Protocol) -> BrightSplit:
    """Read the official lists of a protocol.

    The contest's lists hold two ids in train and also in holdout or val. Those leave train, so that nothing is learned
    from a tile that is scored.

    Args:
        folder: Folder with ``standard_ML``, ``dfc25`` and ``few_shot``, or the one that holds the list files.
        protocol: Which lists.

    Raises:
        DataError: There is no train list, a line is not an id, or the lists are those of another protocol.
    """
    home = folder / protocol if (folder / protocol).is_dir() else folder
    lists = {part: _read_list(home, part) for part in PARTS}
    _check_protocol(home, protocol, lists)
    if not lists["train"]:
        raise DataError(
            f"{home} holds no train list of {protocol} ({', '.join('train' + ending for ending in _ENDINGS)}).",
            "Give the folder of BRIGHT's split lists, with one folder a protocol.",
        )
    warnings = []
    for place, part in enumerate(PARTS):
        for later in PARTS[place + 1 :]:
            shared = lists[part] & lists[later]
            if shared:
                lists[part] -= shared
                warnings.append(f"{_named(shared)} dropped from {part}: also in {later} of {protocol}.")
    return BrightSplit(protocol, {part: tuple(sorted(ids)) for part, ids in lists.items() if ids}, tuple(warnings))


def protocols_in(folder: Path) -> tuple[Protocol, ...]:
    """Return the protocols whose lists a folder that `read_split` takes holds; none without a list.

    List files in a folder of another name are the contest's where a holdout list is among them, else the standard ones.
    """
    found = tuple(protocol for protocol in PROTOCOLS if (folder / protocol).is_dir())
    if found or not _list_path(folder, "train"):
        return found
    named = tuple(protocol for protocol in PROTOCOLS if protocol == folder.resolve().name)
    return named or (("dfc25",) if _list_path(folder, "holdout") else ("standard_ML",))


def cross_event_split(
    standard: BrightSplit, event: str, shots: Literal[0, 1] = 0, few_shot: BrightSplit | None = None
) -> BrightSplit:
    """Return the split that asks how a model does on an event it never, or hardly, saw.

    Zero-shot: it learns from the train and test tiles of the other events, is validated on their val tiles and tested
    on all tiles of the event. One-shot: one train and one val tile of the event are added there, and are not tested.

    Args:
        standard: The standard lists.
        event: Event that is held out.
        shots: Tiles of the event in train, and in val.
        few_shot: Lists that name the two tiles; without them the first of the event's train and val tiles.

    Raises:
        DataError: The lists hold no such event or no other one, or have no tile for the shot.
    """
    pooled = {"train": ("train", "test", "holdout"), "val": ("val",)}
    ids = {part: [i for name in names for i in standard.parts.get(name, ())] for part, names in pooled.items()}
    held_out = {i for members in ids.values() for i in members if event_of(i) == event}
    others = {part: {i for i in members if event_of(i) != event} for part, members in ids.items()}
    if not held_out or not all(others.values()):
        known = sorted({event_of(i) for members in ids.values() for i in members})
        raise DataError(
            f"{event!r} cannot be held out of the {standard.name} lists.",
            f"Choose one of several events: {', '.join(known)}.",
        )
    if shots:
        shown = few_shot or standard
        for part, members in others.items():
            members.add(_shot(shown, part, event, held_out))
    learnt = others["train"] | others["val"]
    parts = {part: tuple(sorted(members)) for part, members in others.items()}
    name = f"{standard.name} {'one' if shots else 'zero'}-shot {event}"
    return BrightSplit(name, parts | {"test": tuple(sorted(held_out - learnt))}, standard.warnings)


def unsupervised_split(standard: BrightSplit) -> BrightSplit:
    """Return the split of unsupervised change detection: tuned on the val tiles, tested on the 3,796 others.

    Args:
        standard: The standard lists.
    """
    others = sorted(i for name, ids in standard.parts.items() if name != "val" for i in ids)
    parts = {"val": standard.parts.get("val", ()), "test": tuple(others)}
    return BrightSplit(f"{standard.name} unsupervised", parts, standard.warnings)


def resolve_split(
    split: BrightSplit, index: BrightIndex, wanted: Sequence[str] | None = None
) -> tuple[dict[str, tuple[BrightTile, ...]], tuple[str, ...]]:
    """Return the tiles of parts of a split that are on disk, and a warning for each part with ids that are not.

    Args:
        split: Ids of each part.
        index: What is on disk.
        wanted: Parts that are needed, all when None.

    Raises:
        DataError: A wanted part has no tile on disk at all.
    """
    by_place = {(tile.part, tile.id): tile for tile in index.tiles}
    anywhere = {tile.id: tile for tile in reversed(index.tiles)}
    found: dict[str, tuple[BrightTile, ...]] = {}
    warnings = []
    for part in wanted or split.parts:
        ids = split.parts.get(part, ())
        tiles = {i: by_place.get((_CONTEST_FOLDERS[part], i)) or anywhere.get(i) for i in ids}
        found[part] = tuple(tile for tile in tiles.values() if tile is not None)
        absent = {i for i, tile in tiles.items() if tile is None}
        if not found[part]:
            raise DataError(
                f"None of the {len(ids):,} {part} tiles of {split.name} has both images in {index.root}.",
                "Download them, or choose lists that fit the tiles.",
            )
        if absent:
            events = ", ".join(sorted({event_of(i) for i in absent}))
            warnings.append(
                f"{len(absent):,} of {len(ids):,} {part} tiles of {split.name} lack an image and are left out: "
                f"{events}."
            )
    return found, tuple(warnings)


def read_blacklist(path: Path) -> dict[str, str]:
    """Read ids that are to be left out.

    Args:
        path: Comma-separated lines without a header: id, then anything; the last column is a code, ``c`` or ``s``.

    Returns:
        Code of each id, empty where the line holds none.

    Raises:
        DataError: The file cannot be read or a line does not begin with an id.
    """
    try:
        with path.open(newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Give a text file with one id a line.") from error
    for row in rows:
        event_of(row[0])
    return {row[0]: row[-1] if len(row) > 1 else "" for row in rows}


def _read_list(home: Path, part: str) -> set[str]:
    """Return the ids of a list; empty when there is no such file."""
    path = _list_path(home, part)
    if path is None:
        return set()
    try:
        ids = {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Give a text file with one id a line.") from error
    for image_id in ids:
        event_of(image_id)
    return ids


def _list_path(home: Path, part: str) -> Path | None:
    paths = [home / f"{part}{ending}" for ending in _ENDINGS]
    return next((path for path in paths if path.is_file()), None)


def _check_protocol(home: Path, protocol: Protocol, lists: Mapping[str, set[str]]) -> None:
    """Refuse lists that are read under another protocol's name: their tiles are sorted otherwise."""
    name = home.resolve().name
    other = name if name in PROTOCOLS and name != protocol else None
    if protocol == "standard_ML" and lists["holdout"]:
        other = "dfc25"  # no other protocol holds any out
    if other:
        raise DataError(f"{home} holds the lists of {other}, not of {protocol}.", f"Give --protocol {other}.")


def _shot(split: BrightSplit, part: str, event: str, held_out: set[str]) -> str:
    chosen = next((i for i in split.parts.get(part, ()) if event_of(i) == event and i in held_out), None)
    if chosen is None:
        raise DataError(
            f"The {split.name} lists name no {part} tile of {event}.", "Use zero-shot, or lists that hold one."
        )
    return chosen


def _named(ids: set[str]) -> str:
    shown = sorted(ids)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
