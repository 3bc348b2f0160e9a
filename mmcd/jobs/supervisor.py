"""The worker: watches one process a lane, starts what died again, and ends what does not answer."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType

from mmcd.errors import StorageError
from mmcd.jobs.logs import log_path, note
from mmcd.jobs.places import LANES, Lane
from mmcd.jobs.runner import POLL_SECONDS, lock_path
from mmcd.jobs.store import MAX_ATTEMPTS, JobStore
from mmcd.locks import locked

CANCEL_SECONDS = 1.5  # a job that goes on for longer after a cancel is ended with its process: in all below 2 s
STOP_SECONDS = 5.0  # what a process has to leave its job when the worker is asked to stop
IDLE_SECONDS = 600  # a lane keeps a loaded model this long, then gives the memory back
LONGEST_PAUSE = 60.0  # between two tries to start a process that does not come up

logger = logging.getLogger(__name__)


def supervise(store: JobStore, idle_seconds: float | None = None) -> bool:
    """Run the jobs of a workspace until this process is asked to stop.

    Args:
        store: Where the jobs are; its folder is the workspace of the lanes' processes.
        idle_seconds: Leave after this time without a job; None stays.

    Returns:
        False when another worker serves this store already.
    """
    stop = threading.Event()

    def leave(signum: int, frame: FrameType | None) -> None:
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, leave)
    kept = IDLE_SECONDS if idle_seconds is None else min(idle_seconds, IDLE_SECONDS)

    def command(lane: Lane) -> list[str]:
        return [sys.executable, "-m", "mmcd", "worker", "--lane", lane, "--idle", str(kept)]

    environment = {**os.environ, "MMCD_WORKSPACE": str(store.path.parent)}
    return Supervisor(store, command, idle_seconds, environment).run(stop)


class Supervisor:
    """Keeps a process for every lane that has work.

    Args:
        store: Where the jobs are.
        command: Command of a lane's process, which calls `mmcd.jobs.run_lane`.
        idle_seconds: Leave after this time without a job; None stays.
        environment: Of the processes; this one's when left out.
    """

    def __init__(
        self,
        store: JobStore,
        command: Callable[[Lane], list[str]],
        idle_seconds: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._store, self._command, self._idle_seconds = store, command, idle_seconds
        self._environment = environment
        self._processes: dict[Lane, subprocess.Popen[bytes]] = {}
        self._failures: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._not_before: dict[Lane, float] = dict.fromkeys(LANES, 0.0)
        self._last_work = time.monotonic()

    def run(self, stop: threading.Event) -> bool:
        """Serve the store until ``stop`` is set or nothing has been to do for long.

        Returns:
            False when another worker serves it already.
        """
        # A second is enough to outwait the short reads of `worker_alive`.
        with locked(lock_path(self._store.path), 1) as held:
            if not held:
                return False
            for lane in LANES:
                self._recover(lane)
            try:
                while not stop.is_set() and not self._idle():
                    try:
                        self._look()
                    except StorageError as error:
                        logger.warning("the worker waits: %s", error)
                    stop.wait(POLL_SECONDS)
            finally:
                self._end()
        return True

    def _look(self) -> None:
        for lane, process in list(self._processes.items()):
            if process.poll() is not None:
                self._bury(lane, process)
        for job in self._store.overdue(CANCEL_SECONDS):
            self._end_job(job.id, job.lane)
        now, work = time.monotonic(), self._store.lanes_with_work()
        for lane in work - self._processes.keys():
            if now >= self._not_before[lane]:
                self._start(lane)
        if work:
            self._last_work = now

    def _start(self, lane: Lane) -> None:
        # A session of its own: Ctrl-C reaches the supervisor alone, and its loader processes can be ended with it.
        self._processes[lane] = subprocess.Popen(
            self._command(lane), stdin=subprocess.PIPE, env=self._environment, start_new_session=True
        )

    def _bury(self, lane: Lane, process: "subprocess.Popen[bytes]") -> None:
        """Take back the job of a process that has ended; wait longer for each one that did not even begin a job."""
        self._forget(lane)
        found = self._recover(lane)
        if process.returncode == 0 or found:
            self._failures[lane] = 0
            return
        self._failures[lane] += 1
        self._not_before[lane] = time.monotonic() + min(2.0 ** self._failures[lane], LONGEST_PAUSE)
        if self._failures[lane] >= MAX_ATTEMPTS:
            self._failures[lane] = 0
            for job in self._store.active():
                if job.lane == lane:
                    reason = f"The worker does not start (it ended with {process.returncode})."
                    self._store.fail(job.id, reason, "Look into logs/worker.log in the workspace, then retry.")

    def _end_job(self, job_id: str, lane: Lane) -> None:
        """End a job that does not answer with its process; what it had finished stays on the disk."""
        process = self._processes.get(lane)
        if process is not None:
            _kill(process)
            self._forget(lane)
        self._recover(lane)  # cancels this job, and queues again whatever the process had just begun
        note(log_path(self._store.path, job_id), "cancelled, its process was ended because it did not answer")

    def _recover(self, lane: Lane) -> int:
        """Queue again what a dead process of a lane left; nothing while one of an earlier worker still lives."""
        with locked(lock_path(self._store.path, lane), 1) as held:
            return self._store.recover(lane) if held else 0

    def _forget(self, lane: Lane) -> None:
        stdin = self._processes.pop(lane).stdin
        if stdin is not None:
            stdin.close()

    def _idle(self) -> bool:
        if self._idle_seconds is None or self._processes:
            return False
        return time.monotonic() - self._last_work > self._idle_seconds

    def _end(self) -> None:
        """Ask all processes to leave their jobs for the next worker; end those that do not."""
        for process in self._processes.values():
            process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for lane, process in list(self._processes.items()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            _kill(process)
            self._forget(lane)
            for job in self._store.list(limit=-1, states=("running",)):
                if job.lane == lane:
                    self._store.release(job.id)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process and those that it started, whatever they do."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
