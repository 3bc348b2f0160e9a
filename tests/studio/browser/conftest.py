"""The app as a user starts it, and a real browser in front of it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, Response, expect

from mmcd.services.assets import fetch_assets

from ..conftest import Prepared, bench_app, filled_workspace

PATIENCE_MS = 30_000  # a page may wait for its turn on a busy machine; what it shows must still be right

# Streamlit's own: it looks for its server below a page's path first, its component frames ask for features that this
# browser does not know, and it warns of the sandbox that it chose for them.
KNOWN_MESSAGES = ("Unrecognized feature", "sandbox attribute", "_stcore/")


@dataclass
class Watched:
    """A page and everything it asked for and complained of.

    Attributes:
        page: The page.
        foreign: Addresses outside this machine that were asked for.
        complaints: Errors of the console and of scripts.
        refused: Addresses that were answered with an error.
        requests: All addresses, in order.
        sent: Number of messages that the page sent over web sockets.
    """

    page: Page
    foreign: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sent: int = 0

    def note_request(self, request: Request) -> None:
        self.requests.append(request.url)
        if urlsplit(request.url).hostname not in (None, "localhost", "127.0.0.1"):
            self.foreign.append(request.url)

    def note_response(self, response: Response) -> None:
        if response.status >= 400:
            self.refused.append(response.url)

    def note_message(self, text: str) -> None:
        if not any(known in text for known in KNOWN_MESSAGES):
            self.complaints.append(text)

    def note_sent(self, _payload: object) -> None:
        self.sent += 1


@pytest.fixture(scope="session")
def assets() -> Path:
    """The map's assets, fetched once a machine."""
    folder = Path(tempfile.gettempdir()) / "mmcd-test-assets"
    fetch_assets(folder)
    return folder


@pytest.fixture(scope="session")
def shared_workspace(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A filled workspace of the browser's own: its tests add runs."""
    return filled_workspace(tmp_path_factory)


@pytest.fixture(scope="session")
def address(shared_workspace, assets: Path) -> Iterator[str]:
    """Address of the running app; the server and its worker end with the tests."""
    shutil.copytree(assets, shared_workspace.folder / "assets", dirs_exist_ok=True)
    with bench_app.served(shared_workspace.folder, {"OMP_NUM_THREADS": "1"}) as started:
        yield started


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with bench_app.chromium() as started:
        yield started


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A fresh window of 1280 × 900 px that is being watched; it may neither complain nor leave this machine."""
    with watching(browser) as watched:
        yield watched
    assert watched.foreign == []
    assert watched.complaints == []


@contextmanager
def watching(browser: Browser) -> Iterator[Watched]:
    """A fresh window of 1280 × 900 px that is being watched."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    watched = Watched(context.new_page())
    context.on("request", watched.note_request)
    context.on("response", watched.note_response)
    watched.page.on("pageerror", lambda error: watched.note_message(str(error)))
    watched.page.on(
        "console",
        lambda message: message.type == "error" and watched.note_message(f"{message.text} {message.location['url']}"),
    )
    watched.page.on("websocket", lambda socket: socket.on("framesent", watched.note_sent))
    yield watched
    context.close()
