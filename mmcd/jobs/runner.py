"""The process that does the work of a lane, one job after the other."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

from mmcd.errors import Cancelled, InputError, MmcdError, StorageError
from mmcd.jobs.logs import log_path, logged
from mmcd.jobs.places import Lane, gpu_here
from mmcd.jobs.store import Job, JobStore
from mmcd.locks import locked
from mmcd.progress import Progress

Handler = Callable[[dict[str, Any], Progress], dict[str, Any]]
"""What does the work of a kind: request and progress callback in, result out."""

POLL_SECONDS = 0.25  # how often an idle worker looks for a job
HEARTBEAT_SECONDS = 1.0
WRITE_SECONDS = 0.2  # progress is written, and a cancel seen, at most this often
LOG_SECONDS = 60.0  # between two lines on the progress of one stage in a job's log

logger = logging.getLogger(__name__)

_current: ContextVar[Job | None] = ContextVar("job", default=None)


def current_job() -> Job | None:
    """Return the job that this thread runs, as it was when it was taken up; None outside a handler."""
    return _current.get()


def lock_path(store_path: Path, lane: Lane | None = None) -> Path:
    """Return the file of the lock that the worker holds, or the process of one of its lanes."""
    return store_path.with_suffix(".lock" if lane is None else f".{lane}.lock")


def run_worker(
    store: JobStore,
    handlers: dict[str, Handler],
    idle_seconds: float | None = None,
    stop: threading.Event | None = None,
    lane: Lane | None = None,
) -> bool:
    """Run queued jobs one after the other in this process.

    Args:
        store: Where the jobs are.
        handlers: Function of each kind of job.
        idle_seconds: Leave after this time without a job; None stays.
        stop: Leave once this is set; the present job is queued again at its next report of progress.
        lane: Take jobs of this lane only.

    Returns:
        False when another worker serves this store already, else True at the end.
    """
    stop = stop or threading.Event()
    # A second is enough to outwait the short reads of `worker_alive`.
    with locked(lock_path(store.path, lane), 1) as held:
        if not held:
            return False
        if found := store.recover(lane):
            logger.warning("%d job(s) of a worker that died were taken up again", found)
        last_job = time.monotonic()
        while not stop.is_set():
            job = _claimed(store, lane)
            if job is not None:
                _run_job(store, job, handlers, stop)
                last_job = time.monotonic()
            elif idle_seconds is not None and time.monotonic() - last_job > idle_seconds:
                break
            else:
                stop.wait(POLL_SECONDS)
    return True


def _claimed(store: JobStore, lane: Lane | None) -> Job | None:
    """Take the next job; none while the store cannot be used, which passes more often than not."""
    try:
        return store.claim(lane)
    except StorageError as error:
        logger.warning("no job was looked for: %s", error)
        return None


def run_lane(store: JobStore, handlers: dict[str, Handler], lane: Lane, idle_seconds: float | None = None) -> bool:
    """Run the jobs of a lane as a process of the supervisor: until that ends, or asks to.

    Standard input is the supervisor's hold on this process: when it closes, the supervisor is dead, however it died,
    and this process leaves at once for the next one.
    """
    stop = threading.Event()

    def leave(signum: int, frame: FrameType | None) -> None:
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, leave)
    logging.captureWarnings(True)
    threading.Thread(target=_leave_with_supervisor, name="supervisor", daemon=True).start()
    return run_worker(store, handlers, idle_seconds, stop, lane)


def _leave_with_supervisor() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _run_job(store: JobStore, job: Job, handlers: dict[str, Handler], stop: threading.Event) -> None:
    """Run one job to its end and note how it ended."""
    token = _current.set(job)
    try:
        with _heartbeat(store, job.id), logged(log_path(store.path, job.id)):
            logger.info("job %s (%s) begins on the %s, attempt %d", job.id, job.kind, job.place, job.attempt)
            logger.info("asked for: %s", job.request)
            _try_job(store, job, handlers, stop)
    finally:
        _current.reset(token)


def _try_job(store: JobStore, job: Job, handlers: dict[str, Handler], stop: threading.Event) -> None:
    try:
        if job.kind not in handlers:
            raise InputError(f"This worker cannot run jobs of kind {job.kind!r}.", "Restart mmcd.")
        result = handlers[job.kind](_placed(job), _Reporter(store, job.id, stop))
        logger.info("done")
        store.finish(job.id, result)
    except Cancelled:
        if stop.is_set() and not store.get(job.id).cancel_requested:
            logger.info("left, because the worker was asked to stop; the next one goes on")
            store.release(job.id)
        else:
            logger.info("cancelled")
            store.mark_cancelled(job.id)
    except MmcdError as error:
        logger.warning("failed: %s", error)  # the fault of the input: cause and next step say it all
        store.fail(job.id, error.message, error.hint)
    except Exception as error:
        # The last line of defence: one job's defect must not end the worker; the log keeps the traceback.
        logger.exception("failed")
        store.fail(
            job.id,
            f"The program failed ({type(error).__name__}: {error}).",
            f"The details are in logs/jobs/{job.id}.log in the workspace.",
        )


def _placed(job: Job) -> dict[str, Any]:
    """Return a job's request; it names the processor when it runs there only because the GPU is taken."""
    free_to_choose = job.place == "cpu" and job.device == "any" and job.request.get("device") == "auto"
    return job.request | {"device": "cpu"} if free_to_choose and gpu_here() else job.request


class _Reporter:
    """Progress callback of one job that writes often enough to be seen and seldom enough to cost nothing."""

    def __init__(self, store: JobStore, job_id: str, stop: threading.Event) -> None:
        self._store, self._job_id, self._stop = store, job_id, stop
        self._stage, self._written, self._logged = "", 0.0, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._stop.is_set():
            raise Cancelled("The worker was asked to stop.")
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._written < WRITE_SECONDS:
            return
        if stage != self._stage or now - self._logged > LOG_SECONDS:
            logger.info("%s %d of %d", stage, done, total)
            self._logged = now
        self._stage, self._written = stage, now
        try:
            self._store.progress(self._job_id, stage, done, total)
        except StorageError as error:  # a store that is busy for a while is no reason to lose hours of work
            logger.warning("progress was not noted: %s", error)


@contextlib.contextmanager
def _heartbeat(store: JobStore, job_id: str) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                store.beat(job_id)
            except StorageError as error:
                logger.warning("no heartbeat: %s", error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
