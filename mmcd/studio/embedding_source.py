"""What the Embeddings page shows: the patch pairs of a run or of a data set, and how they are laid out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import streamlit as st

from mmcd.embeddings import METHODS, PRESETS, WHATS, Layout, Method, What
from mmcd.errors import MmcdError
from mmcd.geo.catalog import Scene
from mmcd.jobs import Job
from mmcd.services.accuracy_data import fitting_first
from mmcd.services.embeddings import (
    EmbedDataset,
    EmbedRequest,
    View,
    data_table_path,
    data_tables,
    find_view,
    view_path,
)
from mmcd.services.runs import Run
from mmcd.studio import loaders
from mmcd.studio.carry import keep_selection
from mmcd.studio.catalogue import finished
from mmcd.studio.ease import sample_link
from mmcd.studio.job_panel import asked_job, start_job, watch_job

KIND = "embed"
RUN, DATASET = "A run of a scene", "A data set"
METHOD_NAMES: dict[Method, str] = {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE"}
WHAT_NAMES: dict[What, str] = {
    "sar": "SAR branch",
    "optical": "Optical branch",
    "both": "Both, side by side",
    "difference": "Difference, SAR − optical",
    "joint": "Both branches as points of their own",
    "sar_features": "Features of the SAR encoder",
}
METHOD_HELP = (
    "PCA shows the directions in which the vectors differ most, in a second. UMAP and t-SNE keep neighbours together "
    "and show groups better; UMAP takes a minute or two the first time."
)


@dataclass(frozen=True)
class Source:
    """Where patch pairs come from.

    Attributes:
        name: Id of the run, or name of the embedded data set: what a selection is of.
        table: File of the patch pairs; None of a run that has none yet.
        run: The run; None of a data set.
    """

    name: str
    table: Path | None
    run: Run | None

    @property
    def scene(self) -> Scene | None:
        """The scene to show on a map; None of a data set, of a run of two files, and of a scene that was removed."""
        scene_id = self.run.scene_id if self.run else None
        try:
            return loaders.scene(scene_id) if scene_id else None
        except MmcdError:
            return None

    @property
    def score(self) -> Path | None:
        """The score of the run."""
        return self.run.score if self.run else None


def choose_source() -> Source | None:
    """Draw the choice between runs and data sets; return what is chosen, None while there is nothing."""
    job = own_job()
    # A run or scene that was selected after the data set, on another page, comes first.
    named = "table" in st.query_params and not {"run", "scene"} & set(st.query_params)
    of_data = named or bool(job is not None and job.request.get("dataset"))
    kind = st.segmented_control(
        "Show", [RUN, DATASET], default=DATASET if of_data else RUN, required=True, key="embedding-source",
        label_visibility="collapsed",
    )  # fmt: skip
    return _dataset(job) if kind == DATASET else _run()


def choose_layout() -> Layout:
    """Draw the choice of method and vectors; return it."""
    for name, known in (("method", METHODS), ("what", WHATS)):
        asked = st.query_params.get(name)
        st.session_state.setdefault(f"embedding-{name}", asked if asked in known else known[0])
    left, right = st.columns([2, 3])
    left.segmented_control(
        "Method", METHODS, format_func=METHOD_NAMES.__getitem__, key="embedding-method", required=True, help=METHOD_HELP
    )
    right.selectbox("Vectors", WHATS, format_func=WHAT_NAMES.__getitem__, key="embedding-what")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Plots of the reference system:", width="content")
        for preset in PRESETS:
            st.button(
                preset.title, key=f"preset-{preset.what}", help=preset.help, icon=":material/auto_awesome:",
                on_click=_take_preset, args=(preset.what,),
            )  # fmt: skip
    layout = Layout.checked(method=st.session_state["embedding-method"], what=st.session_state["embedding-what"])
    st.query_params["method"], st.query_params["what"] = layout.method, layout.what
    return layout


def picture(source: Source, layout: Layout) -> View | None:
    """Return the picture that was asked for; while there is none, draw the button or the progress of its job."""
    job = own_job(say=False)
    if job is not None and job.active:
        watch_job(job.id)
        return None
    if job is not None:
        _ended(job)
    if source.table is not None:
        kept = view_path(source.table, layout)
        if kept.is_file():
            return _view(str(source.table), layout, kept.stat().st_mtime_ns)
    _offer(source, layout)
    return None


def own_job(say: bool = True) -> Job | None:
    """Return the job of this page in the address; ``say`` as in `asked_job`."""
    job = asked_job(say)
    return job if job is not None and job.kind == KIND else None


@st.cache_resource(max_entries=4, show_spinner="Reading the picture …")
def _view(table: str, layout: Layout, made: int) -> View | None:
    """Keep the last pictures; ``made`` tells a new one from the one before."""
    return find_view(Path(table), layout)


def _offer(source: Source, layout: Layout) -> None:
    """Draw the button that lays out the patch pairs as a job."""
    if source.run is not None and source.table is None:
        reason = source.run.manifest.get("no_embeddings", "It was made before runs kept embeddings.")
        st.info(f"{reason} They can be computed now: the scene is compared again.", title="This run has no embeddings.")
    known: dict[str, Any] = {"run": source.run.id} if source.run else _asked_of(source)
    words = f"{METHOD_NAMES[layout.method]}, {WHAT_NAMES[layout.what]}"
    if st.button(f"Compute: {words}", type="primary", icon=":material/play_arrow:", key="embedding-compute"):
        start_job(KIND, EmbedRequest.checked(**known, **layout.model_dump()))


def _asked_of(source: Source) -> dict[str, Any]:
    facts = data_tables()[source.name]
    return {name: value for name, value in facts["request"].items() if value is not None}


def _run() -> Source | None:
    """Draw the choice among the runs of models that compare embeddings, the one in the address first."""
    titles = {scene.id: scene.title or scene.id for scene in loaders.scenes()}
    runs = {run.id: run for run in loaders.runs() if _embeddable(run)}
    asked, scene_id = st.query_params.get("run"), st.query_params.get("scene")
    if asked and asked not in runs:
        named = loaders.run(asked)  # raises: an address with an unknown run says so
        if _embeddable(named):
            runs = {asked: named} | runs  # made since the runs were last listed
        else:
            st.warning("Choose another run below.", title="This run cannot have embeddings.")
    if not runs:
        _nothing()
        return None
    wanted = asked if asked in runs else next((key for key, run in runs.items() if run.scene_id == scene_id), None)

    def name(key: str) -> str:
        run = runs[key]
        title = titles.get(run.scene_id or "", Path(run.manifest["inputs"].get("post", {}).get("path", "")).stem)
        return f"{title or 'Two files'} · {run.manifest['model']['name']} · {finished(run)}"

    st.session_state["embedding-run"] = wanted or next(iter(runs))
    chosen = st.selectbox("Run", list(runs), format_func=name, key="embedding-run", on_change=_take_run)
    if chosen != asked:
        _take_run()
    elif runs[chosen].scene_id:
        st.query_params["scene"] = str(runs[chosen].scene_id)
    return Source(chosen, runs[chosen].embeddings, runs[chosen])


def _take_run() -> None:
    chosen = st.session_state["embedding-run"]
    scene_id = loaders.run(chosen).scene_id
    for key in ("table", "patches", "threshold"):
        st.query_params.pop(key, None)
    st.query_params["run"] = chosen
    if scene_id:
        st.query_params["scene"] = scene_id
    keep_selection()


def _embeddable(run: Run) -> bool:
    """Return whether a run has embeddings or can get them: not of the patch method, and it says how it was made."""
    return run.embeddings is not None or ("arithmetic" in run.manifest and "distance" not in run.manifest)


def _nothing() -> None:
    """Say how to get a run; offer the sample scene."""
    st.info("Run a model on a scene first, or embed the tiles of a data set.", title="There is no run to look into.")
    sample_link()


def _dataset(job: Job | None) -> Source | None:
    """Draw the embedded data sets and the form of another one; return the chosen one."""
    if job is not None and job.active:
        watch_job(job.id)
        return None
    if job is not None:
        _ended(job)
    kept, asked = data_tables(), st.query_params.get("table")
    if asked and asked not in kept:
        data_table_path(asked)  # raises: an address with an unknown data set says so
    with st.expander("Embed the tiles of a data set", expanded=not kept, icon=":material/add_chart:"):
        _form()
    if not kept:
        return None
    st.session_state["embedding-table"] = asked if asked in kept else next(iter(kept))
    chosen = st.selectbox(
        "Data set", list(kept), format_func=lambda key: f"{kept[key]['title']} · {kept[key]['model']}",
        key="embedding-table", on_change=_take_table,
    )  # fmt: skip
    if chosen != asked:
        _take_table()
    return Source(chosen, data_table_path(chosen), None)


def _take_table() -> None:
    for key in ("run", "scene", "patches", "threshold"):
        st.query_params.pop(key, None)
    st.query_params["table"] = st.session_state["embedding-table"]
    keep_selection()


def _form() -> None:
    """Draw the form that embeds a data set as a job."""
    left, right = st.columns(2)
    dataset = left.selectbox("Data set", get_args(EmbedDataset), format_func=str.upper, key="embedding-dataset")
    names = fitting_first({name: card for name, card in loaders.models().items() if card.has_embeddings}, dataset)
    model = right.selectbox(
        "Model", names, key=f"embedding-model-{dataset}", accept_new_options=True,
        help="A model that compares embeddings; for BRIGHT also the path of a checkpoint of the reference system.",
    )  # fmt: skip
    root = left.text_input("Folder of the data set, on this machine", key="embedding-root").strip()
    tiles = int(right.number_input("Tiles at most, spread over the events", 1, 10_000, 200, key="embedding-tiles"))
    st.code(
        f"mmcd embed --dataset {dataset} --root {root or 'DIR'} --model {model} --tiles {tiles} --out points.parquet"
    )
    if st.button("Embed", type="primary", icon=":material/play_arrow:", disabled=not root, key="embedding-start"):
        folder = Path(root).expanduser()
        if not folder.is_dir():
            st.error("Give the path of the data set's folder.", title=f"{root} is not a folder on this machine.")
            return
        st.query_params.pop("table", None)
        request = {"dataset": dataset, "root": folder, "model": model, "tiles": tiles, "method": "pca"}
        start_job(KIND, EmbedRequest.checked(**request))


def _ended(job: Job) -> None:
    """Say how a job ended; of a finished one the address keeps the data set, or the run."""
    del st.query_params["job"]
    if job.state == "done" and job.result is not None:
        loaders.runs.clear()
        loaders.run.clear()
        if job.result.get("table"):
            st.query_params["table"] = str(job.result["table"])
        st.rerun()
    elif job.state == "failed":
        st.error(job.hint or "Compute it again.", title=job.message, icon=":material/error:")
    elif job.state == "cancelled":
        st.info("Compute it again to start anew.", title="The computation was cancelled.")


def _take_preset(what: What) -> None:
    st.session_state["embedding-what"] = what
    if st.session_state.get("embedding-method") == "pca":
        st.session_state["embedding-method"] = "umap"
