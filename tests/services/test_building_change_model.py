"""Evaluating and drawing models of two optical images on pairs in LEVIR-CD's layout."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from mmcd.cards import Branch, Card, Decision, Gsd, find_card, read_card, write_card
from mmcd.cli import main
from mmcd.data.levir import LevirPairs
from mmcd.errors import DataError, ModelError, UsageError
from mmcd.evaluation import ScoreCounts
from mmcd.models import zoo
from mmcd.models.fusion_unet import FusionUNet
from mmcd.score import decode_score
from mmcd.services.evaluate import EvaluateRequest, evaluate
from mmcd.services.evaluate_levir import macro_dice
from mmcd.services.levir_model import open_model, score_sample
from mmcd.services.plot_predictions import PlotRequest, plot_predictions
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_levir import simulate_levir
from mmcd.training.change_metrics import ChangeMetrics

SETTINGS = {"trunk": "resnet18", "levels": 3, "width": 0.125, "embed_dim": 64, "finetune": True}
OPTICAL = Branch(
    modality="optical",
    sensor="",
    bands=("red", "green", "blue"),
    unit="uint8",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of 64 px, one of them to test."""
    root = tmp_path_factory.mktemp("levir") / "pairs"
    simulate_levir(SimulateRequest(out=root, scenes=3, size=64, gsd=1.0, layout="levir", seed=3))
    return root


def written(folder: Path, model: FusionUNet, **changes: object) -> Path:
    """Write weights and a card that cuts at a third."""
    weights = folder / "tiny.safetensors"
    card = Card(
        name="tiny",
        version="1",
        title="",
        description="",
        architecture="fusion_unet",
        settings=SETTINGS,
        weights=weights.name,
        sha256=zoo.save(model, weights),
        pre=OPTICAL,
        post=OPTICAL,
        gsd=Gsd(nominal=0.5, min=0.3, max=1.0),
        classes=("unchanged", "changed"),
        decision=Decision(head_weight=1.5, cosine_weight=0, intercept=0.2, threshold=1 / 3),
        training={"data": {"size": 48}},
        licence={},
    )
    write_card(card.model_copy(update=changes), folder / "tiny.toml")
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = FusionUNet(**SETTINGS)
    with torch.no_grad():
        model.decoder1.weight *= 20  # so that the maps are not flat
    return written(tmp_path_factory.mktemp("card"), model)


def measured(card: object, root: Path, **options: object) -> dict:
    words = {"model": str(card), "dataset": "levir", "root": root, "device": "cpu", "precision": "fp32"}
    return evaluate(EvaluateRequest.checked(**words, **options))


# --- evaluate ---


def test_figures_are_those_of_the_network_itself(card: Path, pairs: Path, tmp_path: Path) -> None:
    """Counted once more by torchmetrics, at half the probability that the card's calibration and cut mean."""
    found = measured(card, pairs, split="test", scores=tmp_path)
    decision = read_card(card).decision
    _, model = zoo.load(card)
    test, metrics = LevirPairs(pairs, "test", 48), ChangeMetrics()
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPTICAL.mean, OPTICAL.std))
    for index, name in enumerate(test.ids):
        sample = test[index]
        padded = [np.pad(sample[key].numpy(), ((0, 0), (128, 128), (128, 128)), "symmetric") for key in ("pre", "post")]
        images = [((torch.from_numpy(image) - mean) / std)[None] for image in padded]
        with torch.inference_mode():
            logit = model(*images)[..., 128:-128, 128:-128]
        calibrated = decision.head_weight * logit + decision.intercept
        with rasterio.open(tmp_path / f"{name}.tif") as score:
            stored = decode_score(score.read(1))
        np.testing.assert_allclose(stored, calibrated.sigmoid()[0, 0].numpy(), atol=0.5 / 254 + 1e-4)
        cut = calibrated - np.log((1 / 3) / (2 / 3))
        metrics.update(cut, sample["target"][None], sample["valid"][None])
    expected = metrics.compute()
    assert found["iou"] == pytest.approx(expected["change_iou"], abs=2e-3)
    assert found["f1"] == pytest.approx(expected["change_f1"], abs=2e-3)
    assert found["macro_dice_with_background"] == pytest.approx(expected["macro_dice_with_background"], abs=2e-3)
    assert (found["tiles"], found["size"], found["split"]) == (len(test), 48, "test")
    assert found["prevalence"] == pytest.approx(found["baselines"]["all_changed"]["iou"])
    assert "prove nothing" in found["warnings"][0]


def test_macro_dice_is_the_mean_of_both_classes() -> None:
    score = np.array([[10, 250, 250, 10, 10, 10]], np.uint8)
    changed = np.array([[True, True, False, False, False, False]])
    f1_change, f1_background = 2 * 1 / (2 + 2), 2 * 3 / (6 + 2)
    assert macro_dice(ScoreCounts.of(score, changed), 0.5) == pytest.approx((f1_change + f1_background) / 2)


@pytest.mark.parametrize(("stored", "label"), [(10, False), (250, True), (250, False), (10, True)])
def test_macro_dice_of_a_class_that_is_nowhere_is_that_of_training(stored: int, label: bool) -> None:
    score, changed = np.full((1, 6), stored, np.uint8), np.full((1, 6), label)
    metrics = ChangeMetrics()
    logit, target = torch.full((1, 1, 1, 6), 1.0 if stored > 127 else -1.0), torch.full((1, 1, 6), int(label))
    metrics.update(logit, target, torch.ones_like(target, dtype=torch.bool))
    expected = metrics.compute()["macro_dice_with_background"]
    assert macro_dice(ScoreCounts.of(score, changed), 0.5) == expected == float(label == (stored > 127))


@pytest.mark.parametrize(
    ("options", "said"), [({"split": "holdout"}, "train, val and test"), ({"event": "x"}, "no events")]
)
def test_other_data_sets_options_are_refused(card: Path, pairs: Path, options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        measured(card, pairs, **options)


def test_a_model_of_radar_is_refused(pairs: Path) -> None:
    with pytest.raises(ModelError, match="red, green and blue twice"):
        measured("damage-vhr-sim", pairs)


def test_a_pair_without_partner_is_not_passed_over(card: Path, pairs: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    for folder in ("A", "B", "label"):
        for path in (pairs / "test" / folder).glob("*.png"):
            (root / "test" / folder).mkdir(parents=True, exist_ok=True)
            (root / "test" / folder / path.name).write_bytes(path.read_bytes())
    first = sorted((root / "test" / "A").glob("*.png"))[0]
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(DataError, match="no A"):
        measured(card, root)
    first.write_bytes(kept)
    Image.fromarray(np.full((64, 64), 100, np.uint8)).save(root / "test" / "label" / first.name)
    with pytest.raises(DataError, match="grey"):
        measured(card, root)
    Image.fromarray(np.zeros((64, 60, 3), np.uint8)).save(root / "test" / "B" / first.name)
    with pytest.raises(DataError, match="differ in size"):
        measured(card, root)


def test_the_shipped_weights_find_change_in_towns_they_never_saw(tmp_path: Path) -> None:
    simulate_levir(SimulateRequest(out=tmp_path / "towns", scenes=3, size=192, layout="levir", seed=77))
    found = measured("building-change-sim", tmp_path / "towns")
    assert found["pixel_auc"] > 0.8 > found["baselines"]["difference_of_colours"]["pixel_auc"]
    assert "simulated" in find_card("building-change-sim")[1].description


# --- checkpoints of the reference ---


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the reference's form, but for a smaller trunk."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pth"
    torch.save(FusionUNet(trunk="resnet18").state_dict(), path)
    return path


def test_a_checkpoint_of_the_reference_is_opened_by_its_conventions(checkpoint: Path, pairs: Path) -> None:
    model = open_model(str(checkpoint), "cpu", "fp32")
    assert model.card.settings == {"trunk": "resnet18"} and model.card.decision.threshold == 0.5
    assert (model.card.name, model.size) == ("best_model", 512)
    network = FusionUNet(trunk="resnet18").eval()
    network.load_state_dict(torch.load(checkpoint))
    sample = LevirPairs(pairs, "test", 32)[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPTICAL.mean, OPTICAL.std))
    images = [
        ((torch.from_numpy(np.pad(sample[key].numpy(), ((0, 0), (128, 128), (128, 128)), "symmetric")) - mean) / std)
        for key in ("pre", "post")
    ]
    with torch.inference_mode():
        expected = network(*(image[None] for image in images))[0, 0, 128:-128, 128:-128].sigmoid()
    np.testing.assert_allclose(decode_score(score_sample(sample, model)), expected.numpy(), atol=0.5 / 254 + 1e-4)


def test_a_checkpoint_runs_in_torch_only(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="runs in torch only"):
        open_model(str(checkpoint), backend="onnx")


def test_a_checkpoint_of_another_form_is_told_in_one_line(tmp_path: Path, pairs: Path) -> None:
    path = tmp_path / "best_model.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="matches 0 of") as refused:
        measured(path, pairs)
    assert "\n" not in str(refused.value)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="by name"):
        measured(path, pairs)


# --- plot ---


def test_four_columns_of_the_first_pairs_only(card: Path, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    read = []
    original = LevirPairs.__getitem__
    monkeypatch.setattr(LevirPairs, "__getitem__", lambda self, index: read.append(index) or original(self, index))
    out = tmp_path / "results.png"
    request = PlotRequest(model=str(card), root=pairs, samples=2, out=out, device="cpu")
    result = plot_predictions(request)
    assert read == [0, 1] and result.pairs == tuple(LevirPairs(pairs).ids[:2])
    assert result.threshold == pytest.approx(1 / 3)
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape[1] == 2 * picture.shape[0] == 1200
    assert {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)} > {(0, 0, 0), (255, 255, 255)}


def test_files_that_the_picture_leaves_out_are_told(card: Path, pairs: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(pairs, tmp_path / "copy"))
    first = LevirPairs(root).pairs[0]
    first.label.unlink()
    result = plot_predictions(PlotRequest(model=str(card), root=root, samples=1, out=tmp_path / "r.png", device="cpu"))
    assert result.to_dict()["warnings"] == [f"{first.id}: no label"] and first.id not in result.pairs


@pytest.mark.parametrize("both", [True, False])
def test_either_a_run_or_a_model_is_drawn(card: Path, pairs: Path, both: bool) -> None:
    request = PlotRequest(root=pairs, run="a-run" if both else None, model=str(card) if both else None)
    with pytest.raises(UsageError, match="Either a run or --model"):
        plot_predictions(request)


def test_a_run_is_found_by_its_name_or_told_to_be_missing(card: Path, pairs: Path, workspace: Path, tmp_path) -> None:
    with pytest.raises(ModelError, match="no run 'mine'"):
        plot_predictions(PlotRequest(run="mine", root=pairs))
    folder = workspace / "training" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: mine\n")
    with pytest.raises(ModelError, match="has no card"):
        plot_predictions(PlotRequest(run="mine", root=pairs))
    for suffix in (".toml", ".safetensors"):
        (folder / f"tiny{suffix}").write_bytes(card.with_suffix(suffix).read_bytes())
    result = plot_predictions(PlotRequest(run="mine", root=pairs, samples=1, out=tmp_path / "one.png", device="cpu"))
    assert result.path.is_file() and len(result.pairs) == 1


# --- the commands ---


def test_the_commands_answer_in_json_and_in_one_line(
    card: Path, pairs: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def said(*words: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["mmcd", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == code
        output = capsys.readouterr()
        return output.err.strip() if code else output.out

    shared = ("--model", card, "--root", pairs, "--split", "test", "--device", "cpu", "--json")
    assert json.loads(said("evaluate", "--dataset", "levir", *shared))["tiles"] == len(LevirPairs(pairs, "test"))
    out = tmp_path / "p.png"
    drawn = json.loads(said("train", "plot", "--samples", 1, "--out", out, *shared))
    assert drawn["path"] == str(out) and out.is_file()
    assert "is not a folder" in said(
        "train", "plot", "--model", card, "--root", tmp_path / "x", code=DataError.exit_code
    )
