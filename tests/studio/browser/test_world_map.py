"""The Scenes page in a real browser: slow hands."""

import pytest
from playwright.sync_api import FrameLocator, Locator, Page, expect

pytestmark = pytest.mark.browser


def map_of(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title*='st_folium']")


def marker_of(page: Page, scene_id: str) -> Locator:
    return map_of(page).locator(f"[data-scene='{scene_id}']")


@pytest.mark.parametrize("height", [900, 700])
def test_a_slow_press_near_the_edge_of_the_map_selects(watched, address, prepared, height):
    """Between press and release the map may not pan or scroll away under the mouse, nor make its markers anew."""
    page = watched.page
    page.set_viewport_size({"width": 1280, "height": height})
    page.goto(address)
    marker = marker_of(page, prepared.placed.id)
    marker.hover()
    page.mouse.down()
    page.wait_for_timeout(500)
    page.mouse.up()
    expect(page.get_by_role("button", name="Analyse")).to_be_visible()
    expect(marker).to_have_attribute("aria-pressed", "true")
