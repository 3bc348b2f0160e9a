"""The app as a user starts it, and a real browser in front of it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from mmcd.services.assets import fetch_assets

from ..conftest import Prepared, filled_workspace

ROOT = Path(__file__).resolve().parents[3]
STARTED_SECONDS = 180  # the first import of everything takes long on a busy machine
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
        requests: All addresses, in order.
        sent: Number of messages that the page sent over web sockets.
    """

    page: Page
    foreign: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sent: int = 0

    def note_request(self, request: Request) -> None:
        self.requests.append(request.url)
        if urlsplit(request.url).hostname not in (None, "localhost", "127.0.0.1"):
            self.foreign.append(request.url)

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
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    log = (shared_workspace.folder / "server.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}", "--server.headless=true"],
        cwd=ROOT,
        env={**os.environ, "MMCD_WORKSPACE": str(shared_workspace.folder), "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=log,
    )
    try:
        _wait_for(f"http://localhost:{port}/_stcore/health", server)
        yield f"http://localhost:{port}"
    finally:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        for process in family:
            process.terminate()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            process.kill()
        log.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A fresh window of 1280 × 900 px that is being watched; it may neither complain nor leave this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE_MS)
    watched = Watched(context.new_page())
    context.on("request", watched.note_request)
    watched.page.on("pageerror", lambda error: watched.note_message(str(error)))
    watched.page.on(
        "console",
        lambda message: message.type == "error" and watched.note_message(f"{message.text} {message.location['url']}"),
    )
    watched.page.on("websocket", lambda socket: socket.on("framesent", watched.note_sent))
    yield watched
    context.close()
    assert watched.foreign == []
    assert watched.complaints == []


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTED_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError("the app did not start")
