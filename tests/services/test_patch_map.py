"""The sliding window through service and command, on simulated BRIGHT tiles and a checkpoint as the reference's."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from matplotlib.image import imread
from rio_cogeo.cogeo import cog_validate
from typer.testing import CliRunner

from mmcd.cards import Card, Decision, read_card, write_card
from mmcd.cli import app
from mmcd.data.bright import index_bright
from mmcd.errors import Cancelled, DataError, InputError, ModelError, UsageError
from mmcd.inference.patch_model import PatchModel, load_patch_model
from mmcd.models import zoo
from mmcd.models.siamese import ContextSiamese
from mmcd.score import decode_score, encode_score, threshold_value
from mmcd.services.inference import PredictRequest, predict
from mmcd.services.patch_map import PatchMapRequest, PatchMapResult, predict_patches
from mmcd.services.runs import list_runs

pytestmark = pytest.mark.usefixtures("workspace")
FILES = ["change_prediction.png", "distance.tif", "item.json", "manifest.json", "mask.tif", "score.tif"]
CONTEXT = 32  # a 64th of the work of 256 px


@pytest.fixture(scope="module")
def image_id(patch_tree: Path) -> str:
    """The tile with most damage."""
    return max(index_bright(patch_tree).tiles, key=lambda tile: (band(tile.label) > 1).sum()).id


def band(path: Path | None) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


OWN_CONTEXT = {"pool": "global", "trunk": "resnet18", "embedding_dim": 16, "context": CONTEXT}


def request(tree: Path, model: Path, **more: object) -> PatchMapRequest:
    return PatchMapRequest.checked(
        **{"root": tree, "model": str(model), "device": "cpu", "context_size": CONTEXT, "stride": 32, **more}
    )


def run(root: Path, model: Path, image_id: str, out: Path | None, **more: object) -> PatchMapResult:
    return predict_patches(request(root, model, image_id=image_id, out=out, **more))


@pytest.fixture(scope="module")
def made(
    patch_tree: Path, patch_checkpoint: Path, image_id: str, tmp_path_factory: pytest.TempPathFactory
) -> PatchMapResult:
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(out.parent / "workspace"))
        return run(patch_tree, patch_checkpoint, image_id, out, window="dome", power=1.5, stride=16, threshold=1.01)


def test_a_run_keeps_the_place_and_says_what_was_not_assessed(
    made: PatchMapResult, patch_tree: Path, image_id: str
) -> None:
    assert sorted(path.name for path in made.folder.iterdir()) == FILES
    tile = next(tile for tile in index_bright(patch_tree).tiles if tile.id == image_id)
    with rasterio.open(tile.post) as source:
        place = source.crs, source.transform, source.shape
    assert place[0] is not None
    for name in ("distance", "score", "mask"):
        path = made.folder / f"{name}.tif"
        assert cog_validate(path, strict=True)[0]
        with rasterio.open(path) as file:
            assert (file.crs, file.transform, file.shape) == place
    with rasterio.open(made.folder / "distance.tif") as file:
        distance = file.read(1)
        assert file.dtypes == ("float32",) and math.isnan(file.nodata)
    score, mask = band(made.folder / "score.tif"), band(made.folder / "mask.tif")
    assessed = np.isfinite(distance)
    pad = (CONTEXT - 16) // 2
    rows, cols = np.nonzero(assessed)
    assert {rows.min(), cols.min()} == {pad} and {rows.max() + 1, cols.max() + 1} == {128 - pad}
    np.testing.assert_array_equal(score, encode_score(distance / 2, assessed))
    np.testing.assert_array_equal(mask == 255, ~assessed)
    cut = threshold_value(0.505)
    np.testing.assert_array_equal(mask[assessed], score[assessed] >= cut)
    np.testing.assert_allclose(decode_score(score)[assessed] * 2, distance[assessed], atol=1 / 254)


def test_the_manifest_names_method_and_figures(made: PatchMapResult, patch_tree: Path, image_id: str) -> None:
    manifest = json.loads((made.folder / "manifest.json").read_text())
    facts = manifest["distance"]
    assert {"method": "patch", "window": "dome", "power": 1.5, "stride": 16, "threshold": 1.01}.items() <= facts.items()
    assert manifest["threshold"] == 0.505 and manifest["patches"] == 49
    assert manifest["model"]["calibration"] == "p = distance / 2, not calibrated"
    assert any("mmcd infer threshold" in warning for warning in made.warnings)
    tile = next(tile for tile in index_bright(patch_tree).tiles if tile.id == image_id)
    damaged, distance = band(tile.label) > 1, band(made.folder / "distance.tif")
    inside = np.isfinite(distance)
    assert damaged[inside].any()
    found = facts["evaluation"]
    assert [row["threshold"] for row in found["thresholds"]] == [0.8, 1.0, 1.25, 1.5]
    for row in found["thresholds"]:
        changed = (distance > row["threshold"])[inside]
        hit, union = (changed & damaged[inside]).sum(), (changed | damaged[inside]).sum()
        assert row["iou"] == pytest.approx(hit / union)
        assert row["recall"] == pytest.approx(hit / damaged[inside].sum())
        assert row["precision"] == pytest.approx(hit / changed.sum() if changed.any() else 0)
        assert row["f1"] == pytest.approx(2 * hit / (changed.sum() + damaged[inside].sum()))
    assert found["best_f1"]["f1"] == max(row["f1"] for row in found["thresholds"]) > 0
    assert found["pixels"] == inside.sum() and found["damaged_pixels"] == damaged[inside].sum()
    item = json.loads((made.folder / "item.json").read_text())
    assert {"score", "mask", "distance", "manifest"} == set(item["assets"])
    assert "best F1" in made.summary() and made.to_dict()["distance_map"].endswith("distance.tif")
    drawn = imread(made.folder / "change_prediction.png")
    assert drawn.shape[:2] == (1000, 2000) and len(np.unique(drawn[..., 1])) > 50


def test_a_region_has_the_values_of_the_whole(
    patch_tree: Path, patch_checkpoint: Path, image_id: str, tmp_path: Path
) -> None:
    whole = run(patch_tree, patch_checkpoint, image_id, tmp_path / "whole")
    with rasterio.open(whole.folder / "distance.tif") as file:
        left, bottom, right, top = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        whole_map, transform = file.read(1), file.transform
    middle = f"{left + (right - left) * 0.4},{bottom + (top - bottom) * 0.4},{right},{top}"
    part = run(patch_tree, patch_checkpoint, image_id, tmp_path / "part", region=middle)
    with rasterio.open(part.folder / "distance.tif") as file:
        window = rasterio.windows.from_bounds(*file.bounds, transform).round_lengths().round_offsets()
        assert file.width < whole_map.shape[1]
        np.testing.assert_array_equal(file.read(1), whole_map[window.toslices()])
    assert part.manifest["patches"] < whole.manifest["patches"]


def test_a_run_that_was_stopped_goes_on(
    patch_tree: Path, patch_checkpoint: Path, image_id: str, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "score patches" and done:
            raise Cancelled("stop")

    asked = request(patch_tree, patch_checkpoint, image_id=image_id, out=tmp_path / "out", batch_size=9)
    with pytest.raises(Cancelled):
        predict_patches(asked, stop)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".unfinished"]
    resumed = predict_patches(asked)
    fresh = predict_patches(asked.model_copy(update={"out": tmp_path / "fresh"}))
    assert resumed.manifest["resumed"] and not fresh.manifest["resumed"]
    for name in ("score.tif", "distance.tif"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_the_workspace_keeps_a_run_and_finds_it_again(
    patch_tree: Path, patch_checkpoint: Path, image_id: str, workspace: Path
) -> None:
    first = run(patch_tree, patch_checkpoint, image_id, None)
    again = run(patch_tree, patch_checkpoint, image_id, None, threshold=0.2)
    assert first.manifest == again.manifest and [one.id for one in list_runs()] == [first.manifest["run_id"]]
    other = run(patch_tree, patch_checkpoint, image_id, None, window="dome")
    assert other.manifest["run_id"] != first.manifest["run_id"]


def test_a_dense_run_into_the_same_folder_leaves_nothing_of_the_patches(
    made: PatchMapResult, small_pair: tuple[Path, Path], card_path: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made.folder, tmp_path / "out"))
    predict(PredictRequest.checked(pre=small_pair[0], post=small_pair[1], model=str(card_path), out=out, device="cpu"))
    dense = ["embeddings.parquet", "item.json", "manifest.json", "mask.tif", "score.tif"]
    assert sorted(path.name for path in out.iterdir()) == dense


def test_two_files_without_a_label_are_scored_and_not_measured(
    patch_tree: Path, patch_checkpoint: Path, image_id: str, tmp_path: Path
) -> None:
    tile = next(tile for tile in index_bright(patch_tree).tiles if tile.id == image_id)
    words = {"model": str(patch_checkpoint), "device": "cpu", "context_size": CONTEXT, "stride": 32}
    asked = PatchMapRequest.checked(pre=tile.pre, post=tile.post, out=tmp_path / "out", **words)
    result = predict_patches(asked)
    assert result.manifest["distance"]["evaluation"] is None and "best F1" not in result.summary()
    assert (tmp_path / "out" / "change_prediction.png").exists()
    labelled = predict_patches(asked.model_copy(update={"label": tile.label, "out": tmp_path / "labelled"}))
    assert labelled.manifest["distance"]["evaluation"]["pixels"] > 0
    intact = tmp_path / "intact.tif"
    with rasterio.open(tile.label) as source, rasterio.open(intact, "w", **source.profile) as target:
        target.write(np.minimum(source.read(), 1))
    calm = predict_patches(asked.model_copy(update={"label": intact, "out": tmp_path / "calm"}))
    assert any("shows no damage" in warning for warning in calm.warnings)


def card_of(network: ContextSiamese, folder: Path, like: Path, settings: dict[str, object]) -> Path:
    """Write a card of a patch network beside its weights."""
    branch = read_card(like).pre
    changes = {
        "name": "tiny-patch",
        "settings": settings,
        "weights": "patch.safetensors",
        "sha256": zoo.save(network, folder / "patch.safetensors"),
        "pre": branch.model_copy(update={"bands": ("red", "green", "blue"), "unit": "uint8"}),
        "decision": Decision(head_weight=0.0, cosine_weight=4.0, intercept=-3.0, threshold=0.6),
    }
    card: Card = read_card(like).model_copy(update=changes)
    card = card.model_copy(update={"gsd": card.gsd.model_copy(update={"nominal": 1.0, "min": 0.5, "max": 2.0})})
    write_card(card, folder / "patch.toml")
    return folder / "patch.toml"


def test_a_card_brings_its_own_calibration_and_threshold(
    patch_tree: Path, patch_checkpoint: Path, card_path: Path, image_id: str, tmp_path: Path
) -> None:
    network = load_patch_model(str(patch_checkpoint)).network
    card = card_of(network, tmp_path, card_path, OWN_CONTEXT)
    result = run(patch_tree, card, image_id, tmp_path / "out", context_size=None)
    assert result.manifest["distance"]["context_size"] == CONTEXT
    assert result.manifest["threshold"] == pytest.approx(0.6)
    cut = result.manifest["distance"]["threshold"]
    assert 1 / (1 + math.exp(-(4 * cut - 3))) == pytest.approx(0.6)
    distance = band(tmp_path / "out" / "distance.tif")
    expected = encode_score(1 / (1 + np.exp(3 - 4 * np.nan_to_num(distance))), np.isfinite(distance))
    difference = expected.astype(int) - band(tmp_path / "out" / "score.tif")
    assert np.abs(difference).max() <= 1 and (difference == 0).mean() > 0.99
    assert not any("calibration" in warning for warning in result.warnings)


def test_what_a_card_cannot_say_is_an_error(patch_checkpoint: Path, card_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tiny is a dense model, not a patch model"):
        load_patch_model(str(card_path))
    model = load_patch_model(str(patch_checkpoint))
    settings = {"pool": "global", "trunk": "resnet18", "embedding_dim": 16}
    card = read_card(card_of(model.network, tmp_path, card_path, settings))
    backwards = card.decision.model_copy(update={"cosine_weight": -1.0})
    wrong = PatchModel("x", "1", "0", model.network, card.model_copy(update={"decision": backwards}))
    with pytest.raises(ModelError, match="does not grow with the distance"):
        _ = wrong.distance_threshold


def test_requests_that_cannot_be_carried_out_are_refused(
    patch_tree: Path, patch_checkpoint: Path, image_id: str, tmp_path: Path
) -> None:
    for words in ({}, {"pre": Path("a")}, {"scene": "s", "image_id": image_id}, {"root": None, "image_id": image_id}):
        with pytest.raises(UsageError, match="Exactly one pair"):
            request(patch_tree, patch_checkpoint, **words)
    with pytest.raises(UsageError, match="even number"):
        run(patch_tree, patch_checkpoint, image_id, tmp_path / "out", context_size=65)
    with pytest.raises(UsageError, match="--roi-size 2 has only corners"):
        run(patch_tree, patch_checkpoint, image_id, tmp_path / "out", roi_size=2, window="dome")
    with pytest.raises(DataError, match="There is no tile nowhere-flood_00000001"):
        run(patch_tree, patch_checkpoint, "nowhere-flood_00000001", tmp_path / "out")
    with pytest.raises(DataError, match="the val folder"):
        run(patch_tree, patch_checkpoint, image_id, tmp_path / "out", split="val")
    with pytest.raises(InputError, match="smaller than a context of 256 px"):
        run(patch_tree, patch_checkpoint, image_id, tmp_path / "out", context_size=256)
    assert not (tmp_path / "out").exists()


def command(*words: object) -> list[str]:
    return ["infer", "predict", *map(str, words), "--device", "cpu"]


def test_the_command_runs_the_method_and_refuses_options_of_the_other(
    patch_tree: Path, patch_checkpoint: Path, image_id: str, tmp_path: Path
) -> None:
    runner = CliRunner()
    tile = ("--root", patch_tree, "--image-id", image_id, "--out", tmp_path / "out")
    patch = ("--model", patch_checkpoint, "--method", "patch", "--context-size", CONTEXT)
    done = runner.invoke(app, command(*tile, *patch, "--stride", 32, "--window", "dome", "--power", 3, "--json"))
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["distance"]["window"] == "dome" and facts["distance"]["power"] == 3 and Path(facts["score"]).exists()
    shown = runner.invoke(app, command(*tile, *patch, "--stride", 32))
    assert shown.exit_code == 0 and "best F1" in shown.output and "no calibration" in shown.output
    for words, said in (
        ((*tile, *patch, "--tile", 512, "--align"), "Only --method dense takes --tile, --align."),
        ((*tile, "--stride", 8), "Only --method patch takes --stride, --root, --image-id."),
        ((*tile, "--method", "fast"), "not one of dense and patch"),
        ((*tile, "--method", "patch"), "needs --model"),
        ((tile[1], tile[1], "--out", "x", "--model", patch_checkpoint), "is a checkpoint of a patch network"),
        ((*tile, *patch, "--threshold", 2.5), "--threshold"),
    ):
        refused = runner.invoke(app, command(*words))
        assert isinstance(refused.exception, UsageError) and said in str(refused.exception), words
