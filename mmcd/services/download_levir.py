"""Fetches LEVIR-CD with torchgeo, which knows where its three archives lie and their checksums.

What torchgeo takes for granted is looked at here: that a folder that exists is whole. An archive is unpacked again
until all of its pairs are there.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from mmcd.config import Config
from mmcd.data.levir_files import PARTS, Part, index_levir
from mmcd.errors import DataError
from mmcd.progress import Progress, silent
from mmcd.services.download import DownloadResult
from mmcd.services.published_files import PublishedFile, torchgeo_is_missing

NAME = "levir-cd"
LICENCE = "LEVIR-CD is free for academic purposes only; images are by Google Earth. Cite Chen and Shi 2020."
PUBLISHED_PAIRS: dict[Part, int] = {"train": 445, "val": 64, "test": 128}


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
    archives = _archives(request)
    fetched, kept, size = 0, 0, 0
    for number, part in enumerate(PARTS):
        progress("fetching", number, len(PARTS))
        if _pairs(request.root, part) == PUBLISHED_PAIRS[part]:
            kept += 1
            continue
        path = request.root / archives[part].name
        was_there = archives[part].sound(request.root)
        archives[part].fetch(request.root, unpack=True)
        found = _pairs(request.root, part)
        if found != PUBLISHED_PAIRS[part]:
            raise DataError(
                f"{path} gives {found} {part} pairs, {PUBLISHED_PAIRS[part]} were published.",
                "Remove other files from A, B and label, and run again.",
            )
        kept, fetched, size = kept + was_there, fetched + (not was_there), size + path.stat().st_size * (not was_there)
    progress("fetching", len(PARTS), len(PARTS))
    return DownloadResult(request.root, fetched, kept, (), size, ())


def _archives(request: LevirDownloadRequest) -> Mapping[Part, PublishedFile]:
    """Return the archive of each part."""
    try:
        from torchgeo.datasets import LEVIRCD
    except ImportError as error:
        raise torchgeo_is_missing("LEVIR-CD") from error
    splits: Mapping[str, Mapping[str, str]] = LEVIRCD.splits
    address = None if request.address is None else request.address.rstrip("/")
    found: dict[Part, PublishedFile] = {}
    for part in PARTS:
        name, url = splits[part]["filename"], splits[part]["url"]
        found[part] = PublishedFile(
            name, f"{address}/{name}" if address else url, splits[part]["md5"], f"archive of {part}"
        )
    return found


def _pairs(root: Path, part: Part) -> int:
    """Return how many whole pairs of a part are here."""
    try:
        return len(index_levir(root, part).pairs)
    except DataError:
        return 0
