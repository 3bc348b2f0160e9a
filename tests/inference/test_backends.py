"""Exports answer as torch does, whole scenes have the same bytes for every tile, and the right engine is chosen."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from mmcd.cards import find_card, read_card
from mmcd.cli import app
from mmcd.data.ombria import MAIN, index_ombria, read_tile
from mmcd.errors import ConfigError, DataError, ModelError, StorageError, UsageError
from mmcd.evaluation import ScoreCounts, average_precision
from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.raster import output_grid
from mmcd.inference import convert, exported
from mmcd.inference.backends import OpenVinoBackend, TorchBackend, open_export
from mmcd.inference.engine import score_whole
from mmcd.inference.exported import ExportedModel, choose_export, list_exports
from mmcd.inference.pair import PairReader
from mmcd.inference.predictor import Predictor
from mmcd.models import zoo
from mmcd.score import encode_score
from mmcd.services.inference import PredictRequest, predict
from mmcd.services.weights import ExportRequest, export_weights
from mmcd.simulate import SceneSpec, simulate_scene

Pair = tuple[Path, Path]
DAMAGE = "damage-vhr-sim"
SIDE = 256


@pytest.fixture(scope="module")
def made(card_path: Path, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with all kinds of exports of the untrained model and the shipped damage model in 8 bit."""
    workspace = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(workspace))
        scenes = tmp_path_factory.mktemp("calibration")
        Catalog.create(scenes).add(Scene("pair", "Pair", "", "", "", *pair))
        words = {"model": str(card_path), "calibration": str(scenes), "images": 1}
        for backend, precision in (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "int8")):
            export_weights(ExportRequest(**words, backend=backend, precision=precision))
        export_weights(ExportRequest(model=DAMAGE, backend="openvino", images=4))
    return workspace


@pytest.fixture
def exports(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMCD_WORKSPACE", str(made))
    return made


def export(card_path: Path, backend: str, precision: str) -> ExportedModel:
    card = read_card(card_path)
    return next(one for one in list_exports(card) if (one.backend, one.precision) == (backend, precision))


@pytest.mark.usefixtures("exports")
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (96, 176)])
def test_single_precision_equals_torch(card_path: Path, backend: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    pre, post = (rng.normal(size=(bands, *shape)).astype(np.float32) for bands in (3, 1))
    exact = TorchBackend(zoo.load(card_path)[1], "cpu", "fp32").run(pre, post)
    answer = open_export(export(card_path, backend, "fp32")).run(pre, post)
    assert answer.building is None and exact.building is None
    for found, wanted in zip(answer[:2], exact[:2], strict=True):
        assert found.shape == shape
        assert np.ptp(wanted) > 1e-3
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def damage_scenes() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Simulated scenes that neither training nor calibration saw, one kind of event each."""
    events = ("earthquake", "explosion", "hurricane", "flood")
    scenes = [simulate_scene(SceneSpec(size=512, seed=90_000 + n, event=event)) for n, event in enumerate(events)]
    return [(scene.pre, scene.post, scene.label >= 2) for scene in scenes]


def pooled_precision(predictor: Predictor, scenes: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """Return the average precision of stored scores over the inner parts of 8-bit scenes."""
    counts, inner = ScoreCounts.none(), slice(predictor.halo, -predictor.halo)
    for pre, post, changed in scenes:
        valid = np.ones(changed.shape, bool)
        values = (np.divide(image, 255, dtype=np.float32) for image in (pre, post))
        score = encode_score(predictor.probability(*values, valid, valid), valid[inner, inner])
        counts += ScoreCounts.of(score, changed[inner, inner])
    return average_precision(counts)


@pytest.mark.usefixtures("exports")
def test_eight_bit_keeps_the_precision_of_the_damage_model() -> None:
    path, card = find_card(DAMAGE)
    scenes = damage_scenes()
    exact = pooled_precision(Predictor.load(path, "cpu", "fp32"), scenes)
    quantised = Predictor.load(path, export=choose_export(card, "openvino"))
    assert quantised.arithmetic.dtype == "int8"
    assert exact > 0.4, "the comparison means something only where the model finds damage"
    assert pooled_precision(quantised, scenes) >= 0.995 * exact


@pytest.mark.usefixtures("exports")
@pytest.mark.parametrize(("backend", "precision"), [("onnx", "fp32"), ("openvino", "int8")])
def test_bytes_are_the_same_for_every_tile(
    pair: Pair, card_path: Path, tmp_path: Path, backend: str, precision: str
) -> None:
    scores = []
    for tile in (512, 4096):
        request = PredictRequest.checked(
            pre=pair[0],
            post=pair[1],
            model=str(card_path),
            out=tmp_path / str(tile),
            tile=tile,
            backend=backend,
            precision="fp32" if precision == "fp32" else "auto",
        )
        result = predict(request)
        with rasterio.open(result.folder / "score.tif") as file:
            scores.append(file.read(1))
    np.testing.assert_array_equal(*scores)
    assert len(np.unique(scores[0])) > 20
    arithmetic = result.manifest["arithmetic"]
    assert arithmetic["backend"].startswith({"onnx": "onnxruntime ", "openvino": "openvino "}[backend])
    assert arithmetic["export"] == export(card_path, backend, precision).sha256
    assert arithmetic["threads"] >= 1


def test_another_engine_is_another_run(pair: Pair, card_path: Path, exports: Path) -> None:
    region = "19.82,41.50,19.83,41.51"
    asked = {"pre": pair[0], "post": pair[1], "model": str(card_path), "region": region, "device": "cpu"}
    ids = {
        name: predict(PredictRequest.checked(**asked, backend=name)).manifest["run_id"] for name in ("auto", "torch")
    }
    assert ids["auto"] != ids["torch"]
    assert predict(PredictRequest.checked(**asked, backend="openvino")).manifest["run_id"] == ids["auto"]


@pytest.mark.usefixtures("exports")
def test_auto_takes_eight_bit_on_the_processor_and_nothing_else(card_path: Path) -> None:
    card = read_card(card_path)
    assert choose_export(card, "auto", "cpu") == export(card_path, "openvino", "int8")
    assert choose_export(card, "auto", "cuda") is None
    assert choose_export(card, "auto", "cpu", "bf16") is None
    assert choose_export(card, "torch") is None
    assert choose_export(card, "onnx", "cpu") == export(card_path, "onnx", "fp32")


@pytest.mark.usefixtures("exports")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calibration": {"stand_in": True}}, "stand-in bands"),
        ({"files": {"gone.xml": "0" * 64}}, "gone.xml is missing"),
    ],
)
def test_auto_leaves_out_what_is_unsound_and_says_so(
    card_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, object],
    said: str,
) -> None:
    unsound = export(card_path, "openvino", "int8").model_copy(update=changes)
    monkeypatch.setattr(exported, "list_exports", lambda card: (unsound,))
    with caplog.at_level("INFO", "mmcd"):
        assert choose_export(read_card(card_path), "auto", "cpu") is None
    assert said in caplog.text
    assert choose_export(read_card(card_path), "openvino", "cpu") == unsound


def test_a_full_disk_leaves_the_export_before_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {tmp_path / "network.xml": b"graph", tmp_path / "network.bin": b"weights"}
    for path, content in before.items():
        path.write_bytes(content)

    def fill(network: bytes, graph: Path, weights: Path) -> None:
        weights.write_bytes(network)
        raise RuntimeError("basic_ios::clear: iostream error")

    runtime = SimpleNamespace(Core=lambda: SimpleNamespace(read_model=lambda graph: graph), serialize=fill)
    monkeypatch.setattr(convert, "import_openvino", lambda: runtime)
    with pytest.raises(StorageError, match="disk may be full"):
        convert._write_openvino(b"half", "fp32", tmp_path / "network.xml", (), lambda *_: None)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("exports")
def test_what_a_backend_cannot_do_is_said(card_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = read_card(card_path)
    with pytest.raises(ConfigError, match="runs on the processor, not on cuda"):
        choose_export(card, "openvino", "cuda")
    with pytest.raises(ConfigError, match="not in bf16"):
        choose_export(card, "onnx", "cpu", "bf16")
    monkeypatch.setitem(exported.RUNTIMES, "openvino", "no_such_runtime")
    assert choose_export(card, "auto", "cpu") is None
    with pytest.raises(ConfigError, match=r"is not installed\. Install it with `pip install 'mmcd\[fast\]'`"):
        choose_export(card, "openvino")


@pytest.mark.usefixtures("workspace")
def test_a_model_without_an_export_names_the_command(card_path: Path) -> None:
    card = read_card(card_path)
    assert choose_export(card, "auto", "cpu") is None
    with pytest.raises(ModelError, match="mmcd weights export tiny --backend openvino"):
        choose_export(card, "openvino")


@pytest.mark.usefixtures("exports")
def test_an_export_belongs_to_one_set_of_weights(card_path: Path) -> None:
    card = read_card(card_path)
    assert len(list_exports(card)) == 3
    assert list_exports(card.model_copy(update={"sha256": "0" * 64})) == ()
    assert list_exports(card.model_copy(update={"settings": {"dilated": True}})) == ()


def test_a_changed_or_missing_file_is_never_run(card_path: Path, exports: Path, tmp_path: Path) -> None:
    record = export(card_path, "openvino", "int8")
    copy = tmp_path / "network.bin"
    weights = Path(list(record.files)[1])
    copy.write_bytes(weights.read_bytes()[:-1] + b"x")
    changed = record.model_copy(
        update={"files": {str(record.path): record.files[str(record.path)], str(copy): "0" * 64}}
    )
    with pytest.raises(ModelError, match=r"network\.bin was changed.*mmcd weights export tiny --backend openvino"):
        OpenVinoBackend(changed)
    copy.unlink()
    with pytest.raises(ModelError, match="is missing"):
        OpenVinoBackend(changed)


def test_an_export_needs_neither_torch_nor_reports_its_use(card_path: Path, exports: Path) -> None:
    script = f"""
import sys
from pathlib import Path
import numpy as np
from mmcd.cards import read_card
from mmcd.inference.exported import choose_export
from mmcd.inference.predictor import Predictor
path = Path({str(card_path)!r})
predictor = Predictor.load(path, export=choose_export(read_card(path), "openvino"))
valid = np.ones((320, 320), bool)
image = np.random.default_rng(0).random((3, 320, 320), np.float32)
print(predictor.probability(image, image[:1], valid, valid).shape)
print([name for name in ("torch", "nncf", "openvino_telemetry") if sys.modules.get(name)])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["(64, 64)", "[]"], done.stderr


def test_a_file_elsewhere_is_found_and_must_be_named_as_its_runtime_wants(
    card_path: Path, workspace: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"openvino wants a file \.xml"):
        export_weights(ExportRequest(model=str(card_path), backend="openvino", out=tmp_path / "network.onnx"))
    options = ["--backend", "onnx", "--out", str(tmp_path / "network.onnx"), "--images", "1", "--json"]
    done = CliRunner().invoke(app, ["weights", "export", str(card_path), *options])
    answer = json.loads(done.stdout)
    assert answer["path"] == str(tmp_path / "network.onnx")
    assert answer["agreement"]["max"] < 1e-4
    record = choose_export(read_card(card_path), "onnx")
    assert record is not None
    assert record.path == tmp_path / "network.onnx"
    record.path.unlink()
    assert list_exports(read_card(card_path)) == ()


def test_an_empty_catalog_calibrates_nothing(card_path: Path, workspace: Path, tmp_path: Path) -> None:
    Catalog.create(tmp_path / "scenes")
    request = ExportRequest(model=str(card_path), backend="openvino", calibration=str(tmp_path / "scenes"), images=1)
    with pytest.raises(DataError, match="holds no scene"):
        export_weights(request)


@pytest.mark.real_data
def test_eight_bit_keeps_the_precision_of_the_flood_model(shared_data: Path, workspace: Path) -> None:
    """Calibrated on some tiles of the main set, compared on others."""
    root = shared_data / "ombria"
    export_weights(ExportRequest(model="flood-s2s1", backend="openvino", calibration=str(root), images=8))
    path, card = find_card("flood-s2s1")
    engines = Predictor.load(path, "cpu", "fp32"), Predictor.load(path, export=choose_export(card, "openvino"))
    counts = [ScoreCounts.none(), ScoreCounts.none()]
    for tile in [tile for tile in index_ombria(root).tiles if tile.event == MAIN][5::60]:
        with PairReader(tile.pre, tile.post, card, output_grid(tile.pre, tile.post)) as reader:
            for number, engine in enumerate(engines):
                counts[number] += ScoreCounts.of(score_whole(reader, engine), read_tile(tile).changed)
    exact, quantised = map(average_precision, counts)
    assert exact > 0.5
    assert quantised >= 0.995 * exact
