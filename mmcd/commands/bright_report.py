"""The tables of an evaluation on BRIGHT: figures, events, published results beside them, and the tiles scored."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from mmcd.commands.terminal import escaped, report, results, warn

FIGURES = ("oa", "miou", "miou_absent_zero", "f1_loc", "f1_clf")
BINARY = ("oa", "f1", "iou", "kappa")


def report_bright(title: str, result: Mapping[str, Any]) -> None:
    """Print the tables; figures in percent, as the published ones are.

    Args:
        title: Title of the first table.
        result: What `mmcd.services.evaluate.evaluate` returned.
    """
    if "cross_event" in result:
        print_rows(title, result["cross_event"])
    else:
        _figures(title, result)
    for table in result["published"]:
        print_rows(f"Published: {table['title']}. {table['tiles']}. {table['source']}", table["rows"], scale=1)
    warn(result["warnings"])


def _figures(title: str, result: Mapping[str, Any]) -> None:
    heads = {name: result[name] for name in ("version", "protocol", "tiles", "threshold")}
    report(escaped(title), heads | {name: _percent(result[name]) for name in FIGURES if name in result})
    if "iou" in result:
        classes = {
            name: {"IoU": iou, "F1 on buildings": result["f1_graded"].get(name), "labelled px": pixels}
            for (name, iou), pixels in zip(result["iou"].items(), result["labelled_px"].values(), strict=True)
        }
        print_rows("Classes", classes)
    print_rows("Destroyed against everything else", {result["model"]: result["binary"]}, BINARY)
    events = {event: values | values["binary"] if "iou" not in values else values for event, values in _events(result)}
    print_rows("Events", events, ("tiles", *(FIGURES if "iou" in result else BINARY)))
    scored = Counter(image_id.rpartition("_")[0] for image_id in result["tiles_scored"])
    missing = Counter(image_id.rpartition("_")[0] for image_id in result["tiles_missing"])
    tiles = {name: {"scored": scored[name], "not scored": missing[name]} for name in sorted(scored | missing)}
    print_rows("Tiles of the list (names: --json)", tiles)


def _events(result: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{event} {values['name']}".strip(), values) for event, values in result["events"].items()]


def print_rows(
    title: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...] = (), scale: float = 100
) -> None:
    """Print one row a name; columns that are not chosen are those of the first row, and shares become percent."""
    columns = columns or tuple(next(iter(rows.values()), {}))
    results.print(f"\n[bold]{escaped(title)}[/bold]", soft_wrap=True)
    table = Table(padding=(0, 0, 0, 1), pad_edge=False)  # so that seven published models fit into 100 columns
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in rows.items():
        table.add_row(escaped(name), *(_percent(values.get(column), scale) for column in columns))
    results.print(table)


def _percent(value: Any, scale: float = 100) -> str:
    """Return a share in percent, and a count with its thousands."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{scale * value:.2f}"
