"""A finished run: threshold, areas, buildings and downloads."""

from collections.abc import Callable

import streamlit as st

from mmcd.geo.catalog import Scene
from mmcd.services.buildings import OWN_OUTLINES
from mmcd.services.model_choice import notice_of_run
from mmcd.services.runs import EVIDENCE_FILE, Run
from mmcd.studio import loaders
from mmcd.studio.address import asked_look, asked_threshold, keep_look, keep_threshold
from mmcd.studio.bridge import ThresholdPanel, building_table, channel, threshold_slider
from mmcd.studio.layers import url
from mmcd.studio.messages import errors_shown

CHANNEL = "damage"
BUILDINGS, DOWNLOAD, AGAIN, ABOUT = "Buildings", "Download", "Run again", "About this run"


@st.fragment
def result_panel(scene: Scene, run: Run, run_again: Callable[[], None]) -> None:
    """Draw a run's threshold panel and what hangs on it; only this part runs again when the slider is let go.

    Args:
        scene: The scene.
        run: A finished run of it.
        run_again: Draws the form that starts another run.
    """
    with errors_shown():
        said = notice_of_run(run.manifest["model"], loaders.cards())
        if said:
            st.markdown(f":orange-background[:material/science: {_named(said, run)}]")
        text = _threshold(scene, run)
        buildings = has_buildings(scene, run)
        parts = [BUILDINGS, DOWNLOAD, AGAIN, ABOUT] if buildings else [DOWNLOAD, AGAIN, ABOUT]
        part = st.segmented_control(
            "Part",
            parts,
            default=parts[0],
            required=True,
            key=part_key(scene, run),
            label_visibility="collapsed",
            width="stretch",
        )
        if part == BUILDINGS:
            _buildings(scene, run)
        elif part == DOWNLOAD:
            _downloads(run, text, buildings and loaders.draws_buildings(run.id))
        elif part == AGAIN:
            run_again()
        else:
            _about(run)


def _named(said: str, run: Run) -> str:
    """Return a sentence of a model's card with the model's name for "It", which nothing before it tells."""
    model = run.manifest["model"]
    return said.replace("It ", f"{model['name']} {model['version']} ", 1) if said.startswith("It ") else said


def has_buildings(scene: Scene, run: Run | None) -> bool:
    """Return whether buildings are looked for: by the scene's own footprints, or by a model that marks buildings."""
    return scene.footprints is not None or (run is not None and run.evidence is not None)


def part_key(scene: Scene, run: Run | None) -> str:
    """Return the key of the choice between a result's parts; results with and without buildings offer others."""
    return "result-part-buildings" if has_buildings(scene, run) else "result-part"


def _threshold(scene: Scene, run: Run) -> str:
    """Draw the threshold panel; return the threshold as it stands in the address."""
    table = loaders.table(run.id, scene.label)
    own = float(run.manifest["threshold"])
    balanced = table.presets(own)["balanced"]
    panel = ThresholdPanel(run.id, table, own, asked_threshold(balanced), asked_look())
    value, look = threshold_slider(panel, channel(CHANNEL))
    keep_look(look)
    return keep_threshold(value)


def _buildings(scene: Scene, run: Run) -> None:
    if scene.footprints is None and loaders.draws_buildings(run.id):
        st.caption(OWN_OUTLINES)
    georeferenced = loaders.placed(run.score)
    addresses = {"url": url(f"runs/{run.id}/outlines.geojson"), "shares": url(f"runs/{run.id}/shares.json")}
    chosen = st.query_params.get("building")
    building_table(run.id, addresses, "m²" if georeferenced else "px", chosen, channel(CHANNEL))


def _downloads(run: Run, threshold: str, footprints: bool) -> None:
    """Draw one button a file; what depends on the threshold is written when it is asked for."""
    files = {
        "Score (COG)": "score.tif",
        f"Mask at {threshold} (COG)": f"mask.tif?threshold={threshold}",
    }
    if run.evidence is not None:
        files["Building probability (COG)"] = EVIDENCE_FILE
    what = "Buildings" if footprints else "Changed areas"
    files[f"{what} (GeoPackage)"] = f"buildings.gpkg?threshold={threshold}"
    if loaders.placed(run.score):  # GeoJSON holds degrees
        files[f"{what} (GeoJSON)"] = f"buildings.geojson?threshold={threshold}"
    files |= {
        "Map for any browser (HTML)": f"map.html?threshold={threshold}",
        "Everything (zip)": f"package.zip?threshold={threshold}",
        "STAC item": "item.json",
        "Manifest": "manifest.json",
    }
    with st.container(horizontal=True):
        for label, name in files.items():
            st.link_button(label, url(f"runs/{run.id}/{name}"), icon=":material/download:")
    st.caption(
        f"Mask, buildings, map and package are cut at {threshold} and written when they are asked for, which may take"
        " some seconds. The same on the command line:"
    )
    st.code(
        f"mmcd export {run.id} --what package --out package.zip --threshold {threshold}",
        language="bash",
        wrap_lines=True,
    )


def _about(run: Run) -> None:
    model, arithmetic = run.manifest["model"], run.manifest.get("arithmetic", {})
    facts = {
        "Model": f"{model['name']} {model['version']}, {model['why']}",
        "Region": run.manifest["region"] or "the whole scene",
        "Finished": f"{str(run.manifest['finished'])[:16].replace('T', ' ')} UTC",
        "Computed": ", ".join(f"{name} {value}" for name, value in arithmetic.items() if value is not None)
        or "unknown",
    }
    for name, text in facts.items():
        st.markdown(f"**{name}:** {text}")
    for warning in run.manifest["warnings"]:
        st.warning(warning)
