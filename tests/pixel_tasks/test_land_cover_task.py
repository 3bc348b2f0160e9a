import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from mmcd.cli import app
from mmcd.data.pastis import PastisImages
from mmcd.errors import ConfigError, DataError
from mmcd.segmentation_metrics import ConfusionMatrix
from mmcd.training.benchmarks import BENCHMARKS, read_downstream
from mmcd.training.downstream import RunPlace
from mmcd.training.land_cover_task import (
    GidConfig,
    LandCoverLoss,
    PastisConfig,
    land_cover_figures,
    land_cover_loss,
    pastis_figures,
    run_gid,
    run_pastis,
)

CONFIGS = Path(__file__).parents[2] / "configs"
DOCUMENT = CONFIGS.parent / "docs" / "reference-systems.md"
QUICK = {"epochs": 5, "batch_size": 2, "device": "cpu", "loggers": []}


def pastis_config(root: Path, data=None, **options) -> PastisConfig:
    values = {"data": {"root": root} | (data or {}), "trainer": QUICK, "optimiser": {"lr": 0.001}}
    return PastisConfig.model_validate(values | options)


def test_crops_are_learned_and_measured_on_the_test_fold(pastis, tmp_path):
    # SACo's decoder leaves half of its maps out and takes many more steps than a test has.
    options = {"loss": {"class_weights": "balanced", "dice": 0.01}, "model": {"decoder": "unet"}}
    outcome = run_pastis(pastis_config(pastis, {"bands": ["B4", "B3", "B2"]}, **options), 0, RunPlace(tmp_path))
    assert outcome.samples == {"train": 9, "val": 3, "test": 3}
    assert outcome.figures["oa"] > 0.9 and outcome.figures["miou"] > 0.75
    assert outcome.details["iou"]["sorghum"] is None and outcome.details["labelled_px"]["void"] == 0
    assert "+0.2" in outcome.unit and "nothing is added" in outcome.unit


def test_classes_of_gid_are_learned_and_images_are_held_out_whole(gid_fetched, tmp_path):
    values = {"data": {"root": gid_fetched, "side": 32}, "trainer": QUICK | {"epochs": 2, "batch_size": 3}}
    outcome = run_gid(GidConfig.model_validate(values), 0, RunPlace(tmp_path))
    assert outcome.samples == {"train": 36, "held out": 12, "val": 12}
    assert outcome.figures["oa"] > 0.85 and outcome.details["held_out_images"] != ["GF2_4"]
    assert outcome.details["labelled_px"]["river"] == 72 * 76 - 16


def test_figures_of_pastis_equal_a_loop():
    """Void counts nowhere, background counts against a crop's IoU; nothing is added."""
    random = np.random.default_rng(3)
    truth, mapped = random.integers(0, 20, 3000), random.integers(0, 20, 3000)
    mapped = np.where(random.random(3000) < 0.6, truth, mapped)
    truth[truth == 7], mapped[mapped == 7] = 8, 8  # a class that nothing holds
    figures = pastis_figures(ConfusionMatrix.of(truth, mapped, 20))
    ious = {}
    for number in range(19):
        both = sum(1 for t, m in zip(truth, mapped, strict=True) if t == m == number)
        either = sum(1 for t, m in zip(truth, mapped, strict=True) if t != 19 and number in (t, m))
        if either:
            ious[number] = both / either
    crops = [(t, m) for t, m in zip(truth, mapped, strict=True) if 0 < t < 19]
    assert len(ious) == 18
    np.testing.assert_allclose(figures["miou"], np.mean([value for number, value in ious.items() if number]))
    np.testing.assert_allclose(figures["miou_with_background"], np.mean(list(ious.values())))
    np.testing.assert_allclose(figures["oa"], np.mean([t == m for t, m in crops]))
    perfect = pastis_figures(ConfusionMatrix.of(truth, truth, 20))
    assert set(perfect.values()) == {1.0}


def test_figures_leave_out_what_nothing_holds():
    matrix = ConfusionMatrix(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert land_cover_figures(matrix) == {"oa": 7 / 8, "miou": pytest.approx((3 / 4 + 4 / 5) / 2)}
    assert np.isnan(list(land_cover_figures(ConfusionMatrix.none(3)).values())).all()


def test_balanced_weights_are_the_inverse_share_and_own_weights_are_checked(pastis):
    data = PastisImages(pastis, (1, 2, 3))
    logits, target = torch.zeros(1, 20, 1, 4), torch.tensor([[[1, 3, 3, 3]]])
    logits[0, 1] = 2.0
    valid = torch.ones(1, 1, 4, dtype=torch.bool)
    balanced = land_cover_loss(LandCoverLoss(class_weights="balanced"), data)(logits, target, valid, 0)
    stored = np.load(pastis / "ANNOTATIONS" / "TARGET_10001.npy")[0]
    heavy, light = 1 / (stored == 1).sum(), 1 / (stored == 3).sum()
    hit, miss = -logits.log_softmax(1)[0, 1, 0, 0], -logits.log_softmax(1)[0, 3, 0, 0]
    expected = (heavy * hit + 3 * light * miss) / (heavy + 3 * light)
    torch.testing.assert_close(float(balanced), float(expected), rtol=1e-5, atol=0)
    grown = [land_cover_loss(LandCoverLoss(dice=0.5), data)(logits, target, valid, epoch) for epoch in (0, 1, 3)]
    torch.testing.assert_close(grown[2] - grown[0], 3 * (grown[1] - grown[0]))
    with pytest.raises(ConfigError, match="There are 2 class weights"):
        land_cover_loss(LandCoverLoss(class_weights=(1.0, 2.0)), data)


def test_faults_of_a_configuration_are_told(pastis, gid_fetched, tmp_path):
    with pytest.raises(ConfigError, match="overlap"):
        run_pastis(pastis_config(pastis, {"val": [3]}), 0, RunPlace(tmp_path))
    values = {"data": {"root": gid_fetched, "side": 32, "held_out": 0.9}, "trainer": QUICK}
    with pytest.raises(DataError, match="4 training images, of which 4 would be held out"):
        run_gid(GidConfig.model_validate(values), 0, RunPlace(tmp_path))


@pytest.mark.parametrize("name", ["oscd", "pastis", "gid"])
def test_the_files_are_the_defaults_of_each_task(name):
    benchmark, config = read_downstream(CONFIGS / f"{name}.yaml", {})
    assert benchmark is BENCHMARKS[name]
    assert config == benchmark.config.model_validate({"data": {"source": name, "root": config.data.root}})


SHORT = {
    "oscd": {"side": 32, "held_out": 1},
    "pastis": {"bands": ["red", "green", "blue"]},
    "gid": {"side": 32},
}
"""What makes a task small enough, beside one epoch of one batch."""


def test_the_documented_commands_run_one_after_the_other(oscd, pastis, gid_fetched, tmp_path, monkeypatch):
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "configs"):
        (tmp_path / folder).mkdir()
    for name, tree in (("oscd", oscd), ("PASTIS", pastis), ("gid-15", gid_fetched)):
        (tmp_path / "data" / name).symlink_to(tree)
    for name, smaller in SHORT.items():
        values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        values["data"] |= smaller
        values["trainer"] |= {"epochs": 1, "batch_size": 32, "device": "cpu", "loggers": []}
        (tmp_path / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    section = DOCUMENT.read_text().split("by OSCD, PASTIS and GID")[1]
    found = []
    for line in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0].splitlines():
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        found.append(json.loads(done.stdout))
    told, *runs = found
    assert set(told["seeds"]) == {"0", "1", "2"}
    assert set(told["mean"]) == set(told["sd"]) == {"precision", "recall", "f1", "iou", "accuracy"}
    published = told["published"][0]
    assert published["rows"]["CACo"]["oscd_f1"] == 50.29 and "test cities" in published["remarks"][0]
    kept = [json.loads((Path(run["folder"]) / "result.json").read_text()) for run in runs]
    assert kept[0]["figures"]["f1"] == pytest.approx(told["seeds"]["0"]["f1"])
    assert "+0.2" in kept[1]["unit"] and kept[2]["samples"] == {"train": 36, "held out": 12, "val": 12}
    assert all(Path(run["weights"]).is_file() for run in runs)
