"""TensorBoard and MLflow's own pages, started when asked for on a free port of this machine, ended with the app.

Each runs below a small process, `mmcd.services.keeper`, that ends it when the app is gone, however the app went.
"""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmcd.errors import ConfigError, StorageError
from mmcd.paths import workspace
from mmcd.services.tracking import store_path

BoardName = Literal["tensorboard", "mlflow"]
BOARDS: dict[BoardName, str] = {"tensorboard": "TensorBoard", "mlflow": "MLflow"}

HOST = "127.0.0.1"

_KEEPER = Path(__file__).with_name("keeper.py")


@dataclass(frozen=True)
class Board:
    """One of them.

    Attributes:
        name: Which.
        port: Where it listens.
        keeper: The process that ends it with the app.
        log: Where its messages go.
    """

    name: BoardName
    port: int
    keeper: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        """Its address on this machine."""
        return f"http://{HOST}:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.keeper.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=0.2):
            return self.alive
        return False

    def said(self, lines: int = 8) -> str:
        """Return the end of its messages."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        return ""


_started: dict[tuple[Path, BoardName], Board] = {}
_turn = threading.Lock()


def running_board(name: BoardName) -> Board | None:
    """Return the board that this app started for the workspace, be it alive or not; None where it was not asked for."""
    return _started.get((workspace(), name))


def start_board(name: BoardName) -> Board:
    """Start one, unless it runs; it takes some seconds until it is ready.

    Raises:
        ConfigError: It is not installed, or there is nothing that it could show.
        StorageError: Its log cannot be written.
    """
    with _turn:
        there = running_board(name)
        if there is not None and there.alive:
            return there
        port = _free_port()
        log = workspace() / "logs" / f"{name}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                keeper = subprocess.Popen(
                    [sys.executable, "-I", str(_KEEPER), *_command(name, port)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
                )
        except OSError as error:
            raise StorageError(
                f"{BOARDS[name]} cannot be started: {error}.", "Check the disk and try again."
            ) from error
        _started[workspace(), name] = Board(name, port, keeper, log)
        return _started[workspace(), name]


def stop_board(name: BoardName) -> None:
    """End one that this app started; nothing happens where there is none."""
    with _turn:
        board = _started.pop((workspace(), name), None)
        if board is not None and board.keeper.stdin is not None:
            board.keeper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                board.keeper.wait(10)


def _command(name: BoardName, port: int) -> list[str]:
    """Return the command that serves a board.

    Raises:
        ConfigError: It is not installed, or there is nothing that it could show.
    """
    if importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"{BOARDS[name]} is not installed here.", f"Install it: {sys.executable} -m pip install {name}."
        )
    where = ["--host", HOST, "--port", str(port)]
    if name == "tensorboard":
        folder = workspace() / "training"
        if not any(folder.glob("*/tensorboard")):
            raise ConfigError(
                "No training has written for TensorBoard yet.", "Start one; it does so unless told not to."
            )
        return [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), *where]
    if not store_path().is_file():
        raise ConfigError("No training has written for MLflow yet.", "Start one; it does so unless told not to.")
    store = f"sqlite:///{store_path()}"
    return [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1", *where]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
