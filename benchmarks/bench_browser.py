"""Part e: from the slider's input to the repainted map, in Chromium over a score of 8192 x 8192 px."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from affine import Affine
from bench_app import chromium, paint_run, served
from bench_table import Options, Row, Target, missing, number
from playwright.sync_api import Page
from scipy.ndimage import gaussian_filter

from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid
from mmcd.paths import workspace

SIDE, IMAGE_SIDE, GSD = 8192, 1024, 0.5
THRESHOLD = 0.5
MOVES = 60
PAUSE_MS = 150
PATIENCE_MS = 180_000
VIEW = {"width": 1280, "height": 900}

# Both sides note times since the epoch: their frames have different origins. The map repaints in an animation callback;
# a message that is posted there arrives once that frame is drawn.
NOTE_INPUTS = """slider => {
  window.mmcdInputs = [];
  slider.addEventListener("input", (event) => window.mmcdInputs.push(performance.timeOrigin + event.timeStamp), true);
}"""
NOTE_REPAINTS = """canvas => {
  window.mmcdRepaints = [];
  const channel = new MessageChannel();
  let waiting = false;
  channel.port1.onmessage = () => {
    waiting = false;
    window.mmcdRepaints.push(performance.timeOrigin + performance.now());
  };
  const put = CanvasRenderingContext2D.prototype.putImageData;
  CanvasRenderingContext2D.prototype.putImageData = function (...words) {
    put.apply(this, words);
    if (waiting || !this.canvas.classList.contains("mmcd-values")) return;
    waiting = true;
    channel.port2.postMessage(null);
  };
}"""


def slider_to_repaint(options: Options) -> list[Row]:
    """Part e: the slowest twentieth of small moves of the threshold, on a map that shows the whole score."""
    what = f"slider to repaint, {SIDE:,} x {SIDE:,}"
    if shutil.which("chromium") is None:
        return [missing("e", what, "there is no chromium on the path")]
    scene, run_id = _prepared(workspace())
    with served(workspace(), {}) as address, chromium() as browser:
        page = browser.new_page(viewport=VIEW)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{address}/damage_map?scene={scene.id}&run={run_id}")
        delays, tiles = _delays(page)
    if not delays:
        return [missing("e", what, "no move was followed by a repaint")]
    p95 = float(np.quantile(delays, 0.95))
    others = f"median {number(float(np.median(delays)))} ms of {len(delays)} moves, {tiles} tiles"
    return [Row("e", f"{what}, 95th percentile", f"{number(p95)} ms", others, p95, "ms", Target(50, at_least=False))]


def paired(inputs: list[float], repaints: list[float]) -> list[float]:
    """Return the time from each input to the first repaint after it; inputs that none followed are left out."""
    first = ((start, next((at for at in repaints if at >= start), None)) for start in inputs)
    return [at - start for start, at in first if at is not None]


def _delays(page: Page) -> tuple[list[float], int]:
    """Move the threshold with the mouse; return milliseconds to each repaint, and how many tiles the map has."""
    canvases = page.frame_locator("iframe[title*='st_folium']").locator("canvas.mmcd-values")
    slider = page.get_by_label("Show change from probability")
    canvases.first.wait_for()
    slider.scroll_into_view_if_needed()
    page.wait_for_timeout(5000)  # tiles and the page's own start-up come to rest
    slider.evaluate(NOTE_INPUTS)
    canvases.first.evaluate(NOTE_REPAINTS)
    box = slider.bounding_box()
    if box is None:
        raise RuntimeError("the slider is not on the page")
    left, width, y = box["x"] + 8, box["width"] - 16, box["y"] + box["height"] / 2
    page.mouse.move(left + width * THRESHOLD, y)
    page.mouse.down()
    for step in range(MOVES):
        page.mouse.move(left + width * (0.3 + 0.4 * ((step * 7) % MOVES) / MOVES), y)
        page.wait_for_timeout(PAUSE_MS)
    inputs = page.evaluate("window.mmcdInputs")
    repaints = canvases.first.evaluate("() => window.mmcdRepaints")
    page.mouse.up()
    return paired(inputs, repaints), canvases.count()


def _prepared(folder: Path) -> tuple[Scene, str]:
    """Write a scene with small images and a finished run with a large score into a workspace."""
    grid, coarse = _grid(SIDE, GSD), _grid(IMAGE_SIDE, GSD * SIDE / IMAGE_SIDE)
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((IMAGE_SIDE, IMAGE_SIDE)), 4, mode="wrap")
    smooth = np.clip(128 + 900 * noise, 1, 255).astype(np.uint8)
    images = folder / "scenes" / "large"
    scene = Scene(
        id="large-score",
        title="Large score",
        event="Noise",
        event_type="earthquake",
        place="",
        pre=write_cog(images / "pre.tif", np.stack([smooth] * 3), coarse, Band(names=("red", "green", "blue"))),
        post=write_cog(images / "post.tif", smooth, coarse, Band(names=("VV",))),
        gsd=coarse.gsd,
        geometry=grid.geographic_footprint(),
        simulated=True,
    )
    catalog = folder / "scenes"
    (Catalog.open(catalog) if (catalog / "catalog.json").is_file() else Catalog.create(catalog)).add(scene)
    return scene, paint_run(
        "large score",
        scene.id,
        np.tile(smooth, (SIDE // IMAGE_SIDE, SIDE // IMAGE_SIDE)),
        grid,
        THRESHOLD,
        model={"name": "noise", "version": "1", "why": "it was asked for"},
        warnings=[],
        finished=datetime.now(UTC).isoformat(),
    )


def _grid(side: int, gsd: float) -> Grid:
    return Grid("EPSG:32759", Affine(gsd, 0, 500_000, 0, -gsd, 5_100_000), side, side)
