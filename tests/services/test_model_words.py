"""What the app says beside the results of a model that never saw a real event."""

import pytest

from mmcd.cards import find_card, read_card
from mmcd.services.model_choice import simulation_warning


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
