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
from mmcd.inference.survey import sample_windows
from mmcd.paths import workspace_folder
from mmcd.services.runs import bytes_a_pixel, list_runs

RECENT_RUNS = 5
_BLOCK, _HALO = 512, 128  # the engine's block and what it reads around it, used until a run has told its own
_FLOP_A_PIXEL = 128_000  # floating point operations of the siamese model a pixel it reads, counted by torch
# Thousands of operations of the fusion UNet a pixel, level by level from 1 to 5, at full width: of a trunk's features
# for one image, of their concatenation, and of the decoder.
_RESIDUAL_DECODER, _OTHER_DECODER = (0.3, 73.7, 32.8, 32.8, 8.2), (0.1, 8.2, 8.2, 8.2, 2.0)
_FUSION_WORK: dict[str, tuple[tuple[float, ...], ...]] = {
    "resnet18": ((4.7, 73.7, 65.5, 65.5, 65.5), (36.9, 73.7, 73.7, 73.7, 36.9), _RESIDUAL_DECODER),
    "resnet34": ((4.7, 110.6, 139.3, 213.0, 102.4), (36.9, 73.7, 73.7, 73.7, 36.9), _RESIDUAL_DECODER),
    "resnet50": ((4.7, 106.5, 163.8, 233.5, 129.0), (36.9, 294.9, 294.9, 294.9, 147.5), _RESIDUAL_DECODER),
    "swin_t": ((0.0, 30.6, 31.1, 87.0, 30.2), (0.0, 27.6, 27.6, 27.6, 13.8), _OTHER_DECODER),
    "convnext_tiny": ((0.0, 30.0, 30.8, 86.6, 30.2), (0.0, 27.6, 27.6, 27.6, 13.8), _OTHER_DECODER),
}
_FUSION_SHARE = {"concat": 1.0, "absdiff": 0.5, "cross_attention": 2.0}  # of the work of concatenation, about
_SHARE_OF_MATRIX_SPEED = 0.8  # of a whole run in bfloat16 against float32 matrices, measured on two cores
_OVERHEAD_SECONDS = 4.0  # load the model, hash the images, write score and mask

# What `mmcd.inference.alignment` and `mmcd.inference.adaptation` do before a run, which need torch to ask; a test
# counts what they really read and run.
_SAMPLE_SIDE = 256
_ALIGN_WINDOWS, _ALIGN_SMALLEST_SIDE = 9, 128
_ALIGN_OFFSETS = 14  # of a scene in its place; up to 17 where the search goes on beside it
_EMBEDDING_SHARE = 0.44  # of the network's operations: one image's embedding, without the decoder
_ADAPT_FEWEST_PIXELS = 128 * 128
# Against the pace of the blocks, measured on two cores: single precision, and the moments of all that every layer sees.
_SLOWER = {"align": 1.0, "adapt": 4.0}


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


def estimate_run(
    card: Card, scene: Scene, region: str | None = None, align: bool = False, adapt: bool = False
) -> Estimate:
    """Return what a run will need, from earlier runs of the model here or else from a speed test of this machine.

    Args:
        card: The model.
        scene: The scene.
        region: ``W,S,E,N`` in degrees or a vector file; the whole scene when left out.
        align: Whether the image after is moved back first where it is displaced.
        adapt: Whether the model is adapted to the scene first, which keeps it in torch.

    Raises:
        InputError: An image cannot be read.
        RegionError: The region is empty or outside the scene.
    """
    grid = output_grid(scene.pre, scene.post, card.gsd.nominal)
    window = parse_region(region).window(grid) if region else grid.window
    pixels = window.height * window.width
    known = _known_runs(card)
    export = None if adapt else choose_export(card)
    earlier = _earlier_runs(known, RUNTIMES[export.backend] if export else "torch")
    size, halo = (earlier[0]["block"]["size"], earlier[0]["block"]["halo"]) if earlier else (_BLOCK, _HALO)
    blocks = math.ceil(window.height / size) * math.ceil(window.width / size)
    around = statistics.median(_around(run["seconds"]) for run in earlier) if earlier else _OVERHEAD_SECONDS
    asked = [name for name, wanted in (("align", align), ("adapt", adapt)) if wanted]
    work = flop_a_pixel(card)
    fitting = sum(_fitting_seconds(name, grid.shape, known, work) for name in asked)
    seconds = around + fitting + _pace(earlier, work) * _pixels_read(size, halo, blocks)
    free = shutil.disk_usage(workspace_folder("runs")).free
    return Estimate(seconds, bytes_a_pixel(card.marks_buildings) * pixels, free, pixels, len(earlier))


def flop_a_pixel(card: Card) -> float:
    """Return the floating point operations of a card's network for each pixel that it reads."""
    if card.architecture != "fusion_unet":
        return _FLOP_A_PIXEL
    settings = {"trunk": "resnet50", "levels": 5, "width": 1.0, "fusion": "concat", **card.settings}
    levels, width = slice(settings["levels"]), settings["width"]
    trunks = (settings["trunk"], settings.get("post_trunk") or settings["trunk"])
    parts = [[sum(part[levels]) for part in _FUSION_WORK[trunk]] for trunk in trunks]
    encoded, fused, decoded = (statistics.mean(part) for part in zip(*parts, strict=True))
    # The trunk runs for both images; a narrower decoder has fewer inputs and fewer outputs.
    return 1000.0 * float(2 * encoded + _FUSION_SHARE[settings["fusion"]] * width * fused + width**2 * decoded)


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


def _pace(earlier: list[dict[str, Any]], work: float) -> float:
    """Return the seconds a pixel that the network reads, of earlier runs or else of this machine in torch.

    Args:
        earlier: Manifests of earlier runs.
        work: Floating point operations a pixel.
    """
    if earlier:
        return float(statistics.median(run["seconds"]["score"] / _pixels_read(**run["block"]) for run in earlier))
    return work / (_SHARE_OF_MATRIX_SPEED * matrix_speed())


def _around(seconds: dict[str, float]) -> float:
    """Return what a run took beside its blocks and what was done to fit model and scene to one another."""
    return sum(taken for stage, taken in seconds.items() if stage not in ("score", *_SLOWER))


def _fitting_seconds(name: str, shape: tuple[int, int], known: list[dict[str, Any]], work: float) -> float:
    """Return how long aligning or adapting takes, which never depends on the region; always in torch."""
    done = (run for run in known if run.get(name) and run["region"] is None)
    works = [(run["seconds"][name], fitting_pixels(name, tuple(run["grid"]["shape"]))) for run in done]
    paces = [seconds / pixels for seconds, pixels in works[:RECENT_RUNS] if pixels]
    pace = statistics.median(paces) if paces else _SLOWER[name] * _pace(_earlier_runs(known, "torch"), work)
    return pace * fitting_pixels(name, shape)


def fitting_pixels(name: str, shape: tuple[int, int]) -> float:
    """Return the pixels that go through the network to align or to adapt, in pixels of the whole network.

    Args:
        name: ``align`` or ``adapt``.
        shape: Rows and columns of the whole scene.
    """
    if name == "align":
        windows = sample_windows(shape, _SAMPLE_SIDE, _ALIGN_WINDOWS)
        read = 0 if windows[0].height < _ALIGN_SMALLEST_SIDE else len(windows) * windows[0].height ** 2
        return read * (1 + _ALIGN_OFFSETS) * _EMBEDDING_SHARE  # before once, after at every offset
    windows = sample_windows(shape, _SAMPLE_SIDE)
    read = len(windows) * windows[0].height ** 2
    return 0 if read < _ADAPT_FEWEST_PIXELS else read


def _known_runs(card: Card) -> list[dict[str, Any]]:
    """Return the manifests of the runs of a model on this machine, newest first."""
    manifests = (run.manifest for run in list_runs())
    return [
        run for run in manifests if run["model"]["name"] == card.name and run.get("platform") == platform.platform()
    ]


def _earlier_runs(known: list[dict[str, Any]], engine: str) -> list[dict[str, Any]]:
    """Return the newest whole runs in an engine."""
    # A resumed run scored only what was left when it was taken up again.
    whole = (run for run in known if not run.get("resumed", True) and run.get("block", {}).get("count"))
    return [run for run in whole if _engine(run) == engine][:RECENT_RUNS]


def _engine(manifest: dict[str, Any]) -> str:
    """Return the engine of a run without its version; runs that name none were made when there was only torch."""
    return str(manifest.get("arithmetic", {}).get("backend", "torch")).split()[0]
