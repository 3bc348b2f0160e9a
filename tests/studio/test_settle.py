"""What pages loaded is passed over by the garbage collector, once a page."""

import gc
import weakref

import pytest

from mmcd.studio import settle


class Node:
    """Something that refers to itself, so that only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def thawed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settle, "_SETTLED", set())
    yield
    gc.unfreeze()


def looked_at(thing: object) -> bool:
    """Return whether the garbage collector looks at an object."""
    return any(other is thing for other in gc.get_objects())


def test_a_page_is_settled_once_and_garbage_from_before_is_gone(thawed):
    gone = weakref.ref(Node())
    before = [[]]
    settle.settle("scenes")
    assert gone() is None
    assert gc.get_freeze_count() > 10_000  # what Streamlit and its libraries live on
    later = [[]]
    assert not looked_at(before) and looked_at(later)
    settle.settle("scenes")
    assert looked_at(later)
    settle.settle("jobs")
    assert not looked_at(later)
