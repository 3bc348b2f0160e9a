"""`mmcd explore` names the address of the page and serves the app there."""

import json
import socket
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.errors import DataError, InputError, UsageError
from mmcd.services import serve
from mmcd.services.collections import open_collection


@pytest.fixture
def served(monkeypatch):
    """What the app was asked to serve; nothing is served."""
    asked = []
    monkeypatch.setattr(serve, "serve", lambda port, url: asked.append((port, url)) or 0)
    return asked


def test_it_prints_the_address_of_the_view_and_opens_it(served, floods, workspace):
    done = CliRunner().invoke(app, ["explore", "patches", "--root", str(floods), "--dataset", "ombria"])
    assert done.exit_code == 0, done.output
    ((port, url),) = served
    assert done.stdout.strip() == url
    parts = urlsplit(url)
    asked = parse_qs(parts.query)
    assert (parts.hostname, parts.port, parts.path, asked["view"]) == ("localhost", port, "/explorer", ["patches"])
    assert len(open_collection(asked["data"][0]).pictures) == 12


def test_without_a_folder_it_shows_the_scenes_and_no_browser_opens_none(served, workspace):
    done = CliRunner().invoke(app, ["explore", "images", "--no-browser", "--json"])
    assert json.loads(done.stdout)["data"] == "catalog"
    assert served[0][1] is None


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["--dataset", "bright"], UsageError, "give the folder with --root"),
        (["--root", "/nowhere"], DataError, "not a folder"),
        (["--root", ".", "--dataset", "eurosat"], UsageError, "--dataset"),
    ],
)
def test_wrong_words_are_explained(served, workspace, arguments, kind, words):
    done = CliRunner().invoke(app, ["explore", "images", *arguments])
    assert isinstance(done.exception, kind) and words in str(done.exception)
    assert served == []


def test_a_taken_port_is_not_used():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} is taken"):
            serve.free_port(port)
    assert serve.free_port() >= serve.FIRST_PORT
