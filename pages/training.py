"""Training: start a training as a job, watch and compare runs, keep the weights of one."""

import streamlit as st

from mmcd.studio.ease import titled_view
from mmcd.studio.job_panel import asked_job
from mmcd.studio.training_details import boards, one_run
from mmcd.studio.training_panel import choose_compared, compare
from mmcd.studio.training_source import trainings
from mmcd.studio.training_start import KIND, offer_trial, start_panel

VIEWS = {"runs": "Runs", "start": "Start a training"}

job = asked_job()
if job is not None and job.kind == KIND:
    st.query_params.setdefault("view", "start")
view = titled_view("Train models and compare runs", VIEWS, "training-view")
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
