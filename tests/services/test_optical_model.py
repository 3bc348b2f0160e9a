"""Two optical images: their own model is chosen, runs like any other, and is never offered for radar."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from mmcd.cards import list_cards, read_card
from mmcd.cli import app
from mmcd.errors import ModelError, UsageError
from mmcd.geo.check import check_pair
from mmcd.inference import engine
from mmcd.models import zoo
from mmcd.progress import silent
from mmcd.services import model_choice, weights
from mmcd.services.estimates import estimate_run, flop_a_pixel
from mmcd.services.inference import PredictRequest, predict
from mmcd.services.model_choice import choose_model
from mmcd.services.scenes import AddSceneRequest, add_scene

Pair = tuple[Path, Path]
pytestmark = pytest.mark.usefixtures("workspace")


@pytest.fixture
def models(optical_card_path: Path, card_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of floods and one of two optical images, and no others."""
    cards = [(path, read_card(path)) for path in (card_path, optical_card_path)]
    monkeypatch.setattr(model_choice, "list_cards", lambda: cards)


def resampled(path: Path, gsd: float, folder: Path) -> Path:
    """Return a copy of an image that says it has another pixel size."""
    with rasterio.open(path) as file:
        values, profile, names = file.read(), file.profile, file.descriptions
    profile = {"driver": "GTiff", **{name: profile[name] for name in ("count", "height", "width", "dtype", "crs")}}
    folder.mkdir(exist_ok=True)
    with rasterio.open(folder / path.name, "w", transform=Affine(gsd, 0, 4e5, 0, -gsd, 4.6e6), **profile) as file:
        file.write(values)
        file.descriptions = names
    return folder / path.name


@pytest.mark.usefixtures("models")
def test_two_optical_images_get_their_own_model_without_a_warning(optical_pair: Pair) -> None:
    choice = choose_model(*optical_pair)
    assert choice.card.name == "tiny-optical"
    assert choice.reason == "tiny-optical fits by bands, GSD and sensor, of 2 models"
    assert (choice.warnings, choice.substitute) == ((), False)


@pytest.mark.usefixtures("models")
def test_another_pixel_size_is_the_reason_against_it(optical_pair: Pair, tmp_path: Path) -> None:
    coarse = [resampled(path, 4.0, tmp_path / "coarse") for path in optical_pair]
    choice = choose_model(*coarse)
    assert "nearest" in choice.reason
    assert choice.warnings == ("The pixel size is 4 m; tiny-optical is for 0.3–1 m.",)


@pytest.mark.usefixtures("models")
def test_radar_after_the_event_never_gets_it(
    pair: Pair, optical_pair: Pair, optical_card_path: Path, tmp_path: Path
) -> None:
    assert choose_model(*pair).card.name == "tiny"
    radar = tmp_path / "three-polarisations.tif"
    with rasterio.open(optical_pair[1]) as file:
        values, profile = file.read().astype(np.float32), file.profile
    profile = {name: profile[name] for name in ("count", "height", "width", "crs", "transform")}
    with rasterio.open(radar, "w", driver="GTiff", dtype="float32", **profile) as file:
        file.write(values)
        file.update_tags(TIFFTAG_IMAGEDESCRIPTION="Capella SAR")
    with pytest.raises(ModelError, match="The image after looks like radar; tiny-optical wants optical"):
        choose_model(optical_pair[0], radar, str(optical_card_path))


def test_a_run_says_what_it_compared_and_is_the_same_for_every_tile(
    optical_pair: Pair, optical_card_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LARGEST_BLOCK", 112)
    scores = []
    for tile in ("16", "4096"):
        out = tmp_path / tile
        words = ["infer", "predict", *map(str, optical_pair), "--model", str(optical_card_path), "--out", str(out)]
        done = CliRunner().invoke(app, [*words, "--tile", tile, "--device", "cpu", "--json"])
        assert done.exit_code == 0, done.output
        scores.append((out / "score.tif").read_bytes())
    assert scores[0] == scores[1]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["model"]["name"] == "tiny-optical"
    assert manifest["block"] == {"size": 112, "halo": 128, "count": 4}
    assert manifest["warnings"] == []
    assert json.loads((out / "item.json").read_text())["properties"]["title"] == "Change between two optical images"
    with rasterio.open(out / "score.tif") as file:
        assert (file.read(1)[70:90, 100:130] == 0).all()


def test_aligning_is_refused_before_anything_is_read(optical_pair: Pair, optical_card_path: Path) -> None:
    request = PredictRequest.checked(
        pre=optical_pair[0], post=optical_pair[1], model=str(optical_card_path), align=True
    )
    with pytest.raises(UsageError, match="tiny-optical has no embeddings to align with"):
        predict(request)


def test_two_optical_images_are_added_as_a_scene(optical_pair: Pair, optical_card_path: Path) -> None:
    added = add_scene(AddSceneRequest(id="growth", pre=str(optical_pair[0]), post=str(optical_pair[1])))
    found = {finding.code: finding for finding in added.report.findings}
    assert "swapped" not in found
    assert found["both_optical"].severity == "note"
    assert "model of two optical images" in found["both_optical"].action
    estimate = estimate_run(read_card(optical_card_path), added.scene, adapt=True)
    assert (estimate.pixels, estimate.runs) == (150 * 200, 0)
    assert estimate.seconds > 0


def test_an_offset_between_optical_images_is_not_put_down_to_radar(optical_pair: Pair, tmp_path: Path) -> None:
    moved = tmp_path / "moved.tif"
    with rasterio.open(optical_pair[0]) as file:
        values, profile, names = file.read(), file.profile, file.descriptions
    place = profile["transform"] @ Affine.translation(4, 0)
    profile = {"driver": "GTiff", **{name: profile[name] for name in ("count", "height", "width", "dtype", "crs")}}
    with rasterio.open(moved, "w", transform=place, **profile) as file:
        file.write(values)
        file.descriptions = names
    (offset,) = [one for one in check_pair(optical_pair[0], moved).findings if one.code == "offset"]
    assert offset.severity == "warn"
    assert "viewing angle" in offset.action and "Radar" not in offset.action


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({"trunk": "resnet18"}, 0.01),
        ({}, 0.01),
        ({"trunk": "swin_t"}, 0.01),
        ({"trunk": "resnet18", "levels": 4, "width": 0.5}, 0.02),
        ({"trunk": "resnet34", "levels": 3, "fusion": "absdiff"}, 0.05),
        ({"trunk": "resnet18", "fusion": "cross_attention"}, 0.2),
        ({"trunk": "resnet34", "post_trunk": "convnext_tiny", "fusion": "absdiff"}, 0.15),
    ],
)
def test_the_work_a_pixel_is_about_what_torch_counts(
    optical_card_path: Path, settings: dict[str, object], apart: float
) -> None:
    card = read_card(optical_card_path).model_copy(update={"settings": settings})
    with torch.device("meta"):
        model, image = zoo.build("fusion_unet", 3, 3, settings).eval(), torch.zeros(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image, image)
    assert flop_a_pixel(card) == pytest.approx(counter.get_total_flops() / 224**2, rel=apart)


def test_a_card_says_whether_its_network_has_embeddings() -> None:
    for _, card in list_cards():
        model = zoo.build(card.architecture, len(card.pre.bands), len(card.post.bands), card.settings)
        assert card.has_embeddings == callable(getattr(model, "embed", None))


def test_its_export_is_calibrated_on_two_simulated_optical_images(
    optical_card_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_SIMULATED_SIDE", 128)
    card = read_card(optical_card_path)
    named = card.pre.model_copy(update={"bands": ("red", "green", "blue")})
    card = card.model_copy(update={"pre": named})
    source = weights._source(weights.ExportRequest(model="", backend="onnx"), card, tmp_path, 2, silent)
    assert (len(source.pairs), source.stand_in) == (2, False)
    assert choose_model(*source.pairs[0], str(optical_card_path)).warnings == ()
    before, after = weights._samples(source, card, 0, 1)[0]
    assert before.shape == after.shape == (3, 256, 256)
    assert np.abs(before - after).mean() > 0.05
