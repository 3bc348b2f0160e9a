"""What the Accuracy page measures: a run of a labelled scene, or a model on a data set."""

from pathlib import Path
from typing import get_args

import streamlit as st

from mmcd.errors import DataError, MmcdError
from mmcd.jobs import Job
from mmcd.paths import shipped
from mmcd.services.accuracy import Measured, measure_run
from mmcd.services.accuracy_data import AccuracyRequest, DatasetName, fitting_first, list_measured, load_measured
from mmcd.services.runs import Run
from mmcd.studio import loaders
from mmcd.studio.carry import choose_scene, keep_selection
from mmcd.studio.catalogue import finished
from mmcd.studio.job_panel import asked_job, start_job, watch_job

KIND = "accuracy"
RUN, DATASET = "A run of a scene", "A data set"
LAYOUTS: dict[DatasetName, str] = {"ombria": "OMBRIA", "bright": "BRIGHT", "levir": "LEVIR-CD"}


def choose_source() -> tuple[Measured, Run | None] | None:
    """Draw the choice of what is measured; return its counts and its run, None while there is nothing."""
    job = _own_job()
    asked = job is not None or "evaluation" in st.query_params
    default = DATASET if asked and "run" not in st.query_params else RUN
    source = st.segmented_control(
        "Measure", [RUN, DATASET], default=default, required=True, key="accuracy-source", label_visibility="collapsed"
    )
    if source == DATASET:
        measured = _dataset(job)
        return None if measured is None else (measured, None)
    run = _labelled_run()
    return None if run is None else (_of_run(run.id, str(run.scene_id)), run)


def _labelled_run() -> Run | None:
    """Draw the choice among runs of labelled scenes, the one in the address first; return it."""
    titles = {scene.id: scene.title or scene.id for scene in loaders.scenes() if scene.label is not None}
    runs = {run.id: run for run in loaders.runs() if run.scene_id in titles}
    asked, scene_id = st.query_params.get("run"), st.query_params.get("scene")
    if asked and asked not in runs:
        named = loaders.run(asked)  # raises: an address with an unknown run says so
        scene = loaders.scene(str(named.scene_id))
        if scene.id in titles:
            runs = {asked: named} | runs  # made since the runs were last listed
        else:
            st.warning("Its accuracy cannot be measured.", title=f"{scene.title or scene.id} has no labels.")
    if not runs:
        _nothing_to_measure(titles)
        return None
    wanted = asked if asked in runs else next((key for key, run in runs.items() if run.scene_id == scene_id), None)

    def name(key: str) -> str:
        run = runs[key]
        return f"{titles[str(run.scene_id)]} · {run.manifest['model']['name']} · {finished(run)}"

    def take() -> None:
        chosen = st.session_state["accuracy-run"]
        if chosen:
            choose_scene(str(runs[chosen].scene_id))
            st.query_params["run"] = chosen
            st.query_params.pop("threshold", None)
            keep_selection()

    st.session_state["accuracy-run"] = wanted
    chosen = st.selectbox(
        "Run of a labelled scene", list(runs), format_func=name, key="accuracy-run", on_change=take, index=None,
        placeholder="Choose a run",
    )  # fmt: skip
    if chosen is None:
        st.info("Choose one above: runs of scenes that carry labels can be measured.", title="No run is selected.")
        return None
    if chosen != asked:
        st.query_params["scene"], st.query_params["run"] = str(runs[chosen].scene_id), chosen
        keep_selection()
    return runs[chosen]


def _nothing_to_measure(labelled: dict[str, str]) -> None:
    """Say how to get a run of a labelled scene; offer the first labelled scene that is here."""
    st.info(
        "Run a model on a labelled scene first, or measure one on a data set.", title="There is nothing to measure."
    )
    if labelled:
        scene_id, title = next(iter(labelled.items()))
        st.page_link(
            shipped("pages") / "damage_map.py",
            label=f"Run a model on {title}",
            icon=":material/map:",
            query_params={"scene": scene_id},
        )


@st.cache_data(max_entries=16, show_spinner="Counting the score against the labels …")
def _of_run(run_id: str, scene_id: str) -> Measured:
    return measure_run(loaders.run(run_id), loaders.scene(scene_id))


@st.cache_data(max_entries=16, show_spinner=False)
def _of_data(key: str) -> Measured:
    return load_measured(key)


def _own_job() -> Job | None:
    job = asked_job()
    return job if job is not None and job.kind == KIND else None


def _dataset(job: Job | None) -> Measured | None:
    """Draw progress, the measurements that are kept, and the form of another one; return the chosen measurement."""
    if job is not None and job.active:
        watch_job(job.id)
        return None
    if job is not None:
        _ended(job)
    kept, asked = list_measured(), st.query_params.get("evaluation")
    if asked and asked not in kept:
        load_measured(asked)  # raises: an address with an unknown measurement says so
    with st.expander("Measure a model on a data set", expanded=not kept, icon=":material/add_chart:"):
        _form()
    if not kept:
        return None

    def take() -> None:
        st.query_params["evaluation"] = st.session_state["accuracy-evaluation"]
        keep_selection()

    st.session_state["accuracy-evaluation"] = asked if asked in kept else next(iter(kept))
    key = st.selectbox(
        "Measurement", list(kept), format_func=kept.__getitem__, key="accuracy-evaluation", on_change=take
    )
    if key != asked:
        st.query_params["evaluation"] = key
        keep_selection()
    return _of_data(key)


def _form() -> None:
    """Draw the form that starts a measurement as a job."""
    left, right = st.columns(2)
    dataset = left.selectbox("Data set", get_args(DatasetName), format_func=LAYOUTS.__getitem__, key="accuracy-dataset")
    models = loaders.models()
    model = right.selectbox(
        "Model",
        fitting_first(models, dataset),
        format_func=lambda name: f"{name}: {models[name].title}",
        key=f"accuracy-model-{dataset}",
    )
    root = left.text_input("Folder of the data set, on this machine", key="accuracy-root").strip()
    event = right.text_input("Event", placeholder="All of them", key="accuracy-event").strip()
    scores = left.text_input(
        "Folder of scores",
        placeholder="Score it now",
        key="accuracy-scores",
        help="What `mmcd evaluate --scores FOLDER` wrote of the same tiles: nothing is then scored again.",
    ).strip()
    split = right.text_input("Part", placeholder="All of it; or train, val, test", key="accuracy-split").strip()
    command = f"mmcd evaluate --model {model} --dataset {dataset} --root {root or 'DIR'}"
    st.code(command + (f" --event {event}" if event else "") + (f" --split {split}" if split else ""), "bash")
    if st.button("Measure", type="primary", icon=":material/play_arrow:", disabled=not root, key="accuracy-measure"):
        try:
            folders = {"root": _folder(root), "scores": _folder(scores) if scores else None}
            asked = {"event": event or None, "split": split or None, **folders}
            request = AccuracyRequest.checked(model=model, dataset=dataset, **asked)
        except MmcdError as error:
            st.error(error.hint, title=error.message, icon=":material/error:")
            return
        st.query_params.pop("evaluation", None)
        start_job(KIND, request)


def _folder(text: str) -> Path:
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise DataError(f"{text} is not a folder on this machine.", "Give the path of the data set's folder.")
    return folder


def _ended(job: Job) -> None:
    """Say how a measurement ended; a finished one is replaced in the address by what it counted."""
    del st.query_params["job"]
    if job.state == "done" and job.result is not None:
        st.query_params["evaluation"] = str(job.result["evaluation"])
        _of_data.clear()
    elif job.state == "failed":
        st.error(job.hint or "Measure again.", title=job.message, icon=":material/error:")
    elif job.state == "cancelled":
        st.info("Measure again to start it anew.", title="The measurement was cancelled.")
