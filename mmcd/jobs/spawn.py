"""Starting the worker from the app, and learning whether it lives."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from mmcd.errors import StorageError
from mmcd.jobs.runner import lock_path
from mmcd.jobs.store import JobStore
from mmcd.jobs.supervisor import IDLE_SECONDS

_spawned: dict[Path, subprocess.Popen[bytes]] = {}
_spawn_lock = threading.Lock()


def open_store(workspace: Path) -> JobStore:
    """Return the job store of a workspace."""
    return JobStore(workspace / "jobs.sqlite")


def worker_alive(store: JobStore) -> bool:
    """Return whether a worker serves this store now."""
    with contextlib.closing(sqlite3.connect(lock_path(store.path), timeout=0)) as connection:
        try:
            # A read is refused while a worker holds the file; readers do not disturb one another.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            return True
    return False


def ensure_worker(workspace: Path) -> None:
    """Start ``python -m mmcd worker`` for a workspace unless one is alive.

    It outlives this process, so that a run goes on when the app is closed, and leaves when it has had nothing to do.
    Its messages go to ``logs/worker.log`` in the workspace.

    Raises:
        StorageError: The log file cannot be written.
    """
    with _spawn_lock:
        starting = _spawned.get(workspace)
        # A worker that was just started has not taken the lock yet; a second one would only find it held and leave.
        if (starting is not None and starting.poll() is None) or worker_alive(open_store(workspace)):
            return
        log = workspace / "logs" / "worker.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                _spawned[workspace] = subprocess.Popen(
                    [sys.executable, "-m", "mmcd", "worker", "--idle", str(IDLE_SECONDS)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=_worker_environment(workspace),
                    start_new_session=True,
                )
        except OSError as error:
            raise StorageError(f"The worker cannot be started: {error}.", "Check the disk and try again.") from error


def _worker_environment(workspace: Path) -> dict[str, str]:
    # mmcd need not be installed: `streamlit run app.py` finds it beside the script, and so must the worker.
    found = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "MMCD_WORKSPACE": str(workspace), "PYTHONPATH": os.pathsep.join(filter(None, found))}
