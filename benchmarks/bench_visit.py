"""A visitor of the running app without a browser: what a page's script takes, from the question to its last answer.

It speaks the app's own protocol over its web socket, so the server does all that it does for a browser: it runs the
script in a session of its own, serialises every element and sends it. What a browser does with them is not in the time.
"""

import os
import time
from types import TracebackType
from typing import Self

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

PATIENCE_SECONDS = 300


class Visit:
    """One session of the app, from its web socket's opening to its closing."""

    def __init__(self, address: str) -> None:
        stream = f"{address.replace('http', 'ws', 1)}/_stcore/stream"
        self._socket = connect(stream, max_size=None, compression=None, open_timeout=PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def open(self, page: str, query: str = "") -> float:
        """Ask for a page and wait until its script has run to its end; return the seconds of the clock.

        Args:
            page: Path of the page without the slash, empty for the first one.
            query: What follows the question mark of its address.

        Raises:
            RuntimeError: The page shows an exception or is not in the app's table.
            TimeoutError: It did not end.
        """
        asked = BackMsg()
        asked.rerun_script.query_string = query
        asked.rerun_script.page_name = page
        begun = time.perf_counter()
        self._socket.send(asked.SerializeToString())
        while True:
            answer = ForwardMsg.FromString(bytes(self._socket.recv(timeout=PATIENCE_SECONDS)))
            _refuse(answer, page)
            ended = answer.WhichOneof("type") == "script_finished"
            if ended and answer.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                return time.perf_counter() - begun


def server_process() -> psutil.Process:
    """Return the app's server among the processes that this one started."""
    found = [child for child in psutil.Process(os.getpid()).children() if "streamlit" in child.cmdline()]
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} servers were found")
    return found[0]


def processor_seconds(process: psutil.Process) -> float:
    """Return the processor time of a process, its children apart, in steps of a hundredth of a second."""
    times = process.cpu_times()
    return times.user + times.system


def _refuse(answer: ForwardMsg, page: str) -> None:
    if answer.WhichOneof("type") == "page_not_found":
        raise RuntimeError(f"there is no page {page}")
    if answer.delta.new_element.WhichOneof("type") == "exception":
        raise RuntimeError(f"{page}: {answer.delta.new_element.exception.message}")
