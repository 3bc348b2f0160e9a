"""Runs of a model that marks buildings: one more raster, in the same bytes for every tile, and buildings from it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from mmcd.cards import file_sha256, read_card
from mmcd.errors import Cancelled, StorageError, UsageError
from mmcd.geo.cog import CogWriter
from mmcd.geo.raster import output_grid
from mmcd.inference import engine
from mmcd.inference.exported import ExportedModel
from mmcd.services import inference
from mmcd.services.buildings import buildings_of, outline_source
from mmcd.services.inference import PredictRequest, RunResult, predict
from mmcd.services.run_output import publish
from mmcd.services.runs import BYTES_A_PIXEL, RUN_FILES, bytes_a_pixel, load_run

Pair = tuple[Path, Path]
pytestmark = pytest.mark.usefixtures("workspace")
RASTERS = ("score", "building_probability")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 80 px, so that the small scene has two."""
    monkeypatch.setattr(engine, "LARGEST_BLOCK", 80)


@pytest.fixture(scope="module")
def whole(small_pair: Pair, building_card_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run of the whole scene, block by block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "LARGEST_BLOCK", 80)
        patch.setenv("MMCD_WORKSPACE", str(tmp_path_factory.mktemp("workspace")))
        out = tmp_path_factory.mktemp("runs") / "whole"
        return predict(request(small_pair, building_card_path, out=out, tile=80))


def request(pair: Pair, card_path: Path, **more: object) -> PredictRequest:
    return PredictRequest.checked(pre=pair[0], post=pair[1], model=str(card_path), device="cpu", **more)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def test_a_run_writes_the_evidence_beside_the_score(whole: RunResult) -> None:
    names = ["building_probability.tif", "embeddings.parquet", "item.json", "manifest.json", "mask.tif", "score.tif"]
    assert sorted(path.name for path in whole.folder.iterdir()) == names
    path = whole.folder / "building_probability.tif"
    valid, errors, _ = cog_validate(path, strict=True)
    assert valid, errors
    with rasterio.open(path) as file, rasterio.open(whole.folder / "score.tif") as score:
        assert (file.nodata, file.scales[0]) == (0, pytest.approx(1 / 254))
        assert (file.crs, file.transform, file.shape) == (score.crs, score.transform, score.shape)
        assert file.descriptions == ("building probability",)
        np.testing.assert_array_equal(file.read(1) == 0, score.read(1) == 0)
    facts = json.loads((whole.folder / "manifest.json").read_text())["evidence"]
    assert (facts["file"], facts["sha256"], facts["origin"]) == ("building_probability.tif", file_sha256(path), [0, 0])
    assert facts["classes"] == ["background", "intact", "damaged", "destroyed"]
    assert whole.to_dict()["building_probability"] == str(path)
    item = pystac.Item.from_file(whole.folder / "item.json")
    assert (whole.folder / item.assets["building_probability"].href).exists()


def test_tile_and_region_change_no_byte(
    small_pair: Pair, building_card_path: Path, whole: RunResult, tmp_path: Path
) -> None:
    again = predict(request(small_pair, building_card_path, out=tmp_path / "again"))
    for name in RASTERS:
        np.testing.assert_array_equal(read(again.folder / f"{name}.tif"), read(whole.folder / f"{name}.tif"))
    region = "19.8060,41.5420,19.8130,41.5450"
    part = predict(request(small_pair, building_card_path, out=tmp_path / "part", region=region))
    row, col = part.manifest["evidence"]["origin"]
    assert row > 0 and col > 0
    for name in RASTERS:
        found = read(part.folder / f"{name}.tif")
        height, width = found.shape
        np.testing.assert_array_equal(found, read(whole.folder / f"{name}.tif")[row : row + height, col : col + width])


@pytest.mark.parametrize("when", ["score", "between the two rasters"])
def test_a_stopped_run_goes_on_with_both_rasters(
    small_pair: Pair,
    building_card_path: Path,
    whole: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == when and done == 2:
            raise Cancelled("stop")

    def commit(writer: CogWriter) -> Path:
        if writer.path.name == "score.tif":
            raise Cancelled("stop")
        return whole_commit(writer)

    whole_commit = CogWriter.commit
    out = tmp_path / "out"
    asked = request(small_pair, building_card_path, out=out, tile=80)
    with monkeypatch.context() as patch, pytest.raises(Cancelled):
        if when != "score":
            patch.setattr(CogWriter, "commit", commit)
        predict(asked, stop)
    assert [path.name for path in out.iterdir()] == [".unfinished"]
    assert (out / ".unfinished" / "building_probability.tif").exists() is (when != "score")
    resumed = predict(asked)
    assert resumed.manifest["resumed"]
    for name in RASTERS:
        np.testing.assert_array_equal(read(out / f"{name}.tif"), read(whole.folder / f"{name}.tif"))


def test_a_working_file_that_is_gone_begins_the_run_anew(
    small_pair: Pair, building_card_path: Path, whole: RunResult, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "score" and done == 2:
            raise Cancelled("stop")

    out = tmp_path / "out"
    asked = request(small_pair, building_card_path, out=out, tile=80)
    with pytest.raises(Cancelled):
        predict(asked, stop)
    (out / ".unfinished" / "building_probability.part").unlink()
    fresh = predict(asked)
    assert not fresh.manifest["resumed"]
    np.testing.assert_array_equal(
        read(out / "building_probability.tif"), read(whole.folder / "building_probability.tif")
    )


def test_a_model_of_change_alone_writes_nothing_more(small_pair: Pair, card_path: Path, tmp_path: Path) -> None:
    result = predict(request(small_pair, card_path, out=tmp_path / "out"))
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "embeddings.parquet",
        "item.json",
        "manifest.json",
        "mask.tif",
        "score.tif",
    ]
    assert "evidence" not in result.manifest
    assert "building_probability" not in result.to_dict()
    assert set(pystac.Item.from_file(result.folder / "item.json").assets) == {"score", "mask", "manifest"}


def test_a_later_run_into_the_same_folder_leaves_no_evidence_of_another_model(
    small_pair: Pair, card_path: Path, whole: RunResult, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole.folder, out)
    predict(request(small_pair, card_path, out=out))
    assert not (out / "building_probability.tif").exists()


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("building_probability.tif", None),
        ("building_probability.tif", '{"run_id": "0"}'),
        ("score.tif", "null"),
        ("manifest.json", "7"),
        ("manifest.json", "not JSON"),
        ("item.json", None),
    ],
)
def test_files_that_no_run_wrote_are_not_overwritten(
    small_pair: Pair, building_card_path: Path, tmp_path: Path, name: str, manifest: str | None
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("not of a run")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    before = {path.name: path.read_text() for path in out.iterdir()}
    with pytest.raises(UsageError, match=r"is there already and is of no run\. Choose another --out"):
        predict(request(small_pair, building_card_path, out=out))
    assert {path.name: path.read_text() for path in out.iterdir()} == before


def unpublished(folder: Path) -> Path:
    """Return a folder with the results of a model of change alone, before they get their final names."""
    work = folder / ".unfinished"
    work.mkdir(parents=True)
    for name in RUN_FILES:
        (work / name).write_text(name)
    return work


def test_a_raster_that_the_model_does_not_write_stays_another_s(
    small_pair: Pair, card_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = unpublished(out)
    (out / "building_probability.tif").write_text("not of a run")
    inference._spare_foreign_files(out, inference._resolve(request(small_pair, card_path)))
    (out / "manifest.json").write_text("null")
    publish(work, out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*RUN_FILES, "building_probability.tif"])
    assert (out / "building_probability.tif").read_text() == "not of a run"


def test_a_run_that_stopped_between_two_of_its_final_names_may_go_on(
    small_pair: Pair, card_path: Path, tmp_path: Path
) -> None:
    out, job = tmp_path / "out", inference._resolve(request(small_pair, card_path))
    work = unpublished(out)
    (work / "item.json").unlink()
    with pytest.raises(StorageError, match="cannot be written"):
        publish(work, out)
    assert (out / "score.tif").exists() and not (out / "manifest.json").exists()
    inference._spare_foreign_files(out, job)
    shutil.rmtree(work)
    with pytest.raises(UsageError, match=r"score\.tif is there already"):
        inference._spare_foreign_files(out, job)


def test_evidence_is_part_of_what_a_run_is_known_by_and_needs_disk(
    small_pair: Pair, building_card_path: Path, tmp_path: Path
) -> None:
    asked = request(small_pair, building_card_path, out=tmp_path)
    job = inference._resolve(asked)
    facts = inference._input_facts(job)
    words = {
        "model": "tiny-buildings",
        "version": "0",
        "weights_sha256": job.card.sha256,
        "settings": job.card.settings,
    }
    export = ExportedModel(**words, backend="onnx", precision="fp32", files={"a": "0" * 64}, halo=128, created="")
    keys = [
        inference._content_key(replace(job, export=one), facts, asked)
        for one in (export, export.model_copy(update={"has_classes": True}))
    ]
    assert keys[0] != keys[1]
    assert inference._building_notes(replace(job, export=export))[0].startswith("This export of the model")
    assert not inference._building_notes(job)
    assert bytes_a_pixel(read_card(building_card_path).marks_buildings) > bytes_a_pixel(False) == BYTES_A_PIXEL


def test_buildings_come_from_the_model_where_there_is_no_file(
    small_pair: Pair, building_card_path: Path, whole: RunResult, workspace: Path
) -> None:
    run = load_run(predict(request(small_pair, building_card_path)).manifest["run_id"])
    source = outline_source(run)
    assert source is not None and (source.origin, source.path) == ("model", run.folder / "building_probability.tif")
    counts = buildings_of(run)
    assert len(counts) > 0
    evidence = read(run.folder / "building_probability.tif")
    for name in counts.ids:
        row, col = (int(part) for part in name.split("-")[1:])
        assert evidence[row, col] >= 128, "an id names a pixel of its building"
    grid = output_grid(*small_pair)
    assert counts.pixel_area_m2 == grid.pixel_area_m2 == 100
    (kept,) = (run.folder / "buildings").glob("*.gpkg")
    assert geopandas.read_file(kept)["id"].tolist() == list(counts.ids)
    shutil.rmtree(run.folder / "buildings")
    assert buildings_of(run).ids == counts.ids
