"""The Scenes page as a script: filters, links, adding a scene, the workspace."""

import shutil
from datetime import date
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mmcd.jobs import open_store
from mmcd.services.scenes import AddSceneRequest, check_scene, get_scene
from mmcd.studio import job_panel
from mmcd.studio.catalogue import COLUMNS, event_name, filter_scenes, scene_rows, sensors, short_place
from mmcd.studio.messages import pixel_size

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120

pytestmark = pytest.mark.usefixtures("fresh_caches")


@pytest.fixture
def own(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of the filled workspace that the test may change, and no worker."""
    folder = tmp_path / "workspace"
    shutil.copytree(prepared.folder, folder)
    monkeypatch.setenv("MMCD_WORKSPACE", str(folder))
    monkeypatch.setattr(job_panel, "ensure_worker", lambda workspace: None)
    return folder


@pytest.fixture
def open_scenes(tmp_path):
    """Open the Scenes page at an address."""
    entry = tmp_path / "entry.py"
    entry.write_text(f"import runpy\nrunpy.run_path({str(ROOT / 'app.py')!r}, run_name='__main__')\n")

    def opened(**query: str) -> AppTest:
        app = AppTest.from_file(str(entry), default_timeout=SECONDS)
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
        assert not app.exception
        return app

    return opened


def listed(app: AppTest) -> set[str]:
    return set(app.dataframe[0].value["Scene"])


def press(app: AppTest, label: str) -> None:
    next(button for button in app.button if label in button.label).click().run()
    assert not app.exception


def said(kind) -> str:
    return "\n".join(f"{alert.proto.title} {alert.value}" for alert in kind)


def test_filters_of_an_address_are_applied_and_a_link_keeps_them(open_scenes, prepared):
    app = open_scenes(types="flood", search="valley", scene="valley-flood")
    assert "valley-flood" in listed(app)
    assert set(app.dataframe[0].value["Type"]) == {"flood"}
    assert app.subheader[0].value == "Valley flood"
    assert app.text_input(key="search").value == "valley"


def test_scenes_are_filtered_by_the_day_after(open_scenes, prepared):
    app = open_scenes()
    app.date_input(key="days").set_value((date(2024, 5, 20), date(2024, 5, 20))).run()
    assert listed(app) == {"valley-flood"}


def test_filters_that_hide_scenes_are_cleared_at_once(open_scenes, prepared):
    app = open_scenes(search="atlantis", types="flood")
    assert "No scene matches." in said(app.info)
    press(app, "Clear the filters")
    assert {"valley-flood", "loose-tiles"} <= listed(app)
    assert not {"search", "types"} & set(app.query_params)


@pytest.mark.parametrize(
    ("days", "found"),
    [((), 2), ((date(2024, 5, 20),), 1), ((date(2024, 5, 21),), 0), ((date(2024, 1, 1), date(2024, 5, 19)), 0)],
)
def test_a_scene_without_a_day_is_in_no_span(prepared, days, found):
    assert len(filter_scenes([prepared.placed, prepared.loose], "", [], days)) == found


def test_simulated_is_said_once_a_row(prepared):
    from mmcd.services.scenes import list_scenes

    table = scene_rows(list_scenes(), [])
    assert list(table.columns) == list(COLUMNS)
    for _, row in table[table["Images"] == "simulated"].iterrows():
        assert sum("simulated" in str(row[name]).lower() for name in COLUMNS if name != "Scene") == 1
        assert "(" not in row["Place"]
    sample = next(scene for scene in list_scenes() if scene.id == "simulated-flood-organic-06")
    assert event_name(sample) == "Flood, organic layout, temperate climate"
    assert (short_place(sample), sensors(sample)) == ("Po plain, Italy", "optical → SAR")


def test_the_last_run_of_a_scene_is_one_click_away(open_scenes, prepared):
    app = open_scenes(scene="valley-flood")
    press(app, "Open the last run, 2026-05-04 13:30 UTC")
    assert app.query_params["run"] == [prepared.run_id] or app.query_params["run"] == prepared.run_id
    assert app.title[0].value.startswith("Find the damage")


def test_the_last_widget_that_was_touched_selects():
    def script() -> None:
        import streamlit as st

        from mmcd.studio import selection

        def touch_map() -> None:
            st.session_state["map"] = {"last_active_drawing": {"properties": {"id": "a", "clicked": 1}}}
            selection.choose_marker("map")

        def touch_table() -> None:
            st.session_state["table"] = {"selection": {"rows": [1], "columns": [], "cells": []}}
            selection.choose_row("table", ["a", "b"])

        def touch_bubble() -> None:
            st.session_state["map"] = {"last_active_drawing": None}
            selection.choose_marker("map")

        st.button("map", on_click=touch_map)
        st.button("table", on_click=touch_table)
        st.button("bubble", on_click=touch_bubble)
        selection.mark_row("table", ["a", "b"])
        st.text(f"{selection.chosen_scene()} {st.session_state['table']['selection']['rows']}")

    app = AppTest.from_function(script).run()
    for label, expected in (("map", "a [0]"), ("table", "b [1]"), ("bubble", "b [1]"), ("map", "a [0]")):
        next(button for button in app.button if button.label == label).click().run()
        assert app.text[0].value == expected


def test_images_are_checked_before_the_scene_is_added(open_scenes, own):
    app = open_scenes(view="add")
    assert app.title[0].value.startswith("Add a scene")
    app.text_input(key="add-pre").set_value(str(own / "scenes" / "valley" / "pre.tif"))
    press(app, "Check the images")
    assert "The image after is missing." in said(app.warning)
    app.text_input(key="add-post").set_value(str(own / "scenes" / "valley" / "post.tif"))
    app.text_input(key="add-title").set_value("Spring flood")
    press(app, "Check the images")
    assert "Starting the worker" in app.get("progress")[0].text
    job = open_store(own).list("check_scene")[0]
    assert (job.request["id"], job.request["title"]) == ("spring-flood", "Spring flood")

    checked = check_scene(AddSceneRequest.checked(**job.request))
    open_store(own).finish(job.id, checked.to_dict())
    app = open_scenes(view="add", job=job.id)
    assert "can be analysed" in app.subheader[0].value
    press(app, "Add this scene: Spring flood")
    assert get_scene("spring-flood").pre == own / "scenes" / "valley" / "pre.tif"
    assert "spring-flood" in listed(app)
    assert app.subheader[0].value == "Spring flood"


def test_paths_are_those_of_the_app_for_a_worker_that_runs_elsewhere(open_scenes, own):
    app = open_scenes(view="add")
    typed = {"add-pre": "a.tif", "add-post": "https://example.org/b.tif", "add-label": "c.tif"}
    for key, text in typed.items():
        app.text_input(key=key).set_value(text)
    press(app, "Check the images")
    request = open_store(own).list("check_scene")[0].request
    assert request["pre"] == str(Path("a.tif").absolute()) and request["label"] == str(Path("c.tif").absolute())
    assert request["post"] == typed["add-post"]


def test_a_refused_pair_says_why_and_cannot_be_added(open_scenes, own):
    request = AddSceneRequest(pre=str(own / "none.tif"), post=str(own / "scenes" / "valley" / "post.tif"), id="x")
    store = open_store(own)
    job_id = store.submit("check_scene", request.model_dump(mode="json"))
    store.finish(job_id, check_scene(request).to_dict())
    app = open_scenes(view="add", job=job_id)
    assert "none.tif" in said(app.error)
    assert next(button for button in app.button if button.label == "Add this scene: x").disabled
    assert app.text_input(key="add-pre").value == str(own / "none.tif")


def test_an_address_that_failed_keeps_what_was_typed(open_scenes, own):
    store = open_store(own)
    words = {"place": "Here", "event_type": "landslide"}
    request = AddSceneRequest(pre="http://127.0.0.1:9/a.tif", post="b.tif", id="x", **words)
    job_id = store.submit("check_scene", request.model_dump(mode="json"))
    store.fail(job_id, "127.0.0.1 cannot be reached.", "Check the connection.")
    app = open_scenes(view="add", job=job_id)
    assert "cannot be reached" in said(app.error)
    assert app.text_input(key="add-place").value == "Here"
    assert app.selectbox(key="add-event").value == "landslide"
    assert app.text_input(key="add-id").value == "x"
    press(app, "Check the images")
    again = store.list("check_scene")[0]
    assert again.id != job_id
    assert (again.request["event_type"], again.request["id"]) == ("landslide", "x")


def test_an_id_that_was_made_follows_the_title(open_scenes, own):
    store = open_store(own)
    request = AddSceneRequest(pre="a.tif", post="b.tif", id="old-name", title="Old name")
    job_id = store.submit("check_scene", request.model_dump(mode="json"))
    store.fail(job_id, "It failed.", "Try again.")
    assert open_scenes(view="add", job=job_id).text_input(key="add-id").value == ""


def test_the_workspace_is_measured_and_cleared_after_a_yes(open_scenes, own, prepared):
    app = open_scenes(view="workspace")
    assert "free on this disk" in "\n".join(block.value for block in app.markdown)
    clear = next(button for button in app.button if button.label == "Clear")
    assert clear.disabled
    app.selectbox(key="clear-what").set_value("Runs of valley-flood").run()
    app.checkbox[0].check().run()
    press(app, "Clear")
    assert "1 removed" in said(app.success)
    assert not (own / "runs" / prepared.run_id).exists()
    assert "Nothing to clear." in said(app.info)


def test_an_added_scene_is_removed_after_a_yes_and_a_sample_is_not(open_scenes, own, prepared):
    sample = open_scenes(scene="simulated-flood-organic-06")
    assert not any("remove" in button.label for button in sample.button)
    app = open_scenes(scene="valley-flood")
    assert "Its only run stays in the workspace" in "\n".join(block.value for block in app.markdown)
    press(app, "Yes, remove it for good")
    assert "valley-flood" not in listed(app)
    assert "Valley flood was removed." in said(app.success)
    assert "scene" not in app.query_params
    assert (own / "runs" / prepared.run_id).is_dir()


def test_views_are_left_with_the_scene_still_selected(open_scenes, prepared):
    app = open_scenes(scene="valley-flood")
    press(app, "Workspace")
    assert app.title[0].value.startswith("Workspace")
    press(app, "All scenes")
    assert app.subheader[0].value == "Valley flood"


def test_uploads_are_kept_in_the_workspace_and_checked(open_scenes, own):
    app = open_scenes(view="add")
    app.segmented_control(key="add-kind").set_value("Upload").run()
    for name, file in (("upload-pre", "pre.tif"), ("upload-post", "post.tif")):
        content = (own / "scenes" / "valley" / file).read_bytes()
        app.file_uploader(key=name).set_value((file, content, "image/tiff"))
    press(app, "Check the images")
    job = open_store(own).list("check_scene")[0]
    assert Path(job.request["pre"]).is_relative_to(own / "sources")
    assert Path(job.request["post"]).read_bytes() == (own / "scenes" / "valley" / "post.tif").read_bytes()


@pytest.mark.parametrize(("gsd", "words"), [(0.5, "0.5 m a pixel"), (None, "pixel size unknown")])
def test_a_pixel_size_in_a_sentence(gsd, words):
    assert pixel_size(gsd) == words
