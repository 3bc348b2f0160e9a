"""Single files out of archives on a real server on this machine."""

import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.errors import Cancelled, DataError, InputError, NetworkError, StorageError, UsageError
from mmcd.services import download as module
from mmcd.services.download import DownloadRequest, DownloadResult, RemoteFile, download

EVENTS = ("bata-explosion", "la_palma-volcano", "ukraine-conflict")
LAYERS = {"pre-event": "_pre_disaster.tif", "post-event": "_post_disaster.tif", "target": "_building_damage.tif"}
TILES = 3


class Server(ThreadingHTTPServer):
    """Files by name; what it was asked for; and how it misbehaves."""

    files: dict[str, bytes]
    ranges: list[tuple[str, int, int]]
    tag = '"1"'
    whole = False
    broken: int  # answers that end early, from now on
    status: int | None = None
    shift = 0  # bytes by which answers begin too late
    surplus = b""  # sent behind what was asked for

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has seen enough hangs up."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.lstrip("/"))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if content is None or asked is None or self.server.status:
            self.send_error(self.server.status or 404)
            return
        start, last = int(asked[1]), int(asked[2])
        assert start <= last < len(content), "asked for more than there is"
        self.server.ranges.append((self.path.lstrip("/"), start, last + 1))
        part = content if self.server.whole else content[start : last + 1]
        self.send_response(200 if self.server.whole else 206)
        part += self.server.surplus
        self.send_header("Content-Range", f"bytes {start + self.server.shift}-{last}/{len(content)}")
        self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.server.broken and len(part) > 1:
            self.server.broken -= 1
            part = part[: len(part) // 2]
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


def content_of(name: str) -> bytes:
    """Bytes that no two files share, and that do not shrink."""
    return b"".join(f"{name} {number}".encode() for number in range(5000))


def flat_names(event: str) -> list[str]:
    return [f"{folder}/{event}_{n:08d}{suffix}" for folder, suffix in LAYERS.items() for n in range(TILES)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The flat archives, without the optical images of one event, and the contest's archive."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    made = Server(("127.0.0.1", 0), Handler)
    made.files, made.ranges, made.broken = {}, [], 0
    for number, (folder, suffix) in enumerate(LAYERS.items()):
        path = tmp_path / f"{folder}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if number == 1 else zipfile.ZIP_STORED) as archive:
            for event in EVENTS[: 2 if folder == "pre-event" else 3]:
                for n in range(TILES):
                    name = f"{folder}/{event}_{n:08d}{suffix}"
                    archive.writestr(name, content_of(name))
            archive.writestr(f"__MACOSX/{folder}/._bata-explosion_00000000{suffix}", b"nothing")
            archive.writestr(f"../../outside{suffix}", b"nothing")
        made.files[path.name] = path.read_bytes()
    path = tmp_path / "contest.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part in ("train", "val"):
            for event in EVENTS[:2]:
                for folder, suffix in LAYERS.items():
                    name = f"dfc25_track2_trainval/{part}/{folder}/{event}_{len(part):08d}{suffix}"
                    archive.writestr(name, content_of(name))
        archive.writestr("dfc25_track2_trainval/train_setlevel.txt", "bata-explosion_00000005\n")
    made.files["dfc25_track2_trainval.zip"] = path.read_bytes()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def fetch(server: Server, root: Path, *events: str, name: str = "bright") -> DownloadResult:
    return download(DownloadRequest(name=name, root=root, events=events, address=address(server)))


def files_in(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_whole_data_set(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    result = fetch(server, root)
    expected = {name for event in EVENTS for name in flat_names(event)}
    expected -= {name for name in expected if name.startswith("pre-event/ukraine")}
    assert files_in(root) == expected and (result.fetched, result.kept) == (24, 0)
    assert all((root / name).read_bytes() == content_of(name) for name in expected)
    assert result.size == sum(len(content_of(name)) for name in expected)
    assert len(server.ranges) < 3 * 8, "neighbours come in one request"
    assert files_in(tmp_path) - {f"deep/root/{name}" for name in expected} == {
        f"{name}.zip" for name in [*LAYERS, "contest"]
    }


def test_one_event_costs_only_its_own_bytes(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    result = fetch(server, root, "la_palma-volcano")
    assert files_in(root) == set(flat_names("la_palma-volcano")) and result.warnings == ()
    archive = server.files["pre-event.zip"]
    asked = [(start, stop) for name, start, stop in server.ranges if name == "pre-event.zip"]
    tiles = [archive.index(content_of(name)) for name in flat_names("la_palma-volcano")[:TILES]]
    first, last = tiles[0], tiles[-1] + len(content_of(flat_names("la_palma-volcano")[0]))
    others = [(start, stop) for start, stop in asked if stop <= first - 200 or start >= last]
    assert sum(stop - start for start, stop in others) < 10_000, "no other tile's pixels"
    assert sum(stop - start for start, stop in asked) < 1.1 * (last - first)


def test_events_whose_images_are_not_shared_are_told(server: Server, tmp_path: Path) -> None:
    result = fetch(server, tmp_path / "root", "ukraine-conflict")
    assert result.fetched == 2 * TILES and "may not be passed on" in result.warnings[0]


def test_contest_archive_keeps_its_folders_and_lists(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    fetch(server, root, "bata-explosion", name="dfc25")
    home = "dfc25_track2_trainval"
    assert files_in(root) == {
        f"{home}/{part}/{folder}/bata-explosion_{len(part):08d}{suffix}"
        for part in ("train", "val")
        for folder, suffix in LAYERS.items()
    } | {f"{home}/train_setlevel.txt"}


def test_a_stopped_download_goes_on_and_damage_is_mended(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"

    def stop(stage: str, done: int, total: int) -> None:
        if len(files_in(root)) == 5:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        download(DownloadRequest(name="bright", root=root, address=address(server)), stop)
    whole = files_in(root)
    assert len(whole) == 5 and all((root / name).read_bytes() == content_of(name) for name in whole)
    damaged = root / min(whole)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    result = fetch(server, root)
    assert (result.fetched, result.kept, result.replaced) == (20, 4, (damaged,))
    assert any(damaged.name in line and "replaced" in line for line in result.warnings)
    assert damaged.read_bytes() == content_of(min(whole))
    server.ranges.clear()
    assert fetch(server, root).fetched == 0
    assert sum(stop - start for _, start, stop in server.ranges) < 300_000, "only the directories"


def test_connections_that_break_are_tried_again_and_then_told(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    server.broken = 3
    assert fetch(server, root, "bata-explosion").fetched == 3 * TILES
    assert all((root / name).read_bytes() == content_of(name) for name in files_in(root))
    server.broken = 10**6
    with pytest.raises(NetworkError, match="goes on where it stopped"):
        fetch(server, tmp_path / "other", "bata-explosion")


def test_wrong_bytes_never_get_the_name(server: Server, tmp_path: Path) -> None:
    root, name = tmp_path / "root", flat_names("bata-explosion")[1]
    archive = server.files["pre-event.zip"]
    place = archive.index(content_of(name)) + 500
    server.files["pre-event.zip"] = archive[:place] + b"\0\0" + archive[place + 2 :]
    with pytest.raises(DataError, match=r"00000001_pre_disaster\.tif in .* is damaged: Bad CRC"):
        fetch(server, root, "bata-explosion")
    assert files_in(root) == {flat_names("bata-explosion")[0]}
    server.files["pre-event.zip"] = b"no archive at all"
    with pytest.raises(DataError, match="damaged"):
        fetch(server, root, "bata-explosion")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"whole": True}, "byte ranges"),
        ({"shift": 1}, "where byte 0 was asked for"),
        ({"status": 403}, "answers 403"),
        ({"status": 503}, "answers 503"),
    ],
)
def test_servers_that_cannot_be_used_say_why(
    server: Server, tmp_path: Path, fault: dict[str, object], words: str
) -> None:
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(NetworkError, match=words):
        fetch(server, tmp_path / "root")


@pytest.mark.parametrize("wrong", ["http://[bad", "http://host:port", "http://127.0.0.1:1/a b\t", "http://" + "a" * 70])
def test_addresses_that_are_none_are_told_in_one_line(
    tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    with pytest.raises((InputError, NetworkError)):
        download(DownloadRequest(name="bright", root=tmp_path / "root", address=wrong))


def test_an_address_may_hold_a_space(server: Server, tmp_path: Path) -> None:
    server.files |= {f"my%20mirror/{name}": content for name, content in server.files.items()}
    request = DownloadRequest(
        name="bright", root=tmp_path / "root", events=EVENTS[:1], address=f"{address(server)}/my mirror"
    )
    assert download(request).fetched == 3 * TILES


def test_more_than_was_asked_for_is_not_read(server: Server) -> None:
    server.surplus = b"more" * 1000
    remote = RemoteFile(f"{address(server)}/target.zip")
    assert remote.read(100) == server.files["target.zip"][:100]


def archive_of(path: Path, method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(flat_names(EVENTS[0])[0], content_of("tile"))
    return path.read_bytes()


def test_directories_that_lie_are_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["pre-event.zip"] = archive_of(tmp_path / "one.zip", zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="only stored and deflated"):
        fetch(server, tmp_path / "root")
    content = archive_of(tmp_path / "two.zip")
    name = flat_names(EVENTS[0])[0].encode()
    place = content.rindex(name)
    flags = place - 46 + 8  # of the directory's entry; bit 11 calls the name UTF-8
    changed = bytearray(content)
    changed[flags + 1] |= 8
    changed[place] = 0xFF
    server.files["pre-event.zip"] = bytes(changed)
    with pytest.raises(DataError, match=r"pre-event\.zip is damaged"):
        fetch(server, tmp_path / "root")
    directory = io.BytesIO()
    with zipfile.ZipFile(directory, "w") as archive:
        for number in range(1000):
            archive.writestr(f"{number:08d}", b"")
    server.files["pre-event.zip"] = directory.getvalue()
    monkeypatch.setattr(module, "_LONGEST_READ", 50_000)
    with pytest.raises(DataError, match="bytes at once"):
        fetch(server, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_files_are_checked_with_word_of_it_and_unreadable_ones_are_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, heard = tmp_path / "root", list[tuple[str, int, int]]()
    fetch(server, root, EVENTS[0])
    request = DownloadRequest(name="bright", root=root, events=EVENTS[:1], address=address(server))
    download(request, lambda *news: heard.append(news))
    checked = [news for news in heard if news[0].startswith("checking ")]
    assert [number for _, number, _ in checked] == list(range(3 * TILES)) and checked[0][2] == 3 * TILES

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(StorageError, match=r"cannot be read: Permission denied"):
        download(request)


def test_an_archive_that_changes_meanwhile_is_noticed(server: Server) -> None:
    remote = RemoteFile(f"{address(server)}/target.zip")
    server.tag = '"2"'
    with pytest.raises(NetworkError, match="changed"):
        remote.read(100)


def test_remote_file_reads_as_a_file_does(server: Server) -> None:
    content = server.files["target.zip"]
    remote = RemoteFile(f"{address(server)}/target.zip")
    remote.ahead = 100
    assert remote.seek(-50, 2) == len(content) - 50 and remote.read(80) == content[-50:] and remote.read(1) == b""
    assert remote.seek(1000) == 1000 and remote.read(5000) == content[1000:6000] and remote.tell() == 6000
    assert remote.seek(-10, 1) == 5990 and remote.read(30) == content[5990:6020]


def test_unknown_events_and_full_disks(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no event meteor.*la_palma-volcano"):
        fetch(server, tmp_path / "root", "meteor")
    monkeypatch.setattr(module, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="are free"):
        fetch(server, tmp_path / "root")
    with pytest.raises(UsageError, match="--address"):
        DownloadRequest.checked(name="bright", root=tmp_path, address="ftp://somewhere/")


def test_command(server: Server, tmp_path: Path) -> None:
    words = ["data", "download", "bright", "--root", tmp_path / "root", "--event", EVENTS[0], "--event", EVENTS[1]]
    done = CliRunner().invoke(app, [*map(str, words), "--address", address(server), "--json"], catch_exceptions=False)
    assert done.exit_code == 0 and "CC BY-NC" in done.stderr
    assert json.loads(done.stdout)["fetched"] == 2 * 3 * TILES
