"""The pages as scripts: what they show when empty, wrong or full, and that they never show a traceback."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mmcd import jobs
from mmcd.cards import read_card
from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.raster import RasterSource
from mmcd.jobs import open_store
from mmcd.studio import loaders
from mmcd.studio.scene_map import scene_map

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 60

pytestmark = pytest.mark.usefixtures("fresh_caches")


@pytest.fixture
def own(prepared, tmp_path, monkeypatch):
    """A copy of the filled workspace that the test may change."""
    folder = tmp_path / "workspace"
    shutil.copytree(prepared.folder, folder)
    monkeypatch.setenv("MMCD_WORKSPACE", str(folder))
    yield folder
    worker = jobs._spawned.pop(folder, None)
    if worker is not None:
        worker.terminate()
        worker.wait(30)


@pytest.fixture
def open_page(tmp_path):
    """Open a page of the app.

    The entry point is a script that runs ``app.py``: AppTest takes a script with a folder ``pages`` beside it for an
    app without ``st.navigation``, whatever the script does.
    """
    entry = tmp_path / "entry.py"
    entry.write_text(f"import runpy\nrunpy.run_path({str(ROOT / 'app.py')!r}, run_name='__main__')\n")

    def opened(page: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(entry), default_timeout=SECONDS)
        if page == "scenes":
            return _home(app, query)
        for name, value in query.items():
            app.query_params[name] = value
        app.switch_page(str(ROOT / "pages" / f"{page}.py")).run()
        assert not app.exception
        return app

    return opened


def _home(app: AppTest, query: dict[str, str]) -> AppTest:
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def texts(app: AppTest) -> str:
    parts = [*app.title, *app.markdown, *app.caption, *app.subheader]
    return "\n".join(str(part.value) for part in parts)


def alerts(kind) -> str:
    return "\n".join(f"{alert.proto.title} {alert.value}" for alert in kind)


def test_the_app_opens_on_the_scenes(prepared):
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=SECONDS).run()
    assert not app.exception
    assert app.title[0].value == "Choose a scene to analyse"
    assert {"valley-flood", "loose-tiles"} <= set(app.dataframe[0].value["Scene"])


def test_scenes_are_found_by_text_and_a_search_without_result_says_so(open_page, prepared):
    app = open_page("scenes")
    app.text_input(key="search").set_value("test valley").run()
    assert list(app.dataframe[0].value["Scene"]) == ["valley-flood"]
    app.text_input(key="search").set_value("atlantis").run()
    assert not app.exception
    assert "No scene matches" in alerts(app.info)


def test_a_selected_scene_offers_its_analysis(open_page, prepared):
    app = open_page("scenes", scene="valley-flood")
    assert app.subheader[0].value == "Valley flood"
    next(button for button in app.button if button.label == "Analyse").click().run()
    assert not app.exception
    assert app.title[0].value == "Find the damage"
    assert app.query_params["scene"] == "valley-flood"


def test_without_a_scene_the_damage_map_asks_for_one(open_page, prepared):
    app = open_page("damage_map")
    assert "No scene is selected" in alerts(app.info)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"scene": "atlantis"}, "no scene 'atlantis'"),
        ({"scene": "valley-flood", "run": "../../secret"}, "not the id of a run"),
        ({"scene": "valley-flood", "run": "0" * 32}, "no finished run"),
        ({"run": "nonsense"}, "not the id of a run"),
    ],
)
def test_an_address_that_leads_nowhere_says_cause_and_next_step(open_page, prepared, query, said):
    app = open_page("damage_map", **query)
    assert said in alerts(app.error)
    assert "Traceback" not in alerts(app.error)


def test_an_address_of_a_deleted_job_says_so_and_the_page_can_be_used(open_page, prepared):
    app = open_page("damage_map", scene="valley-flood", job="nonsense")
    assert "no such job" in alerts(app.warning)
    assert "Run" in [button.label for button in app.button]


@pytest.mark.parametrize("page", ["accuracy", "embeddings", "training"])
def test_a_deleted_job_is_said_once_a_page(open_page, prepared, page):
    app = open_page(page, job="nonsense", **({"view": "start"} if page == "training" else {}))
    assert alerts(app.warning).count("no such job") == 1


def test_a_link_to_a_run_needs_no_scene(open_page, prepared):
    app = open_page("damage_map", run=prepared.run_id)
    assert app.query_params["scene"] == "valley-flood"
    assert "Run again" in app.segmented_control[0].options


def test_an_unknown_scene_is_said_where_scenes_are_chosen(open_page, prepared):
    assert "no scene 'atlantis'" in alerts(open_page("scenes", scene="atlantis").info)
    assert "no scene 'atlantis'" in alerts(open_page("explorer", scene="atlantis").warning)


def test_a_run_of_another_scene_is_not_laid_over_this_one(open_page, prepared):
    app = open_page("damage_map", scene="loose-tiles", run=prepared.run_id)
    assert "not of scene loose-tiles" in alerts(app.error)


def test_a_finished_run_says_how_it_was_made(open_page, prepared):
    app = open_page("damage_map", scene="valley-flood", run=prepared.run_id)
    app.segmented_control("result-part-buildings").set_value("About this run").run()
    assert "it was asked for" in texts(app)
    assert "The season differs." in alerts(app.warning)


@pytest.mark.parametrize("threshold", ["nonsense", "nan", "-3", "7", ""])
def test_a_threshold_that_is_none_falls_back(open_page, prepared, threshold):
    app = open_page("damage_map", scene="valley-flood", run=prepared.run_id, threshold=threshold)
    app.segmented_control("result-part-buildings").set_value("Download").run()
    assert not app.exception
    links = {link.proto.label: link.proto.url for link in app.get("link_button")}
    assert links["Mask at 0.500 (COG)"] == f"/mmcd/runs/{prepared.run_id}/mask.tif?threshold=0.500"


def test_a_waiting_job_shows_progress_and_can_be_cancelled(open_page, own):
    store = open_store(own)
    job_id = store.submit("predict", {"scene": "valley-flood"})
    store.claim()
    store.progress(job_id, "score", 3, 12)
    app = open_page("damage_map", scene="valley-flood", job=job_id)
    assert app.progress[0].value == 25
    assert "3 of 12" in app.progress[0].text
    next(button for button in app.button if button.label == "Cancel").click().run()
    assert store.get(job_id).cancel_requested or store.get(job_id).state == "cancelled"


def test_a_failed_job_says_why(open_page, own):
    store = open_store(own)
    job_id = store.submit("predict", {"scene": "valley-flood"})
    store.fail(job_id, "The disk is full.", "Free some space.")
    app = open_page("damage_map", scene="valley-flood", job=job_id)
    assert "The disk is full." in alerts(app.error)
    assert "Free some space." in alerts(app.error)


def test_a_finished_job_leads_to_its_run(open_page, own, prepared):
    store = open_store(own)
    job_id = store.submit("predict", {"scene": "valley-flood"})
    store.finish(job_id, {"run_id": prepared.run_id})
    app = open_page("damage_map", scene="valley-flood", job=job_id)
    assert app.query_params["run"] == prepared.run_id
    assert "job" not in app.query_params
    assert app.segmented_control("result-part-buildings").value


def test_a_scene_whose_image_is_gone_says_so(open_page, own):
    (own / "scenes" / "valley" / "post.tif").unlink()
    app = open_page("damage_map", scene="valley-flood")
    assert "post.tif" in alerts(app.error)


def test_the_pages_load_without_torch():
    """The worker runs models; a page that pulled torch in would cost 700 MB and seconds in the app's process."""
    code = (
        "import sys, json\n"
        "import mmcd.studio.run_panel, mmcd.studio.scene_map, mmcd.studio.catalogue, mmcd.studio.routes\n"
        "import leafmap.foliumap\n"
        "print(json.dumps([name for name in ('torch', 'lightning', 'mlflow') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_page_scripts_stay_small():
    for page in [*(ROOT / "pages").glob("*.py"), ROOT / "app.py"]:
        assert len(page.read_text().splitlines()) <= 150


@pytest.fixture
def growth(prepared, tmp_path, monkeypatch, optical_pair, optical_card_path, card_path):
    """A scene of two optical images beside the others, and a model for each kind of scene."""
    folder = tmp_path / "workspace"
    shutil.copytree(prepared.folder, folder)
    monkeypatch.setenv("MMCD_WORKSPACE", str(folder))
    cards = [(path, read_card(path)) for path in (card_path, optical_card_path)]
    monkeypatch.setattr(loaders, "known_cards", lambda: cards)
    with RasterSource(optical_pair[1]) as source:
        place = source.grid.geographic_footprint()
    scene = Scene("growth", "Growing town", "", "unknown", "", *optical_pair, gsd=0.5, geometry=place)
    Catalog.open(folder / "scenes").add(scene)


@pytest.mark.usefixtures("growth")
def test_two_optical_images_are_offered_their_model_first(open_page):
    app = open_page("damage_map", scene="growth")
    model = app.selectbox(key="model-growth")
    assert model.value == "tiny-optical"
    assert model.options == ["tiny-optical: Untrained", "tiny: Untrained (not for this scene)"]
    assert not alerts(app.warning) and not alerts(app.error)
    assert not next(button for button in app.button if button.key == "run").disabled
    assert "cannot move a displaced image back" in texts(app)
    assert "radar" not in "\n".join([texts(app), *(box.label for box in app.checkbox)]).lower()
    model.set_value("tiny").run()
    assert "tiny is not for this scene." in alerts(app.warning)
    assert "Move the optical image after back" in app.checkbox(key="align-growth").label


@pytest.mark.usefixtures("growth")
def test_radar_after_the_event_is_never_offered_it(open_page):
    app = open_page("damage_map", scene="valley-flood")
    assert app.selectbox(key="model-valley-flood").options == ["tiny: Untrained"]
    assert app.checkbox(key="align-valley-flood").label == "Move the radar image back where it is displaced"


@pytest.mark.usefixtures("growth")
def test_a_scene_of_two_optical_images_says_so(open_page):
    app = open_page("scenes", scene="growth")
    assert "(optical)" in texts(app) and "SAR" not in texts(app)
    rows = app.dataframe[0].value.set_index("Scene")
    assert rows.loc["growth", "Sensors"] == "optical → optical"
    assert rows.loc["valley-flood", "Sensors"] == "optical → SAR"
    drawn = scene_map(loaders.scene("growth"), None, "channel", dark=False, basemap=None).get_root().render()
    assert json.dumps("After · date unknown · optical")[1:-1] in drawn
