"""The pictures of the reference system, drawn without a display."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcd.data.bright import CLASSES, PALETTE, colour_label
from mmcd.geo.cog import atomic_path
from mmcd.services.patch_evaluation import THRESHOLDS, Evaluation
from mmcd.thresholds import OPTIMISED, ThresholdCurve

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
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.07, top=0.92, wspace=0.15, hspace=0.2)
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


def draw_thresholds(
    path: Path, curve: ThresholdCurve, score: NDArray[np.floating], positive: NDArray[np.bool_]
) -> None:
    """Draw what every threshold gives: accuracies, precision and recall, ROC curve, and the scores of both classes.

    Args:
        path: PNG to write.
        curve: The curve over all distinct scores.
        score: Scores, shape (N,), in [0, 2].
        positive: True for damage, shape (N,).

    Raises:
        StorageError: It cannot be written.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(2, 2)
        _draw_metrics(axes[0, 0], curve, ("accuracy", "balanced_accuracy"))
        _draw_metrics(axes[0, 1], curve, ("precision", "recall", "f1"))
        axes[1, 0].plot(*_from_origin(curve), label=f"AUC {curve.roc_auc():.4f}")
        axes[1, 0].plot([0, 1], [0, 1], linestyle=":", color="grey")
        _labelled(axes[1, 0], "false positive rate", "true positive rate")
        for name, part in (("unchanged", score[~positive]), ("damaged", score[positive])):
            axes[1, 1].hist(part, bins=np.linspace(0, 2, 81), density=True, alpha=0.6, label=name)
        _labelled(axes[1, 1], "distance", "density")

    write_figure(path, (12, 9), draw)


def draw_precision_recall(path: Path, curve: ThresholdCurve) -> None:
    """Draw precision over recall at every distinct score.

    Raises:
        StorageError: It cannot be written.
    """

    def draw(figure: "Figure") -> None:
        axis = figure.subplots()
        name = f"average precision {curve.average_precision():.4f}"
        axis.step(curve.metric("recall"), curve.metric("precision"), where="post", label=name)
        share = curve.positives / (curve.positives + curve.negatives)
        axis.axhline(share, linestyle=":", color="grey", label=f"share of damage {share:.4f}")
        axis.set_ylim(0, 1.02)
        _labelled(axis, "recall", "precision")

    write_figure(path, (8, 6), draw)


def _draw_metrics(axis: "Axes", curve: ThresholdCurve, names: tuple[str, ...]) -> None:
    for name in names:
        axis.plot(curve.threshold, curve.metric(name), label=name.replace("_", " "))
        if name in OPTIMISED:
            axis.plot(*curve.best(name), marker="o", color=axis.lines[-1].get_color())
    axis.set_xlim(0, 2)
    _labelled(axis, "distance from which a patch counts as damaged", "")


def _from_origin(curve: ThresholdCurve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.append(0.0, curve.metric("fpr")), np.append(0.0, curve.metric("tpr"))


def _labelled(axis: "Axes", across: str, up: str) -> None:
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.legend()
    axis.grid(alpha=0.3)
