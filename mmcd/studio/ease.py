"""What makes the app easy at first: a tour of four sentences, and the keys that work on a page, listed in place."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import streamlit as st

from mmcd.paths import shipped, workspace
from mmcd.studio import loaders

TOUR = (
    "**Scenes**: choose a place on the map or in the table; the simulated ones come with the app.",
    "**Damage map**: press Run, then drag the threshold and see what counts as changed while you drag.",
    "**Accuracy**, **Embeddings** and **Explorer**: see how far that can be trusted, and look at the images; "
    "the scene and the threshold come along.",
    "**Training** and **Jobs**: train models of your own; long work goes on when this page is closed.",
)
"""What the app can do, a sentence a group of pages, in the order in which a newcomer meets them."""

SCENE_KEYS = {
    "Tab": "to the map, its buttons, the swipe and the sliders, one after the other",
    "Arrow keys": "move the map, the swipe or the slider that has the focus",
    "+ and −": "zoom the map that has the focus",
    "↑ and ↓ in the table of buildings": "the building before or after; the map goes there",
}
"""Of the Damage map."""

PICTURE_KEYS = {
    "N and P": "next and previous picture",
    "1 and 2": "flag the picture as cloudy, or as shifted",
    "U": "undo the last flag",
    "Mouse wheel or drag": "zoom and move all panels together",
}
"""Of the Explorer's images; keys other than the mouse's work while no field is being typed into."""

PATCH_KEYS = {"N and P": "next and previous patch"}
"""Of the Explorer's patches; they work while no field is being typed into."""

_SEEN = "tour-seen"


def tour() -> None:
    """Draw the tour until it is dismissed in this workspace; beside the map, which it must not push off the screen."""
    if _mark().exists():
        return
    with st.container(border=True, key="tour"):
        st.markdown("\n".join(f"{number}. {sentence}" for number, sentence in enumerate(TOUR, 1)))
        st.button("Got it", icon=":material/check:", key="tour-dismiss", on_click=_dismiss)


def keyboard(keys: Mapping[str, str]) -> None:
    """Draw the keys of a page, folded.

    Args:
        keys: What each key does.
    """
    with st.expander("Keyboard", icon=":material/keyboard:", key="keyboard"):
        st.markdown("\n".join(f"- **{key}**: {does}" for key, does in keys.items()))


def titled_view(title: str, names: Mapping[str, str], key: str) -> str:
    """Draw the title of a page beside the switch of its views; return the view of the address, or the first.

    Args:
        title: What the page is for.
        names: Name of each view, for people.
        key: Key of the switch.
    """

    def show() -> None:
        st.query_params["view"] = st.session_state[key]

    asked = st.query_params.get("view", "")
    st.session_state[key] = asked if asked in names else next(iter(names))
    words, choice = st.columns([5, 2], vertical_alignment="bottom")
    words.title(title)
    view = choice.segmented_control(
        "View",
        list(names),
        format_func=names.__getitem__,
        required=True,
        key=key,
        on_change=show,
        label_visibility="collapsed",
    )
    return str(view)


def sample_link(label: str = "Analyse the sample scene") -> None:
    """Draw the way to a scene that is here without doing anything: a simulated one if there is, else the first."""
    scenes = loaders.scenes()
    if scenes:
        sample = next((scene for scene in scenes if scene.simulated), scenes[0])
        st.page_link(
            shipped("pages") / "damage_map.py",
            label=f"{label}: {sample.title or sample.id}",
            icon=":material/radar:",
            query_params={"scene": sample.id},
        )


def _mark() -> Path:
    return workspace() / _SEEN


def _dismiss() -> None:
    with contextlib.suppress(OSError):  # a workspace that cannot be written shows it again, and says so elsewhere
        _mark().write_text("", encoding="utf-8")
