"""Fetches OSCD, PASTIS and GID-15 with torchgeo, which knows where their archives lie and their checksums.

What torchgeo takes for granted is looked at here: that a folder that exists is whole, and that an archive is the
published one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

from pydantic import Field

from mmcd.config import Config
from mmcd.data.gid import index_gid
from mmcd.data.oscd_files import OSCD_PARTS, index_oscd
from mmcd.data.pastis import index_pastis
from mmcd.errors import DataError
from mmcd.progress import Progress, silent
from mmcd.services.download import DownloadResult
from mmcd.services.published_files import PublishedFile, torchgeo_is_missing

PixelsName = Literal["oscd", "pastis", "gid-15"]
NAMES: tuple[PixelsName, ...] = get_args(PixelsName)

LICENCES: Mapping[str, str] = {
    "oscd": "OSCD is listed under CC BY 4.0, its images are Copernicus Sentinel data. Cite Daudt et al. 2018.",
    "pastis": "PASTIS-R is under CC BY 4.0. Cite Sainte Fare Garnot and Landrieu 2021; tens of gigabytes.",
    "gid-15": "The terms of GID-15 are on its page, captain-whu.github.io/GID15. Cite Tong et al. 2020.",
}

PUBLISHED_COUNTS: dict[PixelsName, int] = {"oscd": 24, "pastis": 2433, "gid-15": 2}
"""Cities of OSCD, patches of PASTIS, and the labelled parts of GID-15."""


class PixelsDownloadRequest(Config):
    """What to fetch.

    Attributes:
        name: Which data set.
        root: Its folder.
        address: Where the archives lie, for a mirror; the publisher's place when None.
    """

    name: PixelsName
    root: Path
    address: str | None = Field(default=None, pattern="^https?://.+")


def download_pixels(request: PixelsDownloadRequest, progress: Progress = silent) -> DownloadResult:
    """Fetch and unpack the archives, unless the data set is whole; one that is here and sound is not fetched again.

    Args:
        request: What to fetch.
        progress: Told of the stage, archives done and archives in all; may raise to stop between two of them.

    Raises:
        ConfigError: torchgeo is not installed.
        NetworkError: An archive cannot be fetched.
        DataError: An archive is damaged, or what it holds is not as published.
        StorageError: The folder cannot be written.
    """
    archives = _archives(request)
    fetched, size, wanted = 0, 0, PUBLISHED_COUNTS[request.name]
    if _count(request) == wanted:
        return DownloadResult(request.root, 0, len(archives), (), 0, ())
    for number, archive in enumerate(archives):
        progress("fetching", number, len(archives))
        there = archive.sound(request.root)
        archive.fetch(request.root, unpack=True)
        if not there:
            fetched, size = fetched + 1, size + (request.root / archive.name).stat().st_size
    progress("fetching", len(archives), len(archives))
    if (found := _count(request)) != wanted:
        raise DataError(
            f"The archives give {found:,} whole parts of {request.name}, {wanted:,} were published.",
            f"Remove what was unpacked from {request.root}, and run again.",
        )
    return DownloadResult(request.root, fetched, len(archives) - fetched, (), size, ())


def _count(request: PixelsDownloadRequest) -> int:
    """Return how many of what `PUBLISHED_COUNTS` counts are here and whole."""
    try:
        if request.name == "oscd":
            cities = index_oscd(request.root).cities
            return sum(len(cities[part]) for part in OSCD_PARTS)
        if request.name == "pastis":
            return len(index_pastis(request.root))
        return sum(bool(index_gid(request.root, part)) for part in ("train", "val"))
    except DataError:
        return 0


def _archives(request: PixelsDownloadRequest) -> list[PublishedFile]:
    try:
        from torchgeo.datasets import GID15, OSCD, PASTIS
    except ImportError as error:
        raise torchgeo_is_missing(request.name) from error
    known = {
        "oscd": [(name, OSCD.urls[name], OSCD.md5s[name]) for name in OSCD.urls],
        "pastis": [(PASTIS.filename, PASTIS.url, PASTIS.md5)],
        "gid-15": [(GID15.filename, GID15.url, GID15.md5)],
    }[request.name]
    base = request.address and request.address.rstrip("/")
    return [
        PublishedFile(name, f"{base}/{quote(name)}" if base else url, md5, f"archive {name}")
        for name, url, md5 in known
    ]
