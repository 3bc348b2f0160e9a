"""Add a scene: name two images, see what the ingest check finds in them, then confirm.

Fetching and checking is a job: its id is in the address, so a refresh loses neither the download nor the words.
"""

from datetime import date
from pathlib import Path
from typing import Any

import streamlit as st

from mmcd.geo.check import Severity, Subject
from mmcd.services.scenes import EVENTS, AddSceneRequest, free_id, keep_scene
from mmcd.services.sources import UPLOAD_MB, keep_upload
from mmcd.studio import loaders
from mmcd.studio.job_panel import asked_job, start_job, watch_job
from mmcd.studio.selection import open_view

KIND = "check_scene"
IMAGE_TYPES = ["tif", "tiff", "png", "jpg", "jp2"]
FIRST_DAY = date(1970, 1, 1)
UNKNOWN = "unknown"

_VERDICTS: dict[Severity, str] = {
    "refuse": "This pair cannot be analysed. Correct what is marked below and check again.",
    "warn": "This pair can be analysed. Look at the warnings first.",
    "note": "This pair can be analysed.",
}
_SUBJECTS: dict[Subject, str] = {
    "pre": "Before: ",
    "post": "After: ",
    "pair": "",
    "label": "Labels: ",
    "footprints": "Building polygons: ",
}


def add_panel() -> None:
    """Draw the way to a new scene: description, progress, findings, confirmation."""
    st.title("Add a scene: one image before the event, one after")
    job = asked_job()
    if job is not None and job.active:
        watch_job(job.id)
        return
    if job is None:
        _form({})
        return
    finished = job.state == "done" and job.result is not None
    if job.result is not None:
        _findings(job.result)
    elif job.state == "failed":
        st.error(job.hint or "Try again.", title=job.message, icon=":material/error:")
    else:
        st.info("Check the images again to go on from there.", title="The check was cancelled.")
    if finished:
        with st.expander("Change the images or their description", icon=":material/edit:"):
            _form(job.request)
    else:
        _form(job.request)


def _form(known: dict[str, Any]) -> None:
    """Draw the description of a scene, filled with what is known, and queue its check on demand."""
    kinds = ["Path or address", "Upload"]
    kind = st.segmented_control("Images", kinds, default=kinds[0], required=True, key="add-kind")
    left, right = st.columns(2)
    pick = _uploaded if kind == "Upload" else _named
    pre = pick(left, "Optical image before", "pre", known)
    post = pick(right, "Radar or optical image after", "post", known)
    words = _words(known)
    if not st.button("Check the images", type="primary", icon=":material/fact_check:", width="stretch"):
        st.caption("Nothing is added yet: you see what the check finds first.")
    elif pre and post:
        start_job(KIND, AddSceneRequest.checked(pre=_source(pre), post=_source(post), **words))
    else:
        st.warning("Give both images.", title=f"The image {'after' if pre else 'before'} is missing.")


def _named(place: Any, label: str, name: str, known: dict[str, Any]) -> str:
    text: str = place.text_input(
        label,
        value=known.get(name, ""),
        placeholder="/data/image.tif or https://…/image.tif",
        help="A file on the machine that mmcd runs on, or an address that is downloaded once into the workspace.",
        key=f"add-{name}",
    )
    return text.strip()


def _uploaded(place: Any, label: str, name: str, known: dict[str, Any]) -> Any:
    return place.file_uploader(
        f"{label}, up to {UPLOAD_MB} MB",
        type=IMAGE_TYPES,
        max_upload_size=UPLOAD_MB,
        help="For larger files give a path or an address.",
        key=f"upload-{name}",
    )


def _source(given: Any) -> str:
    """Return what was typed, or the path of an upload, which is kept only once it is to be checked."""
    return _whole(given) if isinstance(given, str) else str(keep_upload(given.name, given.getvalue()))


def _whole(text: str) -> str:
    """Return an address as it is and a path whole: the worker may have been started in another folder than this app."""
    return text if "://" in text else str(Path(text).expanduser().absolute())


def _words(known: dict[str, Any]) -> dict[str, Any]:
    """Draw what is known of the scene beside its images; all of it may be left out."""
    first = st.columns([3, 2, 3])
    title = first[0].text_input("Title", value=known.get("title", ""), placeholder="Flood in Larissa", key="add-title")
    event = known.get("event_type", UNKNOWN)
    events = EVENTS if event in (*EVENTS, UNKNOWN) else (*EVENTS, event)
    event_type = first[1].selectbox(
        "Event type",
        events,
        index=events.index(event) if event in events else None,
        placeholder="Choose or type one",
        accept_new_options=True,
        key="add-event",
    )
    place = first[2].text_input("Place", value=known.get("place", ""), placeholder="Larissa, Greece", key="add-place")
    second = st.columns(4)
    days = {
        name: second[i].date_input(
            label, value=known.get(name), min_value=FIRST_DAY, key=f"add-{name}", format="YYYY-MM-DD"
        )
        for i, (name, label) in enumerate({"pre_date": "Day before (UTC)", "post_date": "Day after (UTC)"}.items())
    }
    sensors = {
        name: second[i].text_input(label, value=known.get(name, ""), placeholder=example, key=f"add-{name}")
        for i, (name, label, example) in enumerate(
            (("pre_sensor", "Sensor before", "Sentinel-2"), ("post_sensor", "Sensor after", "Sentinel-1")), start=2
        )
    }
    with st.expander("Licence, labels, building footprints, id"):
        third = st.columns(4)
        licence = third[0].text_input("Licence", value=known.get("licence", ""), key="add-licence")
        label = third[1].text_input("Raster of labels", value=known.get("label") or "", key="add-label")
        footprints = third[2].text_input("Building polygons", value=known.get("footprints") or "", key="add-buildings")
        scene_id = third[3].text_input(
            "Id",
            value=_typed_id(known),
            placeholder="made from the title",
            help="Letters, digits, '-', '_' and '.'.",
            key="add-id",
        )
    return {
        "id": scene_id.strip() or _made_id(title, event_type, place),
        "title": title,
        "event_type": event_type or UNKNOWN,
        "place": place,
        **{name: day.isoformat() if day else None for name, day in days.items()},
        **sensors,
        "licence": licence,
        "label": _whole(label) if label else None,
        "footprints": _whole(footprints) if footprints else None,
    }


def _made_id(title: str, event_type: str | None, place: str) -> str:
    return free_id(title or f"{event_type or 'scene'} {place}")


def _typed_id(known: dict[str, Any]) -> str:
    """Return the id of a scene that is known; empty when it was made from the title, so that it follows the title."""
    event = known.get("event_type", UNKNOWN)
    made = _made_id(known.get("title", ""), None if event == UNKNOWN else event, known.get("place", ""))
    typed: str = known.get("id", "")
    return "" if typed == made else typed


def _findings(result: dict[str, Any]) -> None:
    """Draw what the check found, the worst first, and the button that adds the scene."""
    findings = result["report"]["findings"]
    worst: Severity = findings[0]["severity"] if findings else "note"
    st.subheader(_VERDICTS[worst])
    for finding in findings:
        if finding["severity"] == "refuse":
            st.error(finding["action"] or "Give another image.", title=_said(finding), icon=":material/block:")
        elif finding["severity"] == "warn":
            st.warning(finding["action"] or "Look at it with care.", title=_said(finding), icon=":material/warning:")
    notes = [f"- {_said(finding)} {finding['action']}" for finding in findings if finding["severity"] == "note"]
    if notes:
        st.markdown("\n".join(["**What was found**", "", *notes]))
    refused = result["report"]["refused"]
    request = AddSceneRequest.checked(**result["request"])
    label = f"Add this scene: {request.title or request.id}"
    if st.button(label, type="primary", icon=":material/add_location_alt:", disabled=refused, width="stretch"):
        scene = keep_scene(request)
        loaders.scenes.clear()
        open_view(scene=scene.id)
        st.rerun()


def _said(finding: dict[str, Any]) -> str:
    return f"{_SUBJECTS[finding['subject']]}{finding['message']}"
