import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmcd.data.oscd import RGB, OscdPatches, band_ranges, read_cities
from mmcd.data.oscd_files import index_oscd
from mmcd.errors import Cancelled, DataError
from mmcd.geo.sensors import SENTINEL2_L1C
from mmcd.models.trunk_weights import save_trunk, trunk_shapes
from mmcd.segmentation_metrics import ConfusionMatrix
from mmcd.training.decoding import PixelJob, PixelTask, build_model, counted, measure_groups
from mmcd.training.downstream import RunPlace
from mmcd.training.oscd_task import OscdConfig, change_figures, run_oscd
from mmcd.trunk_cards import Normalisation, TrunkCard


def configured(root: Path, epochs: int = 1, **options) -> OscdConfig:
    """Return the task on squares of 32 px, for a few epochs."""
    data = {"root": root, "side": 32, "held_out": 1} | options.pop("data", {})
    quick = {
        "trainer": {"epochs": epochs, "batch_size": 3, "device": "cpu"},
        "model": {"turns": "none"},
    }
    return OscdConfig.model_validate({"data": data} | quick | options)


@pytest.fixture(scope="module")
def learned(oscd, tmp_path_factory):
    """What a few epochs on four cities give."""
    folder = tmp_path_factory.mktemp("run")
    return run_oscd(configured(oscd, 4), 0, RunPlace(folder)), folder


def test_a_decoder_learns_what_was_built_and_is_measured_on_the_test_cities(learned):
    outcome, _ = learned
    assert outcome.figures["f1"] > 0.9 and outcome.figures["precision"] > 0.85 and outcome.figures["recall"] > 0.85
    assert outcome.samples == {"train": 18, "held out": 6, "test": 12}
    assert set(outcome.details["cities"]) == {"rio", "dubai"}
    assert "test cities choose nothing" in outcome.unit
    assert all(name.startswith("decoder.") for name in outcome.weights)


def test_test_cities_choose_nothing(oscd, learned, tmp_path):
    """Other labels and images of the test cities change no weight and no choice, only the figures."""
    root = Path(shutil.copytree(oscd, tmp_path / "oscd"))
    for city in ("rio", "dubai"):
        path = root / "labels" / city / "cm" / "cm.png"
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
        shutil.rmtree(root / city)
        shutil.copytree(root / "pisa", root / city)
    other = run_oscd(configured(root, 4), 0, RunPlace(tmp_path / "run"))
    outcome, _ = learned
    assert other.details["held_out_cities"] == outcome.details["held_out_cities"] != []
    assert set(other.details["held_out_cities"]) <= {"paris", "beirut", "mumbai", "pisa"}
    for name, value in outcome.weights.items():
        assert torch.equal(value, other.weights[name]), name
    assert other.figures["f1"] < 0.5


def test_the_epoch_that_does_best_on_held_out_cities_is_measured(oscd, learned, tmp_path):
    outcome, folder = learned
    best = torch.load(folder / "best.ckpt", weights_only=False)
    for name, value in outcome.weights.items():
        assert torch.equal(value, best["state_dict"][f"model.{name}"]), name
    model = build_model(configured(oscd), RGB, 2, 0)
    model.load_state_dict(outcome.weights)
    index = index_oscd(oscd, RGB)
    held = [city for city in index.cities["train"] if city.id in outcome.details["held_out_cities"]]
    data = OscdPatches(read_cities(held), band_ranges(RGB, "auto", {}), 32)
    job = PixelJob(("pre", "post"), 2, lambda *_: torch.tensor(0.0), lambda _: 0.0, "none")
    (matrix,) = measure_groups(PixelTask(model, job, configured(oscd), 0), data, configured(oscd)).values()
    chosen = next(state for name, state in best["callbacks"].items() if "'val/f1'" in name)
    np.testing.assert_allclose(chosen["best_model_score"], change_figures(matrix)["f1"], rtol=1e-6)
    assert chosen["best_model_score"] == max(chosen["best_k_models"].values())
    last = run_oscd(configured(oscd, 1, data={"held_out": 0}), 0, RunPlace(tmp_path))
    assert last.samples == {"train": 24, "held out": 0, "test": 12} and not (tmp_path / "best.ckpt").exists()


def test_figures_equal_a_loop_over_pixels(oscd, tmp_path):
    """Precision, recall and F1 are of all pixels of a group together; pixels beyond the edge count nowhere."""
    random = np.random.default_rng(0)
    target = random.integers(-1, 2, (3, 6, 7))
    logits = torch.from_numpy(random.normal(size=(3, 1, 6, 7)))
    hit = false = missed = right = 0
    for truth, value in zip(target.ravel(), logits.numpy().ravel(), strict=True):
        if truth >= 0:
            hit += truth == 1 and value >= 0
            false += truth == 0 and value >= 0
            missed += truth == 1 and value < 0
            right += truth == 0 and value < 0
    figures = change_figures(counted(logits, torch.from_numpy(target), 2))
    expected = (hit / (hit + false), hit / (hit + missed), 2 * hit / (2 * hit + false + missed))
    np.testing.assert_allclose([figures[name] for name in ("precision", "recall", "f1")], expected)
    np.testing.assert_allclose(figures["accuracy"], (hit + right) / (hit + right + false + missed))


def test_figures_that_do_not_exist_are_no_numbers():
    figures = change_figures(ConfusionMatrix(np.array([[7, 0], [0, 0]])))
    assert np.isnan([figures[name] for name in ("precision", "recall", "f1")]).all() and figures["accuracy"] == 1
    none = change_figures(ConfusionMatrix(np.array([[7, 0], [2, 0]])))
    assert np.isnan(none["precision"]) and none["recall"] == none["f1"] == 0


def test_groups_are_measured_apart_and_a_batch_may_hold_several():
    class Halves:
        groups = ("a", "b", "b")

        def __len__(self):
            return 3

        def __getitem__(self, index):
            image = torch.full((3, 32, 32), float(index))
            return {"image": image, "target": torch.full((32, 32), index % 2), "index": torch.tensor(index)}

    config = configured(Path("nowhere"))
    model = build_model(config, RGB, 2, 0)
    job = PixelJob(("image",), 2, lambda *_: torch.tensor(0.0), lambda _: 0.0, "none")
    found = measure_groups(PixelTask(model, job, config, 0), Halves(), config)
    assert [found[name].total for name in ("a", "b")] == [1024, 2048]
    assert found["b"].labelled.tolist() == [1024, 1024]


def test_a_card_starts_the_trunk_for_any_bands_and_standardises_only_if_asked(tmp_path):
    torch.manual_seed(0)
    weights = {
        name: torch.zeros(shape, dtype=torch.int64) if name.endswith("tracked") else torch.rand(shape) * 0.1
        for name, shape in trunk_shapes("resnet18", 3).items()
    }
    normalisation = Normalisation(lower=(0,) * 3, upper=(255,) * 3, mean=(0.1, 0.2, 0.3), std=(1, 2, 3), words="none")
    described = dict.fromkeys(("name", "version", "title", "description"), "tiny")
    card = TrunkCard(
        **described,
        trunk="resnet18",
        method="seco",
        bands=RGB,
        normalisation=normalisation,
        licence={"weights": "none"},
    )
    save_trunk(weights, card, tmp_path / "tiny.safetensors")
    start = {"start": {"trunk": str(tmp_path / "tiny.toml")}}
    plain = build_model(configured(tmp_path, **start), SENTINEL2_L1C, 2, 0)
    scaled = build_model(configured(tmp_path, **start, model={"standardise": True}), ("B2", "B4"), 2, 0)
    kernels = [model._fixed[0].body[0].weight for model in (plain, scaled)]
    assert kernels[0].shape[1] == 13 and plain.mean is None
    ratio = (kernels[0][:, 3] / weights["conv1.weight"][:, 0]).flatten()  # B4; all bands are scaled alike
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    torch.testing.assert_close(scaled.mean.flatten(), torch.tensor([0.3, 0.1]))
    torch.testing.assert_close(scaled.std.flatten(), torch.tensor([3.0, 1.0]))


def test_fine_tuning_with_the_form_of_saco_moves_the_trunk(oscd, tmp_path):
    whole = {"epochs": 1, "batch_size": 18, "device": "cpu"}  # one step
    config = configured(
        oscd,
        start={"frozen": False},
        model={"decoder": "double_conv"},
        loss="dice",
        trainer=whole,
        data={"held_out": 0},
    )
    outcome = run_oscd(config, 0, RunPlace(tmp_path))
    begun = build_model(config, RGB, 2, 0).state_dict()
    assert not torch.equal(outcome.weights["trunk.body.0.weight"], begun["trunk.body.0.weight"])
    assert "decoder.0.double_conv.0.weight" in outcome.weights


def test_a_resumed_run_is_the_uninterrupted_one(oscd, tmp_path):
    config = configured(oscd, trainer={"epochs": 2, "batch_size": 24, "device": "cpu"}, model={}, data={"held_out": 0})

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Cancelled("Stopped.")

    whole = run_oscd(config, 3, RunPlace(tmp_path / "whole"))
    with pytest.raises(Cancelled):
        run_oscd(config, 3, RunPlace(tmp_path / "cut", progress=stop))
    resumed = run_oscd(config, 3, RunPlace(tmp_path / "cut", resume=True))
    for name, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[name]), name


def test_a_tree_without_test_cities_is_refused_before_anything_is_learned(oscd, tmp_path):
    root = Path(shutil.copytree(oscd, tmp_path / "oscd", ignore=shutil.ignore_patterns("rio", "dubai")))
    with pytest.raises(DataError, match="no test city"):
        run_oscd(configured(root), 0, RunPlace(tmp_path))
    with pytest.raises(DataError, match="of which 4 are held out"):
        run_oscd(configured(oscd, data={"held_out": 4}), 0, RunPlace(tmp_path))


def test_defaults_are_the_published_protocol():
    config = OscdConfig.model_validate({"data": {"root": "oscd"}, "trainer": {"device": "cpu"}})
    assert (config.optimiser.lr, config.optimiser.weight_decay, config.optimiser.gamma) == (1e-3, 1e-4, 0.95)
    assert (config.optimiser.name, config.optimiser.schedule, config.loss) == ("adam", "exponential", "bce")
    assert (config.trainer.epochs, config.trainer.batch_size, config.trainer.keep) == (100, 32, "best")
    assert (config.data.side, config.data.bands, config.start.frozen) == (96, RGB, True)
