"""One training of the Training page: sample predictions, keeping its weights, its folder; and other tools' pages."""

from collections.abc import Sequence

import streamlit as st

from mmcd.cards import is_trunk_card, read_card
from mmcd.errors import MmcdError
from mmcd.services.boards import BOARDS, BoardName, running_board, start_board, stop_board
from mmcd.services.run_samples import SamplesRequest, can_draw, has_panels, kept_pictures
from mmcd.services.training_runs import TrainingRun, register_weights
from mmcd.studio import loaders
from mmcd.studio.job_panel import POLL, asked_job, start_job, watch_job
from mmcd.studio.training_source import panels
from mmcd.trunk_cards import read_trunk_card

ONE, PART, NAME, VERSION, KEEP, DRAW = (
    f"training-{name}" for name in ("one", "part", "name", "version", "keep", "draw")
)  # keys of the widgets
SAMPLES, REGISTER, FILES = "Sample predictions", "Keep the weights", "Folder and settings"
KIND = "samples"


def one_run(runs: Sequence[TrainingRun]) -> None:
    """Draw one of the compared runs more closely."""
    st.subheader("One run")
    names = {run.name: run for run in runs}
    left, right = st.columns([3, 4], vertical_alignment="bottom")
    name = left.selectbox("Run", list(names), key=ONE)
    part = right.segmented_control(
        "Part", [SAMPLES, REGISTER, FILES], default=SAMPLES, required=True, key=PART, label_visibility="collapsed"
    )
    run = names[name]
    with st.container(border=True, key="training-run"):
        {SAMPLES: _samples, REGISTER: _register, FILES: _files}[part](run)


def _samples(run: TrainingRun) -> None:
    """Draw the pictures that a run's folder holds, and offer to make one of its held-out tiles."""
    job = asked_job(say=False)
    if job is not None and job.kind == KIND and job.request.get("run") == run.name:
        if job.active:
            watch_job(job.id)
            return
        if job.state == "failed":
            st.error(job.hint or "Try again.", title=job.message, icon=":material/error:")
    if can_draw(run.folder):
        help_text = "Both images, the label and the output, of tiles from the least to the most changed one."
        if st.button("Draw the held-out tiles", icon=":material/imagesmode:", key=DRAW, help=help_text):
            start_job(KIND, SamplesRequest(run=run.name))
    pictures = kept_pictures(run.folder)
    for path in pictures:
        st.image(path.read_bytes(), caption=path.name, width="content", alt=f"Predictions of {run.name}: {path.stem}")
    shown = panels(run.folder, _moment(run)) if has_panels(run.folder) else ()
    for place, picture in zip(st.columns(max(len(shown), 1)), shown, strict=False):
        place.image(picture.content, caption=picture.title, alt=f"{picture.title} of {run.name}")
    if not pictures and not shown and not can_draw(run.folder):
        st.info(
            "Runs of change keep what they said of held-out tiles once they are finished; fusion UNets also show "
            "pictures while they train. For pairs in LEVIR-CD's layout, `mmcd train plot` draws any part.",
            title="This run has no sample predictions.",
        )


def _moment(run: TrainingRun) -> float:
    return max(path.stat().st_mtime for path in (run.folder / "tensorboard").glob("events.out.*"))


def _register(run: TrainingRun) -> None:
    """Draw the form that keeps a run's weights under a name."""
    if run.card is None:
        why = (
            "It is not finished." if run.state in ("running", "waiting") else "Its configuration has no `export` part."
        )
        st.info(f"{why} Only finished runs with one leave a card.", title="This run left no weights to keep.")
        return
    trunk = is_trunk_card(run.card)
    card = read_trunk_card(run.card) if trunk else read_card(run.card)
    st.markdown(
        f"**{card.title}**. The weights of the checkpoint that the run kept, with their card, are copied into the "
        "workspace; nothing that is there is written over."
    )
    left, right, press = st.columns([3, 2, 2], vertical_alignment="bottom")
    name = left.text_input("Name", card.name, key=f"{NAME}-{run.name}").strip()
    version = right.text_input("Version", card.version, key=f"{VERSION}-{run.name}").strip()
    if not press.button("Keep them", type="primary", icon=":material/save:", key=KEEP, disabled=not (name and version)):
        st.code(f"mmcd train register {run.name} --name {name} --version {version}", "bash")
        return
    try:
        path, reference = register_weights(run, name, version)
    except MmcdError as error:
        st.error(error.hint, title=error.message, icon=":material/error:")
        return
    for cached in (loaders.cards, loaders.models):
        cached.clear()
    where = (
        f"Measure it with `mmcd evaluate --dataset eurosat --model {reference} --root DIR`, or train from it: "
        f"`--set start.trunk={reference}` for a task, `--set model.init={reference}` for change."
        if trunk
        else f"Choose **{reference}** as the model on the Damage map or the Accuracy page, or "
        f"`mmcd infer predict --model {reference}`."
    )
    st.success(f"{where} `{path}`", title=f"Kept as {name} {version}.")


def _files(run: TrainingRun) -> None:
    """Draw where a run is, what lies there and its settings."""
    st.caption(f"Folder: `{run.folder}`")
    if run.folder.is_dir():
        files = [path for path in sorted(run.folder.iterdir()) if path.is_file()]
        st.dataframe(
            [{"File": path.name, "Size": f"{path.stat().st_size / 1e6:,.1f} MB"} for path in files],
            hide_index=True,
            alt=f"Files of {run.name}",
        )
    st.code("\n".join(f"{key}: {value}" for key, value in run.settings.items()), "yaml", height=300)


def boards() -> None:
    """Draw the links to TensorBoard and MLflow, which are started when asked for."""
    with st.expander("TensorBoard and MLflow", icon=":material/open_in_new:", key="training-boards"):
        starting = any(board is not None and board.alive and not board.ready for board in map(running_board, BOARDS))
        st.fragment(_boards, run_every=POLL if starting else None)(starting)
        st.caption("On this machine only, on a free port; they end with the app.")


def _boards(starting: bool) -> None:
    for name in BOARDS:
        _board(name)
    if starting and not any(
        board is not None and board.alive and not board.ready for board in map(running_board, BOARDS)
    ):
        st.rerun()  # nothing to wait for any more


def _board(name: BoardName) -> None:
    board, label = running_board(name), BOARDS[name]
    with st.container(horizontal=True, vertical_alignment="center"):
        if board is None:
            st.button(
                f"Start {label}", key=f"board-start-{name}", icon=":material/play_arrow:", on_click=_start, args=(name,)
            )
        elif board.ready:
            st.link_button(f"Open {label}", board.url, icon=":material/open_in_new:")
            st.caption(f"`{board.url}`")
            st.button(
                f"Stop {label}", key=f"board-stop-{name}", icon=":material/stop:", on_click=stop_board, args=(name,)
            )
        elif board.alive:
            st.caption(f":material/hourglass_empty: Starting {label}; MLflow takes up to a minute …")
            st.button(
                f"Stop {label}", key=f"board-stop-{name}", icon=":material/stop:", on_click=stop_board, args=(name,)
            )
        else:
            st.error(board.said() or "It said nothing.", title=f"{label} ended by itself.", icon=":material/error:")
            st.button("Try again", key=f"board-start-{name}", icon=":material/replay:", on_click=_start, args=(name,))
    if message := st.session_state.pop(f"board-error-{name}", None):
        st.error(message[1], title=message[0], icon=":material/error:")


def _start(name: BoardName) -> None:
    try:
        start_board(name)
    except MmcdError as error:
        st.session_state[f"board-error-{name}"] = (error.message, error.hint)
