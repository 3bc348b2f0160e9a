"""The app as a user starts it, a browser in front of it and a run to look at, for part e and for the tests of pages."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright

from mmcd.export import area_summary, write_item, write_mask
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid
from mmcd.score import score_counts
from mmcd.services.runs import run_folder, run_id_of

ROOT = Path(__file__).resolve().parent.parent
STARTED_SECONDS = 180
"""The first import of everything takes long on a busy machine."""


def paint_run(key: str, scene_id: str, stored: NDArray[np.uint8], grid: Grid, threshold: float, **manifest: Any) -> str:
    """Write a finished run of a score that no model computed into the workspace, as mmcd writes one; return its id.

    Args:
        key: What makes it another run than others.
        scene_id: The scene it is of.
        stored: The stored score, shape (y, x).
        grid: Grid of the score.
        threshold: Probability from which change is reported.
        manifest: What else the manifest says, ``model``, ``warnings`` and ``finished`` at least.
    """
    run_id = run_id_of(key)
    folder = run_folder(run_id)
    folder.mkdir(parents=True)
    write_cog(folder / "score.tif", stored, grid)
    write_mask(folder / "score.tif", grid, threshold, folder / "mask.tif", {})
    write_item(folder, run_id, grid, None, {})
    areas = area_summary(score_counts(stored), threshold, grid.pixel_area_m2)
    known = {"run_id": run_id, "inputs": {"scene": scene_id}, "region": None, "threshold": threshold, "areas": areas}
    (folder / "manifest.json").write_text(json.dumps(known | manifest))
    return run_id


@contextmanager
def served(workspace: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The app on a free port; it and what it started end with the block.

    Args:
        workspace: Workspace that it serves, and the place of its log.
        environment: What is added to this process's environment.

    Yields:
        Its address.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", f"--server.port={port}", "--server.headless=true"]
    chosen = {**os.environ, **environment, "MMCD_WORKSPACE": str(workspace)}
    with (workspace / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=chosen, stdout=log, stderr=log)
        try:
            _wait_for(f"http://localhost:{port}/_stcore/health", server)
            yield f"http://localhost:{port}"
        finally:
            family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            for process in family:
                process.terminate()
            for process in psutil.wait_procs(family, timeout=10)[1]:
                process.kill()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium, without a window."""
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


def _wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + STARTED_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError("the app did not start")
