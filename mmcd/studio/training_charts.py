"""Curves of trainings: one chart a metric, one line a run. Runs differ by dash and mark as well as by colour."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mmcd.services.tracking import Curve
from mmcd.studio.accuracy_charts import Chart

Axis = Literal["steps", "hours"]

HEIGHT = 300
MARKED = 60
"""Points up to which every one has a mark; a longer curve has one at its end only."""

# Okabe and Ito's colours, told apart by every kind of colour vision; yellow and black would be lost on white or black.
_COLOURS = ("#2a93d5", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8a8f98")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
RUNS_AT_MOST = len(_COLOURS)
"""Runs that one chart can tell apart."""

AXES: dict[Axis, str] = {"steps": "Optimiser steps", "hours": "Hours since the run began"}


def metric_chart(
    metric: str, curves: Mapping[str, Curve], order: Sequence[str], axis: Axis, logarithmic: bool, smoothing: float
) -> Chart:
    """Return the curves of one metric.

    Args:
        metric: Its name.
        curves: Curve of each run that has it.
        order: All runs that are compared, so that each looks the same in every chart.
        axis: What runs to the right.
        logarithmic: Whether the values are drawn on a logarithmic scale; what is not above 0 is then left out.
        smoothing: Weight of the values before in a running mean, in [0, 1); 0 draws the values as they are.
    """
    figure, said = go.Figure(), []
    for number, name in enumerate(order):
        curve = curves.get(name)
        if curve is None:
            continue
        look = number % RUNS_AT_MOST
        x = curve.step if axis == "steps" else curve.hours
        if smoothing:
            figure.add_scatter(
                x=x, y=curve.value, mode="lines", line={"color": _COLOURS[look], "width": 1}, opacity=0.3,
                hoverinfo="skip", showlegend=False,
            )  # fmt: skip
        few = len(x) <= MARKED
        figure.add_scatter(
            x=x,
            y=smoothed(curve.value, smoothing),
            mode="lines+markers",
            name=name,
            line={"color": _COLOURS[look], "dash": _DASHES[look], "width": 2},
            marker={"symbol": _MARKS[look], "size": 6 if few else [0] * (len(x) - 1) + [9]},
            hovertemplate="%{y:.5g} at %{x:,.6~g}<extra>%{fullData.name}</extra>",
        )
        said.append(_words(name, curve))
    figure.update_xaxes(title=AXES[axis], rangemode="tozero")
    figure.update_yaxes(type="log" if logarithmic else "linear", tickformat=".4~g")
    figure.update_layout(
        height=HEIGHT,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        showlegend=False,  # one legend for all charts stands above them
        uirevision=metric,  # what is zoomed stays while values come in
    )
    return Chart(figure, f"{metric} against {AXES[axis].lower()}. " + " ".join(said))


def look_of(number: int) -> tuple[str, str, str]:
    """Return colour, dash and mark of the n-th run that is compared."""
    look = number % RUNS_AT_MOST
    return _COLOURS[look], _DASHES[look], _MARKS[look]


def smoothed(values: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """Return a running mean, shape (N,): weights fall by ``weight`` a point, and sum to 1 from the first point on.

    Args:
        values: Shape (N,); what is not finite stays as it is and counts for nothing.
        weight: In [0, 1); 0 returns the values.
    """
    if not weight:
        return values
    mean, total, out = 0.0, 0.0, values.copy()
    for index, value in enumerate(values.tolist()):
        if math.isfinite(value):
            mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
            out[index] = mean / total
    return out


def _words(name: str, curve: Curve) -> str:
    finite = curve.value[np.isfinite(curve.value)]
    if not len(finite):
        return f"{name}: no number."
    return f"{name}: {finite[-1]:.4g} at the end, from {finite.min():.4g} to {finite.max():.4g}."
