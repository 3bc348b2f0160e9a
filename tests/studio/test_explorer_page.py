"""The Explorer page as its script draws it, by the keys of its widgets."""

from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from mmcd.data.bright_splits import read_blacklist
from mmcd.data.patch_index import PatchRules
from mmcd.services.collections import open_collection, register
from mmcd.services.explore import patches_of
from mmcd.services.flags import flags_of
from mmcd.studio.explorer_panels import pictures_figure

PAGE = Path(__file__).resolve().parents[2] / "pages" / "explorer.py"
RULES = PatchRules(context_patch_size=64)

pytestmark = pytest.mark.usefixtures("fresh_caches")


def opened(**address: str) -> AppTest:
    page = AppTest.from_file(PAGE, default_timeout=60)
    page.query_params.update(address)
    page.run()
    assert not page.exception
    return page


def words(kind) -> str:
    return "\n".join(f"{alert.proto.title} {alert.value}" for alert in kind)


def said(page: AppTest) -> str:
    return "\n".join(str(part.value) for part in [*page.markdown, *page.caption])


@pytest.fixture
def towns(bright_tree, prepared, tmp_path, monkeypatch) -> str:
    """Key of a data set whose flags go to a file of the test's own."""
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path / "workspace"))
    root = tmp_path / "towns"
    root.mkdir()
    for name in ("pre-event", "post-event", "target"):
        (root / name).symlink_to(bright_tree / name)
    return register(root)


def test_the_scenes_are_there_at_first_and_the_selected_one_is_shown(prepared):
    page = opened(scene=prepared.placed.id)
    assert page.selectbox("explorer-id").value == prepared.placed.id
    facts = page.dataframe[0].value
    assert list(facts["File"]) == ["Before", "After", "Label"]
    assert facts["Size"][0] == "512 × 512 px" and facts["CRS"][1] == "EPSG:32759" and facts["Data type"][1] == "float32"
    (chart,) = page.get("plotly_chart")
    assert prepared.placed.id in chart.proto.alt
    assert "All pixels are shown" in said(page)


def test_the_scene_that_was_walked_to_is_the_selected_one_on_the_next_page(prepared):
    page = opened(scene=prepared.placed.id)
    page.button("picture-1" if page.button("picture+1").disabled else "picture+1").click().run()
    scene = page.query_params["scene"]
    assert scene != prepared.placed.id
    assert page.session_state["mmcd_selection"]["scene"] == scene


def test_one_row_of_buttons_takes_the_keys(towns):
    def keys(page: AppTest) -> dict[str, str]:
        return {each.key: each.proto.shortcut.upper() for each in page.button if each.proto.shortcut}

    page = opened(data=towns, view="patches")
    page.segmented_control("patch-context").set_value(64).run()
    images, patches = keys(opened(data=towns)), keys(page)
    assert images["picture+1"] == patches["patch+1"] == "N"
    assert list(patches.values()).count("N") == list(patches.values()).count("P") == 1


def test_pictures_are_walked_jumped_to_and_found_by_id(towns):
    collection = open_collection(towns)
    page = opened(data=towns)
    assert page.button("picture-1").disabled and not page.button("picture+1").disabled
    page.button("picture+1").click().run()
    page.button("picture+10").click().run()
    assert page.query_params["picture"] == "12"
    page.button("picture-10").click().run()
    page.number_input("explorer-number").set_value(7).run()
    assert page.selectbox("explorer-id").value == collection.pictures[6].id
    page.selectbox("explorer-id").set_value(collection.pictures[17].id).run()
    assert not page.exception
    assert page.query_params["picture"] == "18" and page.button("picture+1").disabled


def test_the_percentile_sliders_change_what_is_drawn(towns):
    page = opened(data=towns)
    before = page.get("plotly_chart")[0].proto.spec
    page.slider("explorer-post").set_range(20.0, 60.0).run()
    assert not page.exception
    assert page.get("plotly_chart")[0].proto.spec != before


def test_flags_are_written_go_on_to_the_next_picture_and_are_undone(towns):
    collection = open_collection(towns)
    first, second = (picture.id for picture in collection.pictures[:2])
    page = opened(data=towns)
    page.button("flag-c").click().run()
    page.button("flag-s").click().run()
    assert collection.flags.read_text() == f"{first},0,c\n{second},1,s\n"
    assert read_blacklist(collection.flags) == {first: "c", second: "s"}
    assert page.query_params["picture"] == "3"
    page.button("flag-undo").click().run()
    assert not page.exception
    assert flags_of(collection.flags) == {first: ("c",)}
    assert page.query_params["picture"] == "2"  # back where it was flagged
    page.button("picture-1").click().run()
    assert "Flagged: cloudy" in said(page) and page.button("flag-c").disabled
    page.button("flag-undo").click().run()
    assert flags_of(collection.flags) == {} and page.button("flag-undo").disabled


def test_an_undo_of_what_is_gone_is_explained(towns):
    collection = open_collection(towns)
    page = opened(data=towns)
    page.button("flag-c").click().run()
    collection.flags.write_text("")
    page.button("flag-undo").click().run()
    assert not page.exception
    assert "any more" in words(page.error)


def test_patches_are_filtered_and_walked_over_the_ends_of_pictures(towns):
    collection = open_collection(towns)
    page = opened(data=towns, view="patches")
    page.segmented_control("patch-context").set_value(64).run()
    page.segmented_control("patch-which").set_value("negative").run()
    assert not page.exception
    counts = [len(patches_of(picture, RULES, "negative")) for picture in collection.pictures]
    start = next(number for number, count in enumerate(counts) if count)
    assert page.query_params["picture"] == str(start + 1)
    assert "Negative (damaged or changed)" in said(page)
    assert (page.query_params["kind"], page.query_params["context"]) == ("negative", "64")
    expected = [(number, patch) for number, count in enumerate(counts) for patch in range(count)]
    for key, place in (("patch+100", 100), ("patch+10", 110), ("patch+1", 111), ("patch-10", 101)):
        page.button(key).click().run()
        assert not page.exception
        found = int(page.query_params["picture"]) - 1, int(page.query_params["patch"]) - 1
        assert found == expected[place]
    page.number_input("patch-number").set_value(1).run()
    assert page.query_params["patch"] == "1"
    assert [image.proto.imgs[0].caption for image in page.get("image")] == ["Before", "After", "Label"]


def test_a_link_to_a_patch_means_the_same_patch(towns):
    collection = open_collection(towns)
    page = opened(data=towns, view="patches", kind="negative", context="64", patch="3")
    assert page.segmented_control("patch-which").value == "negative" and "building on 20% of it" in said(page)
    assert page.segmented_control("patch-context").value == 64
    table = patches_of(collection.pictures[int(page.query_params["picture"]) - 1], RULES, "negative")
    row, col = table.position[int(page.query_params["patch"]) - 1]
    assert f"ROI at row {row:,}, column {col:,}" in said(page)
    assert "flag the picture" not in said(page)  # keys that do nothing here are not listed
    page = opened(data=towns, view="patches", kind="nonsense", context="nonsense")
    assert page.segmented_control("patch-which").value == "all"


def test_no_patch_of_a_kind_is_said(prepared):
    page = opened(view="patches", data="catalog", scene=prepared.loose.id)
    assert f"{prepared.loose.id} has no such patch" in said(page)  # it has no labels: the nearest one is shown
    scenes = open_collection("catalog")
    shown = scenes.pictures[int(page.query_params["picture"]) - 1]
    assert shown.label is not None
    assert page.query_params["scene"] == shown.id  # the one on the next page


def test_a_folder_is_opened_and_a_wrong_one_explained(floods, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path / "workspace"))
    page = opened()
    page.text_input("explorer-root").input(str(tmp_path)).run()
    page.button("explorer-open").click().run()
    assert "holds no pairs" in words(page.error)
    page.text_input("explorer-root").input(str(floods)).run()
    page.button("explorer-open").click().run()
    assert not page.exception
    assert page.query_params["data"].startswith("ombria-")
    assert page.selectbox("explorer-id").value == "train/0000"
    assert str(floods) not in "".join(page.query_params[name] for name in page.query_params)


def test_all_panels_share_their_axes_and_keep_the_view_while_percentiles_move(towns):
    picture = open_collection(towns).pictures[0]
    figures = [pictures_figure(picture, limits, limits)[0] for limits in ((1.0, 99.0), (10.0, 90.0))]
    for figure in figures:
        axes = [figure.layout[name] for name in ("xaxis", "xaxis2", "xaxis3")]
        assert [axis.matches for axis in axes] == ["x"] * 3
        assert figure.layout.uirevision == picture.id and len(figure.data) == 3
    assert figures[0].data[0].source != figures[1].data[0].source
    assert figures[0].data[2].source == figures[1].data[2].source  # labels are not stretched
    assert np.isclose(figures[0].data[0].dx, 1.0)
