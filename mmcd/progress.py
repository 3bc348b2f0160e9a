"""How long work reports where it is: a callback that every service takes."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with stage, units done and units in all; raises `mmcd.errors.Cancelled` when the user stopped the work."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
