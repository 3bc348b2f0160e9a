"""The form that starts a training as a job: task, configuration, data, a few settings; and how its job ended."""

from pathlib import Path

import streamlit as st

from mmcd.errors import MmcdError
from mmcd.jobs import Job
from mmcd.services.train import TrainRequest
from mmcd.services.training_configs import TrainingConfig, command, free_name, training_request
from mmcd.services.training_runs import TASK_WORDS
from mmcd.studio.job_panel import asked_job, start_job, watch_job
from mmcd.studio.training_source import choose_runs, config, configs, trainings

KIND = "train"
OWN = "A file of mine"
TASK, CONFIG, PATH, RUN_NAME, ROOT, MORE, START = (
    f"start-{name}" for name in ("task", "config", "path", "name", "root", "more", "go")
)  # keys of the widgets

TRIAL = "damage-vhr-sim"
"""Configuration that needs no data: it simulates its scenes."""

TRIAL_SETTINGS = "trainer.epochs=1\ndata.scenes.training.scenes=4\ndata.scenes.validation.scenes=2\ndata.batch_size=2"
"""Settings that make it a matter of minutes on a processor; the network learns nothing of use by them."""

_DEVICES = ("as in the file", "auto", "cpu", "cuda")


def start_panel() -> None:
    """Draw the progress of the job in the address, and the form."""
    job = asked_job(say=False)
    if job is not None and job.kind == KIND:
        if job.active:
            st.subheader(f"Training {job.request['overrides'].get('name') or Path(str(job.request['config'])).stem}")
            watch_job(job.id)
            st.caption("It goes on when this page is closed. Start another one below: one trains at a time.")
        else:
            _ended(job)
    chosen = _choose_config()
    if chosen is None:
        return
    request = _form(chosen)
    if request is None:
        return
    st.code(command(request), "bash", wrap_lines=True)
    if st.button("Start training", type="primary", icon=":material/play_arrow:", key=START):
        start_job(KIND, request)


def offer_trial() -> None:
    """Draw the button that fills the form with a training that needs no data."""
    st.button("Fill in a trial on simulated scenes", icon=":material/science:", key="start-trial", on_click=fill_trial)


def fill_trial() -> None:
    """Fill the form with a training that needs no data and takes minutes."""
    st.query_params["view"] = "start"
    for key, value in {TASK: "", CONFIG: TRIAL, f"{MORE}-{TRIAL}": TRIAL_SETTINGS}.items():
        st.session_state[key] = value
    st.session_state[f"{RUN_NAME}-{TRIAL}"] = free_name("trial")


def _ended(job: Job) -> None:
    """Say how a training ended; a finished one leads to its curves."""
    del st.query_params["job"]
    if job.state == "done" and job.result is not None:
        trainings.clear()
        choose_runs([str(job.result["run"])])
        st.success("Its curves are under Runs.", title=f"{job.result['run']} is trained.")
    elif job.state == "failed":
        st.error(job.hint or "Correct it and start again.", title=job.message, icon=":material/error:")
    elif job.state == "cancelled":
        st.info("Retry it on the Jobs page to go on from its last checkpoint.", title="The training was cancelled.")


def _choose_config() -> TrainingConfig | None:
    """Draw the choice of task and file; return what stands there, None while there is none."""
    known = configs()
    tasks = list(dict.fromkeys([*TASK_WORDS, *(each.task for each in known.values())]))
    task = st.segmented_control(
        "Task", tasks, default="", required=True, format_func=lambda name: TASK_WORDS.get(name, name), key=TASK
    )
    names = [name for name, each in known.items() if each.task == task]
    if st.session_state.get(CONFIG) not in (*names, OWN):
        here = [name for name in names if _has_data(known[name])]
        st.session_state[CONFIG] = next(iter([*here, *names, OWN]))
    name = st.selectbox("Configuration", [*names, OWN], key=CONFIG)
    try:
        if name != OWN:
            chosen = known[name]
        else:
            path = st.text_input("YAML file on this machine", key=PATH).strip()
            if not path:
                st.info("Start from a copy of a file in `configs/`.", title="No file is named.")
                return None
            chosen = config(Path(path).expanduser())
    except MmcdError as error:
        st.error(error.hint, title=error.message, icon=":material/error:")
        return None
    if chosen.about:
        st.caption(chosen.about)
    with st.expander(f"What {chosen.path.name} says"):
        st.code(chosen.text, "yaml", height=360)
    return chosen


def _has_data(chosen: TrainingConfig) -> bool:
    return chosen.root is None or Path(chosen.root).expanduser().is_dir()


def _form(chosen: TrainingConfig) -> TrainRequest | None:
    """Draw the fields; return what is to be trained once it can be."""
    key = chosen.path.stem
    left, right = st.columns(2)
    st.session_state.setdefault(f"{RUN_NAME}-{key}", free_name(chosen.name))
    name = left.text_input("Name of the run", key=f"{RUN_NAME}-{key}").strip()
    root = None
    if chosen.root is not None:
        st.session_state.setdefault(f"{ROOT}-{key}", chosen.root)
        root = right.text_input("Folder of the data, on this machine", key=f"{ROOT}-{key}").strip()
    else:
        right.text_input("Folder of the data", "none: it simulates its scenes", disabled=True, key=f"{ROOT}-none")
    options = _options(chosen, key)
    more = st.text_area(
        "Further settings, KEY=VALUE, one a line",
        key=f"{MORE}-{key}",
        height=96,
        placeholder="loss.infonce=0\nmodel.init=TRUNK",
        help="Any key of the file, dots between its levels. They go over all fields above.",
    )
    try:
        return training_request(chosen, name, root, options, more)
    except MmcdError as error:
        st.error(error.hint, title=error.message, icon=":material/error:")
        if chosen.root is not None:
            st.caption(
                "`mmcd data download` fetches public sets, `mmcd data simulate` makes some. Or without any data:"
            )
            offer_trial()
        return None


def _options(chosen: TrainingConfig, key: str) -> dict[str, object]:
    """Draw the settings that are changed most; return those that differ from the file, by dotted key."""
    places = st.columns(5)
    batch = "data.batch_size" if chosen.value("data.batch_size") is not None else "trainer.batch_size"
    numbers = {chosen.length: chosen.length.removeprefix("trainer.").capitalize(), batch: "Batch size"}
    options: dict[str, object] = {}
    for place, (setting, label) in zip(places, numbers.items(), strict=False):
        options[setting] = place.number_input(
            label, 1, None, None, 1, placeholder=_said(chosen, setting), key=f"start-{setting}-{key}"
        )
    options["optimiser.lr"] = places[2].number_input(
        "Learning rate", 0.0, None, None, 1e-4, "%.2e", placeholder=_said(chosen, "optimiser.lr"), key=f"start-lr-{key}"
    )
    if chosen.value("seed") is not None:
        options["seed"] = places[3].number_input(
            "Seed", 0, None, None, 1, placeholder=_said(chosen, "seed"), key=f"start-seed-{key}"
        )
    device = places[4].selectbox("Device", _DEVICES, key=f"start-device-{key}")
    options["trainer.device"] = None if device == _DEVICES[0] else device
    return options


def _said(chosen: TrainingConfig, key: str) -> str:
    value = chosen.value(key)
    return "its default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
