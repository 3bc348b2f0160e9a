"""A link brings back the view, whatever somebody wrote into it."""

import pytest
from streamlit.testing.v1 import AppTest

from mmcd.errors import RegionError
from mmcd.score import threshold_value
from mmcd.studio.address import probability_text, region_bounds, shown_threshold
from mmcd.studio.messages import disk, roughly


def kept() -> None:
    """A page that reads the address and writes what it read back."""
    import streamlit as st

    from mmcd.studio.address import asked_look, asked_threshold, keep_look, keep_threshold

    look, value = asked_look(), asked_threshold(100)
    keep_look(look)
    keep_threshold(value)
    st.session_state["read"] = (look.palette, look.opacity, look.outline, value)


@pytest.mark.parametrize(
    ("address", "read", "address_after"),
    [
        ({}, ("magma", 0.85, True, 100), {"threshold": "0.389"}),
        (
            {"palette": "viridis", "opacity": "0.5", "outline": "0", "threshold": "0.25"},
            ("viridis", 0.5, False, 65),
            {"palette": "viridis", "opacity": "0.5", "outline": "0", "threshold": "0.25"},
        ),
        (
            {"palette": "<script>", "opacity": "much", "outline": "", "threshold": "nan"},
            ("magma", 0.85, True, 100),
            {"threshold": "0.389"},
        ),
        ({"threshold": "7"}, ("magma", 0.85, True, 100), {"threshold": "0.389"}),
        ({"threshold": "-3"}, ("magma", 0.85, True, 100), {"threshold": "0.389"}),
        ({"opacity": "7", "threshold": "inf"}, ("magma", 1.0, True, 100), {"opacity": "1", "threshold": "0.389"}),
    ],
)
def test_what_is_usual_or_nonsense_leaves_the_address(address, read, address_after):
    page = AppTest.from_function(kept, default_timeout=30)
    page.query_params.update(address)
    page.run()
    assert not page.exception
    assert page.session_state["read"] == read
    assert dict(page.query_params) == address_after


def test_every_stored_value_comes_back_from_its_text():
    assert all(threshold_value(float(probability_text(value))) == value for value in range(1, 256))


def test_a_region_is_four_degrees_in_order():
    assert region_bounds("171, -44.3; 171.1,-44.2".replace("; ", ",")) == (171, -44.3, 171.1, -44.2)
    for text in ("1,2,3", "1,2,3,4,5", "a,b,c,d", "/etc/passwd", "3,2,1,4", "1,2,3,100", "nan,0,1,1", "inf,0,1,1"):
        with pytest.raises(RegionError):
            region_bounds(text)


@pytest.mark.parametrize(
    ("seconds", "said"), [(4, "a few seconds"), (44, "about 40 s"), (100, "about 2 min"), (7200, "about 2.0 h")]
)
def test_expected_times_do_not_pretend_to_be_exact(seconds, said):
    assert roughly(seconds) == said


@pytest.mark.parametrize(("size", "said"), [(3, "1 MB"), (16_777_216, "17 MB"), (59_500_000_000, "59.5 GB")])
def test_disk_has_units(size, said):
    assert disk(size) == said


@pytest.mark.parametrize(
    ("probability", "text"), [(99 / 254, "0.389"), (0.39, "0.390"), (0.5, "0.500"), (1.0, "1.000")]
)
def test_a_threshold_is_shown_with_digits_that_set_the_same_one(probability, text):
    assert shown_threshold(probability) == text
    assert threshold_value(float(text)) == threshold_value(probability)
