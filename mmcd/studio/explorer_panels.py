"""Panels of the Explorer: three pictures whose pan and zoom go together, and crops of patches."""

import base64
import io
from pathlib import Path

import plotly.graph_objects as go
import streamlit as st
from PIL import Image
from plotly.subplots import make_subplots

from mmcd.geo.grid import Window
from mmcd.services.collections import Picture
from mmcd.services.explore import Panel, image_panel, label_panel

KEPT_PANELS = 12
"""Encoded panels that are kept for all sessions together; one takes at most about 2 MB."""

Limits = tuple[float, float]
TITLES = ("Before", "After", "Label")
_QUALITY = 90


@st.cache_data(max_entries=KEPT_PANELS, show_spinner=False)
def _image(path: Path, modified: int, limits: Limits) -> tuple[str, int, tuple[int, int]]:
    """Return an image as a data address, the step between its pixels, and rows and columns of the file."""
    return _encoded(image_panel(path, limits), "JPEG")


@st.cache_data(max_entries=KEPT_PANELS, show_spinner=False)
def _label(picture: Picture, modified: int) -> tuple[str, int, tuple[int, int]]:
    panel = label_panel(picture)
    if panel is None:
        raise ValueError(picture.id)
    return _encoded(panel, "PNG")


def _encoded(panel: Panel, kind: str) -> tuple[str, int, tuple[int, int]]:
    written = io.BytesIO()
    Image.fromarray(panel.pixels).save(written, kind, quality=_QUALITY, compress_level=1)
    text = base64.b64encode(written.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}", panel.step, panel.shape


def pictures_figure(picture: Picture, pre: Limits, post: Limits) -> tuple[go.Figure, int]:
    """Return the panels of a picture side by side, with axes in pixels of the image after that move together.

    Args:
        picture: The picture.
        pre: Percentiles of the image before that become black and white.
        post: The same of the image after.

    Returns:
        The figure, and every how many pixels of the files are shown.

    Raises:
        InputError: A file is missing or damaged.
    """
    sources = [_image(picture.pre, _modified(picture.pre), pre), _image(picture.post, _modified(picture.post), post)]
    if picture.label is not None:
        sources.append(_label(picture, _modified(picture.label)))
    height, width = sources[1][2]
    figure = make_subplots(1, len(sources), subplot_titles=TITLES[: len(sources)], horizontal_spacing=0.01)
    for column, (address, step, (rows, cols)) in enumerate(sources, start=1):
        # Files of one scene may differ in pixel size: all are laid over the image after.
        across, down = step * width / cols, step * height / rows
        figure.add_trace(
            go.Image(source=address, dx=across, dy=down, x0=across / 2, y0=down / 2, hoverinfo="x+y"), row=1, col=column
        )
    figure.update_xaxes(matches="x", showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(matches="y", showticklabels=False, showgrid=False, zeroline=False)
    # uirevision: the view stays while percentiles move, and is new for another picture.
    figure.update_layout(
        height=480, margin={"l": 0, "r": 0, "t": 26, "b": 0}, dragmode="pan", uirevision=picture.id, hovermode="closest"
    )
    return figure, max(step for _, step, _ in sources)


@st.cache_data(max_entries=KEPT_PANELS, show_spinner=False)
def crop(path: Path, modified: int, limits: Limits, window: tuple[int, int, int, int]) -> Panel:
    """Return a window of an image: first row and column, height and width."""
    return image_panel(path, limits, Window(*window))


def image_crop(path: Path, limits: Limits, window: Window) -> Panel:
    """Return a window of an image between two percentiles of the whole file.

    Raises:
        InputError: The file is missing or damaged.
    """
    return crop(path, _modified(path), limits, (window.row, window.col, window.height, window.width))


def limits_slider(label: str, key: str) -> Limits:
    """Draw a slider of two percentiles; return them, never the same."""
    low, high = st.slider(
        label,
        0.0,
        100.0,
        (1.0, 99.0),
        step=0.5,
        format="%.1f %%",
        key=key,
        help="Values at the lower percentile become black, those at the upper one white. Radar amplitude in decibels.",
    )
    return (low, high) if high > low else (max(low - 0.5, 0.0), min(high + 0.5, 100.0))


def swatches(colours: dict[str, tuple[int, int, int]]) -> None:
    """Draw the colours of the classes with their names."""
    parts = [
        f'<span style="white-space:nowrap"><span style="display:inline-block;width:1em;height:1em;'
        f'vertical-align:-0.15em;border:1px solid #808080;background:rgb{colour}"></span> {name}</span>'
        for name, colour in colours.items()
    ]
    st.markdown("Label: " + " &ensp; ".join(parts), unsafe_allow_html=True)


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
