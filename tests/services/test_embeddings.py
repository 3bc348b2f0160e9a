"""Pictures of embeddings of runs and data sets: kept, found again, written with their places."""

import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine

from mmcd.cards import read_card
from mmcd.embedding_table import read_table
from mmcd.errors import InputError, MmcdError, UsageError
from mmcd.services import embeddings
from mmcd.services.embeddings import EmbedRequest, data_tables, embed, find_view, keep_selection, selection, table_path
from mmcd.services.inference import PredictRequest, predict
from mmcd.services.run_embeddings import VECTOR_FILE
from mmcd.services.worker import HANDLERS

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def run_id(small_pair: Pair, building_card_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of two files in the workspace of this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(tmp_path_factory.mktemp("embedded") / "workspace"))
        pre, post = small_pair
        asked = PredictRequest.checked(pre=pre, post=post, model=str(building_card_path), device="cpu")
        result = predict(asked)
        assert not (result.folder / VECTOR_FILE).exists()
        yield result.manifest["run_id"]


def test_a_picture_is_made_once_and_then_found(run_id, monkeypatch):
    told: list[str] = []
    request = EmbedRequest.checked(run=run_id, method="pca")
    first = embed(request, lambda stage, done, total: told.append(stage))
    assert "lay out by PCA" in told and not first.cached
    monkeypatch.setattr(embeddings, "lay_out", None)
    again = embed(request)
    assert again.cached and again.measures == first.measures
    np.testing.assert_array_equal(again.points, first.points)
    assert find_view(table_path(request), EmbedRequest.checked(run=run_id, method="pca", seed=7).layout) is None
    assert find_view(table_path(request), EmbedRequest.checked(run=run_id, method="pca", what="both").layout) is None


def test_geoparquet_holds_every_point_at_its_place(run_id, small_pair, tmp_path):
    out = tmp_path / "points.parquet"
    facts = HANDLERS["embed"]({"run": run_id, "method": "pca", "what": "joint", "out": str(out)}, lambda *told: None)
    frame = geopandas.read_parquet(out)
    table = read_table(table_path(EmbedRequest.checked(run=run_id)))
    assert len(frame) == facts["points"] == 2 * facts["pairs"] == 2 * len(table)
    assert frame.crs == "EPSG:4326" and set(frame.branch) == {"optical", "sar"}
    np.testing.assert_allclose(frame.geometry.x, np.tile(table.lon, 2))
    with rasterio.open(small_pair[1]) as file:
        ground = frame.to_crs(file.crs)
        cols, rows = ~file.transform * (ground.geometry.x.to_numpy(), ground.geometry.y.to_numpy())
    np.testing.assert_allclose(cols, frame.col + 8, atol=1e-3)
    np.testing.assert_allclose(rows, frame.row + 8, atol=1e-3)
    points = embed(EmbedRequest.checked(run=run_id, method="pca", what="joint")).points
    np.testing.assert_array_equal(frame[["pca_1", "pca_2"]], points)
    np.testing.assert_allclose(frame.score, np.tile(table.score, 2))


def test_a_selection_is_remembered_by_its_id(run_id, monkeypatch):
    monkeypatch.setattr(embeddings, "KEPT_SELECTIONS", 2)
    first = keep_selection(run_id, np.array([7, 3, 3]))
    assert first == keep_selection(run_id, np.array([3, 7])) != keep_selection("other", np.array([3, 7]))
    name, pairs = selection(first)
    assert name == run_id and pairs.tolist() == [3, 7]
    keep_selection(run_id, np.arange(9))
    with pytest.raises(InputError, match="not in the workspace any more"):
        selection(first)
    with pytest.raises(InputError):
        selection("../secret")


def test_tiles_of_floods_are_sampled_over_the_events(floods, building_card_path, run_id):
    words = {"dataset": "ombria", "root": str(floods), "model": str(building_card_path), "device": "cpu"}
    facts = HANDLERS["embed"](words | {"tiles": 3, "pairs": 10, "method": "pca"}, lambda *told: None)
    assert set(data_tables()) == {facts["table"]}
    table = read_table(embeddings.data_table_path(facts["table"]))
    assert len(table) == 12 and len(table.tiles) == 3, "four ROIs of each tile of 32 px"
    assert table.threshold == read_card(building_card_path).decision.threshold
    for number in range(len(table)):
        with rasterio.open(table.tiles[table.tile[number]].post.replace("AFTER/S1_after", "MASK/S1_mask")) as file:
            flooded = file.read(1) > 0
        row, col = table.row[number], table.col[number]
        assert table.label[number] == pytest.approx(flooded[row : row + 16, col : col + 16].mean())
    assert np.isnan(table.lon).all() and np.isnan(table.building).all() and np.isnan(table.built).all()
    with pytest.raises(InputError):
        embeddings.data_table_path("data-0")


def test_a_label_that_was_corrected_makes_a_new_table(floods, building_card_path, tmp_path, monkeypatch):
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path / "workspace"))
    root = shutil.copytree(floods, tmp_path / "floods")
    words = {"dataset": "ombria", "root": str(root), "model": str(building_card_path), "device": "cpu"}
    request = EmbedRequest.checked(**words, tiles=1, pairs=10, method="pca")
    before = embeddings.table_path(request)
    assert embeddings.table_path(request) == before
    for mask in root.rglob("*mask*.png"):
        mask.write_bytes(mask.read_bytes() + b" ")
    assert embeddings.table_path(request) != before


@pytest.fixture
def towns(tmp_path) -> Path:
    """Two tiles of 304 px in BRIGHT's layout, of two events, the lower half destroyed."""
    random = np.random.default_rng(0)
    label = np.ones((1, 304, 304), np.uint8)
    label[:, 144:] = 3
    for number, event in enumerate(("here-flood", "there-fire")):
        layers = {
            f"pre-event/{event}_0000000{number}_pre_disaster.tif": random.integers(1, 255, (3, 304, 304)),
            f"post-event/{event}_0000000{number}_post_disaster.tif": random.integers(1, 255, (1, 304, 304)),
            f"target/{event}_0000000{number}_building_damage.tif": label,
        }
        for name, values in layers.items():
            path = tmp_path / "towns" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            place = {"crs": "EPSG:32634", "transform": Affine(0.5, 0, 4e5, 0, -0.5, 4.6e6)}
            with rasterio.open(
                path, "w", driver="GTiff", count=len(values), height=304, width=304, dtype="uint8", **place
            ) as file:
                file.write(values.astype(np.uint8))
    return tmp_path / "towns"


def test_a_checkpoint_of_the_reference_keeps_the_features_of_its_encoders(towns, patch_checkpoint, run_id):
    words = {"dataset": "bright", "root": towns, "model": str(patch_checkpoint), "device": "cpu", "method": "pca"}
    view = embed(EmbedRequest.checked(**words, pairs=12, what="sar_features"))
    table = view.table
    assert {name: vectors.shape[1] for name, vectors in table.vectors.items()} == {
        "optical": 16,
        "sar": 16,
        "optical_features": 512,
        "sar_features": 512,
    }
    assert 8 <= len(table) <= 12 and set(table.events) == {"here-flood", "there-fire"}
    assert (table.row >= 120).all() and (table.row <= 304 - 120 - 16).all(), "whole contexts"
    np.testing.assert_array_equal(table.label, (table.row >= 144).astype(np.float32))
    assert (table.built == 1).all() and np.isfinite(table.lon).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "Either a run or a data set"),
        ({"run": "a", "dataset": "ombria"}, "Either a run or a data set"),
        ({"dataset": "ombria"}, "folder and a model"),
        ({"run": "a", "method": "lle"}, "--method 'lle'"),
        ({"run": "a", "out": "points.csv"}, "not a .parquet file"),
    ],
)
def test_senseless_requests_are_refused(words, said):
    with pytest.raises(UsageError, match=said):
        EmbedRequest.checked(**words)


def test_models_without_embeddings_and_missing_runs_are_explained(floods, optical_card_path, run_id):
    with pytest.raises(MmcdError, match="compares no embeddings"):
        embed(EmbedRequest.checked(dataset="ombria", root=floods, model=str(optical_card_path), method="pca"))
    with pytest.raises(InputError, match="no finished run"):
        embed(EmbedRequest.checked(run="0" * 32, method="pca"))
