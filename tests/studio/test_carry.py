"""What is selected stays selected when the menu opens another page, which it does with an empty address."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[2]
PICKED = {"scene": "valley", "run": "abc", "threshold": "0.7", "data": "levir-1"}

pytestmark = pytest.mark.usefixtures("fresh_caches")


def page() -> None:
    """Carry the selection to a page whose name the test gives."""
    import streamlit as st

    from mmcd.studio.carry import carry_selection

    carry_selection(st.session_state.get("name", "first"))


def visited(first: dict[str, str], second: dict[str, str]) -> dict[str, str]:
    """Open one page with an address and then another one; return the address there."""
    app = AppTest.from_function(page, default_timeout=60)
    app.query_params.update(first)
    app.run()
    app.session_state["name"] = "second"
    app.query_params.clear()
    app.query_params.update(second)
    app.run()
    assert not app.exception
    return {name: app.query_params[name] for name in app.query_params}


def test_an_empty_address_gets_the_selection():
    assert visited(PICKED, {}) == PICKED


def test_a_link_to_a_scene_means_that_scene_without_the_run_of_another():
    assert visited(PICKED, {"scene": "coast"}) == {"scene": "coast", "data": "levir-1"}


def test_a_table_of_patches_and_what_is_selected_in_it_travel_together():
    assert visited({"table": "data-1", "patches": "ab"}, {}) == {"table": "data-1", "patches": "ab"}


def test_what_is_no_selection_stays_behind():
    assert visited({"view": "add", "scene": "valley"}, {}) == {"scene": "valley"}


def test_the_threshold_set_on_one_page_is_on_the_next(prepared, tmp_path):
    entry = tmp_path / "entry.py"
    entry.write_text(f"import runpy\nrunpy.run_path({str(ROOT / 'app.py')!r}, run_name='__main__')\n")
    app = AppTest.from_file(str(entry), default_timeout=60)
    app.query_params.update({"scene": prepared.placed.id, "run": prepared.run_id})
    app.switch_page(str(ROOT / "pages" / "accuracy.py")).run()
    app.slider("accuracy-threshold").set_value(0.7).run()
    app.query_params.clear()
    app.switch_page(str(ROOT / "pages" / "damage_map.py")).run()
    assert not app.exception
    assert (app.query_params["run"], app.query_params["threshold"]) == (prepared.run_id, "0.700")
