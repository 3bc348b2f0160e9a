"""Downloads and uploads, from a real server on this machine."""

import os
import re
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPMessage, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from rasterio.io import MemoryFile

from mmcd import locks
from mmcd.errors import Cancelled, InputError, NetworkError, StorageError
from mmcd.geo.footprints import read_footprints
from mmcd.locks import turn
from mmcd.services import sources
from mmcd.services.sources import _WebOnly, is_address, keep_upload, local_file


def image_of(values: np.ndarray, driver: str = "GTiff") -> bytes:
    """Return an image file of one band without a georeference."""
    shape = {"height": values.shape[0], "width": values.shape[1]}
    with MemoryFile() as memory:
        with memory.open(driver=driver, count=1, dtype="uint8", **shape) as file:
            file.write(values, 1)
        return bytes(memory.getbuffer())


CONTENT = image_of(np.random.default_rng(0).integers(0, 256, (2304, 2304), np.uint8))
SMALL = image_of(np.full((64, 64), 7, np.uint8), "PNG")


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; breaks off once per address that asks for it."""

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers.get("Range"))  # type: ignore[attr-defined]
        if self.path.startswith("/page"):
            return self._send(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        if self.path.startswith("/ftp"):
            return self._send(302, b"", {"Location": "ftp://127.0.0.1:9/image.tif"})
        if self.path.startswith("/virtual"):
            return self._send(200, b"\n <VRTDataset/>", {"Content-Type": "image/tiff"})
        if self.path.startswith("/outlines"):
            return self._send(200, b'{"features": []}', {"Content-Type": "application/json"})
        if self.path.startswith("/polygons"):
            return self._send(200, server.polygons, {})  # type: ignore[attr-defined]
        if self.path.startswith("/netcdf"):
            return self._send(200, b"CDF\x02" + CONTENT, {"Content-Type": "image/tiff"})
        if not self.path.startswith(("/image", "/breaks")):
            return self._send(404, b"", {})
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == server.tag:  # type: ignore[attr-defined]
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        part = CONTENT[start:]
        breaks = self.path.startswith("/breaks") and len(server.ranges) == 1  # type: ignore[attr-defined]
        headers = {"ETag": server.tag, "Content-Type": "image/tiff"}  # type: ignore[attr-defined]
        return self._send(206 if start else 200, part, headers, len(part) // 2 if breaks else len(part))

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # whoever asked may have seen enough
            self.wfile.write(body[:length])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach this machine itself where the environment names a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.tag, made.ranges = '"one"', []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def address(server: ThreadingHTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{path}"


def test_an_address_is_downloaded_once_into_the_workspace(workspace: Path, server: ThreadingHTTPServer) -> None:
    told: list[tuple[int, int]] = []
    source = address(server, "image/%C3%A4%20b.tif?token=1")
    path = local_file(source, lambda stage, done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(workspace.resolve() / "sources")
    assert path.name == "ä_b.tif"
    assert told[-1] == (5, 5)
    assert local_file(source) == path
    assert len(server.ranges) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("tag", "resumed"), [('"one"', True), ('"another"', False)])
def test_a_broken_download_goes_on_unless_the_file_changed(
    workspace: Path, server: ThreadingHTTPServer, tag: str, resumed: bool
) -> None:
    with pytest.raises(NetworkError, match="goes on where it stopped"):
        local_file(address(server, "breaks.tif"))
    server.tag = tag  # type: ignore[attr-defined]
    path = local_file(address(server, "breaks.tif"))
    assert path.read_bytes() == CONTENT
    assert server.ranges[1] == f"bytes={len(CONTENT) // 2}-"  # type: ignore[attr-defined]
    assert sorted(file.name for file in path.parent.iterdir()) == ["breaks.tif"]


def test_a_stopped_download_keeps_what_is_there(workspace: Path, server: ThreadingHTTPServer) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done >= 2:
            raise Cancelled("The job was cancelled.")

    with pytest.raises(Cancelled):
        local_file(address(server, "image.tif"), stop)
    assert local_file(address(server, "image.tif")).read_bytes() == CONTENT
    assert server.ranges[1] == f"bytes={2 << 20}-"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("none.tif?key=secret", NetworkError, "answers 404"),
        ("page.tif", InputError, "leads to text/html"),
        ("virtual.tif", InputError, "is XML"),
        ("netcdf.tif", InputError, "is of no format that is taken from elsewhere"),
        ("ftp.tif?key=secret", InputError, "leads to ftp://127"),
    ],
)
def test_an_address_without_an_image_says_so_and_keeps_its_secrets(
    workspace: Path, server: ThreadingHTTPServer, path: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as error:
        local_file(address(server, path))
    assert "secret" not in str(error.value)
    assert not [file for file in (workspace / "sources").rglob("*") if file.is_file()]


def test_outlines_come_as_json(workspace: Path, server: ThreadingHTTPServer) -> None:
    path = local_file(address(server, "outlines.geojson"), kind="outlines")
    assert (path.name, path.read_bytes()) == ("outlines.geojson", b'{"features": []}')
    assert local_file(address(server, "outlines?f=geojson"), kind="outlines").name == "outlines.json"


@pytest.mark.parametrize(
    ("form", "asked", "name"),
    [
        (".parquet", "polygons", "polygons.parquet"),
        (".parquet", "polygons.pq", "polygons.pq"),
        (".parquet", "polygons.json", "polygons.json.parquet"),
        (".gpkg", "polygons?f=gpkg", "polygons.gpkg"),
        (".geojson", "polygons.parquet", "polygons.parquet.json"),
        (".fgb", "polygons", "polygons.fgb"),
    ],
)
def test_outlines_are_named_by_what_they_are(
    workspace: Path, server: ThreadingHTTPServer, tmp_path: Path, form: str, asked: str, name: str
) -> None:
    frame = geopandas.GeoDataFrame({"id": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:4326")
    made = tmp_path / f"made{form}"
    frame.to_parquet(made) if form == ".parquet" else frame.to_file(made)
    server.polygons = made.read_bytes()  # type: ignore[attr-defined]
    path = local_file(address(server, asked), kind="outlines")
    assert path.name == name
    assert read_footprints(path).ids == ("a",)
    assert local_file(address(server, asked), kind="outlines") == path
    assert len(server.ranges) == 1  # type: ignore[attr-defined]


def test_what_was_taken_as_outlines_is_no_image(workspace: Path, server: ThreadingHTTPServer) -> None:
    source = address(server, "outlines.geojson")
    path = local_file(source, kind="outlines")
    with pytest.raises(InputError, match="of no format that is taken"):
        local_file(source)
    assert path.is_file()


def test_locks_do_not_grow_with_the_downloads(workspace: Path, server: ThreadingHTTPServer) -> None:
    for number in range(4):
        local_file(address(server, f"outlines{number}.geojson"), kind="outlines")
        keep_upload(f"{number}.png", image_of(np.full((8, 8), number, np.uint8), "PNG"))
    names = {path.name for path in (workspace / "locks").iterdir()}
    assert "uploads.lock" in names
    assert all(re.fullmatch(r"(uploads|download-[0-9a-f]{2})\.lock", name) for name in names)


def test_a_refused_upload_leaves_no_folder_and_does_not_wait_for_ever(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is damaged"):
        keep_upload("image.tif", b"II*\0" + bytes(508))
    assert not list((workspace / "sources").iterdir())
    monkeypatch.setattr(locks, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(sources, "ATTENDED_SECONDS", 0.05)
    with turn(workspace / "locks" / "uploads.lock"), pytest.raises(StorageError, match="Another process holds"):
        keep_upload("x.tif", SMALL)


FETCH = """
import sys
from mmcd.services.sources import local_file
print(local_file(sys.argv[1], lambda stage, done, total: print(stage, flush=True)))
"""


def test_two_processes_that_want_one_address_share_one_download(workspace: Path, server: ThreadingHTTPServer) -> None:
    source, others = address(server, "image.tif"), []

    def start_another(stage: str, done: int, total: int) -> None:
        if not others:
            command = [sys.executable, "-c", FETCH, source]
            others.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ))
            assert others[0].stdout.readline() == "waiting for another download of image.tif\n"

    path = local_file(source, start_another)
    told, _ = others[0].communicate(timeout=60)
    assert told.splitlines()[-1] == str(path)
    assert path.read_bytes() == CONTENT
    assert len(server.ranges) == 1  # type: ignore[attr-defined]
    assert [file.name for file in path.parent.iterdir()] == ["image.tif"]


@pytest.mark.parametrize("text", ["http://[x/a.tif", "http://a..b/x.tif"])
def test_what_is_no_address_says_so(workspace: Path, text: str) -> None:
    with pytest.raises(InputError, match="is not an address"):
        local_file(text)


def test_a_connection_that_fails_is_not_a_full_disk(
    workspace: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(answer: HTTPResponse, size: int) -> bytes:
        raise ssl.SSLError("bad record mac")

    monkeypatch.setattr(HTTPResponse, "read", fail)
    with pytest.raises(NetworkError, match="bad record mac"):
        local_file(address(server, "image.tif"))


def test_without_a_network_the_next_step_is_named(workspace: Path) -> None:
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1.* cannot be reached") as error:
        local_file("http://127.0.0.1:9/image.tif")  # the discard port, where nobody listens
    assert "A path on this machine always works." in error.value.hint


def test_a_file_that_does_not_fit_is_not_begun(
    workspace: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="are free"):
        local_file(address(server, "image.tif"))


@pytest.mark.parametrize("source", ["ftp://host/a.tif", "file:///etc/passwd", "s3://bucket/a.tif"])
def test_other_schemes_are_refused(source: str) -> None:
    assert not is_address(source)
    with pytest.raises(InputError, match="not a path or an http address"):
        local_file(source)


def test_a_path_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_file(" image.tif ") == tmp_path / "image.tif"


@pytest.mark.parametrize("name", ["../../x.tif", "..\\..\\x.tif", "/etc/x.tif"])
def test_an_upload_stays_in_its_folder_and_is_kept_once(workspace: Path, name: str) -> None:
    path = keep_upload(name, SMALL)
    assert path.name == "x.tif"
    assert path.parent.parent == workspace.resolve() / "sources"
    assert keep_upload(name, SMALL) == path
    assert path.read_bytes() == SMALL


def test_an_uploaded_virtual_raster_is_refused(workspace: Path) -> None:
    with pytest.raises(InputError, match=r"x\.tif is XML"):
        keep_upload("x.tif", b"\xef\xbb\xbf <VRTDataset/>")


@pytest.mark.parametrize(
    ("address", "target", "followed"),
    [
        ("http://a.example/x", "https://b.example/x", True),
        ("https://a.example/x", "https://b.example/x", True),
        ("https://a.example/x", "http://b.example/x", False),
        ("HTTPS://a.example/x", "HTTP://b.example/x", False),
    ],
)
def test_no_redirect_leaves_encryption(address: str, target: str, followed: bool) -> None:
    handler, request = _WebOnly(), urllib.request.Request(address)
    if followed:
        answer = handler.redirect_request(request, BytesIO(), 302, "Found", HTTPMessage(), target)
        assert answer is not None and answer.full_url == target
    else:
        with pytest.raises(InputError, match="not encrypted"):
            handler.redirect_request(request, BytesIO(), 302, "Found", HTTPMessage(), target)
