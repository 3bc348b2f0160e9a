"""Embeddings: what the model sees of each patch, laid out on a plane; select points to see them on the map."""

import streamlit as st
from streamlit_folium import st_folium

from mmcd.inference.roi import MOST_ROIS
from mmcd.studio.bridge import channel
from mmcd.studio.embedding_panel import CHANNEL, picture_panel
from mmcd.studio.embedding_source import choose_layout, choose_source, picture
from mmcd.studio.layers import MapCall, is_dark
from mmcd.studio.scene_map import scene_map

st.title("See how the model groups the patches")
st.caption(
    "Each point is a square of 16 × 16 pixels before and after. Points that lie near look alike to the model. "
    f"Of a scene with more than {MOST_ROIS:,} squares, so many are taken, spread evenly over it."
)

source = choose_source()
if source is None:
    st.stop()
layout = choose_layout()
view = picture(source, layout)
if view is None:
    st.stop()

scene = source.scene
if scene is None:
    picture_panel(source, view)
    st.stop()

left, right = st.columns([5, 4])
with left:
    picture_panel(source, view)
with right, st.spinner("Drawing the map …"):
    canvas = scene_map(scene, None, channel(CHANNEL), is_dark(), None, region=False)
    canvas.add_child(MapCall("patches", channel=channel(CHANNEL)))
    key = f"patches-{scene.id}-{is_dark()}"
    st_folium(canvas, key=key, height=560, use_container_width=True, returned_objects=[])
