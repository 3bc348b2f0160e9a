"""The table of jobs, its version, and how a store of an older version is brought up to date with its jobs kept."""

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from mmcd.errors import StorageError
from mmcd.jobs.places import device_of, lane_of

_FIRST = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0, cancel_requested INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL, started REAL, stage_started REAL, heartbeat REAL, finished REAL,
    result TEXT, message TEXT NOT NULL DEFAULT '', hint TEXT NOT NULL DEFAULT ''
);
CREATE INDEX jobs_by_state ON jobs (state, submitted)
"""

_LANES = """
ALTER TABLE jobs ADD COLUMN lane TEXT NOT NULL DEFAULT 'quick';
ALTER TABLE jobs ADD COLUMN device TEXT NOT NULL DEFAULT 'any';
ALTER TABLE jobs ADD COLUMN place TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN cancel_asked REAL;
CREATE INDEX jobs_by_kind ON jobs (kind, started)
"""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a store to the present version, all steps or none.

    Args:
        connection: The open store, rows by name.
        path: Its file, for messages.

    Raises:
        StorageError: A newer version of mmcd wrote it.
    """
    version = _version(connection)
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"{path} was written by a newer mmcd (schema {version}, this one reads {SCHEMA_VERSION}).",
            "Update mmcd, or set MMCD_WORKSPACE to another folder.",
        )
    if version < SCHEMA_VERSION:
        # Two processes may come here together: the second finds the work done inside its own transaction.
        connection.execute("BEGIN IMMEDIATE")
        for step in range(_version(connection), SCHEMA_VERSION):
            _STEPS[step](connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _create(connection: sqlite3.Connection) -> None:
    _each(connection, _FIRST)


def _add_lanes(connection: sqlite3.Connection) -> None:
    """Give every job its lane and device; a cancel that is under way counts from now."""
    _each(connection, _LANES)
    for row in connection.execute("SELECT id, kind, request FROM jobs").fetchall():
        needs = (lane_of(row["kind"]), device_of(row["kind"], json.loads(row["request"])), row["id"])
        connection.execute("UPDATE jobs SET lane = ?, device = ? WHERE id = ?", needs)
    connection.execute("UPDATE jobs SET cancel_asked = ? WHERE cancel_requested", (time.time(),))


def _each(connection: sqlite3.Connection, statements: str) -> None:
    # `executescript` would end the transaction first.
    for statement in statements.split(";"):
        connection.execute(statement)


_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {0: _create, 1: _add_lanes}

SCHEMA_VERSION = len(_STEPS)
"""Version of the store that this version of mmcd writes."""
