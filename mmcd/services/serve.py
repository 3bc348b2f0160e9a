"""Serve the app as `make app` does, for commands that lead to one of its pages."""

import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser

from mmcd.errors import InputError
from mmcd.paths import shipped

FIRST_PORT = 8501
_PORTS_TRIED = 50
_STARTED_SECONDS = 180.0
_LOOK_SECONDS = 0.3


def free_port(asked: int | None = None) -> int:
    """Return the port that was asked for, or the first free one from Streamlit's own on.

    Raises:
        InputError: The port is taken, or none is free.
    """
    ports = range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED) if asked is None else (asked,)
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
            return port
    raise InputError(
        f"Port {asked} is taken." if asked else f"No port from {FIRST_PORT} on is free.",
        "Give another one with --port.",
    )


def serve(port: int, open_url: str | None = None) -> int:
    """Run the app until it is stopped; return its exit status.

    Args:
        port: Where it answers, on this machine only.
        open_url: Address that is opened in the user's browser once the app answers; None opens nothing.
    """
    app = shipped("app.py")
    command = [sys.executable, "-m", "streamlit", "run", str(app), "--server.headless=true", f"--server.port={port}"]
    # Its settings lie beside it; what it says is no result of the command.
    server = subprocess.Popen(command, cwd=app.parent, stdout=sys.stderr)
    if open_url is not None:
        threading.Thread(target=_open_when_ready, args=(port, open_url, server), daemon=True).start()
    try:
        return server.wait()
    finally:
        server.terminate()


def _open_when_ready(port: int, url: str, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _STARTED_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=2):
                webbrowser.open(url)
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(_LOOK_SECONDS)
