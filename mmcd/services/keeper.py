"""Runs a command and ends it, with all that it started, once whoever asked for it is gone.

``python keeper.py COMMAND ...``: the standard input is a pipe from the one who asks. The operating system closes it
when that process ends, however it ends, so nothing is left behind. Needs nothing but the standard library.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

PATIENCE = 5.0
"""Seconds that a command has to end by itself."""


def keep(command: list[str]) -> int:
    """Run a command until it ends or the standard input does; return its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the pipe alone says when it is over
        signal.signal(number, lambda *_: None)  # SIG_IGN would be inherited
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    return child.wait()


def _end_with_input(child: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 4096):  # sys.stdin would hold a lock that Python's own end wants
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
