"""Training: start a training as a job, watch and compare runs, keep the weights of one."""

import streamlit as st

from mmcd.studio.job_panel import asked_job
from mmcd.studio.training_details import boards, one_run
from mmcd.studio.training_panel import choose_compared, compare
from mmcd.studio.training_source import trainings
from mmcd.studio.training_start import KIND, offer_trial, start_panel

VIEWS = {"runs": "Runs", "start": "Start a training"}

job = asked_job()
if job is not None and job.kind == KIND:
    st.query_params.setdefault("view", "start")
asked = st.query_params.get("view", "")
st.session_state["training-view"] = asked if asked in VIEWS else "runs"


def show() -> None:
    """Put the chosen view into the address."""
    st.query_params["view"] = st.session_state["training-view"]


title, choice = st.columns([5, 2], vertical_alignment="bottom")
title.title("Train models and compare runs")
view = choice.segmented_control(
    "View",
    list(VIEWS),
    format_func=VIEWS.__getitem__,
    required=True,
    key="training-view",
    on_change=show,
    label_visibility="collapsed",
)
if view == "start":
    start_panel()
elif not trainings():
    st.info(
        "Start one, here or with `mmcd train start --config FILE`: its curves appear here.", title="No training yet."
    )
    offer_trial()
else:
    runs = choose_compared()
    compare(runs)
    if runs:
        one_run(runs)
    boards()
