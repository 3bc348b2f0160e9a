"""The tables of a trunk's downstream task: every seed, mean and spread, and published results beside them."""

from collections.abc import Mapping
from typing import Any

from mmcd.commands.bright_report import print_rows
from mmcd.commands.terminal import escaped, report, results, warn


def report_downstream(title: str, result: Mapping[str, Any]) -> None:
    """Print the tables; figures in percent, as the published ones are.

    Args:
        title: Title of the first table.
        result: What `mmcd.services.evaluate.evaluate` returned.
    """
    samples = ", ".join(f"{count:,} {part}" for part, count in result["samples"].items())
    report(
        escaped(title.strip()), {"task": result["title"], **result["start"], "samples": samples, "unit": result["unit"]}
    )
    seeds = {f"seed {seed}": values for seed, values in result["seeds"].items()}
    print_rows("Test part", {**seeds, "mean": result["mean"], "sd": result["sd"]})
    for table in result["published"]:
        print_rows(f"Published: {table['title']}. {table['tiles']}. {table['source']}", table["rows"], scale=1)
        for remark in table["remarks"]:
            results.print(escaped(remark), soft_wrap=True)
    warn(result["warnings"])
