"""One log file a job: what a person reads who wants to know why a job of last night failed."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

TAIL_BYTES = 64 * 1024

_FORMAT = "%(asctime)s UTC  %(levelname)-7s %(message)s"

logger = logging.getLogger(__name__)


def log_path(store: Path, job_id: str) -> Path:
    """Return the log file of a job; it need not exist yet.

    Args:
        store: File of the job store.
        job_id: Id of the job.
    """
    return store.parent / "logs" / "jobs" / f"{job_id}.log"


def log_tail(path: Path, lines: int = 40) -> list[str]:
    """Return the last lines of a log, however long it is; none when there is no such file."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            found = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return found[1 if start else 0 :][-lines:]


def note(path: Path, text: str) -> None:
    """Add a line to a log on behalf of a process that can no longer do it."""
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  WARNING {text}\n")


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send what is logged inside to a file too: all of mmcd, and the warnings of other libraries."""
    handler = _handler(path)
    if handler is None:
        yield
        return
    root, own = logging.getLogger(), logging.getLogger("mmcd")
    before = own.level
    root.addHandler(handler)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        own.setLevel(before)
        root.removeHandler(handler)
        handler.close()


def _handler(path: Path) -> logging.Handler | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        # The job itself may well succeed; if the disk is full, its own error says so.
        logger.warning("no log %s: %s", path, error)
        return None
    formatter = logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    return handler
