"""What MLflow's store of the workspace knows of trainings: their state, settings, latest figures and curves.

The SQLite file is read directly and read-only. MLflow's own client takes seconds to import, checks and migrates the
store whenever it is opened, which a training that is creating it forbids, and asks once a run and metric; the tables
read here (``runs``, ``metrics``, ``latest_metrics``, ``params``) have kept their columns since MLflow 1.0.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcd.errors import StorageError
from mmcd.paths import workspace

STORE = "mlflow.db"
POINTS = 2000
"""Points a curve is thinned to: more than a screen has pixels for."""

_WAIT_SECONDS = 5.0


@dataclass(frozen=True)
class Tracked:
    """What is known of one training, over all times it was resumed.

    Attributes:
        name: Name of the run, which is that of its folder.
        ids: MLflow's ids of its parts, oldest first.
        state: MLflow's word for the newest part: RUNNING, FINISHED, FAILED or KILLED.
        started: When the first part began, UTC.
        ended: When the newest part ended, UTC; None while MLflow does not know of an end.
        last: When the last figure was written, UTC; None before the first one.
        settings: The configuration, text by dotted key.
        figures: Latest value of each metric.
    """

    name: str
    ids: tuple[str, ...]
    state: str
    started: datetime
    ended: datetime | None
    last: datetime | None
    settings: dict[str, str]
    figures: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """One metric of one training.

    Attributes:
        step: Optimiser steps, shape (N,), int64, rising.
        hours: Time since the training began, shape (N,), float64.
        value: The metric, shape (N,), float64; NaN where it was none.
    """

    step: NDArray[np.int64]
    hours: NDArray[np.float64]
    value: NDArray[np.float64]


def store_path() -> Path:
    """Return where MLflow's store of the workspace is, or would be."""
    return workspace() / "training" / STORE


def list_tracked() -> dict[str, Tracked]:
    """Return the trainings by name, the newest first; none where nothing was tracked yet.

    Raises:
        StorageError: The store cannot be read.
    """
    with _opened() as store:
        if store is None:
            return {}
        runs = store.execute(
            "SELECT name, run_uuid, status, start_time, end_time FROM runs "
            "WHERE lifecycle_stage = 'active' AND name IS NOT NULL ORDER BY start_time"
        ).fetchall()
        latest = store.execute("SELECT run_uuid, key, value, is_nan, timestamp FROM latest_metrics").fetchall()
        settings = store.execute("SELECT run_uuid, key, value FROM params").fetchall()
    parts: dict[str, list[tuple[Any, ...]]] = {}
    for name, *rest in runs:
        parts.setdefault(name, []).append(tuple(rest))
    figures, times = _latest(latest)
    told: dict[str, dict[str, str]] = {}
    for run, key, value in settings:
        told.setdefault(run, {})[key.replace("/", ".")] = value
    found = [_tracked(name, rows, figures, times, told) for name, rows in parts.items()]
    return {each.name: each for each in sorted(found, key=lambda each: each.started, reverse=True)}


def read_curves(ids: Sequence[str], metrics: Sequence[str]) -> dict[str, Curve]:
    """Return the curves of one training.

    Args:
        ids: MLflow's ids of its parts, oldest first. Steps that a resumed part did again are told by that part.
        metrics: Names of the metrics.

    Returns:
        A curve for each metric that has values, thinned to `POINTS`.

    Raises:
        StorageError: The store cannot be read.
    """
    if not ids or not metrics:
        return {}
    with _opened() as store:
        if store is None:
            return {}
        rows = store.execute(
            f"SELECT key, run_uuid, step, timestamp, value, is_nan FROM metrics WHERE run_uuid IN ({_marks(ids)}) "
            f"AND key IN ({_marks(metrics)}) ORDER BY key, step, timestamp",
            (*ids, *metrics),
        ).fetchall()
        began = store.execute("SELECT start_time FROM runs WHERE run_uuid = ?", (ids[0],)).fetchone()
    order = {run: number for number, run in enumerate(ids)}
    by_metric: dict[str, dict[int, tuple[int, int, float]]] = {}
    for key, run, step, moment, value, is_nan in rows:
        points = by_metric.setdefault(key, {})
        if step not in points or order[run] >= points[step][0]:
            points[step] = (order[run], moment, float("nan") if is_nan else value)
    start = began[0] if began else 0
    return {key: _curve(points, start) for key, points in by_metric.items()}


def _curve(points: dict[int, tuple[int, int, float]], start: int) -> Curve:
    steps = sorted(points)
    keep = steps[:: -(-len(steps) // POINTS)]
    if keep[-1] != steps[-1]:
        keep.append(steps[-1])  # where the training is now
    hours = [(points[step][1] - start) / 3_600_000 for step in keep]
    return Curve(np.array(keep, np.int64), np.array(hours, float), np.array([points[step][2] for step in keep], float))


def _latest(rows: Sequence[tuple[Any, ...]]) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return latest values by run and metric, and the time of the last one by run."""
    figures: dict[str, dict[str, float]] = {}
    times: dict[str, int] = {}
    for run, key, value, is_nan, moment in rows:
        figures.setdefault(run, {})[key] = float("nan") if is_nan else value
        times[run] = max(times.get(run, 0), moment or 0)
    return figures, times


def _tracked(
    name: str,
    rows: list[tuple[Any, ...]],
    figures: dict[str, dict[str, float]],
    times: dict[str, int],
    told: dict[str, dict[str, str]],
) -> Tracked:
    ids = tuple(row[0] for row in rows)
    _, state, _, ended = rows[-1]
    last = max((times.get(run, 0) for run in ids), default=0)
    merged: dict[str, float] = {}
    for run in ids:
        merged |= figures.get(run, {})
    return Tracked(
        name,
        ids,
        state,
        _time(rows[0][2]) or datetime.now(UTC),
        _time(ended),
        _time(last),
        told.get(ids[-1], {}),
        merged,
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))


@contextlib.contextmanager
def _opened() -> Iterator[sqlite3.Connection | None]:
    """Open the store to read it; None where there is none, or where a training is just creating it."""
    path = store_path()
    if not path.is_file():
        yield None
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)) as store:
            tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            yield store if {"runs", "metrics", "latest_metrics", "params"} <= tables else None
    except sqlite3.Error as error:
        raise StorageError(
            f"MLflow's store {path} cannot be read: {error}.",
            "If it is damaged, move it away; runs keep their folders.",
        ) from error
