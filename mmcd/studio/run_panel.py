"""Choose a scene, start a run, watch it, stop it.

Scene, job and run live in the address, so a refresh or a shared link loses nothing.
"""

import contextlib
from dataclasses import dataclass

import streamlit as st

from mmcd.cards import Card
from mmcd.errors import InputError, MmcdError, RegionError
from mmcd.geo.catalog import Scene
from mmcd.jobs import Job
from mmcd.paths import shipped
from mmcd.services.inference import PredictRequest
from mmcd.services.model_choice import Fit
from mmcd.services.runs import Run
from mmcd.studio import loaders
from mmcd.studio.address import asked_region, forget, keep_building, keep_region, region_bounds
from mmcd.studio.bridge import channel, map_link
from mmcd.studio.ease import sample_link
from mmcd.studio.job_panel import asked_job, start_job, watch_job
from mmcd.studio.messages import disk, roughly
from mmcd.studio.result_panel import AGAIN, BUILDINGS, CHANNEL, part_key, result_panel

KIND = "predict"


@dataclass(frozen=True)
class RunChoice:
    """What the user chose to run.

    Attributes:
        model: Reference of the model.
        region: ``W,S,E,N`` in degrees; None for the whole scene.
        align: Move a displaced image after back first.
        adapt: Adapt the model to the scene first.
    """

    model: str
    region: str | None
    align: bool
    adapt: bool


def choose_scene() -> Scene:
    """Draw the page's title and the choice of scene; stop the page while none is chosen."""
    titles = {scene.id: scene.title or scene.id for scene in loaders.scenes()}
    names = list(titles)
    title, picker = st.columns([5, 3], vertical_alignment="bottom")
    asked = st.query_params.get("scene") or _scene_of_run()
    if asked is not None and asked not in names:
        loaders.scene(asked)  # raises: an address with an unknown scene says so instead of showing another one
    index = names.index(asked) if asked else None
    scene_id = picker.selectbox(
        "Scene", names, index=index, format_func=titles.__getitem__, placeholder="Choose a scene", key=f"scene-{asked}"
    )
    if scene_id is None:
        title.title("Analyse a scene")
        st.info("Choose one above, or click one on the Scenes page.", title="No scene is selected.")
        sample_link()
        st.page_link(shipped("pages") / "scenes.py", label="Go to the Scenes page", icon=":material/public:")
        st.stop()
    if scene_id != asked:
        st.query_params.from_dict({"scene": scene_id})
    title.title("Find the damage")
    return loaders.scene(scene_id)


def _scene_of_run() -> str | None:
    """Put the scene of the run in the address there too, and return it: a link to a run needs no more."""
    run_id = st.query_params.get("run")
    scene_id = loaders.run(run_id).scene_id if run_id else None  # raises: an address with an unknown run says so
    if scene_id:
        st.query_params["scene"] = scene_id
    return scene_id


def run_panel(scene: Scene) -> Run | None:
    """Draw progress, or the run in the address and the form that starts a new one; return that run."""
    job = asked_job()
    if job is not None and job.active:
        watch_job(job.id)
        return None
    if job is not None:
        _ended(job)
    run = _asked_run(scene)
    _link_map(scene, run)
    if run is not None:
        result_panel(scene, run, lambda: _form(scene))
    else:
        with st.container(border=True):
            _form(scene)
    return run


def _form(scene: Scene) -> None:
    """Draw the choice of model and region, what the run will need, and the button that starts it."""
    choice = _choose_run(scene)
    pressed = st.button(
        "Run", type="primary", icon=":material/play_arrow:", disabled=not choice, width="stretch", key="run"
    )
    if pressed and choice is not None:
        forget("run", "threshold", "building")  # they belong to the run before
        start_job(KIND, PredictRequest.checked(**vars(choice), scene=scene.id))


def _link_map(scene: Scene, run: Run | None) -> None:
    """Show the region and the building of the address on the map, and take over what is drawn or clicked there."""

    def draw(region: str) -> None:
        st.session_state[_region_key(scene)] = region
        keep_region(region)
        if run is not None:
            st.session_state[part_key(scene, run)] = AGAIN

    def choose(building: str) -> None:
        keep_building(building)
        st.session_state[part_key(scene, run)] = BUILDINGS

    text, bounds = asked_region() or str((run and run.manifest["region"]) or ""), None
    with contextlib.suppress(RegionError):  # the form says what is wrong with it
        bounds = region_bounds(text) if text else None
    shown = {"region": bounds, "building": st.query_params.get("building")}
    map_link(shown, channel(CHANNEL), draw, choose)


def _choose_run(scene: Scene) -> RunChoice | None:
    """Draw the choice of model and region; return it once it can be run."""
    models = _offered(scene)
    if not models:
        st.warning("Run `mmcd doctor` to see what is missing.", title="There is no model here.")
        return None
    fits = {name: loaders.fit(card, scene) for name, card in models.items()}
    order = sorted(models, key=lambda name: (bool(fits[name].refusals), fits[name].distance))
    labels = {name: _model_label(name, models[name], fits[name]) for name in order}
    name = st.selectbox("Model", list(labels), format_func=labels.__getitem__, key=f"model-{scene.id}")
    card = models[name]
    with st.expander("About this model"):
        _card(card)
    allowed = _allowed(card, fits[name])
    try:
        region = _region(scene)
        align, adapt = _options(scene, card)
        choice = RunChoice(name, region, align, adapt)
        _expect(card, scene, choice)
    except MmcdError as error:
        st.error(error.hint or "Change it and try again.", title=error.message, icon=":material/error:")
        return None
    return choice if allowed else None


def _offered(scene: Scene) -> dict[str, Card]:
    """Return the models to choose from, by reference; a model of two optical images has nothing to say of radar."""
    radar = loaders.sensor_kind(scene.post) == "SAR"
    return {name: card for name, card in loaders.models().items() if not (radar and card.compares_optical)}


def _options(scene: Scene, card: Card) -> tuple[bool, bool]:
    """Draw what may be done to a scene before it is scored; return whether to align and to adapt."""
    image = "optical image after" if loaders.sensor_kind(scene.post) == "optical" else "radar image"
    with st.expander("Options"):
        align = card.has_embeddings and st.checkbox(
            f"Move the {image} back where it is displaced",
            key=f"align-{scene.id}",
            help="Looks for up to 16 pixels, and moves it only when that is clear. Takes some seconds.",
        )
        if not card.has_embeddings:
            st.caption(f"{card.name} cannot move a displaced image back: it has no embeddings to find it by.")
        adapt = st.checkbox(
            "Adapt the model to this scene",
            key=f"adapt-{scene.id}",
            help="For another sensor or display stretch than the model knows: mixes in the scene's own statistics.",
        )
    return align, adapt


def _expect(card: Card, scene: Scene, choice: RunChoice) -> None:
    """Say what the run will need, and on what that rests."""
    needs = loaders.estimate(card, scene, choice.region, choice.align, choice.adapt)
    earlier = f"{needs.runs:,} earlier run{'s' if needs.runs > 1 else ''} of this model here"
    basis = f"by {earlier}" if needs.runs else "by a speed test of this machine; no run of this model here yet"
    size = f"{needs.pixels / 1e6:,.1f} megapixels" if needs.pixels >= 1e5 else f"{needs.pixels:,} pixels"
    st.caption(
        f"{size}: {roughly(needs.seconds)} ({basis}),"
        f" at most {disk(needs.disk_bytes)} of {disk(needs.free_bytes)} free disk."
    )


def _allowed(card: Card, fit: Fit) -> bool:
    """Say what speaks against a model; a mismatch needs the user's word, missing bands cannot be helped."""
    for note in fit.notes:
        st.caption(note)
    if not fit.reasons:
        return True
    refused = f"{card.name} is not for this scene."
    st.warning("\n".join(f"- {reason}" for reason in fit.reasons), title=refused, icon=":material/block:")
    return not fit.refusals and st.checkbox("Run it all the same; its answers here are not to be trusted")


def _ended(job: Job) -> None:
    """Say how a job ended; a finished one is replaced in the address by the run that it made."""
    if job.state == "done" and job.result is not None:
        loaders.runs.clear()
        st.query_params["run"] = str(job.result["run_id"])
        del st.query_params["job"]
    elif job.state == "failed":
        st.error(job.hint or "Run it again.", title=job.message, icon=":material/error:")
    elif job.state == "cancelled":
        st.info("Run it again to go on from its last finished tile.", title="The run was cancelled.")


def _asked_run(scene: Scene) -> Run | None:
    """Return the run in the address.

    Raises:
        InputError: It does not exist or is of another scene.
    """
    run_id = st.query_params.get("run")
    run = loaders.run(run_id) if run_id else None
    if run is not None and run.scene_id != scene.id:
        raise InputError(f"This run is not of scene {scene.id}.", "Choose the scene again to start without a run.")
    return run


def _model_label(name: str, card: Card, fit: Fit) -> str:
    return f"{name}: {card.title}{' (not for this scene)' if fit.reasons else ''}"


def _card(card: Card) -> None:
    st.markdown(card.description)
    facts = {
        "Before": f"{card.pre.sensor}, bands {', '.join(card.pre.bands)}",
        "After": f"{card.post.sensor}, bands {', '.join(card.post.bands)}",
        "Pixel size": f"{card.gsd.min:g} to {card.gsd.max:g} m, trained at {card.gsd.nominal:g} m",
        "Events": ", ".join(card.event_types) or "any",
        "Threshold": f"{card.decision.threshold:.2f}",
        "Version": card.version,
        "Rights": "; ".join(f"{part}: {text}" for part, text in card.licence.items()),
    }
    for name, text in facts.items():
        st.markdown(f"**{name}:** {text}")
    if card.metrics:
        st.markdown("**Measured:**")
        st.dataframe(list(card.metrics), hide_index=True, alt=f"Measured results of {card.name}")


def _region(scene: Scene) -> str | None:
    """Draw the field for the region; return it as ``W,S,E,N``, None for the whole scene.

    Raises:
        RegionError: What was typed is no region.
    """
    if not loaders.placed(scene.post):
        st.caption("Region: the whole scene, which has no georeference to give bounds in.")
        return None
    key = _region_key(scene)
    st.session_state.setdefault(key, asked_region())
    west, south, east, north = loaders.extent(scene.post)
    typed = st.text_input(
        "Region: west, south, east, north in degrees",
        key=key,
        placeholder="The whole scene. Draw a part with ▭ on the map, or type bounds",
        help=f"WGS 84. The scene covers {west:.5f}, {south:.5f}, {east:.5f}, {north:.5f}.",
    )
    text = "".join(typed.split())
    if text != asked_region():
        keep_region(text)
        st.rerun()  # the map shows it
    if not text:
        return None
    if st.button("Take the whole scene", icon=":material/crop_free:", key="whole_scene", on_click=_clear, args=(key,)):
        st.rerun()
    return ",".join(map(str, region_bounds(text)))


def _region_key(scene: Scene) -> str:
    return f"region-{scene.id}"


def _clear(key: str) -> None:
    st.session_state[key] = ""
    keep_region("")
