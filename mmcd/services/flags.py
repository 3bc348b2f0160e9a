"""Which pictures people found cloudy or shifted: the blacklist of reference system 0, written line by line.

A flag is one line ``image_id,index,code`` at the end of the file, code ``c`` (cloudy) or ``s`` (shifted). Undoing takes
that very line out again, whole file for whole file, so that at any time the file holds flags that are meant and nothing
else, and every reader of the format understands it.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from mmcd.errors import DataError, InputError
from mmcd.geo.cog import atomic_path, storage_errors
from mmcd.locks import ATTENDED_SECONDS, turn
from mmcd.paths import workspace_folder

Code = Literal["c", "s"]
CODES: tuple[Code, ...] = get_args(Code)
MEANING: dict[Code, str] = {"c": "cloudy", "s": "shifted"}


@dataclass(frozen=True)
class Flag:
    """One line of the file.

    Attributes:
        image_id: The picture.
        index: Its position in the collection, from 0.
        code: What is wrong with it.
    """

    image_id: str
    index: int
    code: Code

    @property
    def line(self) -> str:
        """The line, with its end."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([self.image_id, self.index, self.code])
        return text.getvalue()


def add_flag(path: Path, flag: Flag) -> bool:
    """Write a flag at the end of a file and wait until it is on the disk; False when it stood there already.

    Raises:
        DataError: The file cannot be read.
        StorageError: The file cannot be written.
    """
    with _alone(path):
        if flag.code in flags_of(path).get(flag.image_id, ()):
            return False
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                file.seek(0, os.SEEK_END)
                if file.tell():  # a last line without an end would swallow the new one
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) not in b"\r\n":
                        file.write(b"\n")
                file.write(flag.line.encode())
                file.flush()
                os.fsync(file.fileno())
    return True


def undo_flag(path: Path, flag: Flag) -> None:
    """Take the last line that is this flag out of a file; all other lines stay byte for byte.

    Raises:
        InputError: The file holds no such line.
        StorageError: The file cannot be written.
    """
    with _alone(path):
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        wanted = flag.line.strip().encode()
        place = next((number for number in reversed(range(len(lines))) if lines[number].strip() == wanted), None)
        if place is None:
            raise InputError(f"{path} holds no line {wanted.decode()!r} any more.", "Somebody took it out already.")
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))


def flags_of(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the codes of each flagged picture, in the order of their lines; empty when there is no file.

    Raises:
        DataError: The file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Give a text file with one id a line.") from error
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        found[row[0]] = (*found.get(row[0], ()), row[-1] if len(row) > 1 else "")
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which lies in the workspace: the file's own folder belongs to a data set."""
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    with turn(workspace_folder("locks") / f"flags-{name}.lock", ATTENDED_SECONDS):
        yield
