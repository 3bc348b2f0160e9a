"""Parts b, d and f: whole scenes, from the files to the result, its first tile on the map, and the memory of it."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import morecantile
import numpy as np
import psutil
import uvicorn
from affine import Affine
from bench_table import Options, Row, Target, Timing, duration, interleaved, missing, number
from numpy.typing import NDArray
from starlette.applications import Starlette

from mmcd.cards import find_card
from mmcd.geo.catalog import Scene
from mmcd.geo.cog import Band, CogWriter, write_cog
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import output_grid
from mmcd.jobs import JobStore, open_store
from mmcd.paths import workspace
from mmcd.progress import silent
from mmcd.services.inference import PredictRequest
from mmcd.services.runs import run_folder
from mmcd.services.scenes import get_scene
from mmcd.studio import tiles
from mmcd.studio.routes import raster_routes

MODEL = "damage-vhr-sim"
LARGE_SCENE = "simulated-earthquake-grid-01"
SCENES = (
    "simulated-flood-village-07",
    "simulated-earthquake-organic-02",
    "simulated-hurricane-grid-05",
    "simulated-wildfire-village-04",
)
"""Scenes of 1024 x 1024 px; the first one warms the worker up."""

SMALL_SIDE, LARGE_SIDE = 2_500, 10_000
JOB_SECONDS = 600
LOOK_SECONDS = 0.02

_WEB_MERCATOR = morecantile.tms.get("WebMercatorQuad")


def whole_path(options: Options) -> list[Row]:
    """Part b: read, predict and write a scene against the network alone on the same padded blocks."""
    import torch

    from mmcd.inference.engine import Journal, plan_blocks, score_region
    from mmcd.inference.pair import PairReader
    from mmcd.inference.predictor import Predictor, normalise

    torch.set_num_threads(1)
    card_path, card = find_card(MODEL)
    predictor = Predictor.load(card_path, "cpu")
    scene = get_scene(LARGE_SCENE)
    grid = output_grid(scene.pre, scene.post, card.gsd.nominal)
    plan = plan_blocks(grid, grid.window, grid.width)
    inputs = []
    with PairReader(scene.pre, scene.post, card, grid) as reader:
        for window in (window for tile in plan.tiles for window in tile):
            block = reader.read(Window(window.row, window.col, plan.block, plan.block).padded(predictor.halo))
            pairs = (block.pre, block.pre_valid, card.pre), (block.post, block.post_valid, card.post)
            inputs.append(tuple(normalise(*pair) for pair in pairs))

    def path() -> None:
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(Path(folder) / "journal", "bench")
            with (
                PairReader(scene.pre, scene.post, card, grid) as reader,
                CogWriter(Path(folder) / "score.tif", grid) as writer,
            ):
                score_region(plan, reader, predictor, writer, journal, silent)
                writer.commit()

    def network() -> None:
        for pre, post in inputs:
            predictor.backend.run(pre, post)

    times = interleaved({"path": path, "network": network}, options.rounds)
    size = f"{grid.width:,} x {grid.height:,}, {predictor.arithmetic.dtype}"
    return [
        _share(f"read, predict, write {size}, processor", times, lambda timing: timing.processor),
        _share(f"read, predict, write {size}, clock", times, lambda timing: timing.clock),
    ]


def click_to_overlay(options: Options) -> list[Row]:
    """Part d: from the request that the page's Run button makes to the first tile of the result, with a warm worker."""
    with _worker() as worker, _tile_server() as port:
        store = open_store(workspace())
        _scored(store, SCENES[0], port)
        before = _processor_seconds(worker)
        seconds = [_scored(store, scene, port) for scene in SCENES[1:]]
        processor = (_processor_seconds(worker) - before) / len(seconds)
    median, longest = float(np.median(seconds)), max(seconds)
    what = f"request to first tile, 1,024 x 1,024, {os.environ['OMP_NUM_THREADS']} threads"
    others = f"median of {len(seconds)} scenes, longest {duration(longest)}"
    return [
        Row("d", f"{what}, clock", duration(median), others, median, "s", Target(3, at_least=False)),
        Row("d", f"{what}, processor of the worker", duration(processor), "mean"),
    ]


def memory(options: Options) -> list[Row]:
    """Part f: the most memory that `mmcd infer predict` holds, each scene in a process of its own."""
    small = _peak_mb(SMALL_SIDE)
    what = f"peak memory, {SMALL_SIDE:,} x {SMALL_SIDE:,}"
    if not options.full:
        ratio = missing("f", f"peak memory, {LARGE_SIDE:,} x {LARGE_SIDE:,}", "takes many minutes, give --full")
        return [Row("f", what, f"{number(small)} MB"), ratio]
    large = _peak_mb(LARGE_SIDE)
    row = Row(
        "f",
        f"peak memory, {LARGE_SIDE:,} x {LARGE_SIDE:,}",
        f"{number(large)} MB",
        f"{number(small)} MB: {SMALL_SIDE:,} x {SMALL_SIDE:,}",
        large / small,
        target=Target(1.25, at_least=False),
    )
    return [row]


def _share(what: str, times: dict[str, Timing], which: Callable[[Timing], tuple[float, ...]]) -> Row:
    path, network = (min(which(times[name])) for name in ("path", "network"))
    against = f"{duration(network)}: the network on the same blocks"
    return Row("b", what, duration(path), against, path / network, target=Target(1.2, at_least=False))


def _scored(store: JobStore, scene_id: str, port: int) -> float:
    """Return the seconds until the first tile of a scene's score was answered."""
    scene = get_scene(scene_id)
    z, x, y = _first_tile(scene)
    # An export that another part made would be taken by itself.
    asked = PredictRequest.checked(scene=scene_id, model=MODEL, backend="torch")
    request = asked.model_dump(mode="json", exclude_none=True)
    begun = time.perf_counter()
    job_id = store.submit("predict", request)
    while (job := store.get(job_id)).active:
        if time.perf_counter() - begun > JOB_SECONDS:
            raise RuntimeError(f"the worker did not score {scene_id} in {JOB_SECONDS} s")
        time.sleep(LOOK_SECONDS)
    if job.result is None:
        raise RuntimeError(f"the worker could not score {scene_id}: {job.message} {job.hint}")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=JOB_SECONDS)
    connection.request("GET", f"/mmcd/runs/{job.result['run_id']}/tiles/{z}/{x}/{y}.png")
    answer = connection.getresponse()
    content = answer.read()
    seconds = time.perf_counter() - begun
    connection.close()
    if answer.status != 200 or not content:
        raise RuntimeError(f"the tile of {run_folder(job.result['run_id'])} was answered with {answer.status}")
    return seconds


def _first_tile(scene: Scene) -> tuple[int, int, int]:
    """Return zoom, column and row of the tile in the middle of a scene, at the zoom that shows most of it."""
    west, south, east, north = tiles.geographic_bounds(scene.pre)
    zoom = tiles.native_zoom(scene.pre) - 1
    tile = _WEB_MERCATOR.tile((west + east) / 2, (south + north) / 2, zoom)
    return tile.z, tile.x, tile.y


def _processor_seconds(process: psutil.Process) -> float:
    """Return the processor seconds that another process has used: on a busy machine they say more than the clock."""
    used = process.cpu_times()
    return float(used.user + used.system)


@contextmanager
def _worker() -> Iterator[psutil.Process]:
    """A worker of the workspace, as the app starts it; it ends with the block."""
    with (workspace() / "worker.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "mmcd", "worker"], stdout=log, stderr=log)
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def _tile_server() -> Iterator[int]:
    """The app's routes on a free port."""
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=raster_routes()), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def _peak_mb(side: int) -> float:
    """Return the peak memory of scoring a square pair of noise."""
    with tempfile.TemporaryDirectory() as folder:
        pre, post = _noise_pair(Path(folder), side)
        out = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "mmcd",
            "infer",
            "predict",
            str(pre),
            str(post),
            "--model",
            MODEL,
            "--backend",
            "torch",
        ]
        subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        return float(json.loads((out / "manifest.json").read_text())["peak_memory_mb"])


def _noise_pair(folder: Path, side: int) -> tuple[Path, Path]:
    grid = Grid("EPSG:32634", Affine(0.5, 0, 400_000, 0, -0.5, 4_600_000), side, side)
    optical, radar = Band(names=("red", "green", "blue")), Band(names=("VV",))
    pre = write_cog(folder / "pre.tif", _noise(grid, 3), grid, optical)
    return pre, write_cog(folder / "post.tif", _noise(grid, 1), grid, radar)


def _noise(grid: Grid, bands: int) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    random = np.random.default_rng(0)
    for window in blocks(grid.shape, 1000):
        yield window, random.integers(1, 256, (bands, *window.shape), np.uint8)
