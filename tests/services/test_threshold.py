"""The threshold search through service and command, on simulated BRIGHT tiles and a checkpoint as the reference's."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn import metrics
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.data.patch_files import read_patches, write_patches
from mmcd.data.patch_index import PatchRules, PatchSplit, PatchTable
from mmcd.data.patches import PatchPairs
from mmcd.errors import Cancelled, DataError, ModelError, StorageError
from mmcd.inference.patch_model import load_patch_model
from mmcd.models.siamese import ContextSiamese
from mmcd.services.index import IndexRequest, build_index
from mmcd.services.threshold import ThresholdRequest, ThresholdResult, search_threshold

pytestmark = pytest.mark.usefixtures("workspace")
RULES = PatchRules(context_patch_size=32, patch_stride=16)
FILES = [
    "change_scores.npy",
    "curves.npz",
    "is_positive_labels.npy",
    "optical_features.npy",
    "optical_projected.npy",
    "precision_recall_curve.png",
    "sar_features.npy",
    "sar_projected.npy",
    "summary.json",
    "threshold_analysis.png",
    "threshold_metrics.json",
]


@pytest.fixture(scope="module")
def metadata(patch_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patch metadata with three events in each split."""
    folder = tmp_path_factory.mktemp("metadata")
    config = folder / "rules.yaml"
    config.write_text("context_patch_size: 32\npatch_stride: 16\n")
    build_index(IndexRequest(root=patch_tree, out=folder / "made", config=config, train_ratio=0.5, seed=1))
    return folder / "made"


def search(root: Path, metadata: Path, model: Path, **more: object) -> ThresholdResult:
    words = {"root": root, "metadata": metadata, "model": str(model), "device": "cpu", "resamples": 200}
    return search_threshold(ThresholdRequest.checked(**words | more))


@pytest.fixture(scope="module")
def found(
    patch_tree: Path, metadata: Path, patch_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> ThresholdResult:
    return search(patch_tree, metadata, patch_checkpoint, out=tmp_path_factory.mktemp("found") / "out")


def stored(result: ThresholdResult, name: str) -> np.ndarray:
    assert result.folder is not None
    return np.load(result.folder / f"{name}.npy")


def test_the_folder_holds_what_the_references_does_and_the_exact_curves(found: ThresholdResult) -> None:
    assert found.folder is not None
    assert sorted(path.name for path in found.folder.iterdir()) == FILES
    summary = json.loads((found.folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(found.values))
    grid = json.loads((found.folder / "threshold_metrics.json").read_text())
    assert [row["threshold"] for row in grid] == pytest.approx([n / 10 for n in range(21)])
    score, damaged = stored(found, "change_scores"), ~stored(found, "is_positive_labels")
    for row in grid:
        changed = score >= row["threshold"]
        assert row["accuracy"] == pytest.approx((changed == damaged).mean())
        assert row["tpr"] == pytest.approx(changed[damaged].mean())
        assert row["specificity"] == pytest.approx(1 - changed[~damaged].mean()) == pytest.approx(1 - row["fpr"])
    with np.load(found.folder / "curves.npz") as curves:
        fpr, tpr, _ = metrics.roc_curve(damaged, score, drop_intermediate=False)
        np.testing.assert_allclose(curves["tpr"], tpr[1:])
        np.testing.assert_allclose(curves["fpr"], fpr[1:])
    for name in ("threshold_analysis", "precision_recall_curve"):
        assert len(np.unique(imread(found.folder / f"{name}.png")[..., 0])) > 20


def test_figures_are_those_of_the_scores(found: ThresholdResult) -> None:
    values = found.values
    score, damaged = stored(found, "change_scores"), ~stored(found, "is_positive_labels")
    assert values["num_samples"] == len(score) and values["positive_ratio"] == pytest.approx(1 - damaged.mean())
    assert values["auc"] == pytest.approx(metrics.roc_auc_score(damaged, score))
    assert values["average_precision"] == pytest.approx(metrics.average_precision_score(damaged, score))
    points = sorted({(row["fpr"], row["tpr"]) for row in found.grid} | {(0.0, 0.0)})
    assert values["auc_grid"] == pytest.approx(np.trapezoid([p[1] for p in points], [p[0] for p in points]))
    for name, measure in (
        ("accuracy", metrics.accuracy_score),
        ("balanced_accuracy", metrics.balanced_accuracy_score),
        ("f1", metrics.f1_score),
    ):
        at_best = measure(damaged, score >= values[f"best_{name}_threshold"])
        assert values[f"best_{name}"] == pytest.approx(at_best)
        assert at_best >= max(measure(damaged, score >= cut) for cut in np.unique(score)) - 1e-12
    interval = values["auc_interval"]
    assert interval["unit"] == "event" and interval["groups"] == values["events"] == 3
    assert interval["low"] <= values["auc"] <= interval["high"]
    assert found.warnings == ()


def test_scores_are_the_networks_own_of_the_patches_in_order(
    found: ThresholdResult, patch_tree: Path, metadata: Path, patch_checkpoint: Path
) -> None:
    table = read_patches(metadata, "val", RULES)
    np.testing.assert_array_equal(table.is_positive, stored(found, "is_positive_labels"))
    pairs = PatchPairs(patch_tree, table, RULES)
    network = load_patch_model(str(patch_checkpoint)).network
    optical, sar = stored(found, "optical_projected"), stored(found, "sar_projected")
    np.testing.assert_allclose(1 - (optical * sar).sum(axis=1), stored(found, "change_scores"), atol=1e-6)
    for index in (0, len(table) // 2, len(table) - 1):
        with torch.inference_mode():
            output = network(pairs[index]["optical"][None], pairs[index]["sar"][None])
        np.testing.assert_allclose(stored(found, "change_scores")[index], output.distance[0, 0], atol=1e-5)
        np.testing.assert_allclose(optical[index], output.pre_embedding[0], atol=1e-5)
        for name, features in (("optical", output.pre_features), ("sar", output.post_features)):
            assert features.shape == (1, 512)
            np.testing.assert_allclose(stored(found, f"{name}_features")[index], features[0], rtol=1e-4, atol=1e-5)


def test_a_limit_draws_patches_and_few_events_are_resampled_by_image(
    patch_tree: Path, metadata: Path, patch_checkpoint: Path, tmp_path: Path
) -> None:
    table = read_patches(metadata, "val", RULES)
    keep = np.flatnonzero(table.image == table.image[np.flatnonzero(~table.is_positive)[0]])  # one tile with damage
    one = table.take(keep)
    write_patches(tmp_path, PatchSplit(one, one, "patch"), RULES, {"train_ratio": 0.5, "random_seed": 0})
    result = search(patch_tree, tmp_path, patch_checkpoint)
    assert result.values["auc_interval"] is None and result.folder is None
    assert any("1 event" in line and "by image" in line for line in result.warnings)
    assert any("split by patch" in line for line in result.warnings)
    assert "folder" not in result.summary() and result.to_dict()["folder"] is None
    drawn = [search(patch_tree, metadata, patch_checkpoint, limit=40, seed=seed).values for seed in (0, 0, 1)]
    assert drawn[0]["num_samples"] == 40 and drawn[0] == drawn[1] != drawn[2]


def test_one_class_is_refused_before_a_model_is_read(patch_tree: Path, metadata: Path, tmp_path: Path) -> None:
    table = read_patches(metadata, "val", RULES)
    calm: PatchTable = table.take(np.flatnonzero(table.is_positive))
    write_patches(tmp_path, PatchSplit(calm, calm, "event"), RULES, {"train_ratio": 0.5, "random_seed": 0})
    with pytest.raises(DataError, match="are unchanged: no threshold can be searched"):
        search(patch_tree, tmp_path, Path("never.pth"))
    with pytest.raises(ModelError, match=r"never\.pth is not a file"):
        search(patch_tree, metadata, Path("never.pth"))


def test_a_search_that_is_stopped_leaves_no_file(
    patch_tree: Path, metadata: Path, patch_checkpoint: Path, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done:
            raise Cancelled("stop")

    words = {"root": patch_tree, "metadata": metadata, "model": str(patch_checkpoint), "device": "cpu", "batch_size": 4}
    with pytest.raises(Cancelled):
        search_threshold(ThresholdRequest.checked(**words, out=tmp_path / "out"), stop)
    assert list((tmp_path / "out").iterdir()) == []


def test_embeddings_are_written_batch_by_batch_where_there_is_room(
    patch_tree: Path, metadata: Path, patch_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"root": patch_tree, "metadata": metadata, "model": str(patch_checkpoint), "device": "cpu", "batch_size": 4}
    request = ThresholdRequest.checked(**words, limit=40, out=tmp_path / "out")
    sizes = []

    def look(stage: str, done: int, total: int) -> None:
        if stage == "score patches" and done:
            sizes.append(sum(path.stat().st_size for path in request.out.iterdir()))

    search_threshold(request, look)
    whole = 40 * (2 * 512 + 2 * 16) * 4
    assert sizes[0] < whole / 2 < sizes[-1], "a file of its whole length would be a hole that a full disk cannot fill"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=whole - 1))
    other = ThresholdRequest.checked(**words, limit=40, out=tmp_path / "full")
    with pytest.raises(StorageError, match=r"needs about 0 MB in .*full, 0 MB are free"):
        search_threshold(other)
    assert list((tmp_path / "full").iterdir()) == []


def test_a_model_of_other_bands_is_refused(patch_tree: Path, metadata: Path, tmp_path: Path) -> None:
    values = {"model_state_dict": ContextSiamese(4, 2, "resnet18", embedding_dim=8).state_dict()}
    torch.save(values, tmp_path / "four.pth")
    with pytest.raises(ModelError, match="four takes 4 optical and 2 SAR bands, a patch has 3 and 1"):
        search(patch_tree, metadata, tmp_path / "four.pth")


def test_figures_of_the_train_split_and_of_another_context_come_with_a_warning(
    patch_tree: Path, metadata: Path, patch_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_patch_model(str(patch_checkpoint))
    carded = replace(model, card=SimpleNamespace(decision=None))  # a card of a network of 256 px; metadata of 32 px
    monkeypatch.setattr("mmcd.services.threshold.load_patch_model", lambda _: carded)
    warnings = search(patch_tree, metadata, patch_checkpoint, split="train", limit=40).warnings
    assert any("has learned from their train split" in line for line in warnings)
    assert f"The metadata have contexts of 32 px, {model.name} learned from 256 px." in warnings


def test_the_command_prints_one_object_or_a_table(
    patch_tree: Path, metadata: Path, patch_checkpoint: Path, tmp_path: Path
) -> None:
    words = ["infer", "threshold", "--model", str(patch_checkpoint), "--dataset", "bright", "--root", str(patch_tree)]
    words += ["--metadata", str(metadata), "--device", "cpu", "--limit", "30"]
    runner = CliRunner()
    done = runner.invoke(app, [*words, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["num_samples"] == 30 and len(values["thresholds"]) == 21
    assert sorted(path.name for path in Path(values["folder"]).iterdir()) == FILES
    shown = runner.invoke(app, words)
    assert shown.exit_code == 0 and "best balanced accuracy" in shown.output and "AUC" in shown.output
