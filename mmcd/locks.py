"""Locks between processes: what one of them makes in the workspace, the others wait for."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mmcd.errors import StorageError


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
