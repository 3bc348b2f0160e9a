from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from mmcd.data.simulated import SceneSet, Simulated, SimulatedConfig
from mmcd.errors import Cancelled, ConfigError
from mmcd.services.simulate import SAMPLES
from mmcd.simulate import simulate_scene
from mmcd.training.config import ChangeTraining, SimulatedDataConfig
from mmcd.training.trainer import open_split

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "damage-vhr-sim.yaml"
VALUES = {
    "size": 256,
    "tile": 128,
    "training_tile": 96,
    "tiles": 5,
    "focus": 1.0,
    "training": {"scenes": 2, "seed": 10, "layouts": ["grid", "village"], "events": ["earthquake"]},
    "validation": {"scenes": 2, "seed": 20, "layouts": ["radial"], "palettes": ["tropical"], "events": ["flood"]},
    "test": {"scenes": 1, "seed": 30},
}


@pytest.fixture(scope="module")
def dataset() -> Simulated:
    return Simulated(SimulatedConfig.model_validate(VALUES))


def test_validation_tiles_cover_their_scenes_so_damage_keeps_its_share(dataset: Simulated):
    specs = SimulatedConfig.model_validate(VALUES).validation.specs(256, 0.5)
    scenes = [simulate_scene(spec) for spec in specs]
    assert len(dataset.validation) == 2 * 4
    natural = np.mean([(scene.label >= 2).mean() for scene in scenes])
    assert dataset.changed_share[dataset.validation].mean() == pytest.approx(natural)
    sample = dataset[int(dataset.validation[3])]  # the last quarter of the first scene
    np.testing.assert_allclose(sample["pre"].numpy() * 255, scenes[0].pre[:, 128:, 128:], atol=1e-4)
    np.testing.assert_allclose(sample["post"].numpy() * 255, scenes[0].post[:, 128:, 128:], atol=1e-4)
    np.testing.assert_array_equal(sample["target"].numpy(), scenes[0].label[128:, 128:])
    assert sample["valid"].all()


def test_training_tiles_show_damage_more_often_than_tiles_anywhere(dataset: Simulated):
    anywhere = Simulated(SimulatedConfig.model_validate(VALUES | {"focus": 0.0}))
    focused = dataset.changed_share[dataset.training]
    assert (focused > 0).all()
    assert focused.mean() > 1.5 * anywhere.changed_share[anywhere.training].mean()
    assert dataset[0]["pre"].shape == (3, 96, 96)
    assert dataset[0]["post"].shape == (1, 96, 96)


def test_groups_are_scenes_and_stay_on_one_side(dataset: Simulated):
    groups = np.array(dataset.groups)
    assert len(dataset) == len(set(dataset.ids)) == 2 * 5 + 2 * 4
    assert set(groups[dataset.training]) == {"earthquake-grid-temperate-10", "earthquake-village-temperate-11"}
    assert set(groups[dataset.validation]) == {"flood-radial-tropical-20", "flood-radial-tropical-21"}


def test_the_same_configuration_gives_the_same_tiles(dataset: Simulated):
    again = Simulated(SimulatedConfig.model_validate(VALUES))
    assert again.ids == dataset.ids
    for index in (0, len(dataset) - 1):
        assert all((again[index][key] == dataset[index][key]).all() for key in ("pre", "post", "target"))


def test_families_take_turns():
    specs = SceneSet(scenes=24, seed=0, layouts=("grid", "radial"), palettes=("arid", "winter")).specs(128, 0.5)
    assert len({(spec.event, spec.layout, spec.palette) for spec in specs}) == 24


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tile": 100}, "cannot be cut"),
        ({"training_tile": 300}, "cannot be cut"),
        ({"validation": {"scenes": 2, "seed": 11}}, "share seeds"),
        ({"test": {"scenes": 1, "seed": 11}}, "share seeds"),
    ],
)
def test_impossible_choices_are_refused(change: dict[str, object], reason: str):
    with pytest.raises(ValidationError, match=reason):
        SimulatedConfig.model_validate(VALUES | change)


def test_simulation_can_be_cancelled():
    def stop(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        Simulated(SimulatedConfig.model_validate(VALUES), stop)


def test_the_split_of_a_run_is_validated_at_the_natural_share(dataset: Simulated):
    config = ChangeTraining.from_yaml(CONFIG, {"data.scenes": VALUES})
    split = open_split(config)
    np.testing.assert_array_equal(split.training, dataset.training)
    np.testing.assert_array_equal(split.held_out, dataset.validation)
    assert split.share == pytest.approx(dataset.changed_share[dataset.validation].mean())
    assert config.data.shifts == (1.0,)


def test_shipped_configuration_holds_out_families_and_never_sees_the_samples():
    data = ChangeTraining.from_yaml(CONFIG).data
    assert isinstance(data, SimulatedDataConfig)
    learnt, validation, test = data.scenes.training, data.scenes.validation, data.scenes.test
    assert not set(learnt.palettes) & set(validation.palettes)
    assert not set(learnt.layouts) & set(test.layouts)
    assert not set(validation.layouts) & set(test.layouts)
    assert set(test.events) - set(learnt.events) - set(validation.events)
    seen = {*learnt.seeds, *validation.seeds, *test.seeds}
    assert not seen & {spec.seed for _, _, spec in SAMPLES}


def test_options_of_another_source_are_refused():
    with pytest.raises(ConfigError, match="root"):
        ChangeTraining.from_yaml(CONFIG, {"data.root": "somewhere"})
