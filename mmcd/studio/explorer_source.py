"""The choice of what the Explorer looks through: the scenes, or a folder of a data set."""

from pathlib import Path

import streamlit as st

from mmcd.errors import MmcdError
from mmcd.services.collections import CATALOG, LAYOUTS, NAMES, Collection, Layout, open_collection, register, registered
from mmcd.studio.carry import keep_selection
from mmcd.studio.explorer_state import keep_number, open_key

_AUTO, _SAID = "find out", "explorer-open-said"


def choose_collection() -> Collection:
    """Draw the choice of collection and the opening of a folder; return the chosen one.

    Raises:
        MmcdError: The address names a collection that is not here, or it cannot be read.
    """
    kept = {CATALOG: "Scenes of the catalogs", **registered()}
    asked = st.query_params.get("data", CATALOG)
    if asked not in kept:
        open_collection(asked)  # raises: an address with an unknown collection says so

    def take() -> None:
        open_key(st.session_state["explorer-data"])

    st.session_state["explorer-data"] = asked
    left, right = st.columns([5, 2], vertical_alignment="bottom")
    left.selectbox("Look through", list(kept), format_func=kept.__getitem__, key="explorer-data", on_change=take)
    with right.popover("Open a folder", icon=":material/folder_open:", width="stretch"):
        _folder_form()
    collection = _collection(asked)
    if asked == CATALOG and "picture" not in st.query_params:
        scene = st.query_params.get("scene", "")
        number = collection.number_of(scene)
        if number is not None:  # the scene that is selected on the other pages
            keep_number("picture", number)
        elif scene:
            st.warning("The first one is shown. Choose another below.", title=f"There is no scene {scene[:80]!r}.")
    keep_selection()
    return collection


@st.cache_data(ttl=60, max_entries=4, show_spinner="Looking for pictures …")
def _collection(key: str) -> Collection:
    return open_collection(key)


def _folder_form() -> None:
    def open_folder() -> None:
        text = st.session_state["explorer-root"].strip()
        layout: Layout | None = next((name for name in LAYOUTS if name == st.session_state["explorer-layout"]), None)
        try:
            open_key(register(Path(text).expanduser(), layout))
        except MmcdError as error:
            st.session_state[_SAID] = (error.message, error.hint)

    st.text_input("Folder on this machine", key="explorer-root")
    names = {_AUTO: "Find out"} | {str(layout): text for layout, text in NAMES.items()}
    st.selectbox("Layout", list(names), format_func=names.__getitem__, key="explorer-layout")
    empty = not st.session_state["explorer-root"].strip()
    st.button("Open", type="primary", on_click=open_folder, disabled=empty, key="explorer-open")
    st.caption("`mmcd explore images --root DIR` opens it from the command line.")
    if said := st.session_state.pop(_SAID, None):
        st.error(said[1], title=said[0], icon=":material/error:")
