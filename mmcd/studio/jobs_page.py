"""The jobs of the workspace: what runs, waits, failed and finished, and what can be done about it.

What runs is drawn again every second on its own, with the same elements in the same places, so that neither focus nor
scrolling is lost. The rest follows once a job comes, goes, begins or ends. The chosen job is in the address.
"""

import contextlib
from collections.abc import Sequence
from functools import partial

import streamlit as st

from mmcd.errors import InputError
from mmcd.jobs import Job, JobStore, State, ensure_worker
from mmcd.paths import workspace
from mmcd.services import job_control
from mmcd.services.job_control import kind_words, progress_words, subject
from mmcd.studio import loaders
from mmcd.studio.ease import sample_link
from mmcd.studio.job_details import PLACES, choose_job, job_details
from mmcd.studio.job_panel import POLL
from mmcd.studio.messages import duration, errors_shown, roughly, utc
from mmcd.studio.selection import mark_rows

PAGE_ROWS = 50
ALL = "all"
TABLE, STATE, KIND, SEARCH, PAGE = "jobs-table", "jobs-state", "jobs-kind", "jobs-search", "jobs-page"

WIDTHS = {"State": 90, "Kind": 95, "On": 190, "Why": 210, "Asked for (UTC)": 125, "Took": 80}
"""Pixels of each column: at 1280 px, why a job failed can be read without moving the table."""

WIDTHS_WITHOUT_WHY = {name: width for name, width in WIDTHS.items() if name != "Why"} | {"On": 215}
"""Where none failed, so that scene and model can be read."""

ICONS: dict[State, str] = {"running": "▶", "queued": "…", "failed": "✕", "done": "✓", "cancelled": "–"}
"""A sign of each state, the cue that needs no colour."""


def jobs_page() -> None:
    """Draw the page."""
    store = loaders.jobs()
    seen = store.fingerprint()
    st.title("Follow and manage jobs")
    if not any(store.counts().values()):
        _empty()
        st.fragment(_look_for_change, run_every=POLL)(seen)
        return
    st.fragment(_running, run_every=POLL)(seen)
    _waiting(store)
    state, kind, search = _filters(store)
    table, details = st.columns([4, 3])
    with table:
        _table(store, state, kind, search)
    with details:
        job_details(store)


def _look_for_change(seen: str) -> None:
    if loaders.jobs().fingerprint() != seen:
        st.rerun()


def _empty() -> None:
    st.info("Analyse a scene, add one or train a model: it is listed here until you delete it.", title="No job yet.")
    sample_link()


def _running(seen: str) -> None:
    """Draw what runs now; the whole page again once a job came, went, began or ended."""
    with errors_shown():
        store = loaders.jobs()
        _look_for_change(seen)
        active = store.counts()
        if active["running"] or active["queued"]:
            ensure_worker(workspace())
        running = store.list(limit=-1, states=("running",))
        if not running:
            st.caption("Starting the worker …" if active["queued"] else "Nothing runs and nothing waits.")
        for job in running[::-1]:
            _card(store, job)


def _card(store: JobStore, job: Job) -> None:
    with st.container(border=True, key=f"running-{job.id}"):
        bar, actions = st.columns([5, 2], vertical_alignment="center")
        with bar:
            share = min(job.done / job.total, 1.0) if job.total else 0.0
            st.progress(share, text=f"**{kind_words(job.kind)}** · {subject(job)} · {progress_words(job)}")
            again = f" · taken up again, attempt {job.attempt}" if job.attempt > 1 else ""
            left = f"Time left in this stage: {duration(job.seconds_left())}"
            st.caption(f"{left} · started {utc(job.started)} · on {PLACES[job.place]}{again}")
        with actions, st.container(horizontal=True, horizontal_alignment="right"):
            if st.button("Details", key=f"details-{job.id}", icon=":material/info:"):
                choose_job(job.id)
                st.rerun()  # the details lie outside of what is drawn again on its own
            st.button(
                "Cancel",
                key=f"cancel-{job.id}",
                icon=":material/cancel:",
                disabled=job.cancel_requested,
                on_click=store.cancel,
                args=(job.id,),
            )


def _waiting(store: JobStore) -> None:
    """Say how long what waits will take."""
    waiting = [job for job in store.active() if job.state == "queued"]
    if waiting:
        seconds = job_control.seconds_to_go(store, waiting)
        pace = "no job of this kind has finished yet to go by" if seconds is None else f"{roughly(seconds)} to go"
        st.caption(f"**{len(waiting):,} waiting**: {pace}.")


def _filters(store: JobStore) -> tuple[State | None, str | None, str]:
    """Draw the choice of what to list; return state and kind, None for all, and a text."""
    kinds = (ALL, *store.kinds())
    if st.session_state.get(KIND) not in kinds:
        st.session_state[KIND] = ALL
    asked = st.query_params.get("state", ALL)
    st.session_state.setdefault(STATE, asked if asked in (ALL, *job_control.STATES) else ALL)
    row = st.container(horizontal=True, vertical_alignment="bottom")
    # The counts in the labels of the states depend on the other two, which are drawn behind them.
    states, kind_place = row.container(width="content"), row.container(width=170)
    search_place = row.container(width=230)
    kind = kind_place.selectbox("Kind", kinds, format_func=_kind_label, key=KIND)
    search = search_place.text_input("Search", placeholder="Scene, model, id or message", key=SEARCH).strip()
    chosen_kind = None if kind == ALL else kind
    counts: dict[str, int] = {ALL: 0} | {str(state): n for state, n in store.counts(chosen_kind, search).items()}
    counts[ALL] = sum(counts.values())
    words = {ALL: "All"} | {str(state): f"{ICONS[state]} {job_control.STATES[state]}" for state in ICONS}
    labels = {name: f"{word} {counts[name]:,}" for name, word in words.items()}
    state = (
        states.segmented_control("State", list(words), format_func=labels.__getitem__, key=STATE, required=True) or ALL
    )
    if state == ALL:
        st.query_params.pop("state", None)
    else:
        st.query_params["state"] = state
    found = next((each for each in job_control.STATES if each == state), None)
    _bulk(store, found, chosen_kind, search, counts[state])
    return found, chosen_kind, search


def _kind_label(kind: str) -> str:
    return "All kinds" if kind == ALL else kind_words(kind)


def _bulk(store: JobStore, state: State | None, kind: str | None, search: str, number: int) -> None:
    """Offer what can be done with all jobs that are listed, once one state is chosen."""
    if state in (None, "running") or not number:
        return
    todo, icon = {
        "queued": (store.cancel, ":material/cancel:"),
        "failed": (store.retry, ":material/replay:"),
        "done": (store.delete, ":material/delete:"),
        "cancelled": (store.delete, ":material/delete:"),
    }[state]
    verb = {"queued": "Cancel", "failed": "Retry", "done": "Delete", "cancelled": "Delete"}[state]

    def act() -> None:
        for job in store.list(kind, -1, states=(state,), search=search)[::-1]:
            with contextlib.suppress(InputError):  # meanwhile it began, ended or was deleted elsewhere
                todo(job.id)

    if verb == "Retry":
        st.button(f"Retry all {number:,} failed", icon=icon, key="jobs-retry-all", on_click=act)
        return
    with st.popover(f"{verb} all {number:,} {job_control.STATES[state]}", icon=icon):
        st.write("They do not begin." if verb == "Cancel" else "They leave this list with their logs; results stay.")
        st.button(f"{verb} {number:,} jobs", type="primary", key=f"jobs-{verb.lower()}-all", on_click=act)


def _table(store: JobStore, state: State | None, kind: str | None, search: str) -> None:
    states = () if state is None else (state,)
    counts = store.counts(kind, search)
    number = sum(counts.values()) if state is None else counts[state]
    if not number:
        st.info("Choose another state or kind, or change the search.", title="No job matches.")
        return
    pages = -(-number // PAGE_ROWS)
    if st.session_state.get(PAGE, 1) > pages:
        st.session_state[PAGE] = pages
    page = st.session_state.get(PAGE, 1) if pages > 1 else 1
    listed = store.list(kind, PAGE_ROWS, states=states, search=search, offset=(page - 1) * PAGE_ROWS)
    ids = [job.id for job in listed]
    chosen = st.query_params.get("job")
    mark_rows(TABLE, [ids.index(chosen)] if chosen in ids else [])
    widths = WIDTHS if any(job.message for job in listed) else WIDTHS_WITHOUT_WHY
    st.dataframe(
        [_row(job) for job in listed],
        hide_index=True,
        column_config={name: {"width": width} for name, width in widths.items()},
        column_order=list(widths),
        height=min(38 + 35 * len(listed), 560),
        on_select=partial(_choose_row, ids),
        selection_mode="single-row",
        key=TABLE,
        alt="Table of jobs with state, kind, what they work on, why they failed, when asked for, how long they took",
    )
    if pages > 1:
        st.pagination(pages, key=PAGE)
        first = (page - 1) * PAGE_ROWS + 1
        st.caption(f"{first:,} to {first + len(listed) - 1:,} of {number:,} jobs, newest first.")


def _row(job: Job) -> dict[str, str]:
    return {
        "State": f"{ICONS[job.state]} {job_control.STATES[job.state]}",
        "Kind": kind_words(job.kind),
        "On": subject(job),
        "Why": job.message,
        "Asked for (UTC)": f"{job.submitted:%Y-%m-%d %H:%M}",
        "Took": duration(job.seconds) if job.state != "queued" else "–",
    }


def _choose_row(ids: Sequence[str]) -> None:
    rows = st.session_state[TABLE]["selection"]["rows"]
    choose_job(ids[rows[0]] if rows and rows[0] < len(ids) else None)
