"""Where a job runs: in which lane, and on the GPU or the processor. Free of torch, which takes seconds to load."""

import os
import platform
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Lane = Literal["light", "quick", "long"]
"""Which queue a job waits in; each has a process of its own."""

Device = Literal["any", "gpu", "cpu"]
"""What a job needs."""

Place = Literal["gpu", "cpu"]
"""What a job was given."""

LANES: tuple[Lane, ...] = ("light", "quick", "long")

_LANE_OF_KIND: dict[str, Lane] = {"check_scene": "light", "train": "long"}

_NEED_OF_DEVICE: dict[str, Device] = {"auto": "any", "cpu": "cpu"}

# Begun work first, then the kind that was served longest ago, then the oldest. A missing time sorts first.
_WAITING = """
SELECT id, lane, device, place, submitted FROM jobs AS job WHERE state = 'queued' AND lane = coalesce(?, lane)
ORDER BY attempt = 0, (SELECT max(started) FROM jobs AS served WHERE served.kind = job.kind), submitted, rowid
"""

# Only a job that could start now, were the GPU free, is promised it.
_PROMISED = """
SELECT min(submitted) FROM jobs WHERE state = 'queued'
AND (place = 'gpu' OR place = '' AND (device = 'gpu' OR device = 'any' AND lane = 'long'))
AND lane NOT IN (SELECT lane FROM jobs WHERE state = 'running')
"""


def lane_of(kind: str) -> Lane:
    """Return the lane of a kind of job; kinds that are not named are quick."""
    return _LANE_OF_KIND.get(kind, "quick")


def device_of(kind: str, request: Mapping[str, Any]) -> Device:
    """Return what a job needs: what its request names; either where it names nothing, the processor for light work."""
    if lane_of(kind) == "light":
        return "cpu"
    return _NEED_OF_DEVICE.get(str(request.get("device", "auto")), "gpu")


def gpu_here() -> bool:
    """Return whether this machine has a GPU that this process may use; told by its driver's files."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    if platform.system() == "Windows":
        return shutil.which("nvidia-smi") is not None
    return Path("/dev/kfd").exists() or any(Path("/dev").glob("nvidia[0-9]*"))


def next_job(connection: sqlite3.Connection, lane: Lane | None, gpu: bool) -> tuple[str, Place] | None:
    """Choose the job that is to run next; call it inside the transaction that marks it.

    Args:
        connection: The store, rows by name.
        lane: Lane to look in; None for all.
        gpu: Whether this machine has a GPU.

    Returns:
        Its id and what it runs on; None when nothing waits, or all that waits needs the GPU while that is taken.
    """
    waiting = connection.execute(_WAITING, (lane,))
    taken = connection.execute("SELECT 1 FROM jobs WHERE state = 'running' AND place = 'gpu'").fetchone() is not None
    promised = connection.execute(_PROMISED).fetchone()[0]
    for row in waiting:
        mine = promised is None or row["submitted"] <= promised
        place = _place(row, gpu, free=not taken and mine)
        if place is not None:
            return row["id"], place
    return None


def _place(row: sqlite3.Row, gpu: bool, free: bool) -> Place | None:
    """Return what a waiting job runs on now; None when it has to wait for the GPU."""
    if "cpu" in (row["place"], row["device"]) or (row["device"] == "any" and not gpu):
        return "cpu"
    if free or not gpu:  # without a GPU, whoever asks for one is told so by its own handler
        return "gpu"
    either = row["device"] == "any" and not row["place"] and row["lane"] != "long"
    return "cpu" if either else None
