"""What all commands share: where results and messages go, progress, and the `--json` flag."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

messages = Console(stderr=True)
results = Console(width=None if sys.stdout.isatty() else 200)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[str, typer.Option(help="auto (bf16 where native), bf16 or fp32.")]
BackendOption = Annotated[str, typer.Option(help="auto (an int8 export if there is one), torch, onnx or openvino.")]

LOG_SECONDS = 10.0
"""Seconds between two lines of progress in a log, so that a run of an hour says where it is and a short one nothing."""

SHOWN_WARNINGS = 20
"""Warnings that a terminal shows; `--json` holds all."""


def escaped(value: object) -> str:
    """Return the text of a value with nothing in it that would be taken for colours."""
    from rich.markup import escape

    return escape(str(value))


def print_json(value: dict[str, Any]) -> None:
    """Print exactly one JSON object on standard output."""
    sys.stdout.write(json.dumps(value, allow_nan=False, default=str) + "\n")


def report(title: str, values: dict[str, Any]) -> None:
    """Print names and values as a table; of values that have names themselves, a line each."""
    table = Table(title=title, show_header=False)
    for key, value in values.items():
        table.add_row(key, escaped("\n".join(_lines(value))))
    results.print(table)


def _lines(value: Any) -> "Iterator[str]":
    """Yield what is shown of a value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from (f"{name} {line}" for line in _lines(inner))
    elif value is None:
        yield "none"
    else:
        yield f"{value:.4f}" if isinstance(value, float) else str(value)


def warn(warnings: "Sequence[str]") -> None:
    """Print the first warnings, and how many more there are."""
    for warning in warnings[:SHOWN_WARNINGS]:
        messages.print(f"[yellow]warning:[/yellow] {escaped(warning)}", soft_wrap=True)
    if len(warnings) > SHOWN_WARNINGS:
        messages.print(f"{len(warnings) - SHOWN_WARNINGS:,} more warnings; --json lists them all.")


class ProgressBar:
    """Progress on standard error, fed by `Progress` callbacks: a bar on a terminal, now and then a line in a log."""

    def __enter__(self) -> "Callable[[str, int, int], None]":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=messages,
            transient=True,
            disable=not messages.is_terminal,
        )
        self._bar.start()
        self._next_line = time.monotonic() + LOG_SECONDS
        self._task = self._bar.add_task("starting", total=None)
        return self._update

    def _update(self, stage: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=stage, completed=done, total=total or None)
        if self._bar.disable and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LOG_SECONDS
            messages.print(f"{stage} {done:,} of {total:,}" if total > 1 else stage)

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
