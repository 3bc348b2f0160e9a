"""Long work that outlives the page that asked for it: a durable store of jobs and the one worker that runs them.

The store is an SQLite file in the workspace, written by any process. The worker holds a lock that the operating system
frees when it dies, however it dies, so the next worker knows that every job still marked as running was left behind
and queues it again; continuing where it stopped is up to the job's handler. Handlers are handed in by the caller.
"""

import contextlib
import json
import logging
import os
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mmcd.errors import Cancelled, InputError, MmcdError, StorageError
from mmcd.locks import locked

State = Literal["queued", "running", "done", "failed", "cancelled"]
Progress = Callable[[str, int, int], None]
Handler = Callable[[dict[str, Any], Progress], dict[str, Any]]

SCHEMA_VERSION = 1
MAX_ATTEMPTS = 3  # a job that took the worker down with it this often (out of memory, say) is not tried again
POLL_SECONDS = 0.25  # how often an idle worker looks for a job
HEARTBEAT_SECONDS = 1.0
IDLE_SECONDS = 600  # a worker that the app started keeps a loaded model this long, then gives the memory back
WRITE_SECONDS = 0.2  # progress is written, and a cancel seen, at most this often

_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0, cancel_requested INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL, started REAL, stage_started REAL, heartbeat REAL, finished REAL,
    result TEXT, message TEXT NOT NULL DEFAULT '', hint TEXT NOT NULL DEFAULT ''
);
CREATE INDEX jobs_by_state ON jobs (state, submitted);
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One job as the store knows it. All times are UTC.

    Attributes:
        id: Token that cannot be guessed.
        kind: Which handler runs it.
        request: What was asked, JSON values only.
        state: Where it stands.
        stage: What the handler is doing now.
        done: Units of the stage that are finished.
        total: Units of the stage; 0 while unknown.
        attempt: How often a worker has taken it up.
        cancel_requested: The user asked to stop it.
        submitted: When it was asked for.
        started: When a worker last took it up.
        stage_started: When the present stage began.
        heartbeat: When its worker last showed a sign of life.
        finished: When it ended, in whichever way.
        result: What the handler returned.
        message: Why it failed.
        hint: What the user can do about it.
    """

    id: str
    kind: str
    request: dict[str, Any]
    state: State
    stage: str
    done: int
    total: int
    attempt: int
    cancel_requested: bool
    submitted: datetime
    started: datetime | None
    stage_started: datetime | None
    heartbeat: datetime | None
    finished: datetime | None
    result: dict[str, Any] | None
    message: str
    hint: str

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("queued", "running")

    def seconds_left(self, now: datetime | None = None) -> float | None:
        """Return the time the present stage still needs at its pace so far; None before its first unit is done."""
        if self.state != "running" or self.stage_started is None or not 0 < self.done <= self.total:
            return None
        elapsed = ((now or datetime.now(UTC)) - self.stage_started).total_seconds()
        return max(0.0, elapsed / self.done * (self.total - self.done))


class JobStore:
    """The jobs of one workspace. Safe to use from several threads and processes.

    Args:
        path: SQLite file, created with its schema when missing.

    Raises:
        StorageError: The file cannot be opened or was written by a newer version of mmcd.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._connect() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            _migrate(connection, path)

    def submit(self, kind: str, request: dict[str, Any]) -> str:
        """Queue a job and return its id."""
        job_id = secrets.token_urlsafe(16)
        with self._connect() as connection:
            connection.execute(
                "INSERT INTO jobs (id, kind, request, state, submitted) VALUES (?, ?, ?, 'queued', ?)",
                (job_id, kind, json.dumps(request), time.time()),
            )
        return job_id

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            InputError: There is none with this id.
        """
        with self._connect() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise InputError("There is no such job in this workspace.", "Start it again.")
        return _job(row)

    def list(self, kind: str | None = None, limit: int = 200) -> list[Job]:
        """Return the latest jobs, newest first, all kinds or one."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE kind = coalesce(?, kind) ORDER BY submitted DESC LIMIT ?", (kind, limit)
            ).fetchall()
        return [_job(row) for row in rows]

    def claim(self) -> Job | None:
        """Mark the oldest queued job as running and return it; None when nothing waits."""
        now = time.time()
        with self._connect() as connection:
            row = connection.execute(
                "UPDATE jobs SET state = 'running', attempt = attempt + 1, started = ?1, stage_started = ?1,"
                " heartbeat = ?1, stage = '', done = 0, total = 0"
                " WHERE id = (SELECT id FROM jobs WHERE state = 'queued' ORDER BY submitted LIMIT 1) RETURNING *",
                (now,),
            ).fetchone()
        return None if row is None else _job(row)

    def progress(self, job_id: str, stage: str, done: int, total: int) -> None:
        """Note how far a running job is.

        Raises:
            Cancelled: The user asked to stop it.
        """
        now = time.time()
        with self._connect() as connection:
            row = connection.execute(
                "UPDATE jobs SET stage_started = CASE WHEN stage = ?1 THEN stage_started ELSE ?4 END,"
                " stage = ?1, done = ?2, total = ?3, heartbeat = ?4 WHERE id = ?5 RETURNING cancel_requested",
                (stage, done, total, now, job_id),
            ).fetchone()
        if row is not None and row["cancel_requested"]:
            raise Cancelled("The job was cancelled.")

    def beat(self, job_id: str) -> None:
        """Note that a running job's worker is alive."""
        with self._connect() as connection:
            connection.execute("UPDATE jobs SET heartbeat = ? WHERE id = ?", (time.time(), job_id))

    def cancel(self, job_id: str) -> None:
        """Stop a job: at once while it waits, at its next progress report while it runs, never once it has ended."""
        with self._connect() as connection:
            connection.execute(
                "UPDATE jobs SET cancel_requested = 1, finished = iif(state = 'queued', ?, finished),"
                " state = iif(state = 'queued', 'cancelled', state) WHERE id = ? AND state IN ('queued', 'running')",
                (time.time(), job_id),
            )

    def finish(self, job_id: str, result: dict[str, Any]) -> None:
        """Mark a job as done."""
        self._end(job_id, "done", json.dumps(result), "", "")

    def fail(self, job_id: str, message: str, hint: str = "") -> None:
        """Mark a job as failed and say why and what to do."""
        self._end(job_id, "failed", None, message, hint)

    def mark_cancelled(self, job_id: str) -> None:
        """Mark a running job as stopped."""
        self._end(job_id, "cancelled", None, "", "")

    def recover(self) -> int:
        """Queue again what a dead worker left running; only the holder of the worker lock may call this.

        Returns:
            Number of jobs found. Those already tried ``MAX_ATTEMPTS`` times fail, those being cancelled are cancelled.
        """
        with self._connect() as connection:
            rows = connection.execute("SELECT * FROM jobs WHERE state = 'running'").fetchall()
        for job in map(_job, rows):
            if job.cancel_requested:
                self.mark_cancelled(job.id)
            elif job.attempt >= MAX_ATTEMPTS:
                self.fail(
                    job.id,
                    f"The worker stopped {job.attempt} times while it ran this job, perhaps for lack of memory.",
                    "Try a smaller region, or look into logs/worker.log in the workspace.",
                )
            else:
                with self._connect() as connection:
                    connection.execute("UPDATE jobs SET state = 'queued' WHERE id = ?", (job.id,))
        return len(rows)

    def _end(self, job_id: str, state: State, result: str | None, message: str, hint: str) -> None:
        with self._connect() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, result = ?, message = ?, hint = ?, finished = ? WHERE id = ?",
                (state, result, message, hint, time.time(), job_id),
            )

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # One short connection a call: nothing is shared between threads, and a killed process leaves nothing open.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=10)
            connection.row_factory = sqlite3.Row
            with contextlib.closing(connection), connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"The job store {self.path} cannot be used: {error}.",
                "Check that the disk has space and the file is yours to write.",
            ) from error


def run_worker(
    store: JobStore,
    handlers: dict[str, Handler],
    idle_seconds: float | None = None,
    stop: threading.Event | None = None,
) -> bool:
    """Run queued jobs one after the other.

    Args:
        store: Where the jobs are.
        handlers: Function of each kind of job: request and progress callback in, result out.
        idle_seconds: Leave after this time without a job; None stays.
        stop: Leave after the present job once this is set.

    Returns:
        False when another worker serves this store already, else True at the end.
    """
    stop = stop or threading.Event()
    # A second is enough to outwait the short reads of `worker_alive`.
    with locked(_lock_path(store.path), 1) as held:
        if not held:
            return False
        if found := store.recover():
            logger.warning("%d job(s) of a worker that died were taken up again", found)
        last_job = time.monotonic()
        while not stop.is_set():
            job = store.claim()
            if job is not None:
                _run_job(store, job, handlers)
                last_job = time.monotonic()
            elif idle_seconds is not None and time.monotonic() - last_job > idle_seconds:
                break
            else:
                stop.wait(POLL_SECONDS)
    return True


def worker_alive(store: JobStore) -> bool:
    """Return whether a worker serves this store now."""
    with contextlib.closing(sqlite3.connect(_lock_path(store.path), timeout=0)) as connection:
        try:
            # A read is refused while a worker holds the file; readers do not disturb one another.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            return True
    return False


_spawned: dict[Path, subprocess.Popen[bytes]] = {}
_spawn_lock = threading.Lock()


def ensure_worker(workspace: Path) -> None:
    """Start ``python -m mmcd worker`` for a workspace unless one is alive.

    It outlives this process, so that a run goes on when the app is closed, and leaves when it has had nothing to do.
    Its messages go to ``logs/worker.log`` in the workspace.

    Raises:
        StorageError: The log file cannot be written.
    """
    with _spawn_lock:
        starting = _spawned.get(workspace)
        # A worker that was just started has not taken the lock yet; a second one would only find it held and leave.
        if (starting is not None and starting.poll() is None) or worker_alive(open_store(workspace)):
            return
        log = workspace / "logs" / "worker.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                _spawned[workspace] = subprocess.Popen(
                    [sys.executable, "-m", "mmcd", "worker", "--idle", str(IDLE_SECONDS)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=_worker_environment(workspace),
                    start_new_session=True,
                )
        except OSError as error:
            raise StorageError(f"The worker cannot be started: {error}.", "Check the disk and try again.") from error


def _worker_environment(workspace: Path) -> dict[str, str]:
    # mmcd need not be installed: `streamlit run app.py` finds it beside the script, and so must the worker.
    found = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "MMCD_WORKSPACE": str(workspace), "PYTHONPATH": os.pathsep.join(filter(None, found))}


def open_store(workspace: Path) -> JobStore:
    """Return the job store of a workspace."""
    return JobStore(workspace / "jobs.sqlite")


def _run_job(store: JobStore, job: Job, handlers: dict[str, Handler]) -> None:
    """Run one job to its end and note how it ended."""
    logger.info("job %s (%s), attempt %d", job.id, job.kind, job.attempt)
    with _heartbeat(store, job.id):
        try:
            if job.kind not in handlers:
                raise InputError(f"This worker cannot run jobs of kind {job.kind!r}.", "Restart mmcd.")
            store.finish(job.id, handlers[job.kind](job.request, _Reporter(store, job.id)))
        except Cancelled:
            store.mark_cancelled(job.id)
        except MmcdError as error:
            logger.warning("job %s failed: %s", job.id, error, exc_info=True)
            store.fail(job.id, error.message, error.hint)
        except Exception as error:
            # The last line of defence: one job's defect must not end the worker; the log keeps the traceback.
            logger.exception("job %s failed", job.id)
            store.fail(
                job.id,
                f"The program failed ({type(error).__name__}: {error}).",
                "The details are in logs/worker.log in the workspace.",
            )


class _Reporter:
    """Progress callback of one job that writes often enough to be seen and seldom enough to cost nothing."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self._store, self._job_id = store, job_id
        self._stage, self._written = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._written < WRITE_SECONDS:
            return
        self._stage, self._written = stage, now
        self._store.progress(self._job_id, stage, done, total)


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


def _lock_path(store_path: Path) -> Path:
    return store_path.with_suffix(".lock")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the present schema."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"{path} was written by a newer mmcd (schema {version}, this one reads {SCHEMA_VERSION}).",
            "Update mmcd, or set MMCD_WORKSPACE to another folder.",
        )
    if version == 0:
        # Two processes may come here together: the second finds the table made inside its own transaction.
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    for name in ("submitted", "started", "stage_started", "heartbeat", "finished"):
        values[name] = None if values[name] is None else datetime.fromtimestamp(values[name], UTC)
    values["request"] = json.loads(values["request"])
    values["result"] = None if values["result"] is None else json.loads(values["result"])
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Job(**values)
