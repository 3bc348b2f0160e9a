"""What the app says beside the results of a model that never saw a real event."""

from pathlib import Path

import pytest

from mmcd.cards import find_card, read_card
from mmcd.services.model_choice import notice_facts, notice_of_run, simulation_warning
from mmcd.training.config import ChangeTraining
from mmcd.training.release import write_card_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_building_model_says_that_it_learned_from_simulation():
    said = simulation_warning(find_card("damage-vhr-sim")[1])
    assert "simulated scenes only" in said
    assert said.endswith(".")
    assert "\n" not in said


def test_a_model_that_saw_real_events_says_nothing():
    assert simulation_warning(find_card("flood-s2s1")[1]) is None


@pytest.mark.parametrize("description", ["Finds change.", ""])
def test_a_card_without_such_a_sentence_still_warns(card_path, description):
    card = read_card(card_path)
    card = card.model_copy(update={"training": {"data": {"source": "simulated"}}, "description": description})
    assert simulation_warning(card) == "tiny learned from simulated scenes only."


def test_the_model_of_building_change_says_so_too_though_its_pairs_have_another_layout():
    card = find_card("building-change-sim")[1]
    assert card.simulated and card.training["data"]["source"] == "levir"
    assert simulation_warning(card).startswith("It learned from simulated pairs only")


def test_the_sentence_is_the_one_on_learning(card_path):
    words = "Scored on 3 simulated towns. It was trained on Simulated pairs alone. For real ones see below."
    card = read_card(card_path).model_copy(update={"simulated": True, "description": words})
    assert simulation_warning(card) == "It was trained on Simulated pairs alone."
    other = card.model_copy(update={"description": "Scored on 3 simulated towns."})
    assert simulation_warning(other) == "tiny learned from simulated scenes only."
    assert simulation_warning(card.model_copy(update={"simulated": False})) is None


def test_a_manifest_keeps_the_notice_and_older_ones_ask_the_card():
    card = find_card("building-change-sim")[1]
    said = simulation_warning(card)
    assert (
        notice_facts(card) == {"notice": said} and notice_facts(find_card("flood-s2s1")[1]) == notice_facts(None) == {}
    )
    assert notice_of_run({"name": "mine", "notice": "Learned from towns that never were."}).startswith("Learned from")
    assert notice_of_run({"name": card.name}) == notice_of_run({"name": card.name}, [card]) == said
    assert notice_of_run({"name": card.name}, []) is notice_of_run({"name": "flood-s2s1"}) is None


@pytest.mark.parametrize("config", [path.name for path in sorted((ROOT / "configs").glob("*-sim.yaml"))])
def test_the_shipped_configurations_say_it_as_their_cards_do(config):
    trained = ChangeTraining.from_yaml(ROOT / "configs" / config)
    assert trained.export.simulated is find_card(trained.name)[1].simulated is True


@pytest.mark.parametrize(("export", "simulated"), [({}, False), ({"simulated": True}, True)])
def test_a_trained_card_says_what_its_configuration_does(export, simulated, tmp_path):
    config = ChangeTraining.from_yaml(
        ROOT / "configs" / "reference1.yaml", {f"export.{k}": v for k, v in export.items()}
    )
    card = read_card(write_card_of(config, config.export, tmp_path / "w.safetensors", "0" * 64, None, 0.1))
    assert card.simulated is simulated
    scenes = ChangeTraining.from_yaml(ROOT / "configs" / "damage-vhr-sim.yaml", {"export.simulated": False})
    card = read_card(write_card_of(scenes, scenes.export, tmp_path / "v.safetensors", "0" * 64, None, 0.1))
    assert card.simulated  # its samples are drawn by the simulator, whatever the words say
