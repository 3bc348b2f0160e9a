"""The Embeddings page in a real browser: what is drawn around in the scatter appears on the map and as pictures."""

import re
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import FrameLocator, Page, expect

from mmcd.embedding_table import read_table
from mmcd.services.embeddings import selection
from mmcd.services.runs import load_run

from ..embedded import embedded_run

pytestmark = pytest.mark.browser

OPEN_MS = 180_000  # the first chart of a server loads 5 MB of script, which takes long on a busy machine

# The box around the points of the flooded patches, in pixels of the window.
BOX = """plot => {
  const { xaxis, yaxis, _size: size } = plot._fullLayout;
  const trace = plot._fullData.find(({ name }) => name.startsWith("changed"));
  const frame = plot.getBoundingClientRect();
  const xs = Array.from(trace.x, (x) => frame.left + size.l + xaxis.l2p(x));
  const ys = Array.from(trace.y, (y) => frame.top + size.t + yaxis.l2p(y));
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}"""


# Ends once the plot has its drawing and its last width, and lies still: before that, it cannot be drawn on.
SETTLED = """plot => new Promise((resolve) => {
  let [before, same] = ["", 0];
  const look = () => {
    const { left, top, width } = plot.getBoundingClientRect();
    const ready = plot.querySelector("canvas") && Math.abs(plot._fullLayout.width - width) < 2;
    const now = [left, top, width, plot._fullLayout.width].join();
    same = ready && now === before ? same + 1 : 0;
    before = now;
    if (same < 10) requestAnimationFrame(look);
    else resolve();
  };
  look();
})"""


def map_of(page: Page) -> FrameLocator:
    return page.frame_locator("iframe[title*='st_folium']")


def draw_around(page: Page, box: list[float]) -> None:
    """Press, draw around a box with some room, and let go."""
    left, top, right, bottom = box[0] - 6, box[1] - 6, box[2] + 6, box[3] + 6
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(x, y, steps=8)
    page.mouse.up()


def test_what_is_drawn_around_is_on_the_map_and_in_the_gallery(watched, address, prepared):
    page, run_id = watched.page, embedded_run(prepared)
    page.set_default_timeout(OPEN_MS)
    page.goto(f"{address}/embeddings?run={run_id}&method=pca&what=sar", wait_until="commit")
    plot = page.locator(".js-plotly-plot")
    expect(plot.locator(".nsewdrag")).to_be_visible(timeout=OPEN_MS)
    outlined = map_of(page).locator("[data-patches]")
    expect(outlined).to_have_attribute("data-patches", "0", timeout=OPEN_MS)
    plot.scroll_into_view_if_needed()
    plot.evaluate(SETTLED)

    draw_around(page, plot.evaluate(BOX))
    heading = page.get_by_role("heading", name=re.compile("patches selected"))
    expect(heading).to_be_visible(timeout=OPEN_MS)
    count = int(re.sub(r"\D", "", heading.inner_text()))
    expect(outlined).to_have_attribute("data-patches", str(count), timeout=OPEN_MS)
    expect(page.get_by_alt_text(re.compile("^Before and after"))).to_have_count(12, timeout=OPEN_MS)

    name, pairs = selection(parse_qs(urlsplit(page.url).query)["patches"][0])
    table = read_table(load_run(run_id).embeddings)
    assert name == run_id and len(pairs) == count < len(table) / 2
    assert set(np.flatnonzero(table.label >= 0.5)) <= set(pairs.tolist())

    page.reload()
    expect(page.get_by_role("heading", name=f"{count} patches selected")).to_be_visible(timeout=OPEN_MS)
    expect(outlined).to_have_attribute("data-patches", str(count), timeout=OPEN_MS)
