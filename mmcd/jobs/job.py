"""One job as the store knows it."""

import json
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from mmcd.jobs.places import Device, Lane

State = Literal["queued", "running", "done", "failed", "cancelled"]

STATES: tuple[State, ...] = ("running", "queued", "failed", "done", "cancelled")
"""All states, what needs attention first."""

ENDED: tuple[State, ...] = ("failed", "done", "cancelled")


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
        attempt: How often a worker has taken it up since it was last asked for.
        cancel_requested: The user asked to stop it.
        submitted: When it was asked for.
        started: When a worker last took it up.
        stage_started: When the present stage began.
        heartbeat: When its worker last showed a sign of life.
        finished: When it ended, in whichever way.
        result: What the handler returned.
        message: Why it failed.
        hint: What the user can do about it.
        lane: Which queue it waits in.
        device: What it needs.
        place: What it was given, ``gpu`` or ``cpu``; empty before it was first taken up.
        cancel_asked: When the user asked to stop it.
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
    lane: Lane
    device: Device
    place: str
    cancel_asked: datetime | None

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("queued", "running")

    @property
    def seconds(self) -> float | None:
        """How long it ran, when it ended after it was taken up; the last attempt only."""
        if self.finished is None or self.started is None:
            return None
        return max(0.0, (self.finished - self.started).total_seconds())

    def seconds_left(self, now: datetime | None = None) -> float | None:
        """Return the time the present stage still needs at its pace so far; None before its first unit is done."""
        if self.state != "running" or self.stage_started is None or not 0 < self.done <= self.total:
            return None
        elapsed = ((now or datetime.now(UTC)) - self.stage_started).total_seconds()
        return max(0.0, elapsed / self.done * (self.total - self.done))

    @classmethod
    def of_row(cls, row: sqlite3.Row) -> "Job":
        """Return the job of a row of the store."""
        values = dict(row)
        for name in ("submitted", "started", "stage_started", "heartbeat", "finished", "cancel_asked"):
            values[name] = None if values[name] is None else datetime.fromtimestamp(values[name], UTC)
        values["request"] = json.loads(values["request"])
        values["result"] = None if values["result"] is None else json.loads(values["result"])
        values["cancel_requested"] = bool(values["cancel_requested"])
        return cls(**values)
