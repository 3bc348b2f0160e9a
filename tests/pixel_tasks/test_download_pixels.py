"""OSCD, PASTIS and GID-15 through torchgeo, from archives on a real server on this machine."""

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchgeo.datasets import GID15, OSCD, PASTIS
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.data.oscd_files import index_oscd, read_city
from mmcd.errors import DataError, NetworkError, UsageError
from mmcd.services import download_pixels as module
from mmcd.services.download_pixels import PixelsDownloadRequest, download_pixels

ARCHIVE = "Onera Satellite Change Detection dataset - "


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Say nothing."""


def pack(tree: Path, path: Path, prefix: str = "") -> str:
    """Write an archive of a folder's content and return its MD5."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.rglob("*")):
            archive.write(file, f"{prefix}{file.relative_to(tree)}")
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def served(tmp_path, monkeypatch, write_city, pastis, gid_fetched) -> Iterator[tuple[Path, str]]:
    """A folder with the archives, cut short to two cities, and its address; the published sums are theirs."""
    folder, made = tmp_path / "served", tmp_path / "made"
    folder.mkdir()
    for seed, (city, part) in enumerate((("paris", "Train"), ("rio", "Test"))):
        label = made / part / f"{ARCHIVE}{part} Labels" / city / "cm" / "cm.png"
        write_city(made / "Images" / f"{ARCHIVE}Images" / city, label, seed)
    trees = {"Images": made / "Images", "Train Labels": made / "Train", "Test Labels": made / "Test"}
    sums = {f"{ARCHIVE}{name}.zip": pack(tree, folder / f"{ARCHIVE}{name}.zip") for name, tree in trees.items()}
    monkeypatch.setattr(OSCD, "md5s", sums)
    monkeypatch.setattr(PASTIS, "md5", pack(pastis, folder / "PASTIS-R.zip", "PASTIS-R/"))
    monkeypatch.setattr(GID15, "md5", pack(gid_fetched, folder / "gid-15.zip"))
    monkeypatch.setattr(module, "PUBLISHED_COUNTS", {"oscd": 2, "pastis": 5, "gid-15": 2})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_published_archives():
    assert module.PUBLISHED_COUNTS == {"oscd": 24, "pastis": 2433, "gid-15": 2}
    assert set(OSCD.urls) == {f"{ARCHIVE}{name}.zip" for name in ("Images", "Train Labels", "Test Labels")}
    assert (PASTIS.filename, GID15.filename) == ("PASTIS-R.zip", "gid-15.zip")


def test_each_data_set_is_fetched_once_and_can_be_read(served, tmp_path):
    for name, archives in (("oscd", 3), ("pastis", 1), ("gid-15", 1)):
        request = PixelsDownloadRequest(name=name, root=tmp_path / name, address=served[1])
        first, again = download_pixels(request), download_pixels(request)
        assert (first.fetched, first.kept) == (archives, 0) and first.size > 0
        assert (again.fetched, again.kept, again.size) == (0, archives, 0)
    cities = index_oscd(tmp_path / "oscd").cities
    assert [city.id for part in cities.values() for city in part] == ["paris", "rio"]
    assert read_city(cities["test"][0])[0].shape[0] == 13


def test_what_broke_off_is_unpacked_again_and_other_archives_are_refused(served, tmp_path):
    folder, address = served
    request = PixelsDownloadRequest(name="oscd", root=tmp_path / "oscd", address=address)
    download_pixels(request)
    (request.root / f"{ARCHIVE}Images" / "rio" / "imgs_2_rect" / "B8A.tif").unlink()
    (folder / f"{ARCHIVE}Images.zip").unlink()  # the archive on disk is enough
    assert download_pixels(request).fetched == 0
    with pytest.raises(NetworkError, match=r"Images\.zip cannot be fetched"):
        download_pixels(PixelsDownloadRequest(name="oscd", root=tmp_path / "other", address=address))
    (folder / "gid-15.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"gid-15\.zip is not the published one"):
        download_pixels(PixelsDownloadRequest(name="gid-15", root=tmp_path / "gid", address=address))


def test_the_command_fetches_and_tells_the_terms(served, tmp_path):
    words = ["data", "download", "gid-15", "--root", str(tmp_path / "gid"), "--address", served[1]]
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and "Tong et al. 2020" in done.stderr
    assert json.loads(done.stdout)["fetched"] == 1
    with pytest.raises(UsageError, match="gid-15 has no events"):
        CliRunner().invoke(app, [*words, "--event", "a"], catch_exceptions=False)


def test_archives_that_hold_less_are_named(served, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PUBLISHED_COUNTS", {"pastis": 6})
    with pytest.raises(DataError, match="give 5 whole parts of pastis, 6 were published"):
        download_pixels(PixelsDownloadRequest(name="pastis", root=tmp_path / "pastis", address=served[1]))
