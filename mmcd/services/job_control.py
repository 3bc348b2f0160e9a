"""What a page or a command may do with jobs, and how a job is told to people and programs."""

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from mmcd.errors import InputError
from mmcd.jobs import Job, JobStore, State, ensure_worker, log_path, log_tail, open_store, worker_alive
from mmcd.paths import workspace
from mmcd.services.runs import load_run

KINDS = {
    "predict": "Analysis",
    "check_scene": "Image check",
    "train": "Training",
    "embed": "Embeddings",
    "accuracy": "Accuracy",
    "samples": "Predictions",
}
"""Kinds of jobs, for people; a kind without a word is shown as it is."""

STATES: dict[State, str] = {
    "running": "running",
    "queued": "waiting",
    "failed": "failed",
    "done": "finished",
    "cancelled": "cancelled",
}
"""States of jobs, for people."""

UNITS = {"score": "tiles", "train": "steps"}
"""What the units of a stage are; most stages have only one."""

PACE_JOBS = 20  # how many of the latest finished jobs of a kind tell its pace


def kind_words(kind: str) -> str:
    """Return the name of a kind for people."""
    return KINDS.get(kind, kind.replace("_", " ").capitalize())


def subject(job: Job) -> str:
    """Return what a job works on, one short line: scene, files, run, configuration."""
    asked = job.request
    named = str(asked.get("scene") or _run_words(asked.get("run")) or asked.get("dataset") or "")
    if not named and asked.get("config"):
        named = str(asked.get("overrides", {}).get("name") or Path(str(asked["config"])).stem)
    if not named:
        named = " → ".join(Path(str(asked[key])).name for key in ("pre", "post") if asked.get(key))
    return " · ".join(part for part in (named, str(asked.get("model") or asked.get("method") or "")) if part) or "–"


def _run_words(run: str | None) -> str:
    """Return what a run is known by: its scene, the beginning of its id, or the name that a training was given."""
    if not run or re.fullmatch("[0-9a-f]{32}", run) is None:
        return run or ""
    try:
        return load_run(run).scene_id or run[:8]
    except InputError:  # it was removed
        return run[:8]


def progress_words(job: Job) -> str:
    """Return where a running job is, such as ``score, 3 of 12 tiles``; empty for any other."""
    if job.state != "running":
        return ""
    if job.cancel_requested:
        return "stopping"
    units = f", {job.done:,} of {job.total:,} {UNITS.get(job.stage, '')}".rstrip() if job.total > 1 else ""
    return f"{job.stage or 'starting'}{units}"


def job_facts(job: Job) -> dict[str, Any]:
    """Return a job as JSON values; times in UTC, ISO 8601."""
    facts: dict[str, Any] = {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in vars(job).items()
    }
    return facts | {"subject": subject(job), "seconds_left": job.seconds_left()}


def find_job(beginning: str) -> Job:
    """Return the job of the workspace whose id begins so.

    Raises:
        InputError: None does, or several do.
    """
    return open_store(workspace()).find(beginning)


def cancel_job(job_id: str) -> Job:
    """Stop a job and return it as it stands: cancelled if it waited, asked to stop if it ran.

    Raises:
        InputError: There is none with this id, or it has ended.
    """
    store = open_store(workspace())
    if not store.get(job_id).active:
        raise InputError(f"The job is {STATES[store.get(job_id).state]} already.", "There is nothing to cancel.")
    store.cancel(job_id)
    if store.get(job_id).active and not worker_alive(store):
        ensure_worker(workspace())  # the worker of this job is dead: the next one notes that it is cancelled
    return store.get(job_id)


def retry_job(job_id: str) -> Job:
    """Queue a job again that failed or was cancelled, make sure that a worker takes it, and return it.

    Raises:
        InputError: There is none with this id, or it is not one of those.
    """
    store = open_store(workspace())
    store.retry(job_id)
    ensure_worker(workspace())
    return store.get(job_id)


def delete_jobs(ids: Iterable[str]) -> int:
    """Remove jobs that have ended, with their logs; what they made stays.

    Returns:
        How many.

    Raises:
        InputError: One is not there, or has not ended.
    """
    store, removed = open_store(workspace()), 0
    for job_id in ids:
        store.delete(job_id)
        removed += 1
    return removed


def job_log(job_id: str, lines: int = 40) -> list[str]:
    """Return the last lines of a job's log."""
    return log_tail(log_path(open_store(workspace()).path, job_id), lines)


def seconds_to_go(store: JobStore, waiting: Iterable[Job]) -> float | None:
    """Return how long the jobs that wait will take, by the latest finished ones of their kinds.

    Lanes work side by side, so the longest one counts. None where a kind has no finished job to go by.
    """
    paces: dict[str, float] = {}
    lanes: dict[str, float] = {}
    for job in waiting:
        if job.kind not in paces:
            ended = [each.seconds for each in store.list(job.kind, PACE_JOBS, states=("done",))]
            known = [seconds for seconds in ended if seconds is not None]
            if not known:
                return None
            paces[job.kind] = sum(known) / len(known)
        lanes[job.lane] = lanes.get(job.lane, 0.0) + paces[job.kind]
    return max(lanes.values(), default=0.0)
