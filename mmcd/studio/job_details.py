"""One job of the Jobs page: what it is, why it failed, where its result is, what can be done, the end of its log."""

from pathlib import Path
from typing import Any

import streamlit as st

from mmcd.errors import InputError
from mmcd.jobs import Job, JobStore
from mmcd.paths import shipped
from mmcd.services import job_control
from mmcd.services.job_control import kind_words, subject
from mmcd.studio.job_panel import POLL
from mmcd.studio.messages import duration, errors_shown, utc

PLACES = {"gpu": "the GPU", "cpu": "the processor", "": "–"}
"""What a job runs on, for people."""


def choose_job(job_id: str | None) -> None:
    """Put the chosen job into the address; None takes it out."""
    if job_id is None:
        st.query_params.pop("job", None)
    else:
        st.query_params["job"] = job_id


def job_details(store: JobStore) -> None:
    """Draw the job in the address; how to choose one when there is none."""
    job_id = st.query_params.get("job")
    if not job_id:
        st.info("Choose a row of the table for its log, its result and what can be done.", title="No job is chosen.")
        return
    try:
        job = store.get(job_id)
    except InputError:
        st.warning("It was deleted, or is of another workspace. Choose a row of the table.", title="No such job here.")
        return
    with st.container(border=True, key="job-details"):
        st.subheader(f"{kind_words(job.kind)}: {subject(job)}")
        _story(job)
        _actions(store, job)
        with st.expander("What was asked for"):
            st.json({name: value for name, value in job.request.items() if value not in (None, False, {}, "")})
        if job.active:
            st.fragment(_log, run_every=POLL)(job.id)
        else:
            _log(job.id, expanded=job.state != "failed")  # cause and next step stand above; the log holds a traceback


def _story(job: Job) -> None:
    """Say what became of a job."""
    if job.state == "failed":
        st.error(job.hint or "Retry it.", title=job.message, icon=":material/error:")
    elif job.state == "queued":
        needs = {"gpu": "the GPU", "cpu": "the processor", "any": "any device"}[job.device]
        st.write(f"**Waiting** since {utc(job.submitted)}, for its turn in the {job.lane} lane; needs {needs}.")
    elif job.state == "cancelled":
        st.info("Retry goes on from what it had finished.", title="The job was cancelled.")
    times = {"Asked for": utc(job.submitted), "Started": utc(job.started), "Ended": utc(job.finished)}
    facts = times | {"Took": duration(job.seconds), "Runs on": PLACES[job.place], "Attempt": str(job.attempt)}
    st.caption(" · ".join(f"{name}: {value}" for name, value in facts.items() if value not in ("–", "0")))
    st.caption(f"Id: `{job.id}`")


def _actions(store: JobStore, job: Job) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        link = result_link(job)
        if link is not None:
            label, page, query = link
            st.page_link(page, label=label, icon=":material/open_in_new:", query_params=query)
        if job.state in ("failed", "cancelled"):
            st.button("Retry", key="job-retry", icon=":material/replay:", on_click=_retry, args=(job.id,))
        if job.state == "queued":
            args = (job.id,)
            st.button("Cancel", key="job-cancel", icon=":material/cancel:", on_click=store.cancel, args=args)
        if not job.active:
            with st.popover("Delete", icon=":material/delete:"):
                st.write("It leaves this list with its log. What it made stays.")
                st.button("Delete it", key="job-delete", type="primary", on_click=_delete, args=(job.id,))


def _retry(job_id: str) -> None:
    with errors_shown():
        job_control.retry_job(job_id)


def _delete(job_id: str) -> None:
    with errors_shown():
        job_control.delete_jobs([job_id])
    choose_job(None)


def result_link(job: Job) -> tuple[str, Path, dict[str, str]] | None:
    """Return label, page and address of where a job's result, or its form, is; None where no page shows it."""
    result: dict[str, Any] = job.result or {}
    scene, job_query = job.request.get("scene"), {"job": job.id}
    pages: dict[str, tuple[str, str, dict[str, str]]] = {
        "check_scene": ("Open the check", "scenes.py", {"view": "add", **job_query}),
        "embed": ("Open the embeddings", "embeddings.py", _picture(result) or job_query),
        "accuracy": ("Open the accuracy", "accuracy.py", _named(result, "evaluation") or job_query),
        "train": ("Open the training", "training.py", {"training": result["run"]} if "run" in result else job_query),
        "samples": ("Open the training", "training.py", {"training": str(job.request.get("run")), **job_query}),
    }
    if scene and "run_id" in result:
        pages["predict"] = ("Open the run on the map", "damage_map.py", {"scene": scene, "run": str(result["run_id"])})
    elif scene:
        pages["predict"] = ("Open the scene on the map", "damage_map.py", {"scene": scene, **job_query})
    label, name, query = pages.get(job.kind, ("", "", {}))
    page = shipped("pages") / name
    return (label, page, query) if name and page.is_file() else None


def _log(job_id: str, expanded: bool = True) -> None:
    """Draw the end of a job's log."""
    lines = job_control.job_log(job_id)
    with st.expander("Log", expanded=expanded, key=f"job-log-{expanded}"):
        if lines:
            st.code("\n".join(lines), language=None, height=260, wrap_lines=True)
        else:
            st.caption("The job has written nothing yet.")


def _picture(result: dict[str, Any]) -> dict[str, str]:
    """Return the address of a picture of patch pairs: of a run or a data set, and how it was laid out."""
    return _named(result, "run", "table") and _named(result, "run", "table", "method", "what")


def _named(result: dict[str, Any], *names: str) -> dict[str, str]:
    """Return the parts of a result that an address names; empty of a job that has none."""
    return {name: str(result[name]) for name in names if result.get(name)}
