"""Words and numbers on the pages: errors as cause and next step, areas with units, times in UTC."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import streamlit as st

from mmcd.errors import MmcdError
from mmcd.services.scores import ScoreTable

KM2_FROM = 10.0  # square kilometres of assessed area from which areas are given in km² instead of ha

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AreaUnit:
    """Unit that one run's areas are given in, the same for all of them so that they can be compared at a glance.

    Attributes:
        name: Its sign.
        per_pixel: Units a pixel.
        digits: Digits after the point.
    """

    name: str
    per_pixel: float
    digits: int

    def format(self, pixels: float) -> str:
        """Return an area given in pixels, with unit and thousands separators."""
        return f"{pixels * self.per_pixel:,.{self.digits}f} {self.name}"


def area_unit(table: ScoreTable) -> AreaUnit:
    """Return the unit for a run: km² for large areas, else ha, pixels where the ground area is unknown."""
    if table.pixel_area_m2 is None:
        return AreaUnit("px", 1.0, 0)
    if table.counts.sum() * table.pixel_area_m2 / 1e6 >= KM2_FROM:
        return AreaUnit("km²", table.pixel_area_m2 / 1e6, 2)
    return AreaUnit("ha", table.pixel_area_m2 / 1e4, 2)


def duration(seconds: float | None) -> str:
    """Return a time span such as ``2 min 5 s``; a dash while it is unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s" if minutes else f"{rest} s"


def roughly(seconds: float) -> str:
    """Return an expected time span in steps that do not pretend to be exact, such as ``about 40 s``."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} s"
    minutes = seconds / 60
    return f"about {minutes:,.0f} min" if minutes < 90 else f"about {minutes / 60:,.1f} h"


def disk(size: float) -> str:
    """Return an amount of data such as ``17 MB``."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 1):,.0f} MB"


def utc(moment: datetime | None) -> str:
    """Return a time such as ``2026-05-04 13:30 UTC``; a dash when there is none."""
    return "–" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def day(value: date | None) -> str:
    """Return a date such as ``2026-05-04``; ``date unknown`` when there is none."""
    return value.isoformat()[:10] if value else "date unknown"


def metres(value: float | None) -> str:
    """Return a pixel size such as ``0.5 m``; ``unknown`` when there is none."""
    return "unknown" if value is None else f"{value:,.3g} m"


def pixel_size(value: float | None) -> str:
    """Return a pixel size for a sentence, such as ``0.5 m a pixel``; ``pixel size unknown`` when there is none."""
    return "pixel size unknown" if value is None else f"{metres(value)} a pixel"


@contextlib.contextmanager
def errors_shown() -> Iterator[None]:
    """Show an error of the input, the data or the machine as cause and next step, and stop the page there."""
    try:
        yield
    except MmcdError as error:
        logger.info("shown to the user: %s", error)
        st.error(error.hint or "Try again.", title=error.message, icon=":material/error:")
        st.stop()
