"""Rows of the benchmark's table, how they are timed, and what is computed from the times."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"
_HEADER = ("", "what", "measured", "against", "figure", "target", "met")


@dataclass(frozen=True)
class Options:
    """What every part may ask for.

    Attributes:
        crops: Crops of the reference that its time for a tile is extrapolated from.
        rounds: Interleaved repeats of everything else.
        train_seconds: Processor seconds that each form may learn for.
        seed: Of its weights and of what it sees.
        full: Measure what takes many minutes too.
    """

    crops: int = 8
    rounds: int = 3
    train_seconds: float = 240.0
    seed: int = 0
    full: bool = False


@dataclass(frozen=True)
class Target:
    """A limit that a figure has to keep.

    Attributes:
        limit: The limit itself.
        at_least: Whether more is better.
    """

    limit: float
    at_least: bool = True

    def met(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {number(self.limit)}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: Letter of the part.
        what: What was measured, with dtype and threads.
        measured: Time, memory or size of mmcd, or why there is none.
        against: The same of what it is compared with.
        figure: The figure that the target is about, mostly a ratio; None where nothing was measured.
        unit: Unit of the figure.
        target: Its limit; None for figures that only stand beside others.
    """

    part: str
    what: str
    measured: str
    against: str = ""
    figure: float | None = None
    unit: str = "×"
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return None if self.target is None else self.figure is not None and self.target.met(self.figure)

    def cells(self) -> tuple[str, ...]:
        """Return the line's texts in the order of the table."""
        shown = "" if self.figure is None else f"{number(self.figure)} {self.unit}".strip()
        met = {None: "", True: "yes", False: "NO"}[self.met]
        return (self.part, self.what, self.measured, self.against, shown, str(self.target or ""), met)


def missing(part: str, what: str, reason: object) -> Row:
    """Return the row of something that cannot be measured here."""
    return Row(part, what, f"{NOT_MEASURED}: {reason}")


def table(rows: Sequence[Row]) -> str:
    """Return rows as aligned text, one line each below a header."""
    lines = [_HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def number(value: float) -> str:
    """Return a figure with about three digits and separated thousands."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 1:
        return f"{number(1000 * seconds)} ms"
    return f"{number(seconds)} s"


@dataclass(frozen=True)
class Timing:
    """Repeated times of one piece of work.

    Attributes:
        processor: Processor seconds of this process in each repeat. Others that use the machine lengthen them less
            than the clock, so ratios are taken from them.
        clock: Seconds of the clock in each repeat.
    """

    processor: tuple[float, ...]
    clock: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median processor seconds."""
        return statistics.median(self.processor)

    @property
    def least(self) -> float:
        """Least processor seconds."""
        return min(self.processor)


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time several pieces of work in turn, round after round, so that all meet the machine in the same moods.

    Each runs once before, untimed.
    """
    for work in works.values():
        work()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.process_time(), time.perf_counter()
            work()
            seen[name].append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
    columns = {name: tuple(zip(*times, strict=True)) for name, times in seen.items()}
    return {name: Timing(processor, clock) for name, (processor, clock) in columns.items()}


def positions(side: int, window: int, stride: int) -> int:
    """Return how many windows of a square tile there are, all inside it.

    Args:
        side: Side of the tile in pixels.
        window: Side of a window.
        stride: Pixels between neighbouring windows.
    """
    return ((side - window) // stride + 1) ** 2


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine to judge the times."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.is_file() else []
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    known = ("avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    flags = set(facts.get("flags", "").split())
    return {
        "processor": facts.get("model name", platform.processor() or platform.machine()),
        "instructions": [flag for flag in known if flag in flags],
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
