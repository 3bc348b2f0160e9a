"""Which card a name means, and that a beta calibration changes only cards that carry one."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from mmcd.cards import Decision, card_reference, find_card, known_cards, list_cards, read_card, write_card
from mmcd.errors import ModelError
from mmcd.inference.predictor import change_probability
from mmcd.paths import weights_dir

NAME = "flood-s2s1"


@pytest.fixture
def recalibrated(workspace: Path) -> Path:
    """A second version of a shipped card, in the workspace."""
    folder = workspace / "weights"
    folder.mkdir(parents=True)
    card = read_card(weights_dir() / f"{NAME}.toml")
    decision = card.decision.model_copy(update={"beta": (0.7, 1.2, -0.4)})
    write_card(card.model_copy(update={"version": "1.0-b1", "decision": decision}), folder / f"{NAME}-1.0-b1.toml")
    return folder


def test_a_bare_name_means_the_shipped_card_and_a_version_the_other(recalibrated):
    shipped, own = find_card(NAME), find_card(f"{NAME}@1.0-b1")
    assert shipped[0].parent == weights_dir() and own[0].parent == recalibrated
    assert find_card(f"{NAME}@{shipped[1].version}")[0] == shipped[0]
    assert [card_reference(card) for card in (shipped[1], own[1])] == [NAME, f"{NAME}@1.0-b1"]
    assert len(known_cards()) == len(list_cards()) + 1
    with pytest.raises(ModelError, match="no model called 'flood-s2s1@9'") as error:
        find_card(f"{NAME}@9")
    assert f"{NAME}@1.0-b1" in error.value.hint


def test_a_card_that_is_only_in_the_workspace_is_found_by_name(recalibrated):
    path = recalibrated / "other.toml"
    write_card(find_card(NAME)[1].model_copy(update={"name": "other"}), path)
    assert find_card("other") == (path, read_card(path))


def test_damaged_own_cards_do_not_hide_the_shipped_ones(recalibrated):
    shutil.copy(weights_dir() / f"{NAME}.toml", recalibrated / "a.toml")
    (recalibrated / "a.toml").write_text("name = ")
    assert find_card(NAME)[1].name == NAME


def test_beta_follows_the_logistic_calibration():
    plain = Decision(head_weight=1.0, cosine_weight=0.5, slope=2.0, intercept=-1.0, threshold=0.5)
    logit, distance = np.linspace(-30, 30, 61, dtype=np.float32), np.zeros(61, np.float32)
    p = change_probability(logit, distance, plain).astype(float)
    inner = (p > 1e-6) & (p < 1 - 1e-6)
    a, b, c = 0.7, 1.2, -0.4
    expected = 1 / (1 + np.exp(-(a * np.log(p[inner]) - b * np.log1p(-p[inner]) + c)))
    found = change_probability(logit, distance, plain.model_copy(update={"beta": (a, b, c)}))
    np.testing.assert_allclose(found[inner], expected, rtol=1e-4, atol=1e-6)
    assert found.dtype == np.float32 and np.isfinite(found).all() and (np.diff(found) >= 0).all()


def test_a_decision_without_beta_is_written_as_before():
    plain = Decision(head_weight=1.0, cosine_weight=0.5, threshold=0.5)
    assert "beta" not in plain.model_dump(mode="json")
    assert Decision.model_validate(plain.model_copy(update={"beta": (1.0, 1.0, 0.0)}).model_dump()).beta == (1, 1, 0)


def test_a_falling_beta_is_refused():
    with pytest.raises(ValidationError, match="must rise"):
        Decision(head_weight=1.0, cosine_weight=0.5, threshold=0.5, beta=(1.0, -0.1, 0.0))
