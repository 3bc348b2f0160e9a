"""Scenes: every scene on a world map and in a table; choose one and analyse it, or add one."""

from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import streamlit as st
from streamlit_folium import st_folium

from mmcd.studio import catalogue, loaders
from mmcd.studio.add_panel import add_panel
from mmcd.studio.bridge import announce, channel
from mmcd.studio.ease import tour
from mmcd.studio.layers import choose_basemap, is_dark
from mmcd.studio.selection import choose_marker, choose_row, chosen_scene, clear_filters, mark_row, open_view
from mmcd.studio.storage_panel import storage_panel

VIEWS = {"add": add_panel, "workspace": storage_panel}
DAMAGE_MAP = Path(__file__).with_name("damage_map.py")
FIRST_DAY = date(1990, 1, 1)

view = VIEWS.get(st.query_params.get("view", ""))
if view is not None:
    st.button("All scenes", icon=":material/arrow_back:", on_click=open_view)
    view()
    st.stop()

title, actions = st.columns([6, 5], vertical_alignment="bottom")
with title:
    st.title("Choose a scene to analyse")
    st.caption("Click a marker or a table row, then **Analyse**. Letters on the markers stand for the type of event.")
with actions, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="bottom"):
    basemap = choose_basemap()
    st.button("Add a scene", icon=":material/add_location_alt:", on_click=open_view, args=("add",))
    st.button("Workspace", icon=":material/hard_drive:", on_click=open_view, args=("workspace",))

everything = loaders.scenes()
if not everything:
    st.info(
        "Add one above or with `mmcd scenes add PRE POST --id ID`, or make simulated ones with `mmcd data simulate`.",
        title="There is no scene yet.",
    )
    st.stop()

with st.container(horizontal=True, vertical_alignment="bottom"):
    text = st.text_input("Search", placeholder="Place, event or id", width=220, bind="query-params", key="search")
    types = st.pills(
        "Event type", catalogue.event_types(everything), selection_mode="multi", bind="query-params", key="types"
    )
    days = st.date_input(
        "After the event, from – to",
        value=(),
        min_value=FIRST_DAY,
        max_value=datetime.now(UTC).date(),
        width=250,
        bind="query-params",
        key="days",
        help="Day of the image after the event, UTC.",
    )

scenes = catalogue.filter_scenes(everything, text, types, days)
ids = [scene.id for scene in scenes]
left, right = st.columns([4, 3])

with left, st.spinner("Drawing the map …"):
    map_key = f"world-{is_dark()}-{basemap}-{'-'.join(ids)}"
    st_folium(
        catalogue.world_map(scenes, channel("scenes"), is_dark(), basemap),
        key=map_key,
        height=520,
        use_container_width=True,
        returned_objects=["last_active_drawing"],
        on_change=partial(choose_marker, map_key),
    )

with right:
    if not scenes:
        st.info("Change the search, the event types or the days.", title="No scene matches.")
    hidden = len(everything) - len(scenes)
    if hidden:
        label = f"Clear the filters, which hide {hidden:,} of {len(everything):,} scenes"
        st.button(label, icon=":material/filter_alt_off:", type="tertiary", on_click=clear_filters)
    mark_row("scene-table", ids)
    st.dataframe(
        catalogue.scene_rows(scenes, loaders.runs()),
        hide_index=True,
        height=min(38 + 35 * max(len(scenes), 1), 300),
        column_config={name: {"width": width} for name, width in catalogue.WIDTHS.items()},
        on_select=partial(choose_row, "scene-table", ids),
        selection_mode="single-row",
        key="scene-table",
        alt="Table of scenes with event, place, dates, sensors, pixel size, size, labels, last run and licence",
    )
    current = next((scene for scene in everything if scene.id == chosen_scene()), None)
    catalogue.removed_note()
    if current is None:
        asked = chosen_scene()
        said = "No scene is selected." if asked is None else f"There is no scene {asked[:80]!r}."
        st.info("Click a marker or a table row.", title=said)
        tour()
    else:
        with st.container(border=True):
            catalogue.scene_card(current)
            if st.button("Analyse", type="primary", icon=":material/radar:", width="stretch"):
                st.switch_page(DAMAGE_MAP, query_params={"scene": current.id})
            if runs := loaders.runs(current.id):
                label = f"Open the last run, {catalogue.finished(runs[0])}"
                if st.button(label, icon=":material/history:", width="stretch"):
                    st.switch_page(DAMAGE_MAP, query_params={"scene": current.id, "run": runs[0].id})
            catalogue.remove_button(current)

announce({"type": "select", "id": chosen_scene()}, channel("scenes"))
