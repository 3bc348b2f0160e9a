"""Makes the patch metadata of a data set: which patch pairs there are, and which of them are to learn from."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mmcd.config import Config
from mmcd.data.bright import (
    BrightIndex,
    BrightTile,
    check_headers,
    index_bright,
    read_layer,
    select_tiles,
    tile_groups,
)
from mmcd.data.bright_splits import (
    BrightSplit,
    Protocol,
    cross_event_split,
    read_blacklist,
    read_split,
    resolve_split,
)
from mmcd.data.patch_files import check_replaceable, write_patches
from mmcd.data.patch_index import PatchRules, PatchTable, SplitBy, pool, split_patches, tile_patches
from mmcd.errors import ConfigError, DataError
from mmcd.geo.grid import Grid
from mmcd.progress import Progress, silent

BLACKLIST = "image_labels.txt"
"""Name under which a blacklist is found beside the data."""

_SHOWN = 5
_THREADS = min(8, os.cpu_count() or 1)  # Reading is what takes the time, and GDAL reads without Python's lock.


class IndexRequest(Config):
    """Which patches of which tiles to list.

    Attributes:
        root: Folder of the data set, in either layout; of the contest's, only ``train`` is read.
        out: Folder of the metadata.
        dataset: Kind of data set.
        config: YAML file with the rules as top-level keys; others in it belong to other commands.
        limit: Tiles at most.
        train_ratio: Share of the patches to learn from.
        seed: Seed of the split.
        blacklist: Ids to leave out; ``image_labels.txt`` in ``root`` is found by itself.
        include_blacklist: Leave none out.
        select_disaster: Part of the ids that are asked for.
        building_threshold: Over the rule of the same name.
        split_by: What stays on one side; ``lists`` follows the train and val lists.
        lists: Folder of the official split lists; only tiles to learn from are indexed then.
        protocol: Which of the lists.
        hold_out: Event that the cross-event protocol leaves for testing; goes with ``split_by`` of ``lists``.
        one_shot: Whether one train and one val tile of that event are seen.
        overwrite: Replace metadata of another configuration.
    """

    root: Path
    out: Path
    dataset: Literal["bright"] = "bright"
    config: Path | None = None
    limit: int | None = Field(default=None, ge=1)
    train_ratio: float = Field(default=0.8, gt=0, lt=1)
    seed: int = Field(default=42, ge=0)
    blacklist: Path | None = None
    include_blacklist: bool = False
    select_disaster: str = ""
    building_threshold: float | None = Field(default=None, ge=0, le=1)
    split_by: SplitBy = "event"
    lists: Path | None = None
    protocol: Protocol = "standard_ML"
    hold_out: str | None = None
    one_shot: bool = False
    overwrite: bool = False

    @model_validator(mode="after")
    def _lists_where_needed(self) -> Self:
        if self.lists is None and (self.split_by == "lists" or self.hold_out is not None):
            raise ValueError("--split-by lists and --hold-out need --lists")
        if self.hold_out is not None and self.protocol != "standard_ML":
            raise ValueError("--hold-out is for the standard_ML lists")
        if self.one_shot and self.hold_out is None:
            raise ValueError("--one-shot needs --hold-out")
        if self.hold_out is not None and self.split_by != "lists":
            raise ValueError("--hold-out needs --split-by lists, which keeps the event's tiles on the protocol's sides")
        return self


@dataclass(frozen=True)
class IndexResult:
    """The metadata that were written.

    Attributes:
        folder: Where they are.
        tiles: Tiles that were read.
        summary: What ``config_summary.json`` holds.
        warnings: What is missing, was left out or should be known, one sentence each.
    """

    folder: Path
    tiles: int
    summary: dict[str, Any]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "folder": str(self.folder),
            "tiles": self.tiles,
            **self.summary,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _Found:
    """Patches of one tile, or why it was left out."""

    tile: BrightTile
    grid: Grid | None = None
    patches: PatchTable | None = None
    fault: str = ""


def build_index(request: IndexRequest, progress: Progress = silent) -> IndexResult:
    """List the patch pairs of a data set and split them.

    Args:
        request: Which patches of which tiles.
        progress: Told of the stage, tiles done and tiles in all; may raise to stop.

    Raises:
        DataError: There is no tile or patch, a split would be empty, or the folder holds other metadata.
        ConfigError: The rules cannot be carried out.
        StorageError: The folder cannot be written.
    """
    rules = read_patch_rules(request.config, request.building_threshold)
    index = index_bright(request.root)
    warnings = index.report()
    tiles, parts, notes = _tiles(request, index)
    settings = _settings(request, tiles)
    if not request.overwrite:
        check_replaceable(request.out, rules, settings)
    found = list(_reported(_read_all(tiles, rules), len(tiles), progress))
    warnings += [*notes, *(one.fault for one in found if one.fault)]
    read = [one for one in found if one.patches is not None and one.grid is not None]
    warnings += _odd_sizes(read, rules)
    table = pool([one.patches for one in read if one.patches is not None])
    if not len(table):
        raise DataError(
            f"None of {len(tiles):,} tiles of {request.root} holds a patch with a building. {' '.join(warnings[:1])}",
            "Check the labels, the size of the tiles and the choice of tiles.",
        )
    members = _members(request.split_by, read, parts)
    split = split_patches(table, request.split_by, members, request.train_ratio, request.seed)
    settings["tiles"] = len(read)
    summary = write_patches(request.out, split, rules, settings, overwrite=request.overwrite)
    return IndexResult(request.out, len(read), summary, (*warnings, *split.warnings))


def read_patch_rules(config: Path | None, building_threshold: float | None = None) -> PatchRules:
    """Return the rules of a YAML file, which may hold other keys too, or the reference's own.

    Raises:
        ConfigError: The file cannot be read or its rules cannot be carried out.
    """
    values: Any = {}
    if config is not None:
        try:
            values = yaml.safe_load(config.read_text()) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config} cannot be read as YAML.", "Give a file such as those in configs/.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{config} holds no key: value pairs.", "Give a file such as those in configs/.")
    known = {key: value for key, value in values.items() if key in PatchRules.model_fields}
    if building_threshold is not None:
        known["building_threshold"] = building_threshold
    try:
        return PatchRules(**known)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the rules"
        raise ConfigError(f"{config}: {where}: {first['msg'].lower()}.", "Correct it in the file.") from error


def _settings(request: IndexRequest, tiles: Sequence[BrightTile]) -> dict[str, Any]:
    """Return what tells these metadata from others, as far as it is known before the tiles are read."""
    ids = "\n".join(sorted(tile.id for tile in tiles))
    blacklist = _blacklist(request)
    return {
        "train_ratio": request.train_ratio,
        "random_seed": request.seed,
        "dataset": request.dataset,
        "root": str(request.root.resolve()),
        "limit": request.limit,
        "select_disaster": request.select_disaster,
        "blacklist": None if blacklist is None else str(blacklist.resolve()),
        "split_asked": request.split_by,
        "lists": None if request.lists is None else str(request.lists.resolve()),
        "protocol": None if request.lists is None else request.protocol,
        "hold_out": request.hold_out,
        "one_shot": request.one_shot,
        "tile_ids": hashlib.sha256(ids.encode()).hexdigest(),
    }


def _tiles(request: IndexRequest, index: BrightIndex) -> tuple[list[BrightTile], dict[str, str], list[str]]:
    """Return the tiles to index, the part of each by the lists, and what should be known."""
    notes: list[str] = []
    candidates = [tile for tile in index.tiles if tile.part in ("", "train")]
    parts: dict[str, str] = {}
    if request.lists is not None:
        split = _split(request, request.lists)
        wanted = ("train", "val") if request.split_by == "lists" else ("train",)
        by_part, absent = resolve_split(split, index, wanted)
        notes += [*split.warnings, *absent]
        candidates = sorted((tile for tiles in by_part.values() for tile in tiles), key=lambda tile: tile.id)
        parts = split.part_of()
    else:
        candidates, known = _unlisted(candidates, index)
        notes += known
    labelled = [tile for tile in candidates if tile.label is not None]
    if candidates and not labelled:
        raise DataError(
            f"No tile is left: none of {len(candidates):,} tiles has a label file; {index.report()[0].rstrip('.')}.",
            "Download target, the folder of the labels, with mmcd data download.",
        )
    excluded = _excluded(request)
    chosen = select_tiles(labelled, disaster=request.select_disaster, excluded=excluded, limit=request.limit)
    listed = sum(tile.id in excluded for tile in labelled)
    if listed:
        notes.append(f"{listed:,} tiles of the blacklist are left out.")
    return chosen, parts, notes


def _unlisted(candidates: list[BrightTile], index: BrightIndex) -> tuple[list[BrightTile], list[str]]:
    """Return the tiles to learn from where no lists say it, and what should be known about them."""
    if index.layout == "flat":
        return candidates, ["Without --lists the official val and test tiles are among those that are learnt from."]
    scored = {tile.id for tile in index.tiles if tile.part in ("val", "test")}
    shared = [tile.id for tile in candidates if tile.id in scored]
    notes = [f"{_named(shared)}: left out, also in the val or test folder."] if shared else []
    return [tile for tile in candidates if tile.id not in scored], notes


def _split(request: IndexRequest, lists: Path) -> BrightSplit:
    split = read_split(lists, request.protocol)
    if request.hold_out is None:
        return split
    few = read_split(lists, "few_shot") if request.one_shot and (lists / "few_shot").is_dir() else None
    return cross_event_split(split, request.hold_out, 1 if request.one_shot else 0, few)


def _excluded(request: IndexRequest) -> set[str]:
    path = _blacklist(request)
    return set() if path is None else set(read_blacklist(path))


def _blacklist(request: IndexRequest) -> Path | None:
    path = request.blacklist or request.root / BLACKLIST
    if request.include_blacklist or (request.blacklist is None and not path.is_file()):
        return None
    return path


def _read_all(tiles: Sequence[BrightTile], rules: PatchRules) -> Iterator[_Found]:
    """Yield what each tile holds, in order; the files are read by several threads."""
    with ThreadPoolExecutor(_THREADS) as pool_of_threads:
        try:
            yield from pool_of_threads.map(_reader(rules), tiles)
        finally:
            pool_of_threads.shutdown(wait=False, cancel_futures=True)


def _reader(rules: PatchRules) -> Callable[[BrightTile], _Found]:
    def read(tile: BrightTile) -> _Found:
        try:
            grid = check_headers(tile)
            label, _ = read_layer(tile, "label")
        except DataError as error:
            return _Found(tile, fault=f"Left out: {error}")
        return _Found(tile, grid, tile_patches(tile.id, label[0], rules))

    return read


def _reported(found: Iterator[_Found], total: int, progress: Progress) -> Iterator[_Found]:
    for number, one in enumerate(found):
        progress("indexing", number, total)
        yield one
    progress("indexing", total, total)


def _odd_sizes(read: Sequence[_Found], rules: PatchRules) -> list[str]:
    """Name the tiles that give no patch because they are small, and those of another size than the rest."""
    sizes = {one.tile.id: one.grid.shape for one in read if one.grid is not None}
    lines = []
    small = [i for i, shape in sizes.items() if min(shape) < rules.context_patch_size]
    if small:
        lines.append(
            f"{_named(small)}: smaller than the context of {rules.context_patch_size} px, so they give no patch. "
            "Choose a smaller context_patch_size, or restore the published files."
        )
    usual = Counter(sizes.values()).most_common(1)
    odd = [i for i, shape in sizes.items() if usual and shape != usual[0][0]]
    if odd:
        height, width = usual[0][0]
        lines.append(
            f"{_named(odd)}: not {width} × {height} px as the other tiles. Restore the published files, or put the ids "
            "into the blacklist if that is not meant."
        )
    return lines


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more


def _members(split_by: SplitBy, read: Sequence[_Found], parts: dict[str, str]) -> list[str]:
    """Return for each tile the event, group, part or id that decides its side."""
    tiles = [one.tile for one in read]
    if split_by == "event":
        return [tile.event for tile in tiles]
    if split_by == "group":
        return tile_groups(tiles, [one.grid for one in read if one.grid is not None])
    if split_by == "lists":
        return [parts[tile.id] for tile in tiles]
    return [tile.id for tile in tiles]
