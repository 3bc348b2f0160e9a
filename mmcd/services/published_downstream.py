"""Published results of pretrained trunks, shown beside our own with where they are from and what is wrong with them.

Only what was read in a repository or on the page of its authors is kept here; figures that are merely remembered, or
were not checked against their paper, are not.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmcd.services.published_bright import PublishedTable

_FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class DownstreamTable(PublishedTable):
    """One published table, in percent.

    Attributes:
        datasets: Data sets that it belongs to, each with the columns that are about it.
        remarks: What has to be known before comparing with it.
    """

    datasets: dict[str, tuple[str, ...]]
    remarks: dict[str, str]

    def about(self, dataset: str) -> dict[str, Any]:
        """Return JSON values of the columns about a data set, and of the remarks about it or about all."""
        columns = self.datasets[dataset]
        whole = self.to_dict()
        kept = {name: {key: row[key] for key in columns} for name, row in whole["rows"].items()}
        remarks = [text for name, text in self.remarks.items() if name in ("all", dataset)]
        return whole | {"rows": kept, "remarks": remarks}


def published_downstream(dataset: str) -> list[dict[str, Any]]:
    """Return the published tables about a data set, as JSON values; none where nothing trustworthy is published."""
    return [table.about(dataset) for table in _tables() if dataset in table.datasets]


@cache
def _tables() -> tuple[DownstreamTable, ...]:
    entries = tomllib.loads(_FILE.read_text(encoding="utf-8"))["table"]
    return tuple(
        DownstreamTable(
            entry["title"],
            entry["source"],
            entry["tiles"],
            tuple(entry["columns"]),
            {name: tuple(values) for name, values in entry["rows"].items()},
            {name: tuple(columns) for name, columns in entry["datasets"].items()},
            entry["remarks"],
        )
        for entry in entries
    )
