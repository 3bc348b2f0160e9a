"""The workspace: what takes how much space, and clearing what can be made or fetched again."""

import pandas as pd
import streamlit as st

from mmcd.services.storage import PARTS, ClearRequest, Usage, clear, clearable, usage
from mmcd.studio import loaders
from mmcd.studio.messages import disk

_CLEARED = "mmcd_cleared"


def storage_panel() -> None:
    """Draw the workspace's size by parts and the choice of what to clear."""
    st.title("Workspace: see what takes space, clear what you no longer need")
    found = usage()
    st.caption(f"{found.folder} · layout {found.schema} · another folder: set MMCD_WORKSPACE before the start")
    if said := st.session_state.pop(_CLEARED, None):
        st.success(said, icon=":material/check:")
    sizes, clearing = st.columns([4, 3])
    with sizes:
        _sizes(found)
    with clearing, st.container(border=True):
        _clear()


def _sizes(found: Usage) -> None:
    st.markdown(f"**{disk(found.size)}** in all · **{disk(found.free)}** free on this disk")
    rows = [(PARTS[part.name], part.entries, f"{part.size / 1e6:,.1f} MB") for part in found.parts]
    st.dataframe(
        pd.DataFrame(rows, columns=["Holds", "Entries", "Size"]),
        hide_index=True,
        column_config={"Size": {"alignment": "right"}},
        alt="Parts of the workspace with their number of entries and their size",
    )


def _clear() -> None:
    st.subheader("Clear")
    used = sorted({run.scene_id for run in loaders.runs() if run.scene_id is not None})
    choices = {
        "All runs": ClearRequest(what="runs"),
        **{f"Runs of {scene}": ClearRequest(what="runs", scene=scene) for scene in used},
        "Downloads and uploads that no scene uses": ClearRequest(what="sources"),
    }
    label = st.selectbox("What", list(choices), key="clear-what")
    request = choices[label]
    found = clearable(request)
    if not found.entries:
        st.info("There is none of it.", title="Nothing to clear.")
        return
    st.markdown(f"Frees **{found.size / 1e6:,.1f} MB**. Scenes, their images and models stay.")
    noun = "run" if request.what == "runs" else "image"
    count = f"{found.entries:,} {noun}{'' if found.entries == 1 else 's'}"
    sure = st.checkbox(f"Yes, remove {count} for good", key=f"sure-{label}-{found.entries}")
    if st.button("Clear", icon=":material/delete:", disabled=not sure, width="stretch"):
        cleared = clear(request)
        for cached in (loaders.runs, loaders.run, loaders.table):
            cached.clear()
        st.session_state[_CLEARED] = f"{label}: {cleared.entries:,} removed, {cleared.size / 1e6:,.1f} MB freed."
        st.rerun()
