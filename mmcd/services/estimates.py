"""How long a run will take and how much disk it needs, said before it starts. Needs no torch."""

import functools
import math
import platform
import shutil
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmcd.cards import Card
from mmcd.geo.catalog import Scene
from mmcd.geo.raster import output_grid
from mmcd.geo.vector import parse_region
from mmcd.inference.exported import RUNTIMES, choose_export
from mmcd.paths import workspace_folder
from mmcd.services.runs import bytes_a_pixel, list_runs

RECENT_RUNS = 5
_BLOCK, _HALO = 512, 128  # the engine's block and what it reads around it, used until a run has told its own
_FLOP_A_PIXEL = 128_000  # floating point operations of the siamese model a pixel it reads, counted by torch
_SHARE_OF_MATRIX_SPEED = 0.8  # of a whole run in bfloat16 against float32 matrices, measured on two cores
_OVERHEAD_SECONDS = 4.0  # load the model, hash the images, write score and mask


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to need.

    Attributes:
        seconds: Time from its start to its result.
        disk_bytes: The most that it occupies on disk at any time.
        free_bytes: What is free there.
        pixels: Pixels that it scores.
        runs: Number of earlier runs of this model in the same engine on this machine behind the time; 0 when it rests
            on a speed test.
    """

    seconds: float
    disk_bytes: int
    free_bytes: int
    pixels: int
    runs: int


def estimate_run(card: Card, scene: Scene, region: str | None = None) -> Estimate:
    """Return what a run will need, from earlier runs of the model here or else from a speed test of this machine.

    Args:
        card: The model.
        scene: The scene.
        region: ``W,S,E,N`` in degrees or a vector file; the whole scene when left out.

    Raises:
        InputError: An image cannot be read.
        RegionError: The region is empty or outside the scene.
    """
    grid = output_grid(scene.pre, scene.post, card.gsd.nominal)
    window = parse_region(region).window(grid) if region else grid.window
    pixels = window.height * window.width
    earlier = _earlier_runs(card)
    size, halo = (earlier[0]["block"]["size"], earlier[0]["block"]["halo"]) if earlier else (_BLOCK, _HALO)
    blocks = math.ceil(window.height / size) * math.ceil(window.width / size)
    if earlier:
        pace = statistics.median(run["seconds"]["score"] / _pixels_read(**run["block"]) for run in earlier)
        around = statistics.median(sum(run["seconds"].values()) - run["seconds"]["score"] for run in earlier)
    else:
        pace = _FLOP_A_PIXEL / (_SHARE_OF_MATRIX_SPEED * matrix_speed())
        around = _OVERHEAD_SECONDS
    free = shutil.disk_usage(workspace_folder("runs")).free
    seconds = around + pace * _pixels_read(size, halo, blocks)
    return Estimate(seconds, bytes_a_pixel(card.marks_buildings) * pixels, free, pixels, len(earlier))


@functools.cache
def matrix_speed() -> float:
    """Return how fast this machine multiplies float32 matrices, in operations a second; measured once, in 0.2 s."""
    side = 1024
    matrix = np.ones((side, side), np.float32)
    best = math.inf
    for _ in range(4):
        begun = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def _pixels_read(size: int, halo: int, count: int) -> int:
    """Return the pixels that go through the network: every block with what is read around it."""
    return count * (size + 2 * halo) ** 2


def _earlier_runs(card: Card) -> list[dict[str, Any]]:
    """Return the manifests of the newest whole runs of a model in the engine of the next one here, newest first."""
    export = choose_export(card)
    engine = RUNTIMES[export.backend] if export else "torch"
    manifests = (run.manifest for run in list_runs())
    here = [manifest for manifest in manifests if _comparable(manifest, card, engine)]
    return here[:RECENT_RUNS]


def _comparable(manifest: dict[str, Any], card: Card, engine: str) -> bool:
    if manifest["model"]["name"] != card.name or manifest.get("platform") != platform.platform():
        return False
    if _engine(manifest) != engine:
        return False
    # A resumed run scored only what was left when it was taken up again.
    return not manifest.get("resumed", True) and bool(manifest.get("block", {}).get("count"))


def _engine(manifest: dict[str, Any]) -> str:
    """Return the engine of a run without its version; runs that name none were made when there was only torch."""
    return str(manifest.get("arithmetic", {}).get("backend", "torch")).split()[0]
