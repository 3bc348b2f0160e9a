"""Addresses that the app answers beside its pages: tiles, overview images, downloads and the map's own files."""

import functools
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from mmcd.buildings import BuildingCounts
from mmcd.errors import InputError, MmcdError
from mmcd.geo.catalog import Scene
from mmcd.score import SCALE, threshold_value
from mmcd.services.assets import assets_folder
from mmcd.services.buildings import NoBuildingError, buildings_of, geojson_of, grading_key
from mmcd.services.exports import What, export_run
from mmcd.services.masks import mask_at
from mmcd.services.runs import EVIDENCE_FILE, RUN_FILES, load_run, run_folder
from mmcd.services.scenes import get_scene
from mmcd.studio import tiles

PREFIX = "/mmcd"
STATIC = Path(str(files("mmcd.studio"))) / "static"
EXPORTS: dict[str, What] = {
    "buildings.gpkg": "buildings",
    "buildings.geojson": "buildings",
    "map.html": "map",
    "package.zip": "package",
}
_FORGETTING = threading.Lock()
MAX_COUNTED = 2  # runs whose building counts are kept in memory; 100,000 buildings take 100 MB
KEPT_EXPORTS = 4  # thresholds whose exports stay on disk, to go back and forth; a package is as large as its run
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
SCENE_SECONDS = 10
MAX_ZOOM = 30  # a centimetre a pixel; beyond it tile numbers make no sense


def raster_routes(base: str = "") -> list[BaseRoute]:
    """Return the routes to hand to ``st.App``.

    Args:
        base: Path that the app is served under (``server.baseUrlPath``), which Streamlit does not put before routes.
    """
    root = f"/{base.strip('/')}{PREFIX}" if base.strip("/") else PREFIX
    return [
        Route(f"{root}/runs/{{run_id}}/tiles/{{z:int}}/{{x:int}}/{{y:int}}.png", run_tile),
        Route(f"{root}/runs/{{run_id}}/outlines.geojson", building_outlines),
        Route(f"{root}/runs/{{run_id}}/shares.json", building_shares),
        Route(f"{root}/runs/{{run_id}}/{{name}}", run_file),
        Route(f"{root}/scenes/{{scene_id}}/{{side}}/tiles/{{z:int}}/{{x:int}}/{{y:int}}.png", scene_tile),
        Route(f"{root}/scenes/{{scene_id}}/{{side}}/overview.png", scene_overview),
        Mount(f"{root}/static", app=StaticFiles(directory=STATIC)),
        Mount(f"{root}/assets", app=_Assets(directory=None, check_dir=False)),
    ]


def error_response(request: Request, error: Exception) -> Response:
    """Answer with the cause and the next step of an `MmcdError` instead of a traceback."""
    if not isinstance(error, MmcdError):
        raise error
    return JSONResponse({"message": error.message, "hint": error.hint}, status_code=404)


def run_path(run_id: str, name: str) -> Path:
    """Return a file of a run, and nothing else, whatever the id and the name look like.

    Raises:
        InputError: The id is not one of a run, for example a path.
        HTTPException: The run has no such file (404).
    """
    path = run_folder(run_id) / name
    if name not in (*RUN_FILES, EVIDENCE_FILE) or not path.is_file():
        raise HTTPException(404)
    return path


async def run_tile(request: Request) -> Response:
    """Answer with the 8-bit values of a run's score."""
    path = run_path(request.path_params["run_id"], "score.tif")
    z, x, y = _tile_numbers(request)
    # A run never changes, so the browser may keep its tiles.
    return await _png(lambda: tiles.value_tile(path, z, x, y), "private, max-age=604800, immutable")


async def run_file(request: Request) -> Response:
    """Answer with a file of a run or an export of it; ranges are served, so a raster opens as a remote COG too."""
    run_id, name = request.path_params["run_id"], request.path_params["name"]
    threshold = request.query_params.get("threshold")
    if threshold is not None and (name == "mask.tif" or name in EXPORTS):
        path = await run_in_threadpool(_at_threshold, run_id, name, _probability(threshold))
        stem, _, suffix = name.partition(".")
        name = f"{stem}_{threshold}.{suffix}"
    else:
        path = run_path(run_id, name)
    media = COG_TYPE if path.suffix == ".tif" else None
    return FileResponse(path, media_type=media, filename=f"{run_id[:8]}_{name}")


async def building_outlines(request: Request) -> Response:
    """Answer with the outlines of a run's buildings and what gives their grade at every threshold."""
    path = await run_in_threadpool(lambda: geojson_of(load_run(request.path_params["run_id"])))
    return FileResponse(path, media_type="application/geo+json")


async def building_shares(request: Request) -> Response:
    """Answer with the changed share of each building at a stored value, by id; none where nothing was assessed."""
    run_id, value = request.path_params["run_id"], request.query_params.get("value", "")
    if not (value.isdecimal() and 1 <= int(value) <= 255):
        raise InputError(f"{value[:20]!r} is not a stored score.", "Give a whole number from 1 to 255.")
    return Response(await run_in_threadpool(_shares, run_id, int(value)), media_type="application/json")


async def scene_tile(request: Request) -> Response:
    """Answer with a display tile of a scene's image or labels."""
    side, scene_id = _side(request), request.path_params["scene_id"]
    z, x, y = _tile_numbers(request)
    # `layers.scene_url` gives another file another address.
    return await _png(lambda: tiles.scene_tile(_scene(scene_id), side, z, x, y), "private, max-age=3600")


async def scene_overview(request: Request) -> Response:
    """Answer with a small image of a whole scene."""
    side, scene_id = _side(request), request.path_params["scene_id"]
    return await _png(lambda: tiles.overview(_scene(scene_id), side), "private, max-age=3600")


class _Assets(StaticFiles):
    """The workspace's assets; the folder is looked up at each request because the app may start before it is filled."""

    def lookup_path(self, path: str) -> tuple[str, "os.stat_result | None"]:
        self.all_directories = [assets_folder()]
        return super().lookup_path(path)


def _at_threshold(run_id: str, name: str, threshold: float) -> Path:
    """Return a mask or an export of a run at a threshold, written when it is asked for the first time."""
    if name == "mask.tif":
        return mask_at(run_id, threshold)
    run = load_run(run_id)
    path = run.folder / "exports" / f"{threshold_value(threshold):03d}-{grading_key(run)}" / name
    if not path.is_file():
        export_run(run, EXPORTS[name], path, threshold)
    with _FORGETTING:
        os.utime(path.parent)
        _forget_exports(path.parent.parent)
    return path


def _forget_exports(folder: Path) -> None:
    """Remove all exports of a run but those asked for last."""
    by_use = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in by_use[KEPT_EXPORTS:]:
        shutil.rmtree(old, ignore_errors=True)  # what cannot be removed goes next time


def _shares(run_id: str, value: int) -> str:
    try:
        counts = _counts(run_id, grading_key(load_run(run_id)))
    except NoBuildingError:
        return "{}"
    shares = counts.changed_share((value - 1) * SCALE).tolist()
    return json.dumps(
        {name: None if math.isnan(share) else round(share, 3) for name, share in zip(counts.ids, shares, strict=True)}
    )


@functools.lru_cache(maxsize=MAX_COUNTED)
def _counts(run_id: str, key: str) -> BuildingCounts:
    """Keep the last counts; ``key`` tells footprints that were changed from those before."""
    return buildings_of(load_run(run_id))


def _scene(scene_id: str) -> Scene:
    """Return a scene, read from its catalog again only after some seconds: tiles come by the dozen."""
    return _scene_then(scene_id, int(time.monotonic() // SCENE_SECONDS))


@functools.lru_cache(maxsize=256)
def _scene_then(scene_id: str, period: int) -> Scene:
    return get_scene(scene_id)


async def _png(produce: Callable[[], bytes | None], cache: str) -> Response:
    content = await run_in_threadpool(produce)
    if content is None:
        return Response(status_code=204, headers={"Cache-Control": cache})
    return Response(content, media_type="image/png", headers={"Cache-Control": cache})


def _tile_numbers(request: Request) -> tuple[int, int, int]:
    z, x, y = (request.path_params[name] for name in ("z", "x", "y"))
    if z > MAX_ZOOM or x >= 2**z or y >= 2**z:
        raise HTTPException(404)
    return z, x, y


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{text[:20]!r} is not a threshold.", "Give a probability between 0 and 1.")
    return value


def _side(request: Request) -> tiles.Side:
    sides: dict[str, tiles.Side] = {"pre": "pre", "post": "post", "label": "label"}
    side = sides.get(request.path_params["side"])
    if side is None:
        raise HTTPException(404)
    return side
