"""Where things are: the user's workspace, and the files that travel with the package.

Shipped files are found from any working directory, in a checkout (beside ``mmcd/``) and in an
installed wheel (inside ``mmcd/_shipped``).

The workspace carries the version of its layout in ``workspace.json``. One of an older version is brought up to date
when it is opened; one of a newer version is left alone, so that going back to an older mmcd loses nothing.
"""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import platformdirs

from mmcd.errors import StorageError

SCHEMA_FILE = "workspace.json"

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """Return the path of a file or folder that travels with mmcd, such as ``weights`` or ``app.py``."""
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.exists() else _PACKAGE.parent / name


def weights_dir() -> Path:
    """Return the folder of shipped weights and their cards."""
    return shipped("weights")


def sample_data_dir() -> Path:
    """Return the folder of the sample catalog."""
    return shipped("sample_data")


def workspace() -> Path:
    """Return the user's workspace, created when missing and brought to the present layout when older.

    It is ``$MMCD_WORKSPACE`` when set, else the platform's data directory.

    Raises:
        StorageError: The folder cannot be created, or a newer version of mmcd wrote it.
    """
    chosen = os.environ.get("MMCD_WORKSPACE")
    path = Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("mmcd", appauthor=False))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The workspace {path} cannot be created: {error.strerror}.",
            "Set MMCD_WORKSPACE to a folder you can write.",
        ) from error
    path = path.resolve()
    _bring_up_to_date(path)
    return path


def workspace_folder(name: str) -> Path:
    """Return a folder of the workspace (``runs``, ``scenes``, ``assets`` ...), created when missing."""
    path = workspace() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def schema_version(folder: Path) -> int:
    """Return the version of a workspace's layout; 1 when it carries none, as the first ones did.

    Args:
        folder: The workspace; is not changed.

    Raises:
        StorageError: Its version file is damaged.
    """
    path = folder / SCHEMA_FILE
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["schema"])
    except FileNotFoundError:
        return 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is damaged: {error}.",
            f'Write {{"schema": {SCHEMA_VERSION}}} into it if this version of mmcd used the workspace last.',
        ) from error


def _bring_up_to_date(folder: Path) -> None:
    """Take a workspace from its version to the present one, a step at a time, and note each step that was finished."""
    version = schema_version(folder)
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"The workspace {folder} was written by a newer mmcd (schema {version}, this one knows {SCHEMA_VERSION}).",
            "Nothing was changed. Update mmcd, or set MMCD_WORKSPACE to another folder.",
        )
    for step in range(version, SCHEMA_VERSION):
        try:
            _MIGRATIONS[step](folder)
            _stamp(folder, step + 1)
        except OSError as error:
            raise StorageError(
                f"The workspace {folder} cannot be brought from schema {step} to {step + 1}: {error}.",
                "Nothing was lost. Check that the folder can be written and has space, then start again.",
            ) from error


def _stamp(folder: Path, version: int) -> None:
    # App and worker may come here together: each writes a file of its own, and the last to rename it wins.
    partial = folder / f"{SCHEMA_FILE}.{secrets.token_hex(4)}"
    partial.write_text(json.dumps({"schema": version}) + "\n", encoding="utf-8")
    partial.replace(folder / SCHEMA_FILE)


def _give_sources_a_folder(folder: Path) -> None:
    """Make the folder of downloaded and uploaded images, which the first layout did not have."""
    (folder / "sources").mkdir(exist_ok=True)


# Step from each version to the next. A step may be run again after it was interrupted, and by two processes at once.
_MIGRATIONS: dict[int, Callable[[Path], None]] = {1: _give_sources_a_folder}
SCHEMA_VERSION = 1 + len(_MIGRATIONS)
"""Version of the workspace's layout that this version of mmcd writes."""
