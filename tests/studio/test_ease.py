"""The tour that is seen once, the keys that are listed and those that work, and words for every metric."""

import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from mmcd.studio import ease, explorer_images, explorer_state, loaders
from mmcd.studio.ease import PICTURE_KEYS, TOUR
from mmcd.studio.metric_words import HELP, LABELS, training_help

pytestmark = pytest.mark.usefixtures("fresh_caches")


def toured() -> None:
    from mmcd.studio.ease import tour

    tour()


def test_the_tour_has_four_sentences_and_stays_away_once_it_was_dismissed(workspace: Path) -> None:
    page = AppTest.from_function(toured).run()
    assert len(TOUR) == 4 and all(sentence in page.markdown[0].value for sentence in TOUR)
    page.button("tour-dismiss").click().run()
    assert not page.exception
    assert not page.markdown
    assert not AppTest.from_function(toured).run().markdown  # another visit to the same workspace


def test_every_key_that_works_in_the_explorer_is_listed() -> None:
    code = "".join(Path(module.__file__).read_text() for module in (explorer_images, explorer_state))
    keys = set(re.findall(r'shortcut="(\w)"', code)) | set(explorer_images._KEYS.values())
    keys |= set(re.findall(r'-?1: "(\w)"', code))
    listed = set(re.findall(r"\b\w\b", " ".join(PICTURE_KEYS)))
    assert keys and keys <= listed


def test_the_sample_scene_is_offered(prepared, monkeypatch) -> None:
    found: list[dict] = []
    monkeypatch.setattr(ease.st, "page_link", lambda page, **rest: found.append(rest))
    ease.sample_link()
    assert loaders.scene(found[0]["query_params"]["scene"]).simulated


def test_every_figure_has_words_and_trainings_take_them_by_name() -> None:
    assert set(LABELS) == set(HELP)
    assert training_help("val/ap") == HELP["average_precision"]
    assert training_help("train/loss") and training_help("monitor/layer1/mean") is None
