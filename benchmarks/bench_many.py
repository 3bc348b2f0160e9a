"""A workspace after a year of work: 200 scenes, runs, jobs, and 10,000 patch pairs on a plane; for part p."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from affine import Affine
from bench_app import paint_run
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mmcd.embedding_table import TableTile
from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import RasterSource
from mmcd.inference.roi import choose_rois
from mmcd.jobs import open_store
from mmcd.paths import workspace
from mmcd.services.embeddings import EmbedRequest, embed
from mmcd.services.run_embeddings import Sources, measured_table, write_run_table
from mmcd.services.runs import load_run

SCENES, RUNS, JOBS = 200, 20, 50
ROIS = 100
"""Patches of 16 px in a row of the large scene: 10,000 in all."""

SIDE, SMALL = 16 * ROIS, 128
DIMENSIONS, THRESHOLD = 128, 0.5
KINDS = ("flood", "earthquake", "wildfire", "hurricane", "explosion")


@dataclass(frozen=True)
class Prepared:
    """What the workspace of these measurements holds beside 200 scenes.

    Attributes:
        folder: The workspace.
        scene: Id of the large, labelled scene.
        run: Id of its run, whose 10,000 patch pairs are laid out.
    """

    folder: Path
    scene: str
    run: str

    def addresses(self, other: int = 0) -> dict[str, str]:
        """Return what follows the question mark of each page's address, of another scene where that is possible."""
        run, small = f"scene={self.scene}&run={self.run}", f"scene=scene-{other % SCENES:03d}"
        return {
            "": small,
            "damage_map": run if other % 2 == 0 else small,
            "accuracy": run,
            "explorer": small,
            "embeddings": f"{run}&method=pca&what=sar",
            "training": "",
            "jobs": "",
        }


def prepared() -> Prepared:
    """Write the workspace, once for all functions of this part."""
    folder = workspace().parent / "workbench"
    if (workspace() / "assets").is_dir() and not (folder / "assets").exists():
        shutil.copytree(workspace() / "assets", folder / "assets")
    with _working_in(folder):
        scenes = folder / "scenes"
        if (scenes / "catalog.json").is_file():
            return Prepared(folder, "large", json.loads((folder / "prepared.json").read_text()))
        catalog = Catalog.create(scenes)
        for number_of in range(SCENES):
            catalog.add(_scene(scenes / f"scene-{number_of:03d}", number_of, SMALL))
        large = _scene(scenes / "large", SCENES, SIDE)
        catalog.add(large)
        run = _embedded(large)
        store = open_store(folder)
        for number_of in range(JOBS):
            store.cancel(store.submit("predict", {"scene": f"scene-{number_of:03d}", "model": "flood-s2s1"}))
        (folder / "prepared.json").write_text(json.dumps(run))
    return Prepared(folder, large.id, run)


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Make a folder the workspace of this process for a while."""
    before = os.environ["MMCD_WORKSPACE"]
    os.environ["MMCD_WORKSPACE"] = str(folder)
    try:
        yield
    finally:
        os.environ["MMCD_WORKSPACE"] = before


def _scene(images: Path, number_of: int, side: int) -> Scene:
    """Write a scene of its own files, and a small run of it where it is one of the first."""
    east, north = 100_000 + 5_000 * (number_of % 20), 4_000_000 + 40_000 * (number_of // 20)
    grid = Grid("EPSG:32633", Affine(10, 0, east, 0, -10, north), side, side)
    noise = gaussian_filter(np.random.default_rng(number_of).standard_normal((side, side)), 4, mode="wrap")
    smooth = np.clip(128 + 900 * noise, 1, 255).astype(np.uint8)
    label = np.where(smooth > 170, 255, 0).astype(np.uint8) if side == SIDE else None
    scene = Scene(
        id=images.name,
        title=f"Scene {number_of}",
        event=f"Event {number_of % 40}",
        event_type=KINDS[number_of % len(KINDS)],
        place="Somewhere",
        pre=write_cog(images / "pre.tif", np.stack([smooth] * 3), grid, Band(names=("red", "green", "blue"))),
        post=write_cog(images / "post.tif", smooth, grid, Band(names=("VV",))),
        label=None if label is None else write_cog(images / "label.tif", label, grid, Band(names=("label",))),
        pre_date=date(2024, 1, 1),
        post_date=date(2024, 2, 1),
        gsd=grid.gsd,
        geometry=grid.geographic_footprint(),
        simulated=True,
    )
    if number_of < RUNS:
        _run(scene.id, smooth, grid)
    return scene


def _run(scene_id: str, stored: NDArray[np.uint8], grid: Grid) -> str:
    facts = {"model": {"name": "noise", "version": "1", "why": "it was asked for"}, "warnings": []}
    return paint_run(f"run of {scene_id}", scene_id, stored, grid, THRESHOLD, finished="2026-05-03T13:30:00Z", **facts)


def vectors() -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """Return unit vectors of both branches in eight loose groups, shape (2, N, 128), and the ROIs, shape (N, 2)."""
    origins = choose_rois(Window(0, 0, SIDE, SIDE))
    random = np.random.default_rng(0)
    centres = random.normal(0, 1, (8, DIMENSIONS))
    group = (origins[:, 0] * 8 // SIDE + origins[:, 1] * 3 // SIDE) % 8
    made = centres[group] + random.normal(0, 0.7, (2, len(origins), DIMENSIONS))
    made /= np.linalg.norm(made, axis=2, keepdims=True)
    return made.astype(np.float16), origins


def _embedded(scene: Scene) -> str:
    """Write a run of the large scene with 10,000 patch pairs, laid out by PCA; return its id."""
    with RasterSource(scene.post) as source:
        grid, stored = source.grid, source.read(Window(0, 0, SIDE, SIDE)).data[0]
    run = load_run(_run(scene.id, np.clip(stored, 1, 255).astype(np.uint8), grid))
    made, origins = vectors()
    tile = TableTile(scene.id, scene.event, str(scene.pre), str(scene.post))
    facts = {"title": scene.title, "model": "noise", "threshold": THRESHOLD}
    table = measured_table(origins, made, tile, Sources(run.score, None, scene.label), facts)
    manifest = run.manifest | {"embeddings": write_run_table(table, run.folder, len(origins))}
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    embed(EmbedRequest.checked(run=run.id, method="pca"))
    return run.id
