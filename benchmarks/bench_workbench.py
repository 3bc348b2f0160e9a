"""Part p: the analyst's pages with 200 scenes in the catalog, a picture of 10,000 patch pairs, memory of the server.

Pages are timed inside a real server by a visitor without a browser (`bench_visit`); what a person sees is timed in
Chromium. All figures are of the clock, for a person waits by it: they hold for a machine that nothing else uses.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from bench_app import chromium, served
from bench_browser import PATIENCE_MS, VIEW, paired
from bench_many import DIMENSIONS, ROIS, SCENES, Prepared, prepared
from bench_table import Options, Row, Target, missing, number
from bench_visit import Visit, processor_seconds, server_process
from playwright.sync_api import Page

PAGE_MS, LASSO_MS = 300, 1000
VISITS = 7
"""Times that each page is opened in a round."""

FEW, MANY = 5, 50
FORGOTTEN_SECONDS = 150
"""A session that was left is kept for two minutes, in case its browser comes back."""

# Times since the epoch, as in part e: WebGL's first drawing of many points, the mouse let go, the map drawn anew.
NOTE_POINTS = """
const channel = new MessageChannel();
channel.port1.onmessage = () => (window.mmcdPainted ??= performance.now());
for (const context of [WebGLRenderingContext, WebGL2RenderingContext]) {
  const draw = context.prototype.drawArrays;
  context.prototype.drawArrays = function (mode, first, count) {
    draw.call(this, mode, first, count);
    if (count >= 1000) channel.port2.postMessage(null);
  };
}
"""
NOTE_RELEASES = """() => {
  window.mmcdReleases = [];
  const note = (event) => window.mmcdReleases.push(performance.timeOrigin + event.timeStamp);
  window.addEventListener("mouseup", note, true);
}"""
NOTE_OUTLINES = """container => {
  window.mmcdOutlines = [];
  const channel = new MessageChannel();
  channel.port1.onmessage = () => window.mmcdOutlines.push(performance.timeOrigin + performance.now());
  const drawn = () => requestAnimationFrame(() => channel.port2.postMessage(null));
  new MutationObserver(drawn).observe(container, { attributeFilter: ["data-patches"] });
}"""


def pages(options: Options) -> list[Row]:
    """The script of every page, in a real server whose caches are warm; the slowest twentieth of many visits."""
    kept = prepared()
    seconds: dict[str, list[float]] = {page: [] for page in kept.addresses()}
    busy: dict[str, list[float]] = {page: [] for page in seconds}
    with served(kept.folder, {}) as address, Visit(address) as visit:
        process = server_process()
        for page, query in kept.addresses().items():
            visit.open(page, query)
        for _ in range(VISITS * options.rounds):
            for page, query in kept.addresses().items():
                before = processor_seconds(process)
                seconds[page].append(visit.open(page, query))
                busy[page].append(processor_seconds(process) - before)
    return [_page_row(page or "scenes", seconds[page], busy[page]) for page in seconds]


def _page_row(page: str, seconds: list[float], busy: list[float]) -> Row:
    p95, processor = (1000 * float(np.quantile(times, 0.95)) for times in (seconds, busy))
    median = 1000 * float(np.median(seconds))
    words = f"median {number(median)} ms of {len(seconds)}; processor p95 {number(processor)} ms"
    what = f"script of {page}, {SCENES} scenes, clock, 95th percentile"
    return Row("p", what, f"{number(p95)} ms", words, p95, "ms", Target(PAGE_MS, at_least=False))


def layout(options: Options) -> list[Row]:
    """UMAP of 10,000 vectors as the app lays them out, in a process of its own as a job is; its import apart."""
    code = (
        "import json, time; import numpy as np; from bench_many import vectors; begun = time.perf_counter();"
        "import umap; loaded = time.perf_counter(); from mmcd.embeddings import Layout, lay_out;"
        "made = vectors(); start = time.perf_counter(), time.process_time();"
        "lay_out(made[0][1].astype(np.float32), Layout());"
        "print(json.dumps([loaded - begun, time.perf_counter() - start[0], time.process_time() - start[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    if done.returncode:
        return [missing("p", "UMAP", (done.stderr.strip().splitlines() or ["it ended"])[-1])]
    loaded, clock, processor = json.loads(done.stdout.splitlines()[-1])
    words = f"processor {number(processor)} s, compiling included; import of umap {number(loaded)} s apart"
    what = f"UMAP of {ROIS * ROIS:,} x {DIMENSIONS}, clock"
    return [Row("p", what, f"{number(clock)} s", words, clock, "s", Target(60, at_least=False))]


def scatter(options: Options) -> list[Row]:
    """In Chromium: the scatter's first paint after an address is opened, and from a lasso's end to the marked map."""
    if shutil.which("chromium") is None:
        return [missing("p", "first paint of the scatter", "there is no chromium on the path")]
    kept, paints = prepared(), []
    with served(kept.folder, {}) as address, chromium() as browser:
        url = f"{address}/embeddings?{kept.addresses()['embeddings']}"
        for _ in range(1 + options.rounds):  # the server's first visitor loads what all others find
            page = browser.new_page(viewport=VIEW)
            page.set_default_timeout(PATIENCE_MS)
            page.add_init_script(NOTE_POINTS)
            page.goto(url, wait_until="commit")
            paints.append(float(page.wait_for_function("window.mmcdPainted").json_value()))
            if len(paints) <= options.rounds:
                page.close()
        delays = _lassos(page, 3 * options.rounds)
    first, warm = paints[0], float(np.median(paints[1:]))
    points = f"{ROIS * ROIS:,} points"
    slowest, middle = max(delays), float(np.median(delays))
    words = f"median of {options.rounds} new windows; the server's first visitor {number(first)} ms"
    lasso = f"median {number(middle)} ms of {len(delays)}"
    return [
        Row("p", f"first paint of the scatter, {points}", f"{number(warm)} ms", words, warm, "ms"),
        Row(
            "p", f"lasso to marked map, {points}, the slowest", f"{number(slowest)} ms", lasso, slowest, "ms",
            Target(LASSO_MS, at_least=False),
        ),
    ]  # fmt: skip


def _lassos(page: Page, times: int) -> list[float]:
    """Draw around parts of the scatter; return milliseconds from each release to the map that shows its patches."""
    outlined = page.frame_locator("iframe[title*='st_folium']").locator("[data-patches]")
    outlined.wait_for()
    plot = page.locator(".js-plotly-plot")
    plot.scroll_into_view_if_needed()
    page.wait_for_load_state("networkidle")
    page.evaluate(NOTE_RELEASES)
    outlined.evaluate(NOTE_OUTLINES)
    for number_of in range(times):
        box = plot.locator(".nsewdrag").bounding_box()
        if box is None:
            raise RuntimeError("the scatter is not on the page")
        x, y = box["x"] + box["width"] * (0.3 + 0.1 * (number_of % 5)), box["y"] + box["height"] / 2
        page.mouse.move(x, y - 120)
        page.mouse.down()
        for dx, dy in ((60, -60), (60, 120), (-60, 120), (0, -120)):
            page.mouse.move(x + dx, y + dy, steps=5)
        page.mouse.up()
        page.wait_for_function(f"window.mmcdReleases.length > {number_of}")
        outlined.evaluate(
            """async (container, release) => {
              while (!(window.mmcdOutlines.at(-1) > release)) await new Promise((then) => setTimeout(then, 5));
            }""",
            page.evaluate("window.mmcdReleases.at(-1)"),
        )
        page.wait_for_load_state("networkidle")
        page.locator("[data-test-script-state='notRunning']").wait_for()
    return paired(page.evaluate("window.mmcdReleases"), outlined.evaluate("() => window.mmcdOutlines"))


def memory(options: Options) -> list[Row]:
    """The server's resident memory once 50 sessions were opened and closed, against that after five."""
    kept = prepared()
    with served(kept.folder, {}) as address:
        process = server_process()
        for number_of in range(FEW):
            _session(address, kept, number_of, range(7))
        few = process.memory_info().rss
        for number_of in range(FEW, MANY):
            _session(address, kept, number_of, range(number_of, number_of + 2))
        most = many = process.memory_info().rss
        begun = time.monotonic()
        while many > 1.1 * few and time.monotonic() < begun + FORGOTTEN_SECONDS:
            time.sleep(5)
            many = process.memory_info().rss
    ratio = many / few
    words = f"after {FEW} {_mib(few)}; right after the last closed {_mib(most)}"
    what = f"memory of the server after {MANY} sessions against {FEW}"
    return [Row("p", what, _mib(many), words, ratio, "×", Target(1.1, at_least=False))]


def _session(address: str, kept: Prepared, other: int, numbers: range) -> None:
    """Open some pages in a session of its own."""
    known = list(kept.addresses(other).items())
    with Visit(address) as visit:
        for number_of in numbers:
            visit.open(*known[number_of % len(known)])


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
