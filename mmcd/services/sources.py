"""Images that come from elsewhere: downloads and uploads, kept in the workspace under ``sources``.

An address is downloaded once instead of being read over the network again and again: check, tiles, runs and exports
each read the whole image, and after a disaster the connection is what fails first. What was downloaded when it failed
is kept, and the next attempt goes on from there. Two processes that want one address share one download: the second
waits. What may come from elsewhere is in `mmcd.services.foreign`.
"""

import hashlib
import math
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, unquote, urlsplit

from mmcd.errors import InputError, NetworkError, StorageError
from mmcd.locks import ATTENDED_SECONDS, turn
from mmcd.paths import workspace_folder
from mmcd.progress import Progress, silent
from mmcd.services.foreign import HEAD_BYTES, Kind, check_file, check_head

UPLOAD_MB = 100
"""Largest file that a page takes, in megabytes: the browser's upload is held in memory."""

TIMEOUT_SECONDS = 30
_CHUNK = 1 << 20
_SPARE_BYTES = 200 << 20  # left free on the disk, for the run that follows
_ADDRESS_SIGNS = "%/:=&?~#+!$,;'@()*[]"  # what an address holds beside letters and digits
_WEB_PAGE = ("text/html", "application/xhtml+xml")
# Endings of the formats of outlines; some readers go by the name alone. The first is put behind a name without one.
_OUTLINE_NAMES = {
    "GeoJSON": (".json", ".geojson", ".geojsonl"),
    "GPKG": (".gpkg",),
    "Parquet": (".parquet", ".geoparquet", ".pq"),
    "FlatGeobuf": (".fgb",),
}


def is_address(source: str) -> bool:
    """Return whether a source is an http or https address, not a path."""
    return re.match(r"https?://[^/\s]", source.strip(), re.IGNORECASE) is not None


def local_file(source: str, progress: Progress = silent, kind: Kind = "image") -> Path:
    """Return the file of a source: a path as it is, an address after its download.

    Args:
        source: Path of a file, or http or https address of one.
        progress: Told of the bytes of a download in megabytes; may raise to stop, which keeps what is there.
        kind: What an address has to lead to.

    Raises:
        InputError: It is neither, or the address leads to a web page or to a format that is not taken from elsewhere.
        NetworkError: The address cannot be reached or refuses.
        StorageError: There is no space for it.
    """
    source = source.strip()
    if "://" in source and not is_address(source):
        raise InputError(f"{source[:80]!r} is not a path or an http address.", "Give a path, http:// or https://.")
    return _download(source, progress, kind) if is_address(source) else Path(source).expanduser().resolve()


def keep_upload(name: str, content: bytes) -> Path:
    """Copy an uploaded image into the workspace; the same content is kept once.

    Args:
        name: Its name on the user's machine.
        content: Its bytes.

    Raises:
        InputError: Its format is not taken from elsewhere.
        StorageError: There is no space for it, or another upload does not end.
    """
    check_head(name, content[:HEAD_BYTES], "image")
    path = workspace_folder("sources") / hashlib.sha256(content).hexdigest()[:16] / _plain_name(name)
    with _alone("uploads", path, silent, ATTENDED_SECONDS):
        if not path.exists():
            with _written(path):
                _part_of(path).write_bytes(content)
                _name_part(path, "image")
    return path


def _download(address: str, progress: Progress, kind: Kind) -> Path:
    folder = workspace_folder("sources") / hashlib.sha256(address.encode()).hexdigest()[:16]
    try:
        name = _plain_name(unquote(PurePosixPath(urlsplit(address).path).name))
    except ValueError as error:
        raise _no_address(address, error) from error
    path = folder / name
    found = _fetched(path, kind)
    if found is None:
        with _alone(f"download-{folder.name[:2]}", path, progress):
            found = _fetched(path, kind)
            if found is None:
                with _written(path), _answer(address, path) as answer:
                    _receive(answer, path, progress, kind)
                    found = _name_part(path, kind)
    return found


def _fetched(path: Path, kind: Kind) -> Path | None:
    """Return what an earlier download left under a name; None where there is nothing.

    Raises:
        InputError: It was taken as something else.
    """
    names = {path} if kind == "image" else {path, *(_named(path, form) for form in _OUTLINE_NAMES)}
    found = next((name for name in sorted(names) if name.is_file()), None)
    if found is not None:
        check_file(found.name, found, kind)
    return found


def _named(path: Path, form: str) -> Path:
    """Return a path with an ending of the file's format; that of an image says nothing to GDAL and stays."""
    endings = _OUTLINE_NAMES.get(form, ("",))
    return path if path.name.lower().endswith(endings) else path.with_name(path.name + endings[0])


@contextmanager
def _alone(name: str, path: Path, progress: Progress, seconds: float = math.inf) -> Iterator[None]:
    """Wait until no other process writes a file. The lock lies elsewhere: the file's folder may be cleared.

    Args:
        name: Of the lock. There are a few hundred at most: the files of locks stay for ever.
        path: What is to be written.
        progress: Told of the waiting.
        seconds: How long to wait.
    """
    lock = workspace_folder("locks") / f"{name}.lock"
    with turn(lock, seconds, lambda: progress(f"waiting for another download of {path.name}", 0, 1)):
        yield


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to web addresses only, where urllib would go on to FTP, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not is_address(newurl):
            raise InputError(f"{_short(req.full_url)} leads to {_short(newurl)}.", "Give an http or https address.")
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise InputError(
                f"{_short(req.full_url)} leads to {_short(newurl)}, which is not encrypted.",
                "Give the address of a server that keeps to https, or download the file and give its path.",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opened(request: urllib.request.Request) -> HTTPResponse:
    """Send a request and return the answer, after redirects to web addresses only.

    Raises:
        URLError: The server refuses or cannot be reached.
        InputError: The address is none, or leads elsewhere than to the web.
    """
    try:
        answer: HTTPResponse = urllib.request.build_opener(_WebOnly).open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.URLError:
        raise
    except OSError as error:  # a connection that fails between request and answer, urllib wraps only those before it
        raise urllib.error.URLError(error) from error
    except ValueError as error:
        raise _no_address(request.full_url, error) from error
    return answer


@contextmanager
def _answer(address: str, path: Path) -> Iterator[HTTPResponse]:
    """Ask for a file, or for the rest of it if its beginning is here and unchanged there."""
    request = urllib.request.Request(quote(address, safe=_ADDRESS_SIGNS), headers={"User-Agent": "mmcd"})
    if _part_of(path).exists() and _validator_of(path).exists():
        request.add_header("Range", f"bytes={_part_of(path).stat().st_size}-")
        request.add_header("If-Range", _validator_of(path).read_text())
    try:
        with opened(request) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is no beginning of what is there
            _part_of(path).unlink(missing_ok=True)
        action = "Check the address; a link that needs a login cannot be used: download the file and give its path."
        raise NetworkError(f"{_short(address)} answers {error.code} {error.reason}.", action) from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        action = "Check the connection and try again: it goes on where it stopped. A path on this machine always works."
        raise NetworkError(f"{_short(address)} cannot be reached: {reason}.", action) from error


def _receive(answer: HTTPResponse, path: Path, progress: Progress, kind: Kind) -> None:
    content = answer.headers.get_content_type()
    if content in _WEB_PAGE:
        raise InputError(
            f"{_short(answer.url)} leads to {content}, not to an image.", "Give the address of the GeoTIFF itself."
        )
    resumed = answer.status == 206
    done = _part_of(path).stat().st_size if resumed else 0
    total = done + int(answer.headers.get("Content-Length") or 0)
    _need(total - done, path.parent)
    _note_validator(answer, path)
    with _part_of(path).open("ab" if resumed else "wb") as file:
        for chunk in _chunks(answer):
            if not done:  # gigabytes of what is not taken are not fetched
                with _dropped_if_refused(path):
                    check_head(path.name, chunk[:HEAD_BYTES], kind)
            file.write(chunk)
            done += len(chunk)
            progress(f"downloading {path.name} (MB)", done >> 20, max(total, done) >> 20)
    if done < total:
        raise NetworkError(
            f"The connection broke after {done / 1e6:,.1f} of {total / 1e6:,.1f} MB of {path.name}.",
            "Try again: it goes on where it stopped.",
        )


def _name_part(path: Path, kind: Kind) -> Path:
    """Check a file that is complete and give it its name, which ends as its format asks."""
    with _dropped_if_refused(path):
        form = check_file(path.name, _part_of(path), kind)
    _validator_of(path).unlink(missing_ok=True)
    return _part_of(path).replace(_named(path, form))


@contextmanager
def _dropped_if_refused(path: Path) -> Iterator[None]:
    """Keep nothing of a file that is not taken."""
    try:
        yield
    except InputError:
        _part_of(path).unlink(missing_ok=True)
        _validator_of(path).unlink(missing_ok=True)
        raise


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    """Yield the parts of an answer. A connection that fails is told apart from a disk that does."""
    while True:
        try:
            chunk = answer.read(_CHUNK)
        except OSError as error:
            raise urllib.error.URLError(error) from error
        if not chunk:
            return
        yield chunk


def _no_address(address: str, error: ValueError) -> InputError:
    shown = address.partition("?")[0][:80]
    return InputError(f"{shown!r} is not an address: {error}.", "Check how it is written.")


def _note_validator(answer: HTTPResponse, path: Path) -> None:
    """Keep what tells whether the file on the server is still the same; without it nothing can be continued."""
    tag = answer.headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")
    if validator:
        _validator_of(path).write_text(validator)
    else:
        _validator_of(path).unlink(missing_ok=True)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Make the folder of a file that is about to be written; without anything in the end, it goes again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            with suppress(OSError):  # it holds something
                path.parent.rmdir()
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.", "Free some space, or clear the workspace."
        ) from error


def _need(size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size + _SPARE_BYTES > free:
        raise StorageError(
            f"The file needs {size / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free.",
            "Free some space, or set MMCD_WORKSPACE to a larger disk.",
        )


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _validator_of(path: Path) -> Path:
    return path.with_name(path.name + ".part.validator")


def _plain_name(name: str) -> str:
    """Return a file name without anything that could lead out of its folder."""
    return re.sub(r"[^\w.-]+", "_", PurePosixPath(name.replace("\\", "/")).name).lstrip(".")[-120:] or "image.tif"


def _short(address: str) -> str:
    # A signed address carries a secret in its query, which belongs into no message.
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"[:120]
