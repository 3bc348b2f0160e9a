"""`mmcd jobs`, as a user types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.errors import InputError, UsageError
from mmcd.jobs import JobStore, log_path, open_store
from mmcd.services import job_control


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Workspaces for which a worker was asked for; none is started."""
    found: list[Path] = []
    monkeypatch.setattr(job_control, "ensure_worker", found.append)
    return found


@pytest.fixture
def store(workspace: Path, started: list[Path]) -> JobStore:
    workspace.mkdir()
    return open_store(workspace)


def shown(*arguments: str, ask: str = "") -> str:
    done = CliRunner().invoke(app, ["jobs", *arguments], input=ask)
    if done.exception is not None:
        raise done.exception
    assert done.exit_code == 0
    return done.output


def test_the_list_says_what_each_job_does(store: JobStore) -> None:
    job_id = store.submit("predict", {"scene": "valley", "model": "flood"})
    store.claim(gpu=False)
    store.progress(job_id, "score", 3, 12)
    failed = store.submit("train", {"config": "configs/a.yaml", "overrides": {"name": "mine"}})
    store.fail(failed, "The disk is full.")
    text = shown("list")
    for part in (job_id[:8], "Analysis", "valley · flood", "score, 3 of 12 tiles", "mine", "The disk is full."):
        assert part in text
    found = json.loads(shown("list", "--state", "failed", "--json"))
    assert [job["id"] for job in found["jobs"]] == [failed]
    assert found["counts"]["running"] == 1
    assert found["jobs"][0]["submitted"].endswith("+00:00")
    with pytest.raises(UsageError, match="no state 'lost'"):
        shown("list", "--state", "lost")


def test_cancel_and_retry_take_a_beginning_of_the_id(store: JobStore, started: list[Path], workspace: Path) -> None:
    job_id = store.submit("predict", {"scene": "valley"})
    assert json.loads(shown("cancel", job_id[:10], "--json"))["state"] == "cancelled"
    assert started == []
    with pytest.raises(InputError, match="cancelled already"):
        shown("cancel", job_id)
    assert json.loads(shown("retry", job_id[:10], "--json"))["state"] == "queued"
    assert started == [workspace.resolve()]
    with pytest.raises(InputError, match="no job whose id begins with 'zz'"):
        shown("retry", "zz")


def test_cancelling_what_a_dead_worker_left_starts_one_that_notes_it(store: JobStore, started: list[Path]) -> None:
    job_id = store.submit("predict", {"scene": "valley"})
    store.claim()
    assert "within two seconds" in shown("cancel", job_id)
    assert len(started) == 1


def test_a_job_that_ended_is_deleted_after_a_question_and_its_log_is_shown(store: JobStore) -> None:
    job_id = store.submit("predict", {"scene": "valley"})
    with pytest.raises(InputError, match="Cancel it first"):
        shown("delete", job_id, "--yes")
    store.finish(job_id, {})
    log = log_path(store.path, job_id)
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")
    assert shown("log", job_id, "--lines", "2").splitlines() == ["two", "three"]
    assert CliRunner().invoke(app, ["jobs", "delete", job_id], input="n\n").exception is not None
    assert store.get(job_id).state == "done"
    assert "valley" in shown("delete", job_id, ask="y\n")
    assert store.list() == [] and not log.exists()
