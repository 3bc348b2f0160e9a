"""Fetches EuroSAT: its 13 bands with torchgeo's lists and checksums, or the colour images of reference system 3."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from mmcd.config import Config
from mmcd.data.eurosat_files import CLASSES, FOLDERS, Form, files_of
from mmcd.errors import DataError
from mmcd.progress import Progress, silent
from mmcd.services.download import DownloadResult
from mmcd.services.published_files import PublishedFile, torchgeo_is_missing

EuroSatName = Literal["eurosat", "eurosat-rgb"]
NAMES: tuple[EuroSatName, ...] = get_args(EuroSatName)

LICENCE = "EuroSAT is under the MIT licence; its images are Copernicus Sentinel data. Cite Helber et al. 2019."
PUBLISHED_IMAGES = 27_000

_FORMS: Mapping[EuroSatName, Form] = {"eurosat": "ms", "eurosat-rgb": "rgb"}
_CORNELL = "https://research.cs.cornell.edu/caco/data/eurosat/"


class EuroSatDownloadRequest(Config):
    """What to fetch.

    Attributes:
        name: ``eurosat``, 13 bands, or ``eurosat-rgb``, colour.
        root: Folder of the data set; both may lie in one.
        address: Where archive and lists lie, for a mirror; the publisher's place when None.
    """

    name: EuroSatName
    root: Path
    address: str | None = Field(default=None, pattern="^https?://.+")


def download_eurosat(request: EuroSatDownloadRequest, progress: Progress = silent) -> DownloadResult:
    """Fetch the lists and the archive, and unpack it, unless they are here.

    Args:
        request: What to fetch.
        progress: Told of the stage, files done and files in all; may raise to stop between two files.

    Raises:
        ConfigError: torchgeo is not installed.
        NetworkError: A file cannot be fetched.
        DataError: A file is damaged, or the archive holds another number of images than was published.
        StorageError: The folder cannot be written.
    """
    *lists, archive = _files(request)
    fetched, size = 0, 0
    whole = _images(request) == PUBLISHED_IMAGES
    wanted = lists if whole else [*lists, archive]
    for number, file in enumerate(wanted):
        progress("fetching", number, len(wanted))
        there = file.sound(request.root)
        if not there or file is archive:
            file.fetch(request.root, unpack=file is archive)
        if not there:
            fetched, size = fetched + 1, size + (request.root / file.name).stat().st_size
    progress("fetching", len(wanted), len(wanted))
    found = _images(request)
    if found != PUBLISHED_IMAGES:
        raise DataError(
            f"{request.root / archive.name} gives {found:,} images, {PUBLISHED_IMAGES:,} were published.",
            "Remove the archive and the unpacked folder, and run again.",
        )
    return DownloadResult(request.root, fetched, len(lists) + 1 - fetched, (), size, ())


def _images(request: EuroSatDownloadRequest) -> int:
    """Return how many images are unpacked."""
    form = _FORMS[request.name]
    homes = [request.root / folder for folder in FOLDERS[form]]
    return max(sum(len(files_of(home / name, form)) for name in CLASSES) for home in homes)


def _files(request: EuroSatDownloadRequest) -> list[PublishedFile]:
    """Return the published lists and, last, the archive."""
    try:
        from torchgeo.datasets import EuroSAT, EuroSATSpatial
    except ImportError as error:
        raise torchgeo_is_missing("EuroSAT") from error
    if request.name == "eurosat-rgb":  # no checksums are published: the number of unpacked images is compared
        sums: dict[str, str | None] = {"train.txt": None, "val.txt": None, "EuroSAT_RGB.zip": None}
        place = _CORNELL
    else:
        kinds = (EuroSAT, EuroSATSpatial)
        sums = {name: kind.split_md5s[part] for kind in kinds for part, name in kind.split_filenames.items()}
        sums[EuroSAT.filename] = EuroSAT.md5
        place = EuroSAT.url
    base = (request.address or place).rstrip("/")
    return [PublishedFile(name, f"{base}/{name}", md5, f"file {name}") for name, md5 in sums.items()]
