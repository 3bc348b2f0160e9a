"""The evidence of buildings: what the network says, in the same bytes however the work is cut, in every engine."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from mmcd.cards import read_card
from mmcd.errors import Cancelled, ModelError
from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.cog import SCORE_BAND, CogWriter
from mmcd.geo.grid import Window
from mmcd.geo.outlines import EVIDENCE_BAND
from mmcd.geo.raster import output_grid
from mmcd.inference import engine, exported
from mmcd.inference.backends import TorchBackend, open_export
from mmcd.inference.engine import Journal, plan_blocks, score_region, stored_block
from mmcd.inference.exported import ExportedModel, choose_export, list_exports
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.models import zoo
from mmcd.progress import Progress, silent
from mmcd.score import decode_score
from mmcd.services.weights import ExportRequest, export_weights

Pair = tuple[Path, Path]
Rasters = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def predictor(building_card_path: Path) -> Predictor:
    return Predictor.load(building_card_path, "cpu", "fp32")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 80 px, so that a small scene has two."""
    monkeypatch.setattr(engine, "LARGEST_BLOCK", 80)


def score(
    pair: Pair,
    predictor: Predictor,
    folder: Path,
    region: Window | None = None,
    tile: int = 160,
    progress: Progress = silent,
) -> Rasters:
    grid = output_grid(*pair)
    region = region or grid.window
    journal = Journal(folder / "journal", "key")
    bands = {"score": SCORE_BAND, "buildings": EVIDENCE_BAND}
    with PairReader(*pair, predictor.card, grid) as reader:
        writers = {
            name: CogWriter(folder / f"{name}.tif", grid.crop(region), band, partial=folder / f"{name}.part")
            for name, band in bands.items()
        }
        plan = plan_blocks(grid, region, tile)
        score_region(plan, reader, predictor, writers["score"], journal, progress, writers["buildings"])
        for writer in writers.values():
            writer.commit()
    found = {}
    for name in bands:
        with rasterio.open(folder / f"{name}.tif") as written:
            found[name] = written.read(1)
    return found


@pytest.fixture(scope="module")
def whole(small_pair: Pair, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Rasters:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "LARGEST_BLOCK", 80)
        return score(small_pair, predictor, tmp_path_factory.mktemp("whole"), tile=80)


def test_evidence_varies_and_holes_are_not_assessed(whole: Rasters) -> None:
    assert len(np.unique(whole["buildings"])) > 20
    assert (whole["buildings"] != whole["score"]).mean() > 0.5
    np.testing.assert_array_equal(whole["buildings"] == 0, whole["score"] == 0)
    assert (whole["buildings"][20:40, 100:120] == 0).all()


def test_bytes_are_the_same_for_another_tile(
    small_pair: Pair, predictor: Predictor, whole: Rasters, tmp_path: Path
) -> None:
    for name, values in score(small_pair, predictor, tmp_path, tile=10_000).items():
        np.testing.assert_array_equal(values, whole[name])


def test_a_region_is_cut_from_the_whole(small_pair: Pair, predictor: Predictor, whole: Rasters, tmp_path: Path) -> None:
    region = Window(17, 30, 40, 77)
    for name, values in score(small_pair, predictor, tmp_path, region).items():
        np.testing.assert_array_equal(values, whole[name][region.slices])


def test_an_interrupted_run_goes_on_from_its_last_tile(
    small_pair: Pair, predictor: Predictor, whole: Rasters, tmp_path: Path
) -> None:
    def stop_after_two(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        score(small_pair, predictor, tmp_path, tile=80, progress=stop_after_two)
    seen: list[int] = []
    resumed = score(small_pair, predictor, tmp_path, tile=80, progress=lambda stage, done, total: seen.append(done))
    assert seen[0] == 1, "the finished tile is not computed again"
    for name, values in resumed.items():
        np.testing.assert_array_equal(values, whole[name])


def test_it_is_the_probability_that_is_left_beside_the_background(small_pair: Pair, predictor: Predictor) -> None:
    assert predictor.marks_buildings and isinstance(predictor.backend, TorchBackend)
    classes = []
    hook = predictor.backend.model.register_forward_hook(lambda *call: classes.append(call[2].classes))
    with PairReader(*small_pair, predictor.card, output_grid(*small_pair)) as reader:
        stored = stored_block(reader.read(Window(0, 0, 32, 32).padded(predictor.halo)), predictor)
    hook.remove()
    background = (
        classes[0].softmax(dim=1)[0, 0].numpy()[predictor.halo : -predictor.halo, predictor.halo : -predictor.halo]
    )
    assert np.ptp(background) > 0.1
    np.testing.assert_allclose(decode_score(stored.buildings), 1 - background, atol=0.5 / 254 + 1e-5)


def test_a_model_of_change_alone_has_none(card_path: Path, building_card_path: Path) -> None:
    card = read_card(building_card_path)
    assert card.marks_buildings
    assert not read_card(card_path).marks_buildings
    others = {"classes": ("background", "water", "flooded", "mud")}, {"settings": {**card.settings, "classes": 3}}
    assert not any(card.model_copy(update=change).marks_buildings for change in others)
    model = zoo.load(building_card_path)[1]
    assert not Predictor(TorchBackend(model, "cpu", "fp32"), card.model_copy(update=others[0])).marks_buildings
    assert not Predictor.load(card_path, "cpu").marks_buildings


@pytest.fixture(scope="module")
def records(
    small_pair: Pair, building_card_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExportedModel]:
    """Exports of the model in single precision."""
    workspace, scenes = tmp_path_factory.mktemp("exports"), tmp_path_factory.mktemp("calibration")
    Catalog.create(scenes).add(Scene("pair", "Pair", "", "", "", *small_pair))
    words = {"model": str(building_card_path), "calibration": str(scenes), "images": 1, "precision": "fp32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(workspace))
        return {name: export_weights(ExportRequest(**words, backend=name)) for name in ("onnx", "openvino")}


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_exports_say_what_torch_says(records: dict[str, ExportedModel], building_card_path: Path, backend: str) -> None:
    rng = np.random.default_rng(0)
    pre, post = (rng.normal(size=(bands, 96, 176)).astype(np.float32) for bands in (3, 1))
    exact = TorchBackend(zoo.load(building_card_path)[1], "cpu", "fp32").run(pre, post)
    found = open_export(records[backend]).run(pre, post)
    assert records[backend].has_classes
    for answer, wanted in zip(found, exact, strict=True):
        assert answer.shape == (96, 176)
        assert np.ptp(wanted) > 1e-2
        np.testing.assert_allclose(answer, wanted, atol=5e-4)


def test_an_export_from_before_loads_and_marks_no_buildings(
    records: dict[str, ExportedModel], building_card_path: Path, workspace: Path
) -> None:
    values = records["onnx"].model_dump(mode="json")
    del values["has_classes"]
    (workspace / "exports").mkdir(parents=True)
    (workspace / "exports" / "old.json").write_text(json.dumps(values))
    (old,) = list_exports(read_card(building_card_path))
    assert not old.has_classes
    predictor = Predictor.load(building_card_path, export=old)
    assert not predictor.marks_buildings
    zeros = np.zeros((3, 32 + 2 * old.halo, 32 + 2 * old.halo), np.float32)
    valid = np.ones(zeros.shape[1:], bool)
    assert predictor.probabilities(zeros, zeros[:1], valid, valid).building is None


def test_an_export_from_before_that_openvino_cannot_run_is_made_again(
    building_card_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_card(building_card_path)
    words = {"model": card.name, "version": "0", "weights_sha256": card.sha256, "settings": card.settings}
    old = ExportedModel(**words, backend="openvino", precision="int8", files={"a.xml": "0" * 64}, halo=8, created="")
    monkeypatch.setattr(exported, "list_exports", lambda card: (old, old.model_copy(update={"backend": "onnx"})))
    monkeypatch.setattr(exported, "require_installed", lambda backend: None)
    with pytest.raises(ModelError, match=r"does not say where buildings are .* Export it again: `mmcd weights export"):
        choose_export(card, "openvino", "cpu")
    assert choose_export(card, "onnx", "cpu") is not None, "ONNX Runtime leaves the output out"


def test_auto_leaves_out_an_export_that_knows_no_buildings(
    records: dict[str, ExportedModel],
    building_card_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    card, made = read_card(building_card_path), records["openvino"].model_copy(update={"precision": "int8"})
    for has_classes, chosen in ((True, True), (False, False)):
        one = made.model_copy(update={"has_classes": has_classes})
        monkeypatch.setattr(exported, "list_exports", lambda card, one=one: (one,))
        with caplog.at_level("INFO", "mmcd"):
            assert (choose_export(card, "auto", "cpu") == one) is chosen
    assert "does not say where buildings are" in caplog.text
