"""EuroSAT through torchgeo's functions, from archives on a real server on this machine."""

import hashlib
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchgeo.datasets import EuroSAT, EuroSATSpatial
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.data.eurosat_files import index_eurosat
from mmcd.errors import ConfigError, DataError, NetworkError, UsageError
from mmcd.services import download_eurosat as module
from mmcd.services.download_eurosat import EuroSatDownloadRequest, download_eurosat


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Say nothing."""


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def served(eurosat_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with archives and lists, and its address; the published sums and the number of images are theirs."""
    folder = tmp_path_factory.mktemp("served")
    for name, inside in (("EuroSATallBands.zip", "ds"), ("EuroSAT_RGB.zip", "EuroSAT_RGB")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path in sorted((eurosat_tree / inside).rglob("*.*")):
                archive.write(path, path.relative_to(eurosat_tree))
    for path in eurosat_tree.glob("*.txt"):
        (folder / path.name).write_bytes(path.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EuroSAT, "md5", md5(folder / "EuroSATallBands.zip"))
        for kind in (EuroSAT, EuroSATSpatial):
            sums = {part: md5(folder / name) for part, name in kind.split_filenames.items()}
            patch.setattr(kind, "split_md5s", sums)
        patch.setattr(module, "PUBLISHED_IMAGES", 40)
        yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_both_forms_lie_in_one_folder_and_are_fetched_once(served: tuple[Path, str], tmp_path: Path) -> None:
    bands = EuroSatDownloadRequest(name="eurosat", root=tmp_path, address=served[1])
    colour = EuroSatDownloadRequest(name="eurosat-rgb", root=tmp_path, address=served[1])
    assert [download_eurosat(each).fetched for each in (bands, colour)] == [7, 3]
    assert len(index_eurosat(tmp_path, "ms").files["val"]) == 10
    assert index_eurosat(tmp_path, "ms", "spatial").unit == "split by longitude"
    assert set(index_eurosat(tmp_path, "rgb").files) == {"train", "test"}
    (tmp_path / "EuroSATallBands.zip").unlink()  # the unpacked images are enough
    again = download_eurosat(bands)
    assert (again.fetched, again.kept, again.size) == (0, 7, 0)


def test_files_that_are_not_the_published_ones_are_refused(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = EuroSatDownloadRequest(name="eurosat", root=tmp_path, address=served[1])
    monkeypatch.setattr(EuroSAT, "md5", "0" * 32)
    with pytest.raises(DataError, match=r"The file EuroSATallBands.zip is not the published one"):
        download_eurosat(request)
    monkeypatch.setattr(module, "PUBLISHED_IMAGES", 41)
    colour = EuroSatDownloadRequest(name="eurosat-rgb", root=tmp_path, address=served[1])
    with pytest.raises(DataError, match=r"EuroSAT_RGB.zip gives 40 images, 41 were published"):
        download_eurosat(colour)
    (tmp_path / "EuroSAT_RGB.zip").write_bytes(b"PK cut short")
    with pytest.raises(DataError, match=r"The file EuroSAT_RGB.zip is not the published one: File is not a zip file"):
        download_eurosat(colour)
    with pytest.raises(NetworkError, match=r"The file train.txt cannot be fetched: HTTP Error 404"):
        download_eurosat(colour.model_copy(update={"root": tmp_path / "none", "address": served[1] + "nowhere"}))


def test_the_published_number_is_euro_sats() -> None:
    assert EuroSAT.filename == "EuroSATallBands.zip"
    assert module._files(EuroSatDownloadRequest(name="eurosat", root=Path()))[-1].url.startswith("https://hf.co/")


def test_the_command_and_what_it_refuses(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data", "download", "eurosat-rgb", "--root", str(tmp_path)]
    done = CliRunner().invoke(app, [*words, "--address", served[1]])
    assert done.exit_code == 0 and "MIT licence" in done.output and "3 files fetched" in done.output
    refused = CliRunner().invoke(app, [*words, "--event", "flood"])
    assert isinstance(refused.exception, UsageError) and "eurosat-rgb has no events" in str(refused.exception)
    monkeypatch.setitem(sys.modules, "torchgeo.datasets", None)
    with pytest.raises(ConfigError, match="torchgeo, which fetches EuroSAT, is not installed"):
        download_eurosat(EuroSatDownloadRequest(name="eurosat", root=tmp_path))
