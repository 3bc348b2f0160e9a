"""Controls outside the map's frame that speak to it over a BroadcastChannel, and to Python when they are let go.

The channel's name carries a token of the browser session: a channel is shared by all tabs of an origin, and two tabs
must not move each other's threshold.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import streamlit as st

from mmcd.buildings import GRADE_LOOKS
from mmcd.services.scores import PRESET_COST, PresetName, ScoreTable
from mmcd.studio.address import Look
from mmcd.studio.messages import area_unit
from mmcd.studio.palettes import PALETTES, score_colours
from mmcd.studio.routes import STATIC

_ANNOUNCER_JS = """
export default function ({ data }) {
  const channel = new BroadcastChannel(data.channel)
  const say = () => channel.postMessage(data.message)
  channel.onmessage = (event) => event.data.type === "hello" && say()
  say()
  return () => channel.close()
}
"""

PRESET_WHY: dict[PresetName, str] = {
    "sensitive": f"For when a miss costs {PRESET_COST:g} times as much as the model's own threshold implies",
    "balanced": "The model's own threshold, chosen on validation data and kept in its card",
    "strict": f"For when a false alarm costs {PRESET_COST:g} times as much as the model's own threshold implies",
    "best F1": "Highest F1 against the reference labels of this very scene",
}


@dataclass(frozen=True)
class ThresholdPanel:
    """What the threshold panel is about.

    Attributes:
        run_id: The run.
        table: Counts of its score.
        model_threshold: The run's own threshold, a probability in [0, 1].
        value: Stored value to start from, 1 to 255.
        look: Colours to start with.
    """

    run_id: str
    table: ScoreTable
    model_threshold: float
    value: int
    look: Look


def channel(page: str) -> str:
    """Return the name of this browser session's channel for a page."""
    token = st.session_state.setdefault("mmcd_channel", secrets.token_hex(8))
    return f"mmcd-{page}-{token}"


def threshold_slider(panel: ThresholdPanel, channel_name: str) -> tuple[int, Look]:
    """Draw slider, histogram and numbers; return what was let go last: the stored value, 1 to 255, and the colours."""
    key = f"threshold-{panel.run_id}"
    # What was let go last is known before the component is drawn again; the address follows only after it.
    kept = st.session_state.get(key, {})
    table, unit, quality = panel.table, area_unit(panel.table), panel.table.quality()
    presets = table.presets(panel.model_threshold)
    data: dict[str, Any] = {
        "channel": channel_name,
        "counts": table.counts.tolist(),
        "changed": table.changed().tolist(),
        "quality": {name: curve.tolist() for name, curve in quality.items()} if quality else None,
        "value": kept.get("threshold", panel.value),
        "presets": [
            {"name": _capital(name), "value": value, "why": PRESET_WHY[name]} for name, value in presets.items()
        ],
        "look": kept.get("look", asdict(panel.look)),
        "unit": {"name": unit.name, "perPixel": unit.per_pixel, "digits": unit.digits},
        "palettes": {name: score_colours(name) for name in PALETTES},
    }
    result = _component("threshold")(
        key=key,
        data=data,
        default={"threshold": data["value"], "look": data["look"]},
        on_threshold_change=_nothing,
        on_look_change=_nothing,
    )
    return int(result.threshold), Look(**result.look)


def building_table(run_id: str, addresses: Mapping[str, str], unit: str, chosen: str | None, channel_name: str) -> None:
    """Draw the table of a run's buildings; it reads its rows itself and speaks to the map and to `map_link`.

    Args:
        run_id: The run.
        addresses: Routes of the outlines (``url``) and of the changed shares (``shares``).
        unit: Unit of the buildings' areas.
        chosen: Id of the building that is chosen at first.
        channel_name: Where the map and the threshold panel speak.
    """
    value = st.session_state.get(f"threshold-{run_id}", {}).get("threshold", 1)
    data = {"channel": channel_name, "unit": unit, "selected": chosen, "grades": grades(), "value": value, **addresses}
    _component("buildings")(key=f"buildings-{run_id}", data=data)


def grades() -> list[dict[str, Any]]:
    """Return how each grade is drawn, in the order that the browser counts them."""
    return [asdict(look) for look in GRADE_LOOKS]


def map_link(
    shown: Mapping[str, Any], channel_name: str, on_region: Callable[[str], None], on_building: Callable[[str], None]
) -> None:
    """Tell the map what is chosen, and Python what was drawn or clicked on it. Shows nothing.

    Args:
        shown: ``region``, four degrees or None, and ``building``, an id or None.
        channel_name: Where the map speaks.
        on_region: Called with ``W,S,E,N`` in degrees when a region was drawn.
        on_building: Called with the id of a building that was chosen on the map or in the table.
    """
    key = f"link-{channel_name}"

    def drawn() -> None:
        on_region(",".join(f"{degrees:.6f}" for degrees in st.session_state[key]["drawn"]))

    def chosen() -> None:
        on_building(str(st.session_state[key]["building"]))

    data = {"channel": channel_name, **shown}
    _component("link")(key=key, data=data, on_drawn_change=drawn, on_building_change=chosen)


def announce(message: dict[str, Any], channel_name: str) -> None:
    """Tell the map something, now and whenever a new map says hello. Shows nothing."""
    _announcer()(key=f"announcer-{channel_name}", data={"channel": channel_name, "message": message})


def _nothing() -> None:
    """Streamlit keeps a component's state only where a callback is given."""


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]


@st.cache_resource(show_spinner=False, max_entries=8)
def _component(name: str) -> Any:
    paths = (STATIC / f"{name}.{kind}" for kind in ("html", "css", "js"))
    html, css, js = (path.read_text() if path.is_file() else None for path in paths)
    return st.components.v2.component(f"mmcd_{name}", html=html, css=css, js=js)


@st.cache_resource(show_spinner=False)
def _announcer() -> Any:
    return st.components.v2.component("mmcd_announcer", js=_ANNOUNCER_JS)
