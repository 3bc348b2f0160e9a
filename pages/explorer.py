"""Explorer: look through the pictures and patches of data sets and scenes, and flag what is unusable."""

import streamlit as st

from mmcd.studio.ease import PICTURE_KEYS, keyboard
from mmcd.studio.explorer_images import image_explorer
from mmcd.studio.explorer_patches import patch_explorer
from mmcd.studio.explorer_source import choose_collection

VIEWS = {"images": image_explorer, "patches": patch_explorer}
NAMES = {"images": "Images", "patches": "Patches"}

asked = st.query_params.get("view", "")
st.session_state["view"] = asked if asked in VIEWS else "images"


def show() -> None:
    """Put the chosen view into the address."""
    st.query_params["view"] = st.session_state["view"]


title, choice = st.columns([5, 2], vertical_alignment="bottom")
title.title("Look through the data")
view = choice.segmented_control(
    "View",
    list(VIEWS),
    format_func=NAMES.__getitem__,
    required=True,
    key="view",
    on_change=show,
    label_visibility="collapsed",
)
VIEWS[view](choose_collection())
keyboard(PICTURE_KEYS)
