"""Fetches LEVIR-CD with torchgeo, which knows where its three archives lie and their checksums.

What torchgeo takes for granted is looked at here: that a folder that exists is whole. An archive is unpacked again
until all of its pairs are there.
"""

import errno
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from pydantic import Field

from mmcd.config import Config
from mmcd.data.levir_files import PARTS, Part, index_levir
from mmcd.errors import ConfigError, DataError, NetworkError, StorageError
from mmcd.geo.cog import storage_errors
from mmcd.progress import Progress, silent
from mmcd.services.download import DownloadResult

NAME = "levir-cd"
LICENCE = "LEVIR-CD is free for academic purposes only; images are by Google Earth. Cite Chen and Shi 2020."
PUBLISHED_PAIRS: dict[Part, int] = {"train": 445, "val": 64, "test": 128}

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


class LevirDownloadRequest(Config):
    """What to fetch.

    Attributes:
        root: Folder of the data set.
        address: Where ``train.zip``, ``val.zip`` and ``test.zip`` lie, for a mirror; the publisher's place when None.
    """

    root: Path
    address: str | None = Field(default=None, pattern="^https?://.+")


def download_levir(request: LevirDownloadRequest, progress: Progress = silent) -> DownloadResult:
    """Fetch and unpack the archives whose pairs are not all here; an archive that is here and sound is not fetched.

    Args:
        request: What to fetch.
        progress: Told of the stage, parts done and parts in all; may raise to stop between two parts.

    Raises:
        ConfigError: torchgeo is not installed.
        NetworkError: An archive cannot be fetched.
        DataError: An archive is damaged or holds other pairs than were published.
        StorageError: The folder cannot be written.
    """
    archives = _archives()
    fetched, kept, size = 0, 0, 0
    for number, part in enumerate(PARTS):
        progress("fetching", number, len(PARTS))
        if _pairs(request.root, part) == PUBLISHED_PAIRS[part]:
            kept += 1
            continue
        path = request.root / archives[part]["filename"]
        was_there = _sound(path, archives[part]["md5"])
        _fetch(request, part, archives[part])
        found = _pairs(request.root, part)
        if found != PUBLISHED_PAIRS[part]:
            raise DataError(
                f"{path} gives {found} {part} pairs, {PUBLISHED_PAIRS[part]} were published.",
                "Remove other files from A, B and label, and run again.",
            )
        kept, fetched, size = kept + was_there, fetched + (not was_there), size + path.stat().st_size * (not was_there)
    progress("fetching", len(PARTS), len(PARTS))
    return DownloadResult(request.root, fetched, kept, (), size, ())


def _archives() -> Mapping[str, Mapping[str, str]]:
    """Return address, file name and MD5 of the archive of each part."""
    try:
        from torchgeo.datasets import LEVIRCD
    except ImportError as error:
        raise ConfigError(
            "torchgeo, which fetches LEVIR-CD, is not installed.",
            "Install it with `pip install 'mmcd[datasets]'`, in a checkout with `pip install -e '.[datasets]'`.",
        ) from error
    splits: Mapping[str, Mapping[str, str]] = LEVIRCD.splits
    return splits


def _fetch(request: LevirDownloadRequest, part: Part, archive: Mapping[str, Any]) -> None:
    from gdown.exceptions import DownloadError
    from torchgeo.datasets.utils import download_and_extract_archive

    name = archive["filename"]
    url = f"{request.address.rstrip('/')}/{name}" if request.address else archive["url"]
    by_hand = f"Fetch {name} from {url} in a browser, put it into {request.root} and run again."
    with storage_errors(request.root):
        request.root.mkdir(parents=True, exist_ok=True)
    try:
        download_and_extract_archive(url, request.root, filename=name, md5=archive["md5"])
    except RuntimeError as error:  # what torchvision raises for a wrong checksum and gdown for a refusal
        raise DataError(f"The archive of {part} is not the published one: {_line(error)}.", by_hand) from error
    except (OSError, HTTPException, DownloadError) as error:
        if getattr(error, "errno", None) in _DISK_FAULTS:
            raise StorageError(
                f"{request.root} cannot be written: {_line(error)}.", "Free some space or choose another folder."
            ) from error
        raise NetworkError(f"The archive of {part} cannot be fetched: {_line(error)}.", by_hand) from error


def _sound(path: Path, md5: str) -> bool:
    from torchgeo.datasets.utils import check_integrity

    return bool(check_integrity(path, md5))


def _pairs(root: Path, part: Part) -> int:
    """Return how many whole pairs of a part are here."""
    try:
        return len(index_levir(root, part).pairs)
    except DataError:
        return 0


def _line(error: Exception) -> str:
    """Return the first line of what went wrong, without the wrapping of urllib and of the operating system."""
    cause = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
    lines = str(getattr(cause, "strerror", None) or cause).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")
