"""The table of patch pairs that a run writes, and the same table made afterwards for a run that lacks it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio

from mmcd.cards import file_sha256, read_card
from mmcd.embedding_table import read_facts, read_table, write_table
from mmcd.errors import InputError
from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.raster import RasterSource
from mmcd.paths import workspace_folder
from mmcd.score import decode_score
from mmcd.services.inference import PredictRequest, predict
from mmcd.services.run_embeddings import add_embeddings, why_none
from mmcd.services.runs import Run, load_run

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(
    small_pair: Pair, building_card_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Run, np.ndarray]:
    """A workspace with a labelled scene and a run of a part of it, and the labels."""
    folder = tmp_path_factory.mktemp("embedded") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(folder))
        with RasterSource(small_pair[1]) as source:
            grid = source.grid
        label = np.zeros(grid.shape, np.uint8)
        label[:24, :40], label[24:40, 40:60] = 3, 1
        write_cog(folder / "label.tif", label, grid, Band(names=("label",)))
        scene = Scene("place", "Flood", "The flood", "flood", "", *small_pair, label=folder / "label.tif")
        Catalog.create(workspace_folder("scenes")).add(scene)
        request = PredictRequest.checked(scene="place", model=str(building_card_path), device="cpu")
        run_id = predict(request).manifest["run_id"]
        return folder, load_run(run_id), label


def test_the_table_says_where_each_pair_lies_and_what_is_known_of_it(made):
    _, run, label = made
    table = read_table(run.embeddings)
    with rasterio.open(run.score) as file:
        stored, transform = file.read(1), file.transform
    assert len(table) == run.manifest["embeddings"]["pairs"] > 10
    assert run.manifest["embeddings"]["sha256"] == file_sha256(run.embeddings)
    places = {(row, col) for row, col in zip(table.row, table.col, strict=True)}
    whole = {
        (row, col)
        for row in range(0, 48, 16)
        for col in range(0, 160, 16)
        if stored[row : row + 16, col : col + 16].all()
    }
    assert places == whole and (0, 96) in places and (16, 96) not in places, "the hole is left out"
    with rasterio.open(run.folder / "building_probability.tif") as file:
        evidence = file.read(1)
    for number, (row, col) in enumerate(zip(table.row, table.col, strict=True)):
        roi = np.s_[row : row + 16, col : col + 16]
        assert table.score[number] == pytest.approx(decode_score(stored[roi]).mean(), abs=1e-6)
        assert table.building[number] == pytest.approx(decode_score(evidence[roi]).mean(), abs=1e-6)
        assert table.label[number] == pytest.approx((label[roi] >= 2).mean())
        assert table.built[number] == pytest.approx((label[roi] > 0).mean())
        assert (table.x[number], table.y[number]) == pytest.approx(transform * (col + 8, row + 8))
    np.testing.assert_allclose(np.linalg.norm(table.vectors["sar"].astype(np.float32), axis=1), 1, atol=2e-3)
    assert (table.lon > 19).all() and (table.lon < 21).all() and (table.lat > 41).all() and (table.lat < 42).all()
    assert set(table.events) == {"The flood"}
    assert table.threshold == run.manifest["threshold"] and read_facts(run.embeddings)["title"] == "Flood"


def test_a_table_is_read_as_it_was_written(made, tmp_path):
    table = read_table(made[1].embeddings)
    write_table(table, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == made[1].embeddings.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(made[1].embeddings.read_bytes()[:500])
    for path in (tmp_path / "cut.parquet", tmp_path / "missing.parquet"):
        with pytest.raises(InputError, match="holds no embeddings"):
            read_table(path)
        with pytest.raises(InputError, match="holds no embeddings"):
            read_facts(path)


@pytest.fixture
def bare(made, monkeypatch) -> Iterator[Run]:
    """The run as one of an earlier version: without its table, which is put back after the test."""
    folder, run, _ = made
    monkeypatch.setenv("MMCD_WORKSPACE", str(folder))
    manifest = {key: value for key, value in run.manifest.items() if key != "embeddings"}
    kept, wanted = run.embeddings.read_bytes(), (run.folder / "manifest.json").read_bytes()
    run.embeddings.unlink()
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    yield load_run(run.id)
    (run.folder / "embeddings.parquet").write_bytes(kept)
    (run.folder / "manifest.json").write_bytes(wanted)


def test_a_run_without_a_table_gets_the_same_one_later(made, bare):
    assert bare.embeddings is None
    before = file_sha256(bare.score)
    done = add_embeddings(bare, made[0] / "label.tif")
    assert file_sha256(done.embeddings) == made[1].manifest["embeddings"]["sha256"]
    assert load_run(bare.id).manifest == made[1].manifest
    assert file_sha256(bare.score) == before
    assert not (bare.folder / ".embeddings").exists()


def test_images_that_are_others_now_are_not_embedded_for_an_old_run(bare):
    changed = json.loads(json.dumps(bare.manifest))
    changed["inputs"]["post"]["sha256"] = "0" * 64
    with pytest.raises(InputError, match="is not the image of this run any more"):
        add_embeddings(Run(bare.id, bare.folder, changed), None)
    with pytest.raises(InputError, match="does not say how it was made"):
        add_embeddings(Run(bare.id, bare.folder, {"inputs": {}}), None)
    with pytest.raises(InputError, match="patch method"):
        add_embeddings(Run(bare.id, bare.folder, {"inputs": {}, "distance": {}}), None)


def test_models_and_engines_without_embeddings_say_why(card_path, optical_card_path):
    assert "compares no embeddings" in why_none(read_card(optical_card_path), False, 9)
    assert "--backend torch" in why_none(read_card(card_path), True, 9)
    assert "no whole square" in why_none(read_card(card_path), False, 0)
    assert why_none(read_card(card_path), False, 9) is None
