"""The jobs of one workspace in an SQLite file."""

import contextlib
import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmcd.errors import Cancelled, InputError, StorageError
from mmcd.jobs.job import ENDED, STATES, Job, State
from mmcd.jobs.logs import log_path
from mmcd.jobs.places import Device, Lane, device_of, gpu_here, lane_of, next_job
from mmcd.jobs.schema import migrate

__all__ = ["MAX_ATTEMPTS", "STATES", "Job", "JobStore", "State"]

MAX_ATTEMPTS = 3  # a job that took the worker down with it this often (out of memory, say) is not tried again

Jobs = list[Job]  # inside the class, `list` is its method

_MATCHING = (
    " WHERE kind = coalesce(:kind, kind) AND (:search = '' OR instr(lower(request || ' ' || id || ' ' || message),"
    " lower(:search)) > 0)"
)


class JobStore:
    """The jobs of one workspace. Safe to use from several threads and processes.

    Args:
        path: SQLite file, created with its schema when missing, brought up to date when older.

    Raises:
        StorageError: The file cannot be opened or was written by a newer version of mmcd.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._connect() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            migrate(connection, path)

    def submit(
        self, kind: str, request: dict[str, Any], *, lane: Lane | None = None, device: Device | None = None
    ) -> str:
        """Queue a job and return its id.

        Args:
            kind: Which handler runs it.
            request: What is asked, JSON values only.
            lane: Which queue it waits in; that of its kind when left out.
            device: What it needs; told from the request when left out.
        """
        job_id = secrets.token_hex(16)
        needs = (lane or lane_of(kind), device or device_of(kind, request))
        with self._connect() as connection:
            connection.execute(
                "INSERT INTO jobs (id, kind, request, state, submitted, lane, device)"
                " VALUES (?, ?, ?, 'queued', ?, ?, ?)",
                (job_id, kind, json.dumps(request), time.time(), *needs),
            )
        return job_id

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            InputError: There is none with this id.
        """
        found = self._rows("SELECT * FROM jobs WHERE id = ?", (job_id,))
        if not found:
            raise InputError("There is no such job in this workspace.", "Start it again.")
        return found[0]

    def find(self, beginning: str) -> Job:
        """Return the job whose id begins so.

        Raises:
            InputError: None does, or several do.
        """
        found = self._rows("SELECT * FROM jobs WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2", (beginning,))
        if not beginning or len(found) != 1:
            what = "Several jobs have an id that begins" if found else "There is no job whose id begins"
            raise InputError(f"{what} with {beginning!r}.", "See `mmcd jobs list`.")
        return found[0]

    def list(
        self,
        kind: str | None = None,
        limit: int = 200,
        *,
        states: Sequence[State] = (),
        search: str = "",
        offset: int = 0,
    ) -> Jobs:
        """Return jobs, newest first.

        Args:
            kind: Only of this kind.
            limit: At most so many; -1 for all.
            states: Only in one of these states; all when empty.
            search: Only those whose request, id or message holds this text.
            offset: How many to leave out at the beginning.
        """
        among = f" AND state IN ({', '.join(f':{state}' for state in states)})" if states else ""
        values = {"kind": kind, "search": search, "limit": limit, "offset": offset} | {state: state for state in states}
        order = " ORDER BY submitted DESC, rowid DESC LIMIT :limit OFFSET :offset"
        return self._rows(f"SELECT * FROM jobs{_MATCHING}{among}{order}", values)

    def active(self, kind: str | None = None) -> Jobs:
        """Return what waits or runs, however much it is, oldest first."""
        return self.list(kind, -1, states=("queued", "running"))[::-1]

    def counts(self, kind: str | None = None, search: str = "") -> dict[State, int]:
        """Return how many jobs are in each state, every state named; see `list`."""
        with self._connect() as connection:
            rows = connection.execute(
                f"SELECT state, count(*) AS number FROM jobs{_MATCHING} GROUP BY state",
                {"kind": kind, "search": search},
            ).fetchall()
        found = {row["state"]: int(row["number"]) for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of the jobs that are here, sorted."""
        with self._connect() as connection:
            return tuple(row["kind"] for row in connection.execute("SELECT DISTINCT kind FROM jobs ORDER BY kind"))

    def fingerprint(self) -> str:
        """Return a text that changes when a job comes, goes, begins or ends, and not with its progress."""
        with self._connect() as connection:
            row = connection.execute(
                "SELECT count(*), max(submitted), max(started), max(finished), total(state = 'queued'),"
                " total(state = 'running'), total(cancel_requested) FROM jobs"
            ).fetchone()
        return repr(tuple(row))

    def claim(self, lane: Lane | None = None, gpu: bool | None = None) -> Job | None:
        """Mark the job that is next as running and return it, see `mmcd.jobs`; None when none can start now.

        Args:
            lane: Lane to take it from; None for all.
            gpu: Whether this machine has a GPU; looked for when left out.
        """
        now = time.time()
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            chosen = next_job(connection, lane, gpu_here() if gpu is None else gpu)
            if chosen is None:
                return None
            row = connection.execute(
                "UPDATE jobs SET state = 'running', attempt = attempt + 1, started = ?1, stage_started = ?1,"
                " heartbeat = ?1, stage = '', done = 0, total = 0, place = ?3 WHERE id = ?2 RETURNING *",
                (now, *chosen),
            ).fetchone()
        return Job.of_row(row)

    def lanes_with_work(self) -> set[Lane]:
        """Return the lanes in which something waits or runs."""
        with self._connect() as connection:
            rows = connection.execute("SELECT DISTINCT lane FROM jobs WHERE state IN ('queued', 'running')").fetchall()
        return {row["lane"] for row in rows}

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
        self._write("UPDATE jobs SET heartbeat = ? WHERE id = ?", (time.time(), job_id))

    def cancel(self, job_id: str) -> None:
        """Stop a job: at once while it waits, within two seconds while it runs, never once it has ended."""
        self._write(
            "UPDATE jobs SET cancel_requested = 1, cancel_asked = coalesce(cancel_asked, ?1),"
            " finished = iif(state = 'queued', ?1, finished), state = iif(state = 'queued', 'cancelled', state)"
            " WHERE id = ?2 AND state IN ('queued', 'running')",
            (time.time(), job_id),
        )

    def overdue(self, seconds: float) -> Jobs:
        """Return running jobs that were asked to stop longer ago than this."""
        return self._rows(
            "SELECT * FROM jobs WHERE state = 'running' AND cancel_requested AND cancel_asked <= ?",
            (time.time() - seconds,),
        )

    def retry(self, job_id: str) -> None:
        """Queue a job again that failed or was cancelled; it goes on from what it left.

        Raises:
            InputError: There is none with this id, or it is not one of those.
        """
        changed = self._write(
            "UPDATE jobs SET state = 'queued', attempt = 0, cancel_requested = 0, cancel_asked = NULL, submitted = ?,"
            " started = NULL, finished = NULL, stage = '', done = 0, total = 0, message = '', hint = ''"
            " WHERE id = ? AND state IN ('failed', 'cancelled')",
            (time.time(), job_id),
        )
        if not changed:
            state = self.get(job_id).state
            raise InputError(f"The job is {state}.", "Only a job that failed or was cancelled can be retried.")

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, and its log. What it made stays.

        Raises:
            InputError: There is none with this id, or it has not ended.
        """
        ended = ", ".join(f"'{state}'" for state in ENDED)
        if not self._write(f"DELETE FROM jobs WHERE id = ? AND state IN ({ended})", (job_id,)):
            raise InputError(f"The job is {self.get(job_id).state}.", "Cancel it first.")
        with contextlib.suppress(OSError):  # a log that stays is no reason to keep the job
            log_path(self.path, job_id).unlink(missing_ok=True)

    def finish(self, job_id: str, result: dict[str, Any]) -> None:
        """Mark a job as done."""
        self._end(job_id, "done", json.dumps(result), "", "")

    def fail(self, job_id: str, message: str, hint: str = "") -> None:
        """Mark a job as failed and say why and what to do."""
        self._end(job_id, "failed", None, message, hint)

    def mark_cancelled(self, job_id: str) -> None:
        """Mark a running job as stopped; one that ended meanwhile stays as it ended."""
        self._write(
            "UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND state = 'running'",
            (time.time(), job_id),
        )

    def release(self, job_id: str) -> None:
        """Queue a running job again that its worker had to leave through no fault of the job; end a cancelled one."""
        self._write(
            "UPDATE jobs SET state = iif(cancel_requested, 'cancelled', 'queued'),"
            " finished = iif(cancel_requested, ?, finished), attempt = max(attempt - 1, 0)"
            " WHERE id = ? AND state = 'running'",
            (time.time(), job_id),
        )

    def recover(self, lane: Lane | None = None) -> int:
        """Queue again what a dead worker left running; only the holder of the lane's lock may call this.

        Args:
            lane: Lane of the dead worker; None for all.

        Returns:
            Number of jobs found. Those already tried ``MAX_ATTEMPTS`` times fail, those being cancelled are cancelled.
        """
        left = self._rows("SELECT * FROM jobs WHERE state = 'running' AND lane = coalesce(?, lane)", (lane,))
        for job in left:
            if job.cancel_requested:
                self.mark_cancelled(job.id)
            elif job.attempt >= MAX_ATTEMPTS:
                self.fail(
                    job.id,
                    f"The worker stopped {job.attempt} times while it ran this job, perhaps for lack of memory.",
                    "Try a smaller region, or look into logs/worker.log in the workspace.",
                )
            else:
                self._write("UPDATE jobs SET state = 'queued' WHERE id = ?", (job.id,))
        return len(left)

    def _end(self, job_id: str, state: State, result: str | None, message: str, hint: str) -> None:
        self._write(
            "UPDATE jobs SET state = ?, result = ?, message = ?, hint = ?, finished = ? WHERE id = ?",
            (state, result, message, hint, time.time(), job_id),
        )

    def _rows(self, statement: str, values: Any) -> Jobs:
        with self._connect() as connection:
            return [Job.of_row(row) for row in connection.execute(statement, values).fetchall()]

    def _write(self, statement: str, values: tuple[Any, ...]) -> int:
        """Change the store; return the number of jobs that changed."""
        with self._connect() as connection:
            return connection.execute(statement, values).rowcount

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
