"""The whole way in a real browser: choose a scene on the map, run, drag the threshold, download."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import rasterio
from playwright.sync_api import Download, FrameLocator, Locator, Page, expect
from rio_cogeo import cog_validate

from mmcd.cards import list_cards

pytestmark = pytest.mark.browser

RUN_MS = 180_000  # the worker loads the model first, which takes long on a busy machine

PAINTED = """canvases => canvases.reduce((sum, canvas) => {
  const data = canvas.getContext("2d").getImageData(0, 0, 256, 256).data;
  for (let i = 3; i < data.length; i += 4) sum += data[i] > 0;
  return sum;
}, 0)"""


def map_of(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title*='st_folium']")


def painted(page: Page) -> int:
    """Return how many pixels of the score layer are not transparent."""
    return map_of(page).locator("canvas.mmcd-values").evaluate_all(PAINTED)


def asked(page: Page, name: str) -> str | None:
    return parse_qs(urlsplit(page.url).query).get(name, [None])[0]


def slider_of(page: Page) -> Locator:
    return page.get_by_label("Show change from probability")


def open_run(page: Page, address: str, prepared) -> None:
    page.goto(f"{address}/damage_map?scene={prepared.placed.id}&run={prepared.run_id}")
    expect(page.get_by_text("Changed area")).to_be_visible(timeout=RUN_MS)
    expect(map_of(page).locator(".mmcd-mark")).to_be_attached()
    until(page, lambda: painted(page) > 0)


def open_part(page: Page, name: str) -> None:
    """Choose what is shown below the threshold."""
    page.get_by_role("radio", name=name).or_(page.get_by_role("button", name=name, exact=True)).click()


def until(page: Page, condition, seconds: float = 20) -> None:
    for _ in range(int(seconds * 20)):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("the condition did not come true")


def at_rest(page: Page, shape: Locator) -> bool:
    """Return whether a shape on the map stays where it is for longer than an animation pauses."""
    before = shape.bounding_box()
    page.wait_for_timeout(500)
    return before is not None and shape.bounding_box() == before


def save(download: Download, folder: Path) -> Path:
    path = folder / download.suggested_filename
    download.save_as(path)
    return path


def test_a_link_into_the_app_works_as_the_very_first_visit(watched, address, prepared):
    """Stands first: only the first session of a server can meet an app that does not know its pages yet."""
    open_run(watched.page, address, prepared)
    expect(watched.page.get_by_role("link", name="Scenes")).to_be_visible()
    assert watched.page.get_by_test_id("stSidebar").count() == 0


@pytest.mark.skipif(not list_cards(), reason="no weights are shipped yet")
def test_from_the_marker_to_the_downloaded_cog(watched, address, prepared, tmp_path):
    page = watched.page
    page.goto(address)
    map_of(page).locator(f"[data-scene='{prepared.placed.id}']").click()
    page.get_by_role("button", name="Analyse").click()
    expect(page).to_have_url(re.compile(rf"/damage_map\?scene={prepared.placed.id}$"))

    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    job = asked(page, "job")
    page.reload()
    expect(page.get_by_role("button", name="Cancel").or_(page.get_by_text("Changed area"))).to_be_visible(
        timeout=RUN_MS
    )
    assert asked(page, "job") == job or asked(page, "run")

    expect(page.get_by_text("Changed area")).to_be_visible(timeout=RUN_MS)
    assert asked(page, "job") is None
    run = asked(page, "run")
    assert run
    until(page, lambda: map_of(page).locator("canvas.mmcd-values").count() > 0)
    open_part(page, "Download")
    with page.expect_download() as download:
        page.get_by_role("link", name="Score (COG)").click()
    score = save(download.value, tmp_path)
    assert score.read_bytes() == (prepared.folder / "runs" / run / "score.tif").read_bytes()
    assert cog_validate(score)[0]
    with rasterio.open(score) as file:
        stored = file.read(1)
    with rasterio.open(prepared.placed.label) as file:
        flooded = stored[file.read(1) > 0]
    # Cuts through all of the scene for the areas, and through the flood for its recall.
    parts = [
        *np.quantile(stored[stored > 0], [0.25, 0.5], method="nearest"),
        *np.quantile(flooded, [0.3, 0.7], method="nearest"),
    ]
    drag_and_check(watched, sorted({0.0, *((np.array(parts, float) - 1) / 254), 1.0}))


def test_the_map_follows_the_drag_without_a_request(watched, address, prepared):
    open_run(watched.page, address, prepared)
    drag_and_check(watched, [0.05, 0.25, 0.5, 0.75, 0.95])


def drag_and_check(watched, shares: list[float]) -> None:
    """Drag the threshold across its range with the button held down and watch the map follow before it is let go."""
    page = watched.page
    slider = slider_of(page)
    slider.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # tiles and the page's own start-up come to rest
    before_url, before_value = page.url, int(slider.input_value())
    box = slider.bounding_box()
    left, width, y = box["x"] + 8, box["width"] - 16, box["y"] + box["height"] / 2
    page.mouse.move(left + width * (before_value - 1) / 254, y)
    page.mouse.down()
    requests, sent = len(watched.requests), watched.sent
    seen, areas, recalls = [], [], []
    for share in shares:
        page.mouse.move(left + width * share, y, steps=4)
        page.wait_for_timeout(120)
        seen.append(painted(page))
        areas.append(page.locator("#changed").inner_text())
        recalls.append(float(page.locator("#recall").inner_text()))
    assert len(set(seen)) > 2, "the canvas did not change while the mouse was down"
    assert seen == sorted(seen, reverse=True), "a higher threshold shows less"
    assert len(set(areas)) > 2
    assert len(set(recalls)) > 2
    assert recalls == sorted(recalls, reverse=True)
    assert watched.requests[requests:] == []
    assert watched.sent == sent, "the server was asked during the drag"
    assert page.url == before_url
    page.mouse.up()
    until(page, lambda: page.url != before_url)
    assert float(asked(page, "threshold")) == pytest.approx((int(slider.input_value()) - 1) / 254, abs=0.004)


def test_the_numbers_are_those_of_the_stored_score(watched, address, prepared):
    page = watched.page
    open_run(page, address, prepared)
    changed = np.count_nonzero(prepared.stored >= 128) * 1e-4  # pixels of 100 m² in km²
    assert page.locator("#changed").inner_text() == f"{changed:,.2f} km²"
    assessed = np.count_nonzero(prepared.stored)
    assert page.locator("#missing").inner_text() == f"{(prepared.stored.size - assessed) * 1e-4:,.2f} km²"
    share = np.count_nonzero(prepared.stored >= 128) / assessed
    assert page.locator("#share").inner_text() == f"{share:.2%}"


def test_the_keyboard_moves_the_threshold_and_the_address_brings_it_back(watched, address, prepared):
    page = watched.page
    open_run(page, address, prepared)
    slider_of(page).focus()
    before = painted(page)
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    until(page, lambda: painted(page) < before)
    until(page, lambda: asked(page, "threshold") == "0.578")
    page.goto(page.url)
    expect(slider_of(page)).to_have_value("148")
    page.get_by_role("button", name="Balanced 0.50").click()
    until(page, lambda: asked(page, "threshold") == "0.500")


def test_two_tabs_do_not_move_each_others_map(watched, address, prepared):
    page = watched.page
    open_run(page, address, prepared)
    other = page.context.new_page()
    open_run(other, address, prepared)
    other.wait_for_timeout(1000)
    before = painted(other)
    page.bring_to_front()
    slider_of(page).focus()
    page.keyboard.press("End")
    until(page, lambda: painted(page) < before / 4)
    other.bring_to_front()
    other.wait_for_timeout(500)
    assert painted(other) == before


def test_the_mask_is_cut_at_the_threshold_on_the_screen(watched, address, prepared, tmp_path):
    page = watched.page
    page.goto(f"{address}/damage_map?scene={prepared.placed.id}&run={prepared.run_id}&threshold=0.25")
    open_part(page, "Download")
    with page.expect_download() as download:
        page.get_by_role("link", name="Mask at 0.25 (COG)").click()
    mask = save(download.value, tmp_path)
    assert cog_validate(mask)[0]
    with rasterio.open(mask) as file:
        assert np.count_nonzero(file.read(1) == 1) == np.count_nonzero(prepared.stored >= 65)


def test_the_divider_clips_the_image_before(watched, address, prepared):
    page = watched.page
    open_run(page, address, prepared)
    pane = map_of(page).locator(".leaflet-mmcd-before-pane")
    before = pane.evaluate("pane => pane.style.clipPath")
    map_of(page).get_by_label(re.compile("image before the event")).focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert pane.evaluate("pane => pane.style.clipPath") != before


def test_a_drawn_region_comes_into_the_form_and_the_address(watched, address, prepared):
    page = watched.page
    page.goto(f"{address}/damage_map?scene={prepared.placed.id}")
    expect(page.get_by_role("textbox", name=re.compile("Region"))).to_have_value("")
    map_of(page).get_by_role("button", name="Draw the region to analyse").click()
    box = page.locator("iframe[title*='st_folium']").bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.4 * box["height"], steps=4)
    page.mouse.up()
    until(page, lambda: asked(page, "region"))
    region = asked(page, "region")
    west, south, east, north = map(float, region.split(","))
    assert 171 < west < east < 171.1
    assert -44.4 < south < north < -44.1
    expect(page.get_by_role("textbox", name=re.compile("Region"))).to_have_value(region)
    expect(map_of(page).locator(".leaflet-mmcd-region-pane path")).to_have_count(2)
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()


def test_table_and_map_choose_the_same_building(watched, address, prepared):
    page = watched.page
    open_run(page, address, prepared)
    chosen = map_of(page).locator("path.mmcd-chosen")
    row = page.get_by_role("row").filter(has_text="house-340")
    row.click()
    expect(chosen).to_have_count(2)
    until(page, lambda: asked(page, "building") == "house-340")
    # The map went there and put the building left or right of the divider; another one is clicked on the map.
    until(page, lambda: at_rest(page, chosen.first))
    near = chosen.first.bounding_box()["width"]
    map_of(page).get_by_role("button", name="Zoom to the scene").click()
    until(page, lambda: at_rest(page, chosen.first) and chosen.first.bounding_box()["width"] < near)
    box, frame = chosen.first.bounding_box(), page.locator("iframe[title*='st_folium']").bounding_box()
    step = (box["width"] - 8) / 20 * 100  # pixels on the screen between two neighbouring houses
    x, y = box["x"] + box["width"] / 2 + step, box["y"] + box["height"] / 2
    assert x < frame["x"] + frame["width"]
    page.mouse.click(x, y)
    until(page, lambda: asked(page, "building") == "house-440")
    expect(page.get_by_role("row").filter(has_text="house-440")).to_have_attribute("aria-selected", "true")
    expect(row).to_have_attribute("aria-selected", "false")


def test_a_link_brings_back_building_and_colours(watched, address, prepared):
    page = watched.page
    where = f"scene={prepared.placed.id}&run={prepared.run_id}&building=house-240&palette=viridis&opacity=0.5&outline=0"
    page.goto(f"{address}/damage_map?{where}")
    expect(map_of(page).locator("path.mmcd-chosen")).to_have_count(2)
    expect(page.get_by_label("Colours")).to_have_value("viridis")
    expect(page.get_by_label("Opacity")).to_have_value("0.5")
    expect(page.get_by_label("Outline")).not_to_be_checked()
    expect(page.get_by_role("row").filter(has_text="house-240")).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1920, True)], ids=["1280-light", "1920-dark"])
def test_nothing_is_cut_off(browser, address, prepared, width, dark):
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    for path in ("/", f"/damage_map?scene={prepared.placed.id}&run={prepared.run_id}", "/damage_map?scene=loose-tiles"):
        page.goto(address + path)
        expect(map_of(page).locator(".leaflet-container")).to_be_visible()
        page.wait_for_timeout(500)
        wide = page.evaluate("document.scrollingElement.scrollWidth")
        assert wide <= width
        container = map_of(page).locator(".leaflet-container")
        assert container.get_attribute("aria-label").startswith(("Map of", "World map"))
        assert ("mmcd-dark" in container.get_attribute("class")) == dark
    context.close()
