"""Damage map: run a model on a scene, then move the threshold over the stored score."""

import streamlit as st
from streamlit_folium import st_folium

from mmcd.studio.bridge import channel
from mmcd.studio.ease import SCENE_KEYS, keyboard
from mmcd.studio.layers import choose_basemap, is_dark
from mmcd.studio.result_panel import CHANNEL
from mmcd.studio.run_panel import choose_scene, run_panel
from mmcd.studio.scene_map import map_key, scene_map

scene = choose_scene()
picture, controls = st.columns([5, 3])

with controls:
    run = run_panel(scene)

with picture:
    place = st.container()
    basemap = choose_basemap()
    keyboard(SCENE_KEYS)

with place, st.spinner("Drawing the map …"):
    st_folium(
        scene_map(scene, run, channel(CHANNEL), is_dark(), basemap),
        key=map_key(scene, run, is_dark(), basemap),
        height=680,
        use_container_width=True,
        returned_objects=[],
    )
