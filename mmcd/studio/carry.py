"""What is selected on one page is there on the next.

The menu opens a page with an empty address. The selection is therefore kept in the session as well, and put back into
the address of a page that is opened without one.
"""

import streamlit as st

OF_A_SCENE = ("scene", "run", "region", "threshold", "building")
"""A scene, and what has a meaning only for it."""

OF_DATA = ("data", "evaluation", "table", "patches")
"""A data set, what was measured on it, the table of its patches, and a set of them."""

OF_TRAINING = ("training",)
"""Trainings that are compared."""

_GROUPS = (OF_A_SCENE, OF_DATA, OF_TRAINING)
_KEPT, _PAGE = "mmcd_selection", "mmcd_page"


def carry_selection(page: str) -> None:
    """Give a page that was opened without an address what is selected, and keep what its address selects.

    An address that names something of a group is left alone: a link to a scene means that scene without a run.

    Args:
        page: Path of the page that is about to be drawn.
    """
    kept: dict[str, str] = st.session_state.get(_KEPT, {})
    if st.session_state.get(_PAGE, page) != page:
        for group in _GROUPS:
            if not any(name in st.query_params for name in group):
                for name in kept.keys() & set(group):
                    st.query_params[name] = kept[name]
    st.session_state[_PAGE] = page
    keep_selection()


def keep_selection() -> None:
    """Keep what the address selects; for parts of a page that change it without drawing the whole page again."""
    chosen = st.query_params
    st.session_state[_KEPT] = {name: chosen[name] for group in _GROUPS for name in group if name in chosen}


def choose_scene(scene_id: str) -> None:
    """Select a scene; what belonged to another one is let go."""
    if st.query_params.get("scene") != scene_id:
        for name in OF_A_SCENE:
            st.query_params.pop(name, None)
    st.query_params["scene"] = scene_id
    keep_selection()
