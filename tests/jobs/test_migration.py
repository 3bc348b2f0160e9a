"""A store that an older version wrote keeps its jobs."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmcd import jobs

VERSION_1 = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0, cancel_requested INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL, started REAL, stage_started REAL, heartbeat REAL, finished REAL,
    result TEXT, message TEXT NOT NULL DEFAULT '', hint TEXT NOT NULL DEFAULT ''
);
CREATE INDEX jobs_by_state ON jobs (state, submitted);
PRAGMA user_version = 1;
"""

ROWS = [
    ("-done", "predict", {"scene": "a", "device": "cpu"}, "done", 0, 100.5, {"run_id": "1"}),
    ("wait", "check_scene", {"pre": "b.tif"}, "queued", 0, 101.5, None),
    ("stop", "predict", {"scene": "c", "device": "cuda"}, "running", 1, 102.5, None),
    ("next", "predict", {"scene": "d"}, "queued", 0, 103.5, None),
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    for job_id, kind, request, state, cancelled, submitted, result in ROWS:
        values = (job_id, kind, json.dumps(request), state, cancelled, submitted, result and json.dumps(result))
        connection.execute(
            "INSERT INTO jobs (id, kind, request, state, cancel_requested, submitted, result, done, total, message)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, 3, 8, 'said')",
            values,
        )
    connection.commit()
    connection.close()
    return path


def test_a_store_of_version_1_keeps_its_jobs_and_gets_lanes(old: Path) -> None:
    with ThreadPoolExecutor(4) as pool:  # app and worker may open it together
        stores = list(pool.map(lambda _: jobs.JobStore(old), range(4)))
    store = stores[0]
    for job_id, kind, request, state, cancelled, submitted, result in ROWS:
        job = store.get(job_id)
        assert (job.kind, job.request, job.state, job.result) == (kind, request, state, result)
        assert (job.submitted.timestamp(), job.cancel_requested) == (submitted, bool(cancelled))
        assert (job.done, job.total, job.message) == (3, 8, "said")
    needs = {job.id: (job.lane, job.device, job.place) for job in store.list()}
    assert needs == {
        "-done": ("quick", "cpu", ""),
        "wait": ("light", "cpu", ""),
        "stop": ("quick", "gpu", ""),
        "next": ("quick", "any", ""),
    }
    assert [job.id for job in store.overdue(0)] == ["stop"]
    with sqlite3.connect(old) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (jobs.SCHEMA_VERSION,) == (2,)


def test_what_a_worker_of_the_older_version_left_is_taken_up(old: Path) -> None:
    store = jobs.JobStore(old)
    handlers = dict.fromkeys(("predict", "check_scene"), lambda request, progress: {"had": request})
    assert jobs.run_worker(store, handlers, idle_seconds=0.0)
    assert store.get("stop").state == "cancelled"
    assert store.get("next").result == {"had": {"scene": "d"}}
    assert store.get("wait").state == "done"
