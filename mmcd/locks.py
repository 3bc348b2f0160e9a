"""Locks between processes: what one of them makes in the workspace, the others wait for."""

import contextlib
import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mmcd.errors import StorageError

ATTENDED_SECONDS = 60.0
"""How long to wait for a lock that is held shortly, where somebody waits and nothing can interrupt."""

_LOOK_SECONDS = 1.0  # between two looks at a lock, so that waiting can be told and interrupted


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[bool]:
    """Hold a lock, or learn that another process or thread holds it.

    An exclusive SQLite transaction on a file of its own: the same on every platform, and gone with its process. The
    file stays, because two could hold one that is removed and made anew.

    Args:
        path: File of the lock, in a folder that exists.
        seconds: How long to wait for it.

    Raises:
        StorageError: The file cannot be used.
    """
    with contextlib.ExitStack() as stack:
        try:
            connection = sqlite3.connect(path, timeout=seconds, isolation_level=None, check_same_thread=False)
            stack.enter_context(contextlib.closing(connection))
            connection.execute("BEGIN EXCLUSIVE")
            held = True
        except sqlite3.Error as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise StorageError(f"{path} cannot be locked: {error}.", "Check the disk and the folder.") from error
            held = False
        yield held


@contextlib.contextmanager
def turn(path: Path, seconds: float = math.inf, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock once no other process or thread holds it.

    Args:
        path: File of the lock, in a folder that exists.
        seconds: How long to wait for it.
        waiting: Called about once a second of waiting; may raise to give up.

    Raises:
        StorageError: The file cannot be used, or the lock is held for longer than this.
    """
    end = time.monotonic() + seconds
    while True:
        with locked(path, min(_LOOK_SECONDS, seconds)) as held:
            if held:
                yield
                return
        if time.monotonic() > end:
            raise StorageError(f"Another process holds {path} for {seconds:.0f} s.", "Wait for its end and try again.")
        waiting()
