"""The Accuracy and Explorer pages in a real browser: one threshold for two pages, one zoom for three panels."""

import re

import pytest
from playwright.sync_api import expect

from .test_true_path import RUN_MS, asked, slider_of

pytestmark = pytest.mark.browser

RANGES = """() => {
  const layout = document.querySelector(".js-plotly-plot")?._fullLayout
  return ["xaxis", "xaxis2", "xaxis3"].map((name) => layout?.[name]?.range.map(Math.round).join())
}"""


def test_a_threshold_set_on_accuracy_is_the_damage_map_s(watched, address, prepared):
    page = watched.page
    page.set_default_timeout(RUN_MS)
    query = f"scene={prepared.placed.id}&run={prepared.run_id}&threshold=0.25"
    page.goto(f"{address}/accuracy?{query}", wait_until="commit")
    name = re.compile("^Otsu")
    taken = page.get_by_role("radio", name=name).or_(page.get_by_role("button", name=name))
    expect(taken).to_be_visible(timeout=RUN_MS)
    expect(page.locator(".js-plotly-plot")).to_have_count(5, timeout=RUN_MS)
    taken.click()
    page.wait_for_url(lambda url: "threshold=0.25" not in url)
    chosen = asked(page, "threshold")
    stored = round(254 * float(chosen)) + 1  # the address rounds down, so its last digit may be another one
    assert stored == round(254 * float(taken.inner_text().split()[-1])) + 1

    page.get_by_role("link", name="Damage map").click()
    expect(slider_of(page)).to_be_visible(timeout=RUN_MS)
    expect(slider_of(page)).to_have_value(str(stored))
    assert (asked(page, "run"), asked(page, "threshold")) == (prepared.run_id, chosen)


def test_three_panels_of_the_explorer_have_one_zoom(watched, address, prepared):
    page = watched.page
    page.set_default_timeout(RUN_MS)
    page.goto(f"{address}/explorer?scene={prepared.placed.id}", wait_until="commit")
    expect(page.get_by_role("figure", name=f"{prepared.placed.id}: image before")).to_be_visible(timeout=RUN_MS)
    plot = page.locator(".js-plotly-plot")
    expect(plot.locator(".nsewdrag").first).to_be_visible(timeout=RUN_MS)
    page.wait_for_function(f"!({RANGES})().includes(undefined)")
    before = page.evaluate(RANGES)
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 6, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -400)
    page.wait_for_function(f"({RANGES})()[2] !== '{before[2]}'")
    after = page.evaluate(RANGES)
    assert len(set(after)) == 1 and after != before
