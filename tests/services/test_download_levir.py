"""LEVIR-CD through torchgeo, from archives on a real server on this machine."""

import errno
import hashlib
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchgeo.datasets import LEVIRCD
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.data.levir import LevirPairs
from mmcd.errors import ConfigError, DataError, NetworkError, StorageError, UsageError
from mmcd.services import download_levir as module
from mmcd.services.download_levir import LevirDownloadRequest, download_levir

PAIRS = {"train": 3, "val": 1, "test": 2}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Say nothing."""


def pack(folder: Path, part: str, count: int) -> str:
    """Write an archive as published and return its MD5."""
    image = folder / "image.png"
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(image)
    mask = folder / "mask.png"
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(mask)
    with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
        for number in range(1, count + 1):
            for name, source in (("A", image), ("B", image), ("label", mask)):
                archive.write(source, f"{name}/{part}_{number}.png")
    return hashlib.md5((folder / f"{part}.zip").read_bytes()).hexdigest()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder with the three archives and its address; the published sums and counts are theirs."""
    folder = tmp_path / "served"
    folder.mkdir()
    sums = {part: pack(folder, part, count) for part, count in PAIRS.items()}
    splits = {part: {**archive, "md5": sums[part]} for part, archive in LEVIRCD.splits.items()}
    monkeypatch.setattr(LEVIRCD, "splits", splits)
    monkeypatch.setattr(module, "PUBLISHED_PAIRS", PAIRS)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_published_counts():
    assert module.PUBLISHED_PAIRS == {"train": 445, "val": 64, "test": 128}
    assert {part: archive["filename"] for part, archive in LEVIRCD.splits.items()} == {
        part: f"{part}.zip" for part in PAIRS
    }


def test_fetches_each_part_once(served: tuple[Path, str], tmp_path: Path):
    request = LevirDownloadRequest(root=tmp_path / "levir", address=served[1])
    first = download_levir(request)
    assert (first.fetched, first.kept) == (3, 0) and first.size > 0
    assert {part: len(LevirPairs(request.root, part)) for part in PAIRS} == PAIRS  # type: ignore[arg-type]
    again = download_levir(request)
    assert (again.fetched, again.kept, again.size) == (0, 3, 0)


def test_unpacking_that_broke_off_is_done_again(served: tuple[Path, str], tmp_path: Path):
    request = LevirDownloadRequest(root=tmp_path / "levir", address=served[1])
    download_levir(request)
    (request.root / "B" / "train_2.png").unlink()
    (served[0] / "train.zip").unlink()  # the archive on disk is enough
    assert download_levir(request).fetched == 0
    assert len(LevirPairs(request.root, "train")) == 3


def test_wrong_archives_are_refused_with_the_way_by_hand(served: tuple[Path, str], tmp_path: Path):
    folder, address = served
    request = LevirDownloadRequest(root=tmp_path / "levir", address=address)
    pack(folder, "val", 2)
    with pytest.raises(DataError, match="archive of val is not the published one") as refused:
        download_levir(request)
    assert f"Fetch val.zip from {address}val.zip" in refused.value.hint
    (folder / "val.zip").unlink()
    with pytest.raises(NetworkError, match=r"archive of val cannot be fetched: HTTP Error 404: File not found\."):
        download_levir(request)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:1/", "cannot be fetched: Connection refused."),
        ("http://127.0.0.1:x/", "cannot be fetched: nonnumeric port: 'x'."),
    ],
)
def test_a_server_that_is_not_there_is_told_without_wrapping(address: str, said: str, tmp_path: Path):
    with pytest.raises(NetworkError) as refused:
        download_levir(LevirDownloadRequest(root=tmp_path, address=address))
    assert refused.value.message == f"The archive of train {said}"


def test_archive_with_other_pairs_is_named(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "PUBLISHED_PAIRS", {**PAIRS, "train": 5})
    with pytest.raises(DataError, match="gives 3 train pairs, 5 were published"):
        download_levir(LevirDownloadRequest(root=tmp_path / "levir", address=served[1]))


def test_full_disk_is_no_fault_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torchgeo.datasets.utils.download_and_extract_archive", full)
    with pytest.raises(StorageError, match="No space left"):
        download_levir(LevirDownloadRequest(root=tmp_path / "levir"))


def test_without_torchgeo_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchgeo.datasets", None)
    with pytest.raises(ConfigError, match="torchgeo") as refused:
        download_levir(LevirDownloadRequest(root=tmp_path))
    assert "mmcd[datasets]" in refused.value.hint


def test_command(served: tuple[Path, str], tmp_path: Path):
    words = ["data", "download", "levir-cd", "--root", str(tmp_path / "levir")]
    done = CliRunner().invoke(app, [*words, "--address", served[1]])
    assert done.exit_code == 0 and "academic purposes" in done.output and "3 files fetched" in done.output
    refused = CliRunner().invoke(app, [*words, "--event", "flood"])
    assert isinstance(refused.exception, UsageError)
