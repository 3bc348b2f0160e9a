"""Fetches published files with what torchgeo brings, and tells a user what went wrong and the way by hand."""

import errno
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from zipfile import BadZipFile

from mmcd.errors import ConfigError, DataError, NetworkError, StorageError
from mmcd.geo.cog import storage_errors

_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


@dataclass(frozen=True)
class PublishedFile:
    """One file that somebody publishes.

    Attributes:
        name: Its name here.
        url: Where it lies.
        md5: Its checksum, None where none is published.
        what: What it is, behind "The" in messages.
    """

    name: str
    url: str
    md5: str | None
    what: str

    def sound(self, root: Path) -> bool:
        """Return whether it is in a folder, with its checksum."""
        from torchgeo.datasets.utils import check_integrity

        return bool(check_integrity(root / self.name, self.md5))

    def fetch(self, root: Path, unpack: bool) -> None:
        """Fetch it into a folder, which is created when missing, unless it is there and sound; and unpack it.

        Raises:
            DataError: It is not the published one.
            NetworkError: It cannot be fetched.
            StorageError: The folder cannot be written.
        """
        from gdown.exceptions import DownloadError
        from torchgeo.datasets.utils import download_and_extract_archive, download_url

        by_hand = f"Fetch {self.name} from {self.url} in a browser, put it into {root} and run again."
        with storage_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        try:
            (download_and_extract_archive if unpack else download_url)(self.url, root, filename=self.name, md5=self.md5)
        except (RuntimeError, BadZipFile) as error:  # what torchvision raises for a checksum, gdown for a refusal
            raise DataError(f"The {self.what} is not the published one: {_line(error)}.", by_hand) from error
        except (OSError, HTTPException, DownloadError) as error:
            if getattr(error, "errno", None) in _DISK_FAULTS:
                raise StorageError(
                    f"{root} cannot be written: {_line(error)}.", "Free some space or choose another folder."
                ) from error
            raise NetworkError(f"The {self.what} cannot be fetched: {_line(error)}.", by_hand) from error


def torchgeo_is_missing(name: str) -> ConfigError:
    """Return what is said where torchgeo, which fetches a data set, is not installed."""
    return ConfigError(
        f"torchgeo, which fetches {name}, is not installed.",
        "Install it with `pip install 'mmcd[datasets]'`, in a checkout with `pip install -e '.[datasets]'`.",
    )


def _line(error: Exception) -> str:
    """Return the first line of what went wrong, without the wrapping of urllib and of the operating system."""
    cause = error if isinstance(error, HTTPError) else getattr(error, "reason", error)
    lines = str(getattr(cause, "strerror", None) or cause).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")
