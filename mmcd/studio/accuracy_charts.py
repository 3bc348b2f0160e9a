"""Charts of accuracy. Lines differ by dash and marks by shape as well as by colour; every chart says itself in words.

*Positive* means changed. All curves are exact: a stored score has 255 values, and each is a cut.
"""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mmcd.evaluation import (
    ScoreCounts,
    average_precision,
    expected_calibration_error,
    metrics_at,
    precision_recall_f1,
    reliability,
    roc_auc,
)
from mmcd.score import threshold_value
from mmcd.services.accuracy import Counts, Measured, confusion, roc_points

MODEL, BASELINE, CHANCE, CHOSEN = "#2a93d5", "#e08a00", "#8a8f98", "#d55e00"
"""Colours that every kind of colour vision tells apart, on white and on black."""

HEIGHT = 360
_CUTS: NDArray[np.float64] = np.arange(255) / 254
_DASHES = ("dash", "dashdot", "longdash")


@dataclass(frozen=True)
class Chart:
    """A figure and what it shows, in words.

    Attributes:
        figure: The figure.
        alt: What a person who cannot see it is told.
    """

    figure: go.Figure
    alt: str


def precision_recall(measured: Measured, threshold: float) -> Chart:
    """Return precision over recall of the model and of the baselines, with the threshold that is set."""
    total, figure = measured.total, go.Figure()
    precision, recall, _ = precision_recall_f1(total)
    _curve(figure, recall, precision, f"Model, AP {average_precision(total):.3f}", MODEL)
    for counts, name, dash in _others(measured.baselines):
        trivial, found, _ = precision_recall_f1(counts)
        _curve(figure, found, trivial, f"{name}, AP {average_precision(counts):.3f}", BASELINE, dash)
    share = total.prevalence
    _curve(figure, [0, 1], [share, share], f"All changed, AP {share:.3f}", CHANCE, "dot")
    here = metrics_at(total, threshold)
    _mark(figure, here["recall"], here["precision"], threshold)
    _axes(figure, "Recall: share of the change that is found", "Precision: share of alarms that are change")
    alt = (
        f"Precision over recall. Average precision of the model {average_precision(total):.3f}, of calling everything "
        f"changed {share:.3f}. At {threshold:.3f}: precision {here['precision']:.3f}, recall {here['recall']:.3f}."
    )
    return Chart(figure, alt)


def roc(measured: Measured, threshold: float) -> Chart:
    """Return the ROC curve of the model and of the baselines, with the threshold that is set."""
    total, figure = measured.total, go.Figure()
    false, hit = roc_points(total)
    _curve(figure, false, hit, f"Model, AUC {roc_auc(total):.3f}", MODEL)
    for counts, name, dash in _others(measured.baselines):
        _curve(figure, *roc_points(counts), f"{name}, AUC {roc_auc(counts):.3f}", BASELINE, dash)
    _curve(figure, [0, 1], [0, 1], "Chance, AUC 0.500", CHANCE, "dot")
    cut = threshold_value(threshold) - 1
    here = float(hit[::-1][cut]), float(false[::-1][cut])
    _mark(figure, here[1], here[0], threshold)
    _axes(figure, "False alarms, share of the unchanged pixels", "Recall, share of the changed pixels")
    alt = (
        f"Receiver operating characteristic. Area under the curve of the model {roc_auc(total):.3f}. "
        f"At {threshold:.3f}: {here[0]:.1%} of the change found, {here[1]:.1%} of the rest called changed."
    )
    return Chart(figure, alt)


def f1_by_threshold(measured: Measured, threshold: float, others: dict[str, float]) -> Chart:
    """Return F1, precision and recall against the threshold.

    Args:
        measured: What was counted.
        threshold: The threshold that is set.
        others: Further thresholds by name, drawn as lines with their names.
    """
    figure, total = go.Figure(), measured.total
    precision, recall, f1 = precision_recall_f1(total)
    _curve(figure, _CUTS, f1, "F1", MODEL)
    _curve(figure, _CUTS, precision, "Precision", "#009e73", "dash")
    _curve(figure, _CUTS, recall, "Recall", "#b06a9a", "dot")
    by_cut = sorted(others.items(), key=lambda item: item[1])
    lines = [_line(cut, CHANCE, 1, "dot") for _, cut in by_cut]
    common = {"yref": "paper", "showarrow": False, "xanchor": "left", "yanchor": "middle", "font": {"size": 11}}
    names = [common | {"x": cut, "y": 0.36 - 0.07 * (row % 5), "text": name} for row, (name, cut) in enumerate(by_cut)]
    # All at once: each line or name that is added on its own costs ten milliseconds.
    figure.update_layout(shapes=[*lines, _line(threshold, CHOSEN, 2, "solid")], annotations=names)
    here = float(f1[threshold_value(threshold) - 1])
    _mark(figure, threshold, here, threshold)
    _axes(figure, "Threshold, probability of change", "Share")
    best = int(f1.argmax())
    alt = (
        f"F1 against the threshold: {here:.3f} at {threshold:.3f}, which is set, and at best {f1[best]:.3f} at "
        f"{best / 254:.3f}. " + ", ".join(f"{name} {cut:.3f}" for name, cut in others.items())
    )
    return Chart(figure, alt)


def reliability_diagram(measured: Measured, calibrated: ScoreCounts | None = None) -> Chart:
    """Return the observed share of change over the stated probability, with the pixels of every bin below.

    Args:
        measured: What was counted.
        calibrated: The same after a calibration, drawn beside it.
    """
    figure, total = go.Figure(), measured.total
    error = expected_calibration_error(total)
    stated, observed, pixels = reliability(total)
    share = pixels / max(pixels.sum(), 1)
    figure.add_bar(
        x=(np.arange(len(share)) + 0.5) / len(share),
        y=share,
        width=0.9 / len(share),
        marker={"color": CHANCE, "opacity": 0.35},
        name="Share of pixels",
        hovertemplate="%{y:.2%} of the pixels<extra></extra>",
    )
    _curve(figure, [0, 1], [0, 1], "Honest", CHANCE, "dot")
    _points(figure, stated, observed, f"Model, ECE {error:.3f}", MODEL, "circle")
    if calibrated is not None:
        after = expected_calibration_error(calibrated)
        _points(figure, *reliability(calibrated)[:2], f"Calibrated, ECE {after:.3f}", "#009e73", "diamond")
    _axes(figure, "Stated probability of change", "Observed share of change")
    alt = (
        f"Reliability diagram in {len(share)} bins. Expected calibration error {error:.3f}: so far is the stated "
        "probability from the observed share of change on average."
    )
    return Chart(figure, alt)


def confusion_matrix(measured: Measured, threshold: float, dark: bool = False) -> Chart:
    """Return the four outcomes at the threshold that is set, in pixels and as shares of the labels' rows.

    Args:
        measured: What was counted.
        threshold: The threshold that is set.
        dark: Whether it is drawn on a dark page; the cells let it shine through, which Plotly's own choice of white or
            black text does not see.
    """
    four = confusion(measured.total, threshold)
    counts = np.array([[four["hit"], four["missed"]], [four["false"], four["kept"]]], float)
    rows = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, rows, out=np.zeros_like(counts), where=rows > 0)
    unit = "px" if measured.pixel_area_m2 is None else "ha"
    size = counts if measured.pixel_area_m2 is None else counts * measured.pixel_area_m2 / 1e4
    text = [[f"{share[i, j]:.1%}<br>{size[i, j]:,.{0 if unit == 'px' else 1}f} {unit}" for j in (0, 1)] for i in (0, 1)]
    figure = go.Figure(
        go.Heatmap(
            z=share,
            x=["Called changed", "Called unchanged"],
            y=["Is changed", "Is unchanged"],
            text=text,
            texttemplate="%{text}",
            textfont={"size": 15, "color": "#ffffff" if dark else "#1a1a1a"},
            colorscale=[[0, "rgba(42,147,213,0.08)"], [1, "rgba(42,147,213,0.6)"]],
            zmin=0,
            zmax=1,
            showscale=False,
            hoverinfo="skip",
            xgap=3,
            ygap=3,
        )
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(height=HEIGHT, margin={"l": 10, "r": 10, "t": 30, "b": 10})
    alt = f"Confusion matrix at {threshold:.3f}, in pixels: " + ", ".join(
        f"{four[name]:,} {words}"
        for name, words in {
            "hit": "changed and called so",
            "missed": "changed and missed",
            "false": "unchanged and called changed",
            "kept": "unchanged and called so",
        }.items()
    )
    return Chart(figure, alt)


def _others(baselines: Counts) -> list[tuple[ScoreCounts, str, str]]:
    """Return counts, name and dash of each baseline that holds both classes."""
    known = [(counts, name) for name, counts in baselines.items() if 0 < counts.prevalence < 1]
    return [(counts, name, _DASHES[number % len(_DASHES)]) for number, (counts, name) in enumerate(known)]


def _curve(figure: go.Figure, x: object, y: object, name: str, colour: str, dash: str = "solid") -> None:
    figure.add_scatter(x=x, y=y, mode="lines", name=name, line={"color": colour, "dash": dash, "width": 2.5})


def _line(x: float, colour: str, width: int, dash: str) -> dict[str, object]:
    """Return a line from the bottom of the panel to its top."""
    look = {"color": colour, "width": width, "dash": dash}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "y domain", "line": look}


def _points(figure: go.Figure, x: object, y: object, name: str, colour: str, shape: str) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        name=name,
        line={"color": colour, "width": 2},
        marker={"symbol": shape, "size": 8},
        connectgaps=True,
    )


def _mark(figure: go.Figure, x: float, y: float, threshold: float) -> None:
    figure.add_scatter(
        x=[x],
        y=[y],
        mode="markers",
        name=f"Set: {threshold:.3f}",
        marker={"color": CHOSEN, "symbol": "diamond-open", "size": 14, "line": {"width": 3}},
    )


def _axes(figure: go.Figure, x: str, y: str) -> None:
    figure.update_xaxes(title=x, range=[-0.02, 1.02])
    figure.update_yaxes(title=y, range=[-0.02, 1.04])
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    )
