"""The picture of patch pairs and what a selection in it shows: thumbnails, neighbours, places on the map."""

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from mmcd.embedding_table import EmbeddingTable
from mmcd.embeddings import CHANGED_SHARE, misclassified, neighbours, stacked_vectors
from mmcd.errors import MmcdError
from mmcd.score import SCALE
from mmcd.services.embeddings import View, keep_selection, selection
from mmcd.services.patch_pictures import pictures, rings
from mmcd.studio import carry
from mmcd.studio.address import asked_threshold
from mmcd.studio.bridge import announce, channel
from mmcd.studio.embedding_chart import Colour, offered, scatter
from mmcd.studio.embedding_source import METHOD_NAMES, Source
from mmcd.studio.messages import errors_shown
from mmcd.studio.metric_words import PICTURE_HELP

CHANNEL = "embeddings"
SHOWN = 12
"""Pairs that the gallery shows at most: more take longer to draw than to look at."""

MARKED = 2_000
"""Pairs that are outlined on the map at most."""

NEAREST = 11
COLOUR_NAMES: dict[Colour, str] = {
    "label": "Label",
    "score": "Score",
    "event": "Event",
    "branch": "Branch",
    "building": "Buildings",
}


@st.fragment
def picture_panel(source: Source, view: View) -> None:
    """Draw the scatter, what is selected in it and how far it can be trusted; only this part runs again on a click.

    Args:
        source: Where the patch pairs come from.
        view: Their picture.
    """
    with errors_shown():
        threshold = _threshold(view)
        colour, shown = _controls(view, threshold)
        chosen = _chart(source, view, colour, threshold, shown)
        _mark_on_map(source, view, chosen)
        _gallery(source, view, chosen)
        _measures(view)


def _threshold(view: View) -> float:
    """Return the threshold in the address, else the model's own."""
    value = asked_threshold(0)
    return (value - 1) * SCALE if value else view.table.threshold


def _controls(view: View, threshold: float) -> tuple[Colour, NDArray[np.bool_]]:
    """Draw colouring and filter; return the colouring and the pairs that are shown, shape (N,)."""
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    choices = offered(view)
    colour = left.segmented_control(
        "Colour by", choices, default=choices[0], required=True, format_func=COLOUR_NAMES.__getitem__,
        key=f"embedding-colour-{'-'.join(choices)}",
    )  # fmt: skip
    everything = np.ones(len(view.table), np.bool_)
    if not view.table.has_label.any():
        right.caption("No labels here: misclassified patches cannot be told.")
        return colour, everything
    wrong = misclassified(view.table, threshold)
    only = right.toggle(
        f"Misclassified only ({int(wrong.sum()):,})",
        key="embedding-wrong",
        help=f"Patches whose mean score lies on the other side of {threshold:.2f} than their label: changed from "
        f"{CHANGED_SHARE:.0%} of the labelled pixels.",
    )
    return colour, wrong if only else everything


def _chart(source: Source, view: View, colour: Colour, threshold: float, shown: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Draw the scatter; return the pairs that are selected, in it or by the address."""
    key = f"scatter-{source.name}-{view.layout.method}-{view.layout.what}"
    kept = _kept(source, view)
    drawn = {int(pair) for pair in st.session_state.get(f"{key}-drawn", ())}
    figure = scatter(view, colour, threshold, shown, set(kept.tolist()) - drawn)
    event: Any = st.plotly_chart(
        figure,
        key=key,
        on_select="rerun",
        selection_mode=("points", "box", "lasso"),
        config={"displaylogo": False},
        alt=f"{METHOD_NAMES[view.layout.method]} of {len(view.table):,} patches, coloured by {COLOUR_NAMES[colour]}",
    )
    st.caption("Draw around points, or click one for its nearest neighbours. A double click takes all again.")
    picked = np.unique(np.array([_pair(point) for point in event["selection"]["points"]], np.int64))
    if picked.tolist() == sorted(drawn):
        return kept
    st.session_state[f"{key}-drawn"] = picked.tolist()
    if len(picked):
        st.query_params["patches"] = keep_selection(source.name, picked)
    else:
        st.query_params.pop("patches", None)
    carry.keep_selection()
    return picked


def _pair(point: Any) -> int:
    value = point["customdata"]
    return int(value[0] if isinstance(value, list | tuple) else value)


def _kept(source: Source, view: View) -> NDArray[np.int64]:
    """Return the pairs that the address selects; none where it selects those of something else."""
    asked = st.query_params.get("patches")
    if not asked:
        return np.zeros(0, np.int64)
    try:
        name, pairs = selection(asked)
    except MmcdError as error:
        st.info(error.hint, title=error.message)
        st.query_params.pop("patches", None)
        return np.zeros(0, np.int64)
    return pairs[pairs < len(view.table)] if name == source.name else np.zeros(0, np.int64)


def _shown_pairs(view: View, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
    """Return the pairs that a selection means: one point its neighbours too, with their cosine, else itself."""
    if len(chosen) != 1:
        return chosen, None
    vectors, pair, _ = stacked_vectors(view.table, view.layout.what)
    found, cosine = neighbours(vectors, int(np.flatnonzero(pair == chosen[0])[-1]), 2 * NEAREST)
    others, first = np.unique(pair[found], return_index=True)
    order = [number for number in np.argsort(first) if others[number] != chosen[0]][:NEAREST]
    nearest = others[order].astype(np.int64)
    return np.concatenate([chosen, nearest]), np.concatenate([np.ones(1, np.float32), cosine[first[order]]])


def _mark_on_map(source: Source, view: View, chosen: NDArray[np.int64]) -> None:
    """Outline the selected pairs on the map, which listens; a changed map would lose its place."""
    if source.scene is None or source.score is None:
        return
    pairs, _ = _shown_pairs(view, chosen)
    marked = _evenly(pairs, MARKED)
    message = {"type": "patches", "rings": rings(view.table, marked, source.score) if len(marked) else []}
    announce(message, channel(CHANNEL))
    if len(marked) < len(pairs):
        st.caption(f"The map outlines {len(marked):,} of the {len(pairs):,} patches, spread evenly.")


def _gallery(source: Source, view: View, chosen: NDArray[np.int64]) -> None:
    """Draw thumbnails of the selected pairs, or of one and its neighbours."""
    if not len(chosen):
        st.info("Their images appear here, and their places on the map.", title="No patch is selected.")
        return
    pairs, cosine = _shown_pairs(view, chosen)
    if cosine is not None:
        st.subheader(f"Patch {int(chosen[0]):,} and its nearest neighbours")
    else:
        by_score = pairs[np.argsort(-view.table.score[pairs], kind="stable")]
        st.subheader(f"{len(pairs):,} patches selected")
        pairs = _evenly(by_score, SHOWN)
        if len(pairs) < len(by_score):
            st.caption(f"{len(pairs)} of them, from the highest score to the lowest. Before is left, after right.")
    thumbnails = _thumbnails(source.name, tuple(pairs.tolist()), view.table, source)
    columns = st.columns(4)
    for number, (pair, image) in enumerate(zip(pairs.tolist(), thumbnails, strict=True)):
        words = _words(view.table, pair, None if cosine is None else float(cosine[number]))
        columns[number % 4].image(image, caption=words, alt=f"Before and after: patch {pair}, {words}", width="stretch")


@st.cache_data(max_entries=64, show_spinner="Cutting the patches …")
def _thumbnails(name: str, pairs: tuple[int, ...], _table: EmbeddingTable, _source: Source) -> list[NDArray[np.uint8]]:
    return pictures(_table, pairs, _source.score)


def _words(table: EmbeddingTable, pair: int, cosine: float | None) -> str:
    parts = [f"score {table.score[pair]:.2f}"]
    if table.has_label[pair]:
        parts.append(f"label {table.label[pair]:.0%} changed")
    if cosine is not None:
        parts.append(f"cosine {cosine:.2f}")
    if len(table.tiles) > 1:
        parts.append(table.tiles[table.tile[pair]].id)
    return " · ".join(parts)


def _measures(view: View) -> None:
    """Draw how far the picture can be trusted, in plain words."""
    found = view.measures
    sample = "" if found.sample == found.total else f" on {found.sample:,} of {found.total:,} points"
    value = "not known" if found.trustworthiness is None else f"{found.trustworthiness:.3f}"
    st.metric(f"Trustworthiness{sample}", value, help=PICTURE_HELP["trustworthiness"])
    names = {
        "event": "Event",
        "pairs": "Patches",
        "labelled": "Labelled",
        "change": "Changed apart",
        "event_apart": "Event apart",
    }
    rows = [[_cell(line[key]) for key in names] for line in found.events]
    st.markdown(f"**Silhouette by event{sample}**", help=PICTURE_HELP["silhouette"])
    st.dataframe(
        pd.DataFrame(rows, columns=list(names.values())),
        hide_index=True,
        key="embedding-silhouettes",
        alt="Silhouette of changed against unchanged patches and of each event against the others",
    )


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value or "–"


def _evenly(pairs: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many pairs, spread evenly over their order."""
    if len(pairs) <= most:
        return pairs
    return np.asarray(pairs[np.linspace(0, len(pairs) - 1, most).round().astype(int)])
