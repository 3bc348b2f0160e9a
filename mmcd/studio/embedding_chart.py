"""The scatter of patch pairs: groups told apart by colour and, for whoever sees no colour, by symbol."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mmcd.embeddings import CHANGED_SHARE
from mmcd.services.embeddings import View

Colour = Literal["label", "score", "event", "branch", "building"]
COLOURS: tuple[Colour, ...] = get_args(Colour)

BUILDING_SHARE = 0.2
"""Share of building pixels from which a patch has a building, as in the reference system."""

FEW = 12
"""Selected pairs up to which each is drawn larger: one among thousands of pale points would not be found."""

# Plotly makes the others pale by itself only where nothing is said of the selected ones.
_LARGER = {"selected": {"marker": {"size": 14, "opacity": 1}}, "unselected": {"marker": {"opacity": 0.16}}}

# Okabe and Ito's colours, distinct for every kind of colour vision, each with a symbol of its own.
_LOOKS = (
    ("#0072b2", "circle"),
    ("#d55e00", "triangle-up"),
    ("#009e73", "square"),
    ("#cc79a7", "diamond"),
    ("#e69f00", "cross"),
    ("#56b4e9", "triangle-down"),
    ("#8a7a00", "x"),
    ("#7f7f7f", "star"),
)
_UNKNOWN = ("#8c8c8c", "circle-open")


@dataclass(frozen=True)
class Group:
    """Points that look alike.

    Attributes:
        name: What they are.
        colour: Their colour.
        symbol: Their symbol.
        points: Which points, shape (M,).
    """

    name: str
    colour: str
    symbol: str
    points: NDArray[np.bool_]


def offered(view: View) -> list[Colour]:
    """Return by what the points of a picture can be coloured."""
    known = {
        "label": bool(view.table.has_label.any()),
        "score": True,
        "event": len(set(view.table.events)) > 1,
        "branch": view.layout.what == "joint",
        "building": bool(np.isfinite(view.table.buildings).any()),
    }
    return [colour for colour in COLOURS if known[colour]]


def groups(view: View, colour: Colour, threshold: float) -> list[Group]:
    """Return the groups of a picture's points; together they are all of them.

    Args:
        view: The picture.
        colour: By what.
        threshold: Probability from which change is reported.
    """
    table, pair = view.table, view.pair
    if colour == "branch":
        return [Group("optical", *_LOOKS[1], view.branch == 0), Group("SAR", *_LOOKS[0], view.branch == 1)]
    if colour == "event":
        return _by_event(table.events[pair])
    if colour == "score":
        above = table.score[pair] >= threshold
        return [Group("below the threshold", "", "circle", ~above), Group("change reported", "", "diamond", above)]
    known, changed = table.has_label[pair], table.label[pair] >= CHANGED_SHARE
    if colour == "label":
        found = [Group("unchanged", *_LOOKS[0], known & ~changed), Group("changed", *_LOOKS[1], changed)]
        return [*found, Group("no label", *_UNKNOWN, ~known)]
    built = table.buildings[pair]
    house = built >= BUILDING_SHARE
    return [
        Group("no building", *_LOOKS[7], np.isfinite(built) & ~house),
        Group("building", *_LOOKS[0], house & ~changed),
        Group("damaged building", *_LOOKS[1], house & changed),
        Group("not known", *_UNKNOWN, np.isnan(built)),
    ]


def _by_event(events: NDArray[np.str_]) -> list[Group]:
    names, counts = np.unique(events, return_counts=True)
    order = names[np.argsort(-counts, kind="stable")]
    most = len(_LOOKS) if len(order) <= len(_LOOKS) else len(_LOOKS) - 1
    shown = [
        Group(str(name) or "unknown", *look, events == name) for name, look in zip(order[:most], _LOOKS, strict=False)
    ]
    others = order[most:]
    if len(others):
        shown.append(Group(f"{len(others)} other events", *_UNKNOWN, np.isin(events, others)))
    return shown


def scatter(view: View, colour: Colour, threshold: float, shown: NDArray[np.bool_], chosen: set[int]) -> go.Figure:
    """Return the scatter of a picture's points; each carries the number of its pair.

    Args:
        view: The picture.
        colour: By what the points are coloured.
        threshold: Probability from which change is reported.
        shown: Pairs that are drawn, shape (N,).
        chosen: Pairs that are marked.
    """
    figure = go.Figure()
    size = 5 if len(view.points) > 2_000 else 7
    for group in groups(view, colour, threshold):
        members = np.flatnonzero(group.points & shown[view.pair])
        if not len(members):
            continue
        pair = view.pair[members]
        marker = {"size": size, "symbol": group.symbol, "opacity": 0.8, "color": group.colour}
        if colour == "score":
            marker |= _score_colours(view.table.score[pair], not figure.data)
        marked = [number for number, one in enumerate(pair.tolist()) if one in chosen] if chosen else None
        figure.add_trace(
            go.Scattergl(
                x=view.points[members, 0],
                y=view.points[members, 1],
                mode="markers",
                name=f"{group.name} ({len(members):,})",
                marker=marker,
                customdata=pair,
                selectedpoints=marked,
                **(_LARGER if 0 < len(chosen) <= FEW else {}),
                text=[f"score {value:.2f}" for value in view.table.score[pair]],
                hovertemplate="patch %{customdata}<br>%{text}<extra>%{fullData.name}</extra>",
            )
        )
    figure.update_layout(
        height=560,
        dragmode="lasso",
        uirevision="kept",  # the zoom outlives a change of colours
        margin={"l": 0, "r": 0, "t": 8, "b": 0},
        legend={"orientation": "h", "y": -0.02, "itemsizing": "constant"},
        xaxis={"visible": False},
        yaxis={"visible": False, "scaleanchor": "x"},
    )
    return figure


def _score_colours(score: NDArray[np.float32], bar: bool) -> dict[str, object]:
    scale = {"color": score, "cmin": 0, "cmax": 1, "colorscale": "Cividis", "showscale": bar}
    return scale | ({"colorbar": {"title": {"text": "score"}, "thickness": 12}} if bar else {})
