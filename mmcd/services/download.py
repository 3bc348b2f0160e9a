"""Fetches BRIGHT, whole or single events, out of the archives it is published in, by byte ranges.

Only what is asked for crosses the network: the archive's directory, then the bytes of the wanted files. A file gets its
name once its checksum in the archive's directory (CRC-32) fits, and is not fetched again while it does; so a download
that broke goes on at the file where it stopped, and takes no more disk than the files themselves.
"""

import io
import re
import shutil
import struct
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field

from mmcd.config import Config
from mmcd.data.bright import CONTEST_FOLDER, FOLDERS, LAYERS, NOT_SHARED, PARTS, SUFFIXES, event_of, is_tile_id
from mmcd.errors import DataError, NetworkError, StorageError
from mmcd.geo.cog import atomic_path, storage_errors
from mmcd.progress import Progress, silent
from mmcd.services.sources import opened

LICENCE = (
    "Rights lie with the sources: Maxar images and the labels drawn from them are CC BY-NC 4.0, SAR images CC BY 4.0; "
    "read BRIGHT's own statement before use."
)
ATTEMPTS = 4
PAUSE_SECONDS = 2.0
"""Before the second attempt at a range; doubled before each further one."""

_HUB = "https://huggingface.co/datasets/Kullervo/BRIGHT/resolve/"
_DIRECTORY_BLOCK, _FILE_BLOCK = 1 << 16, 8 << 20  # Bytes that a request fetches at least, where they are wanted.
_SPARE_BYTES = 200 << 20
_LONGEST_READ = 64 << 20  # Bytes; about a hundred times what the directory of 4,246 tiles takes.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ADDRESS_SIGNS = "%/:=&?~#+!$,;'@()*[]"  # what an address holds beside letters and digits
_SHOWN = 5
_LIST = re.compile(r"\w+_set(level)?\.txt")


@dataclass(frozen=True)
class _Published:
    """Where a data set lies: an address that ends with a slash, and the archives there."""

    address: str
    archives: tuple[str, ...]


_PUBLISHED = {
    "bright": _Published(f"{_HUB}main/", ("pre-event.zip", "post-event.zip", "target.zip")),
    "dfc25": _Published(f"{_HUB}50901f05db4acbd141e7c96d719d8317910498fb/", (f"{CONTEST_FOLDER}.zip",)),
}


class DownloadRequest(Config):
    """What to fetch.

    Attributes:
        name: ``bright``, the whole data set in the flat layout, or ``dfc25``, the contest's tiles in its folders.
        root: Folder of the data set.
        events: Events, as in the ids; all when empty.
        address: Where the archives lie, for a mirror; the publisher's place when None.
    """

    name: Literal["bright", "dfc25"]
    root: Path
    events: tuple[str, ...] = ()
    address: str | None = Field(default=None, pattern="^https?://.+")


@dataclass(frozen=True)
class DownloadResult:
    """What was fetched.

    Attributes:
        root: Folder of the data set.
        fetched: Files that were fetched.
        kept: Files that were there already, with the archive's checksum.
        replaced: Those of the fetched files that were there with other content.
        size: Bytes of the fetched files.
        warnings: What the archives do not hold.
    """

    root: Path
    fetched: int
    kept: int
    replaced: tuple[Path, ...]
    size: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "root": str(self.root),
            "fetched": self.fetched,
            "kept": self.kept,
            "replaced": [str(path) for path in self.replaced],
            "bytes": self.size,
            "warnings": list(self.warnings),
        }


def download(request: DownloadRequest, progress: Progress = silent) -> DownloadResult:
    """Fetch files that are not here yet.

    Args:
        request: What to fetch.
        progress: Told of the stage and of files checked, then of megabytes done, and of all of them; may raise to
            stop, which keeps every whole file.

    Raises:
        DataError: The archives hold no such event, or are damaged.
        InputError: The address is none.
        NetworkError: A server cannot be reached, or does not answer byte ranges.
        StorageError: There is no space, or a file that is here cannot be read.
    """
    published = _PUBLISHED[request.name]
    base = published.address if request.address is None else request.address.rstrip("/") + "/"
    archives = [_Archive(quote(base + name, safe=_ADDRESS_SIGNS), request) for name in published.archives]
    _check_events(request.events, archives)
    files = [(archive, info, path) for archive in archives for info, path in archive.wanted.items()]
    missing = []
    for number, file in enumerate(files):
        progress(f"checking {file[2].name}", number, len(files))
        if not _fits(file[1], file[2]):
            missing.append(file)
    replaced = tuple(path for _, _, path in missing if path.exists())
    total = sum(info.file_size for _, info, _ in missing)
    _need(total, request.root)
    done = 0
    for archive, info, path in missing:
        progress(f"downloading {path.name} (MB)", done >> 20, total >> 20)
        archive.extract(info, path)
        done += info.file_size
    progress("downloading (MB)", total >> 20, total >> 20)
    absent = [event for event in request.events if request.name == "bright" and event in NOT_SHARED]
    warnings = [f"{event}: its optical images may not be passed on and are in no archive." for event in absent]
    if replaced:
        more = f" and {len(replaced) - _SHOWN:,} more" if len(replaced) > _SHOWN else ""
        shown = ", ".join(path.name for path in replaced[:_SHOWN])
        warnings.append(f"{shown}{more}: replaced, for they were not the archive's.")
    return DownloadResult(request.root, len(missing), len(files) - len(missing), replaced, total, tuple(warnings))


class RemoteFile(io.RawIOBase):
    """A file on a web server, read by byte ranges; it must not change while it is read.

    Attributes:
        size: Its length in bytes.
        ahead: Bytes that a request fetches at least.
        stop: Byte before which fetching ahead ends.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._place = self._start = 0
        self._block = b""
        self._validator: str | None = None
        self.size, self.ahead = 0, _DIRECTORY_BLOCK
        self._block = self._range(0, 1)
        self.stop = self.size

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the byte that is read next."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another byte; see `io.IOBase.seek`."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Return bytes; what an archive asks for at once is bounded, for its own lengths may be wrong.

        Raises:
            BadZipFile: More than any directory has is asked for.
            NetworkError: The server cannot be reached, or the file is not what it was.
        """
        if size > _LONGEST_READ:
            raise zipfile.BadZipFile(f"it asks for {size:,} bytes at once")
        return super().read(size) or b""

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, but for what lies behind the end of the file.

        Raises:
            NetworkError: The server cannot be reached, or the file is not what it was.
        """
        view = memoryview(buffer).cast("B")
        want = max(0, min(len(view), self.size - self._place))
        filled = 0
        while filled < want:
            place = self._place + filled
            if not self._start <= place < self._start + len(self._block):
                ahead = min(place + self.ahead, max(self.stop, place))
                self._block, self._start = self._range(place, max(place + want - filled, ahead)), place
            part = self._block[place - self._start :][: want - filled]
            view[filled : filled + len(part)] = part
            filled += len(part)
        self._place += filled
        return filled

    def _range(self, start: int, stop: int) -> bytes:
        """Fetch bytes; a connection that breaks is tried again a few times."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                return self._asked(start, min(stop, self.size or stop))
            except urllib.error.HTTPError as error:
                reason: object = f"it answers {error.code} {error.reason}"
                if error.code < 500 and error.code != 429:
                    break
            except (InvalidURL, ValueError) as error:
                reason = error
                break
            except (urllib.error.URLError, HTTPException, OSError) as error:
                reason = getattr(error, "reason", error) or type(error).__name__
        raise NetworkError(
            f"{self._address} cannot be read: {reason}.",
            "Check the address and the connection, and run the same command again: it goes on where it stopped.",
        )

    def _asked(self, start: int, stop: int) -> bytes:
        headers = {"User-Agent": "mmcd", "Range": f"bytes={start}-{stop - 1}"}
        with opened(urllib.request.Request(self._address, headers=headers)) as answer:
            if answer.status != 206:
                raise NetworkError(
                    f"{self._address} does not answer byte ranges.",
                    "Use another mirror with --address, or download the archive and unpack it yourself.",
                )
            content_range = answer.headers.get("Content-Range", "")
            self._check_same(content_range, answer.headers.get("ETag"))
            if not re.match(rf"bytes\s+{start}-", content_range):
                raise NetworkError(
                    f"{self._address} answers {content_range!r} where byte {start:,} was asked for.",
                    "Use another mirror with --address, or download the archive and unpack it yourself.",
                )
            content: bytes = answer.read(stop - start)
        if len(content) != stop - start:
            raise ConnectionError(f"{len(content):,} of {stop - start:,} bytes came")
        return content

    def _check_same(self, content_range: str, validator: str | None) -> None:
        size = content_range.rpartition("/")[2]
        if not size.isdigit():
            raise NetworkError(f"{self._address} does not say how long it is.", "Use another mirror with --address.")
        if self.size and (int(size), validator) != (self.size, self._validator):
            raise NetworkError(f"{self._address} changed while it was read.", "Run the same command again.")
        self.size, self._validator = int(size), validator


class _Archive:
    """A ZIP on a web server.

    Attributes:
        wanted: Where each wanted file belongs.
        events: Events of all its files.
    """

    def __init__(self, address: str, request: DownloadRequest) -> None:
        self._address = address
        self._remote = RemoteFile(address)
        with _reading(address):
            self._zip = zipfile.ZipFile(self._remote)
        members = sorted(self._zip.infolist(), key=lambda info: info.header_offset)
        self.events: set[str] = set()
        self.wanted: dict[zipfile.ZipInfo, Path] = {}
        self._stops: dict[zipfile.ZipInfo, int] = {}
        for info in members:
            self._sort(info, request)
        odd = next((info for info in self.wanted if info.compress_type not in _METHODS), None)
        if odd is not None:
            raise DataError(
                f"{odd.filename} in {address} is packed by method {odd.compress_type}; only stored and deflated "
                "files are read.",
                "Use another --address.",
            )
        stop = self._zip.start_dir
        for info in reversed(members):
            if info in self.wanted:
                self._stops[info] = stop
            else:
                stop = info.header_offset
        if not self.events:
            raise DataError(f"{address} holds no BRIGHT tile.", "Check --address.")

    def _sort(self, info: zipfile.ZipInfo, request: DownloadRequest) -> None:
        """Note where a member belongs, if it is a tile's file of a wanted event or a split list."""
        place = PurePosixPath(info.filename)
        if info.is_dir() or "__MACOSX" in place.parts:
            return
        home = request.root
        if request.name == "dfc25":
            home = home / CONTEST_FOLDER
            if _LIST.fullmatch(place.name):
                self.wanted[info] = home / place.name
                return
            part = next((name for name in place.parts if name in PARTS), None)
            if part is None:
                return
            home = home / part
        for layer in LAYERS:
            image_id = place.name.removesuffix(SUFFIXES[layer])
            if image_id != place.name and is_tile_id(image_id):
                event = event_of(image_id)
                self.events.add(event)
                if event in request.events or not request.events:
                    self.wanted[info] = home / FOLDERS[layer] / place.name

    def extract(self, info: zipfile.ZipInfo, path: Path) -> None:
        """Fetch one file.

        Raises:
            DataError: It does not fit its checksum.
            NetworkError: It cannot be fetched.
            StorageError: It cannot be written.
        """
        self._remote.ahead, self._remote.stop = _FILE_BLOCK, self._stops[info]
        with (
            _reading(f"{info.filename} in {self._address}"),
            atomic_path(path) as temporary,
            self._zip.open(info) as source,
            temporary.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, 1 << 20)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{what} is damaged: {str(error).rstrip('.')}.", "Run the same command again, or use another --address."
        ) from error


def _check_events(events: Sequence[str], archives: Sequence[_Archive]) -> None:
    known = set().union(*(archive.events for archive in archives))
    unknown = [event for event in events if event not in known]
    if unknown:
        raise DataError(f"There is no event {', '.join(unknown)}.", f"Choose from {', '.join(sorted(known))}.")


def _fits(info: zipfile.ZipInfo, path: Path) -> bool:
    """Return whether a file is here with the archive's checksum.

    Raises:
        StorageError: It is here and cannot be read.
    """
    crc = 0
    try:
        if not path.is_file() or path.stat().st_size != info.file_size:
            return False
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                crc = zlib.crc32(chunk, crc)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}.", "Allow reading it, or choose another --root."
        ) from error
    return crc == info.CRC


def _need(size: int, root: Path) -> None:
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    if size + _SPARE_BYTES > free:
        raise StorageError(
            f"The files need {size / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free.",
            "Free some space, choose single events with --event, or another --root.",
        )
