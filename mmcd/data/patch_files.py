"""Patch metadata on disk, in the files of the reference system, so that either side reads what the other wrote.

A split ``train`` or ``val`` is ten arrays and a summary; ``config_summary.json`` says by which rules they were made.
It is written last. Beside them `TABLE` holds the same as one Parquet table, for other tools.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmcd.data import object_ids
from mmcd.data.bright import event_of
from mmcd.data.patch_index import PatchRules, PatchSplit, PatchTable, context_boxes
from mmcd.errors import DataError
from mmcd.geo.cog import atomic_path, storage_errors

SUMMARY = "config_summary.json"
TABLE = "patches.parquet"
Split = Literal["train", "val"]

_RULE_KEYS = {"patch_stride": "stride"}  # Names that differ in the reference's summary.
_SHOWN = 5
_CHUNK = 1 << 20  # Ids are written this many at a time: a fixed-width id takes a hundred bytes.
_IMPORT_SECONDS = 600


def write_patches(
    folder: Path, split: PatchSplit, rules: PatchRules, settings: Mapping[str, Any], *, overwrite: bool = False
) -> dict[str, Any]:
    """Write the metadata of a split.

    Args:
        folder: Folder of the files; made when missing.
        split: The patches.
        rules: What made them.
        settings: ``train_ratio`` and ``random_seed``, and whatever else tells where the patches come from.
        overwrite: Replace metadata of another configuration.

    Returns:
        What ``config_summary.json`` holds.

    Raises:
        DataError: The folder holds metadata of another configuration.
        StorageError: It cannot be written.
    """
    total = _joined(split)
    stats = {"train": split.train.summary(), "val": split.val.summary(), "total": total.summary()}
    summary = _named(rules) | {**settings, "split_by": split.split_by, "stats": stats}
    if not overwrite:
        _check_replaceable(folder, summary)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)  # a folder that is half written is none
    for name, table in (("train", split.train), ("val", split.val)):
        _write_split(folder, name, table, rules)
    _write_table(folder / TABLE, total, len(split.train))
    _write_json(folder / SUMMARY, summary)
    return summary


def check_replaceable(folder: Path, rules: PatchRules, settings: Mapping[str, Any]) -> None:
    """Refuse a folder whose metadata other rules or settings made, by what is known before tiles are read.

    Args:
        folder: Folder of the files; it may be missing.
        rules: What would make the patches.
        settings: What `write_patches` would be given, as far as it is known.

    Raises:
        DataError: The folder holds metadata of another configuration.
    """
    asked = _named(rules) | dict(settings)
    _check_replaceable(folder, asked, asked)


def read_patches(folder: Path, split: Split, rules: PatchRules | None = None) -> PatchTable:
    """Read the metadata of a split, written here or by the reference system.

    Args:
        folder: Folder of the files.
        split: ``train`` or ``val``.
        rules: What the patches must have been made by; None takes any.

    Raises:
        DataError: There is none, it is damaged, empty or was made by other rules.
    """
    summary = _read_summary(folder)
    if rules is not None:
        _check_rules(folder, summary, rules)
    image_ids, image = _factorised(_read_ids(folder / f"{split}_image_ids.npy"))
    table = PatchTable(
        image_ids,
        image,
        _read(folder, split, "roi_positions").astype(np.int32),
        _read(folder, split, "damage_ratios").astype(np.float32),
        _read(folder, split, "is_positive").astype(np.bool_),
        _read(folder, split, "has_building").astype(np.bool_),
    )
    count = len(table)
    lengths = {len(table.damage_ratio), len(table.is_positive), len(table.has_building)}
    if lengths != {count} or table.position.shape != (count, 2):
        raise DataError(f"The arrays of {split} in {folder} differ in length.", "Make them again with data index.")
    if not count:
        raise DataError(f"The {split} split in {folder} is empty.", "Make it again with more tiles.")
    return table


def read_rules(folder: Path) -> PatchRules:
    """Return the rules that the metadata in a folder were made by.

    Raises:
        DataError: There is none, or it is damaged.
    """
    summary = _read_summary(folder)
    names = {name: _RULE_KEYS.get(name, name) for name in PatchRules.model_fields}
    try:
        return PatchRules(**{name: summary[key] for name, key in names.items() if key in summary})
    except ValueError as error:
        raise DataError(f"{folder / SUMMARY} holds rules that make no patch.", "Make it again.") from error


def _named(rules: PatchRules) -> dict[str, Any]:
    """Return rules by the names of the reference's summary."""
    return {_RULE_KEYS.get(name, name): value for name, value in rules.model_dump().items()}


def _write_split(folder: Path, split: str, table: PatchTable, rules: PatchRules) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "roi_positions": table.position,
        "context_positions": context_boxes(table.position, rules),
        "is_positive": table.is_positive,
        "damage_ratios": table.damage_ratio,
        "has_building": table.has_building,
        "positive_indices": np.flatnonzero(table.is_positive),
        "negative_indices": np.flatnonzero(~table.is_positive),
        "building_indices": np.flatnonzero(table.has_building),
        "non_building_indices": np.flatnonzero(~table.has_building),
    }
    for name, values in arrays.items():
        with atomic_path(folder / f"{split}_{name}.npy") as temporary:
            np.save(temporary, values, allow_pickle=False)
    names = np.array(table.image_ids, dtype=np.str_)
    with atomic_path(folder / f"{split}_image_ids.npy") as temporary:
        ids = np.lib.format.open_memmap(temporary, mode="w+", dtype=names.dtype, shape=(len(table),))
        for start in range(0, len(table), _CHUNK):
            ids[start : start + _CHUNK] = names[table.image[start : start + _CHUNK]]
        ids.flush()
    _write_json(folder / f"{split}_summary.json", table.summary())


def _joined(split: PatchSplit) -> PatchTable:
    """Return the patches of both sides, which count the same tiles, as one table."""
    train, val = split.train, split.val
    return PatchTable(
        train.image_ids,
        np.concatenate([train.image, val.image]),
        np.concatenate([train.position, val.position]),
        np.concatenate([train.damage_ratio, val.damage_ratio]),
        np.concatenate([train.is_positive, val.is_positive]),
        np.concatenate([train.has_building, val.has_building]),
    )


def _write_table(path: Path, total: PatchTable, trained: int) -> None:
    """Write patches, the first ``trained`` of them those to learn from, as Parquet with names as dictionaries."""
    ids = pd.Index(total.image_ids)
    events, event = np.unique([event_of(image_id) for image_id in total.image_ids], return_inverse=True)
    side = (np.arange(len(total)) >= trained).astype(np.int8)
    table = pd.DataFrame(
        {
            "split": pd.Categorical.from_codes(side, categories=pd.Index(["train", "val"])),
            "image_id": pd.Categorical.from_codes(total.image, categories=ids),
            "event": pd.Categorical.from_codes(event[total.image], categories=pd.Index(events.tolist())),
            "y": total.position[:, 0],
            "x": total.position[:, 1],
            "damage_ratio": total.damage_ratio,
            "is_positive": total.is_positive,
            "has_building": total.has_building,
        }
    )
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def _check_replaceable(folder: Path, summary: Mapping[str, Any], keys: Iterable[str] | None = None) -> None:
    """Refuse a folder whose metadata were made otherwise; the same are made again. No key but the counts is ignored."""
    if not (folder / SUMMARY).exists():
        return
    there = _read_summary(folder)
    compared = dict.fromkeys([*summary, *there]) if keys is None else keys
    differing = [
        f"{key} {there.get(key)} instead of {summary.get(key)}"
        for key in compared
        if key != "stats" and there.get(key) != summary.get(key)
    ]
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise DataError(
            f"{folder} holds patch metadata of another configuration: {', '.join(differing[:_SHOWN])}{more}.",
            "Choose another --out, or give --overwrite.",
        )


def _check_rules(folder: Path, summary: Mapping[str, Any], rules: PatchRules) -> None:
    differing = [
        f"{key} is {summary[key]}, {value} is asked for"
        for key, value in _named(rules).items()
        if key in summary and summary[key] != value
    ]
    if differing:
        raise DataError(
            f"{folder} holds patch metadata of another configuration: {'; '.join(differing)}.",
            "Give the folder made for this configuration, or make one with mmcd data index.",
        )


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no patch metadata ({SUMMARY}).", "Make it with mmcd data index.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Make it again with mmcd data index.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is not a summary of patch metadata.", "Make it again with mmcd data index.")
    return values


def _read(folder: Path, split: str, name: str) -> NDArray[Any]:
    path = folder / f"{split}_{name}.npy"
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error


def _read_ids(path: Path) -> NDArray[np.str_]:
    """Read ids, through a process of its own where they are pickled objects."""
    try:
        ids = np.load(path, allow_pickle=False, mmap_mode="r")
    except ValueError as error:
        if "bject" not in str(error):  # numpy's words for an array of Python objects
            raise _unreadable(path, error) from error
        ids = _imported(path)
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    if ids.dtype.kind != "U" or ids.ndim != 1:
        raise _unreadable(path, ValueError(f"{ids.dtype} of shape {ids.shape} are no ids"))
    return np.asarray(ids)


def _imported(path: Path) -> NDArray[Any]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "ids.npy"
        command = [sys.executable, "-I", str(Path(object_ids.__file__)), str(path.resolve()), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise _unreadable(path, error) from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"its reader left with {done.returncode}"])[-1]
            raise _unreadable(path, ValueError(reason))
        return np.asarray(np.load(target, allow_pickle=False))


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
    return DataError(f"{path} cannot be read: {reason}.", "Make it again with mmcd data index.")


def _factorised(ids: NDArray[np.str_]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return the distinct ids and the number of each; only where an id changes is it looked at."""
    if not len(ids):
        return (), np.empty(0, np.int32)
    heads = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    names, number = np.unique(ids[heads], return_inverse=True)
    lengths = np.diff(np.append(heads, len(ids)))
    return tuple(names.tolist()), np.repeat(number, lengths).astype(np.int32)
