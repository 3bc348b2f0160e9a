"""The map's third-party files: what is fetched is what was expected, or nothing is kept."""

import hashlib
import io
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmcd.errors import NetworkError
from mmcd.services import assets


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A delivery network of our own on this machine; returns its folder."""
    folder = tmp_path / "network"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(assets, "CDN", f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        """Stay silent."""


def publish(network, monkeypatch, contents: dict[str, bytes]) -> None:
    """Make these files the expected assets and put them on the network."""
    made = []
    for member, content in contents.items():
        asset = assets.Asset("demo@1", member, hashlib.sha256(content).hexdigest())
        (network / asset.path).parent.mkdir(parents=True, exist_ok=True)
        (network / asset.path).write_bytes(content)
        made.append(asset)
    monkeypatch.setattr(assets, "ASSETS", tuple(made))


def test_files_are_fetched_once_and_then_left_alone(network, monkeypatch, tmp_path):
    publish(network, monkeypatch, {"dist/a.js": b"a", "dist/images/b.png": b"b"})
    folder = tmp_path / "assets"
    assert len(assets.missing_assets(folder)) == 2
    assert all("fetched" in line for line in assets.fetch_assets(folder))
    assert (folder / "demo@1" / "dist" / "images" / "b.png").read_bytes() == b"b"
    (network / "demo@1" / "dist" / "a.js").unlink()
    assert len(assets.fetch_assets(folder)) == 1


def test_a_damaged_file_is_fetched_again(network, monkeypatch, tmp_path):
    publish(network, monkeypatch, {"a.js": b"right"})
    folder = tmp_path / "assets"
    assets.fetch_assets(folder)
    (folder / "demo@1" / "a.js").write_bytes(b"wrong")
    assert assets.missing_assets(folder)
    assets.fetch_assets(folder)
    assert (folder / "demo@1" / "a.js").read_bytes() == b"right"


def test_the_wrong_bytes_are_refused_and_nothing_is_kept(network, monkeypatch, tmp_path):
    publish(network, monkeypatch, {"a.js": b"expected"})
    (network / "demo@1" / "a.js").write_bytes(b"something else")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NetworkError, match="SHA-256"):
        assets.fetch_assets(tmp_path / "assets")
    assert not list((tmp_path / "assets").rglob("*.js"))


def test_without_network_and_npm_the_error_says_both(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "CDN", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NetworkError) as caught:
        assets.fetch_assets(tmp_path / "assets")
    assert "127.0.0.1" in caught.value.message
    assert "npm is not installed" in caught.value.message
    assert "mmcd assets" in caught.value.hint


def test_npm_is_the_second_way(network, monkeypatch, tmp_path):
    publish(network, monkeypatch, {"dist/a.js": b"a"})
    (network / "demo@1" / "dist" / "a.js").unlink()
    with tarfile.open(tmp_path / "demo.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo("package/dist/a.js")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"a"))
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\ncp "{tmp_path}/demo.tgz" "$2/"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/bin:/usr/bin")
    assets.fetch_assets(tmp_path / "assets")
    assert (tmp_path / "assets" / "demo@1" / "dist" / "a.js").read_bytes() == b"a"
