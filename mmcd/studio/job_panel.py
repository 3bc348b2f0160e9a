"""Start a job and watch it. Its id is in the address, so a refresh or a shared link loses nothing."""

from pathlib import Path

import streamlit as st

from mmcd.config import Config
from mmcd.errors import InputError
from mmcd.jobs import Job, ensure_worker
from mmcd.paths import workspace
from mmcd.studio import loaders
from mmcd.studio.messages import duration, errors_shown, utc

POLL = "1s"


def asked_job(say: bool = True) -> Job | None:
    """Return the job in the address; without one, or if it was deleted, None, so that the rest of the page is drawn.

    Args:
        say: Whether to say that it was deleted; one part of a page does, the others that ask again do not.
    """
    job_id = st.query_params.get("job")
    if not job_id:
        return None
    try:
        return loaders.jobs().get(job_id)
    except InputError as error:
        if say:
            st.warning("It was deleted, or the link is of another workspace.", title=error.message)
        return None


def start_job(kind: str, request: Config) -> None:
    """Queue a job, make sure that a worker takes it, and draw the page again with it in the address."""
    # The worker may have been started in another folder than this app.
    whole = {name: value.absolute() for name, value in request if isinstance(value, Path)}
    asked = request.model_copy(update=whole).model_dump(mode="json", exclude_none=True)
    job_id = loaders.jobs().submit(kind, asked)
    ensure_worker(workspace())
    st.query_params["job"] = job_id
    st.rerun()


@st.fragment(run_every=POLL)
def watch_job(job_id: str) -> None:
    """Draw a job's progress until it ends, then redraw the page. Only for a job that is active."""
    with errors_shown():
        job = loaders.jobs().get(job_id)
        if not job.active:
            st.rerun()
        ensure_worker(workspace())
        _progress(job)
        cancel = loaders.jobs().cancel
        st.button("Cancel", icon=":material/cancel:", disabled=job.cancel_requested, on_click=cancel, args=(job_id,))


def _progress(job: Job) -> None:
    share = job.done / job.total if job.total else 0.0
    if job.state == "queued":
        busy = loaders.jobs().counts()["running"] > 0
        st.progress(0.0, text="Waiting for the end of the job before it …" if busy else "Starting the worker …")
    elif job.cancel_requested:
        st.progress(share, text="Stopping …")
    else:
        units = f" · {job.done:,} of {job.total:,}" if job.total > 1 else ""
        st.progress(share, text=f"**{job.stage.capitalize() or 'Starting'}**{units}")
    begun = f"started {utc(job.started)}" if job.started else f"asked for {utc(job.submitted)}"
    st.caption(f"Time left in this stage: {duration(job.seconds_left())} · {begun}")
    if job.attempt > 1:
        st.caption(f"Taken up again after an interruption (attempt {job.attempt}).")
