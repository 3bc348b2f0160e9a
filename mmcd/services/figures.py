"""The pictures of the reference system, drawn without a display."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmcd.data.bright import CLASSES, PALETTE, colour_label
from mmcd.geo.cog import atomic_path
from mmcd.services.patch_evaluation import THRESHOLDS, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
_NO_LABEL = "no label"
_CHANGE_COLOURS = ("#f2f2f2", "#b5123b")


def draw_change_map(path: Path, evaluation: Evaluation, name: str) -> None:
    """Draw a distance map in eight panels: map, label by place, label, figures, and the map cut at four distances.

    Args:
        path: PNG to write.
        evaluation: The map, its label and figures.
        name: What the picture shows.

    Raises:
        StorageError: It cannot be written.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(2, 4)
        figure.suptitle(name)
        _draw_distance(figure, axes[0, 0], evaluation)
        _draw_places(figure, axes[0, 1], evaluation)
        _draw_label(axes[0, 2], evaluation)
        _draw_table(axes[0, 3], evaluation)
        for axis, threshold in zip(axes[1], THRESHOLDS, strict=True):
            _draw_cut(axis, evaluation, threshold)

    write_figure(path, (20, 10), draw)


def write_figure(path: Path, inches: tuple[float, float], draw: "Callable[[Figure], None]") -> None:
    """Write a PNG of what a function draws into a figure; needs no display and changes no global state.

    Raises:
        StorageError: It cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=_DPI)
    FigureCanvasAgg(figure)
    draw(figure)
    figure.subplots_adjust(left=0.04, right=0.98, bottom=0.05, top=0.92, wspace=0.15, hspace=0.2)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_distance(figure: "Figure", axis: "Axes", evaluation: Evaluation) -> None:
    image = axis.imshow(evaluation.distance, cmap="bwr", vmin=0, vmax=2)
    figure.colorbar(image, ax=axis, shrink=0.7)
    _titled(axis, "distance, 1 - cosine")


def _draw_places(figure: "Figure", axis: "Axes", evaluation: Evaluation) -> None:
    if evaluation.damaged_places is None:
        return _without(axis, "damaged places")
    image = axis.imshow(evaluation.damaged_places, cmap="bwr", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.7)
    return _titled(axis, "damaged places")


def _draw_label(axis: "Axes", evaluation: Evaluation) -> None:
    from matplotlib.patches import Patch

    if evaluation.label is None:
        return _without(axis, "label")
    axis.imshow(colour_label(evaluation.label), interpolation="nearest")
    colours = [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*colour), edgecolor="grey", label=name)
        for name, colour in zip(CLASSES, PALETTE, strict=True)
    ]
    axis.legend(handles=colours, loc="lower left", fontsize="small")
    return _titled(axis, "label")


def _draw_table(axis: "Axes", evaluation: Evaluation) -> None:
    if not evaluation.rows:
        return _without(axis, "figures")
    names = ("threshold", "iou", "precision", "recall", "f1")
    cells = [[f"{row[names[0]]:g}", *(f"{row[name]:.3f}" for name in names[1:])] for row in evaluation.rows]
    table = axis.table(cells, colLabels=["distance >", "IoU", "precision", "recall", "F1"], loc="center")
    table.scale(1, 2)
    axis.set_axis_off()
    return axis.set_title("damage, assessed pixels")  # type: ignore[return-value]


def _draw_cut(axis: "Axes", evaluation: Evaluation, threshold: float) -> None:
    from matplotlib.colors import ListedColormap

    changed = np.where(np.isfinite(evaluation.distance), evaluation.distance > threshold, np.nan)
    axis.imshow(changed, cmap=ListedColormap(_CHANGE_COLOURS), vmin=0, vmax=1, interpolation="nearest")
    figures = {row["threshold"]: row for row in evaluation.rows}
    f1 = f", F1 {figures[threshold]['f1']:.3f}" if figures else ""
    _titled(axis, f"distance > {threshold:g}{f1}")


def _without(axis: "Axes", title: str) -> None:
    axis.text(0.5, 0.5, _NO_LABEL, ha="center", va="center", transform=axis.transAxes)
    _titled(axis, title)


def _titled(axis: Any, title: str) -> None:
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])
