"""Take the README's pictures of the Damage map from a running app.

    make app                                       # in another terminal
    python docs/capture.py SCENE RUN [--address http://localhost:8501]

writes ``damage-map.png`` and ``threshold-drag.webp`` beside this file. Needs the extra ``test`` and Chromium. Every
frame is a screenshot taken while the mouse button is held down; nothing is drawn afterwards.
"""

import argparse
import io
import math
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent
STILL = {"width": 1600, "height": 960}
FILM = {"width": 1280, "height": 860}
FRAMES, FRAME_MS = 200, 150  # 30 seconds
FILM_WIDTH = 1024
PATIENCE_MS, SETTLED_MS = 120_000, 5_000


def main() -> None:
    """Read the command line and take both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene")
    parser.add_argument("run")
    parser.add_argument("--address", default="http://localhost:8501")
    parser.add_argument("--building", default="", help="id of the building to go to in the still picture")
    chosen = parser.parse_args()
    place = f"{chosen.address}/damage_map?scene={chosen.scene}&run={chosen.run}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=STILL)
        _open(page, f"{place}&building={chosen.building}" if chosen.building else place)
        _still(page).save(HERE / "damage-map.png", optimize=True)
        page.set_viewport_size(FILM)
        _open(page, place)
        _save(_drag(page), HERE / "threshold-drag.webp")
        browser.close()


def _open(page: Page, address: str) -> None:
    """Show a run, all its tiles and its buildings."""
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address, wait_until="networkidle")
    page.get_by_role("row").nth(2).wait_for()
    frame = page.frame_locator("iframe[title*='st_folium']")
    frame.locator(".mmcd-divider").wait_for()
    page.wait_for_timeout(SETTLED_MS)
    frame.locator(".mmcd-busy").first.wait_for(state="detached")
    page.wait_for_load_state("networkidle")


def _still(page: Page) -> Image.Image:
    """Return the page in 256 colours, which halve the file; dithered, so that the palettes stay smooth."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    palette = picture.quantize(256)  # Pillow dithers only towards a palette that is given
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _drag(page: Page) -> list[Image.Image]:
    """Move the threshold down, up and back with the button held down; return a frame a step."""
    page.frame_locator("iframe[title*='st_folium']").get_by_role("button", name="Zoom in").click()
    page.wait_for_timeout(SETTLED_MS)
    slider = page.get_by_label("Show change from probability")
    box, value = slider.bounding_box(), (int(slider.input_value()) - 1) / 254
    if box is None:
        raise SystemExit("error: the threshold is not on the page")
    left, width, y = box["x"] + 8, box["width"] - 16, box["y"] + box["height"] / 2
    page.mouse.move(left + width * value, y)
    page.mouse.down()
    frames = []
    for number in range(FRAMES):
        # Starts and ends where it stood, so that the film can loop; sines slow down where the hand turns.
        turn = math.sin(2 * math.pi * number / FRAMES)
        share = value + turn * (value - 0.05 if turn < 0 else 0.95 - value)
        page.mouse.move(left + width * share, y)
        page.wait_for_timeout(60)
        frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        frames.append(
            frame.resize((FILM_WIDTH, round(frame.height * FILM_WIDTH / frame.width)), Image.Resampling.LANCZOS)
        )
    page.mouse.up()
    return frames


def _save(frames: list[Image.Image], path: Path) -> None:
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=FRAME_MS,
        loop=0,
        quality=55,
        method=4,
        minimize_size=True,
    )


if __name__ == "__main__":
    main()
