"""Accuracy: how far a score can be trusted, where to cut it, and a calibration to keep."""

import streamlit as st

from mmcd.studio import accuracy_panel as panel
from mmcd.studio.accuracy_source import choose_source

st.title("See how far a score can be trusted")
st.caption("Scores against labels. A threshold that is set here is the one on the Damage map.")

source = choose_source()
if source is None:
    st.stop()

measured, run = source
st.markdown(f"**{measured.title}**")
threshold = panel.threshold_control(measured, run)
panel.figures(measured, threshold)
charts = st.container()
panel.tables(measured, threshold)
calibrated = panel.calibration(measured, run, threshold)
with charts:
    panel.curves(measured, threshold, calibrated)
