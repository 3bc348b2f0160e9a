"""What the address holds beside scene, run and job, so that a link brings back the same view.

``threshold`` (a probability), ``palette``, ``opacity``, ``outline``, ``region`` (``W,S,E,N`` in degrees) and
``building`` (an id). What has its usual value is left out.
"""

import contextlib
from dataclasses import dataclass

import streamlit as st

from mmcd.errors import RegionError
from mmcd.geo.vector import parse_region
from mmcd.score import threshold_value
from mmcd.studio.carry import keep_selection
from mmcd.studio.palettes import PALETTES, PaletteName

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Look:
    """How the score is drawn.

    Attributes:
        palette: Its colours.
        opacity: How much they cover, in [0.1, 1].
        outline: Whether every changed patch has a black outline, the cue that needs no colour.
    """

    palette: PaletteName = "magma"
    opacity: float = 0.85
    outline: bool = True


USUAL = Look()


def asked_threshold(default: int) -> int:
    """Return the stored value of the threshold in the address; the default when there is no probability in it."""
    try:
        probability = float(st.query_params.get("threshold", ""))
    except ValueError:
        return default
    return threshold_value(probability) if 0 <= probability <= 1 else default


def keep_threshold(value: int) -> str:
    """Put a stored value into the address as a probability; return that, as it stood while it still means the value."""
    asked = st.query_params.get("threshold", "")
    text = asked if asked_threshold(0) == value else probability_text(value)
    st.query_params["threshold"] = text
    keep_selection()
    return text


def shown_threshold(probability: float) -> str:
    """Return a probability with three digits that name the same stored value, so that what is read is what is set."""
    value, text = threshold_value(probability), f"{probability:.3f}"
    return text if threshold_value(float(text)) == value else probability_text(value)


def probability_text(value: int) -> str:
    """Return the probability of a stored value with three digits, rounded down so that it names the same value."""
    return f"{(value - 1) * 1000 // 254 / 1000:.3f}"


def asked_look() -> Look:
    """Return the colours that the address asks for; what it does not name, or names wrongly, is as usual."""
    asked = st.query_params
    palette = next((name for name in PALETTES if name == asked.get("palette")), USUAL.palette)
    opacity = USUAL.opacity
    with contextlib.suppress(ValueError):
        opacity = min(1.0, max(0.1, float(asked.get("opacity", USUAL.opacity))))
    return Look(palette, opacity, asked.get("outline", "1") != "0")


def keep_look(look: Look) -> None:
    """Put what is not as usual into the address."""
    _keep("palette", look.palette if look.palette != USUAL.palette else None)
    _keep("opacity", f"{look.opacity:g}" if look.opacity != USUAL.opacity else None)
    _keep("outline", None if look.outline else "0")


def asked_region() -> str:
    """Return the text of the region in the address; empty for the whole scene."""
    return st.query_params.get("region", "")


def keep_region(text: str) -> None:
    """Put a region into the address; nothing for the whole scene."""
    _keep("region", text or None)


def region_bounds(text: str) -> Bounds:
    """Return the four degrees of a typed region.

    Raises:
        RegionError: It is not ``W,S,E,N``; a file is not taken here, the address must not reach into the disk.
    """
    parts = text.replace(";", ",").split(",")
    try:
        west, south, east, north = (float(part) for part in parts)
    except ValueError as error:
        raise RegionError(
            "The region is not four numbers.", "Write west, south, east, north in degrees, or draw it on the map."
        ) from error
    parse_region(f"{west},{south},{east},{north}")  # refuses what is empty or beyond the globe
    return west, south, east, north


def keep_building(building: str | None) -> None:
    """Put the chosen building into the address."""
    _keep("building", building)


def forget(*names: str) -> None:
    """Take parts out of the address."""
    for name in names:
        _keep(name, None)


def _keep(name: str, value: str | None) -> None:
    if value is not None:
        st.query_params[name] = value
    elif name in st.query_params:
        del st.query_params[name]
    keep_selection()
