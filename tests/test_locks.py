"""A lock has one holder at a time, and says so to the others."""

import threading
from pathlib import Path

import pytest

from mmcd import locks
from mmcd.errors import StorageError
from mmcd.locks import locked, turn


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with locked(path, 0) as first, locked(path, 0) as second:
        assert (first, second) == (True, False)
    with locked(path, 0) as again:
        assert again


def test_a_lock_is_waited_for_while_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_LOOK_SECONDS", 0.01)
    path, held, free = tmp_path / "a.lock", threading.Event(), threading.Event()

    def hold() -> None:
        with turn(path):
            held.set()
            free.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)
    with turn(path, waiting=free.set):
        assert free.is_set()
    other.join()


def test_waiting_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_LOOK_SECONDS", 0.01)
    with turn(tmp_path / "a.lock"), pytest.raises(StorageError, match="Another process holds"):
        turn(tmp_path / "a.lock", seconds=0.05).__enter__()


def test_a_lock_that_cannot_be_made_is_not_held_by_another(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be locked"), locked(tmp_path / "gone" / "a.lock", 0):
        pass
