"""Colours of the pages: what stands on the main colour, and the main colour on the page, can be read."""

import tomllib
from pathlib import Path

import pytest

CONFIG = Path(__file__).resolve().parents[2] / ".streamlit" / "config.toml"
PAGE = {"light": "#ffffff", "dark": "#171614"}
"""Streamlit's own background of each theme."""

READABLE = 3.5
"""Ratio of luminances; one colour cannot reach 4.5 both under white and on the dark page."""


def luminance(colour: str) -> float:
    """Relative luminance after WCAG 2.2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", PAGE)
def test_the_main_colour_can_be_read_under_white_words_and_on_the_page(theme):
    main = tomllib.loads(CONFIG.read_text())["theme"][theme]["primaryColor"]
    assert contrast(main, "#ffffff") >= READABLE  # words of the main buttons and of chosen metrics
    assert contrast(main, PAGE[theme]) >= READABLE  # words of a chosen part
