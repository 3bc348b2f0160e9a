"""Weights of the workspace: each content is there once, and a card is never written over another one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mmcd.cards import Weighted
from mmcd.errors import StorageError
from mmcd.geo.cog import atomic_path
from mmcd.paths import workspace_folder


def copy_weights(weights: Path, card: Weighted) -> Path:
    """Return a copy of the weight file in the workspace, named by its hash, so that each content is there once."""
    copy = workspace_folder("weights") / f"{card.name}-{card.sha256[:12]}.safetensors"
    if not copy.is_file():
        with atomic_path(copy) as temporary:
            shutil.copyfile(weights, temporary)
    return copy


def write_new(path: Path, write: Callable[[Path], None]) -> bool:
    """Write a card where there is none; return False, with nothing changed, where there is one.

    Args:
        path: Where.
        write: Writes the card to the path that it is given.

    Raises:
        StorageError: The workspace cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(partial)
        os.link(partial, path)  # refuses a name that is taken meanwhile
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", "Check space and rights.") from error
    finally:
        partial.unlink(missing_ok=True)
    return True
