"""The Embeddings page as its script draws it; drawing around points is tested in a browser."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import streamlit as st
from rasterio.warp import transform
from streamlit.testing.v1 import AppTest

from mmcd.embedding_table import read_table
from mmcd.jobs import open_store
from mmcd.services.embeddings import EmbedRequest, embed, keep_selection
from mmcd.services.patch_pictures import AROUND, SCALE, pictures, rings
from mmcd.services.runs import load_run
from mmcd.services.scenes import list_scenes
from mmcd.studio.embedding_chart import COLOURS, groups, offered, scatter

from .conftest import Prepared
from .embedded import embedded_run

PAGE = Path(__file__).resolve().parents[2] / "pages" / "embeddings.py"

pytestmark = pytest.mark.usefixtures("fresh_caches")


@pytest.fixture(scope="module")
def filled(shared_workspace: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace like the shared one, with a run that has embeddings; its folder and the run."""
    folder = tmp_path_factory.mktemp("embedded") / "workspace"
    shutil.copytree(shared_workspace.folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(folder))
        return folder, embedded_run(shared_workspace)


@pytest.fixture
def run_id(filled: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MMCD_WORKSPACE", str(filled[0]))
    return filled[1]


def opened(**address: str) -> AppTest:
    page = AppTest.from_file(PAGE, default_timeout=60)
    page.query_params.update(address)
    page.run()
    assert not page.exception
    return page


def words(page: AppTest) -> str:
    parts = [*page.caption, *page.markdown, *page.subheader, *page.info]
    return " ".join(str(part.value) for part in parts)


def test_a_link_to_a_run_made_since_the_runs_were_listed_shows_it(run_id, monkeypatch):
    monkeypatch.setattr("mmcd.studio.loaders.runs", lambda: [])
    page = opened(run=run_id)
    assert page.selectbox("embedding-run").value == run_id and not page.warning


def test_a_picture_that_is_there_is_drawn_with_how_far_it_can_be_trusted(run_id, shared_workspace):
    page = opened(run=run_id)
    assert page.query_params["scene"] == shared_workspace.placed.id
    assert page.metric[0].label.startswith("Trustworthiness")
    assert 0.5 < float(page.metric[0].value) <= 1
    table = page.dataframe[0].value
    assert table["Event"].tolist() == ["Valley flood"] and float(table["Changed apart"][0]) > 0.3
    assert page.get("plotly_chart") and "No patch is selected" in page.info[0].proto.title


def test_a_selection_of_the_address_is_shown_and_one_point_brings_its_neighbours(run_id, shared_workspace):
    page = opened(run=run_id, patches=keep_selection(run_id, np.arange(40)))
    assert "40 patches selected" in words(page) and "12 of them" in words(page)
    assert len(page.get("image")) == 12
    page = opened(run=run_id, patches=keep_selection(run_id, np.array([17])))
    assert "Patch 17 and its nearest neighbours" in words(page)
    assert len(page.get("image")) == 12
    page = opened(run=run_id, patches="0" * 16)
    assert "patches" not in page.query_params
    assert "not in the workspace any more" in page.info[0].proto.title


def test_misclassified_patches_can_be_shown_alone(run_id, shared_workspace):
    page = opened(run=run_id, threshold="0.7")
    table = read_table(load_run(run_id).embeddings)
    wrong = int(((table.label >= 0.5) != (table.score >= 0.7)).sum())
    toggle = page.toggle("embedding-wrong")
    assert f"({wrong:,})" in toggle.label and 0 < wrong < len(table)
    toggle.set_value(True).run()
    assert not page.exception


def test_what_was_not_laid_out_yet_is_offered_and_becomes_a_job(run_id, monkeypatch):
    monkeypatch.setattr("mmcd.studio.job_panel.ensure_worker", lambda workspace: None)
    page = opened(run=run_id, method="tsne", what="difference")
    button = page.button("embedding-compute")
    assert button.label == "Compute: t-SNE, Difference, SAR − optical"
    button.click().run()
    job = open_store(Path(load_run(run_id).folder).parents[1]).get(page.query_params["job"])
    assert job.kind == "embed"
    assert {"run": run_id, "method": "tsne", "what": "difference"}.items() <= job.request.items()


def test_the_references_second_plot_is_one_click_away(run_id):
    page = opened(run=run_id)
    page.button("preset-joint").click().run()
    assert (page.query_params["what"], page.query_params["method"]) == ("joint", "umap")
    assert "compute" in page.button("embedding-compute").label.lower()


def test_without_a_run_a_sample_scene_is_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path))
    links: list[dict[str, str]] = []
    monkeypatch.setattr(st, "page_link", lambda page, *, query_params, **words: links.append(query_params))
    page = opened()
    assert page.info[0].proto.title == "There is no run to look into."
    assert links == [{"scene": list_scenes()[0].id}]
    page.segmented_control("embedding-source").set_value("A data set").run()
    assert not page.exception and page.button("embedding-start").disabled


@pytest.mark.parametrize("what", ["sar", "joint"])
def test_groups_hold_every_point_once_and_differ_without_colour(run_id, what):
    view = embed(EmbedRequest.checked(run=run_id, method="pca", what=what))
    found = offered(view)
    assert ("branch" in found) == (what == "joint") and {"label", "score", "building"} <= set(found)
    for colour in COLOURS:
        parts = [group for group in groups(view, colour, 0.5) if group.points.any()]
        np.testing.assert_array_equal(np.sum([part.points for part in parts], axis=0), 1)
        assert len({part.symbol for part in parts}) == len(parts)
    figure = scatter(view, "label", 0.5, np.arange(len(view.table)) < 30, {5})
    assert {trace.type for trace in figure.data} == {"scattergl"}
    drawn = np.concatenate([trace.customdata for trace in figure.data])
    assert sorted(set(drawn)) == list(range(30))
    assert figure.data[0].selected.marker.size > figure.data[0].marker.size  # one point among many is found
    assert figure.data[0].unselected.marker.opacity < 0.3
    many = scatter(view, "label", 0.5, np.arange(len(view.table)) < 30, set(range(20)))
    assert many.data[0].selected.marker.size is None


def test_thumbnails_and_rings_show_the_place_of_a_patch(run_id, shared_workspace):
    run = load_run(run_id)
    table = read_table(run.embeddings)
    inner = int(np.flatnonzero((table.row == 208) & (table.col == 256))[0])
    corner = int(np.flatnonzero((table.row == 496) & (table.col == 496))[0])
    image, edge = pictures(table, [inner, corner], run.score)
    side = SCALE * (2 * AROUND + 16)
    assert image.shape == (side, 2 * side + 4, 3) and image.dtype == np.uint8
    assert edge[-1, 0].tolist() == [0, 0, 0], "beyond the scene"
    assert image[:, :side].std() > 5 and image[:, -side:].std() > 5
    ring = rings(table, np.array([inner]), run.score)[0]
    with rasterio.open(shared_workspace.placed.post) as file:
        xs, ys = transform("EPSG:4326", file.crs, [lon for _, lon in ring], [lat for lat, _ in ring])
        cols, rows = ~file.transform * (np.array(xs), np.array(ys))
    np.testing.assert_allclose(cols, [256, 272, 272, 256], atol=0.01)
    np.testing.assert_allclose(rows, [208, 208, 224, 224], atol=0.01)
