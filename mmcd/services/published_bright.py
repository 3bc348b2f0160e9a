"""Published results on BRIGHT, shown beside our own with where they are from and on which tiles."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mmcd.services.evaluate_request import ALL_EVENTS, EvaluateRequest

TableKey = Literal["standard_test", "standard_test_shared", "zero_shot", "one_shot", "unsupervised", "dfc25_test"]

_FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class PublishedTable:
    """One published table, in percent.

    Attributes:
        title: What was measured.
        source: Where it is published.
        tiles: On which tiles.
        columns: Figures, or models in the cross-event tables.
        rows: Values by model, or by event in the cross-event tables; NaN where nothing is published.
    """

    title: str
    source: str
    tiles: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]

    def to_dict(self, rows: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Return JSON values, of some rows where they are named."""
        kept = {name: self.rows[name] for name in rows or self.rows if name in self.rows}
        return {
            "title": self.title,
            "source": self.source,
            "tiles": self.tiles,
            "unit": "percent",
            "rows": {name: dict(zip(self.columns, values, strict=True)) for name, values in kept.items()},
        }


def published(key: TableKey) -> PublishedTable:
    """Return a published table."""
    return _tables()[key]


def published_beside(request: EvaluateRequest, graded: bool) -> list[dict[str, Any]]:
    """Return the published tables that belong to what is measured.

    Args:
        request: What is measured.
        graded: The model maps grades; else only the binary protocol applies.
    """
    keys: list[TableKey] = []
    event = None if request.hold_out == ALL_EVENTS else request.hold_out
    if graded and request.hold_out:
        keys = ["one_shot" if request.one_shot else "zero_shot"]
    elif graded and request.split == "test":
        keys = ["dfc25_test"] if request.protocol == "dfc25" else ["standard_test_shared", "standard_test"]
    tables = [published(key).to_dict((event,) if event else None) for key in keys]
    return [*(table for table in tables if table["rows"]), published("unsupervised").to_dict()]


@cache
def _tables() -> dict[str, PublishedTable]:
    entries = tomllib.loads(_FILE.read_text(encoding="utf-8"))["table"]
    return {
        entry["key"]: PublishedTable(
            entry["title"],
            entry["source"],
            entry["tiles"],
            tuple(entry["columns"]),
            {name: tuple(values) for name, values in entry["rows"].items()},
        )
        for entry in entries
    }
