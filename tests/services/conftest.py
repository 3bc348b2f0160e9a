"""Finished runs of a sample scene, written as mmcd writes them, whose score is painted from the scene's own labels."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmcd.cards import file_sha256
from mmcd.export import area_summary, write_item, write_mask
from mmcd.geo.catalog import Scene
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid
from mmcd.geo.outlines import EVIDENCE_BAND
from mmcd.geo.raster import RasterSource
from mmcd.models.siamese import ContextSiamese
from mmcd.paths import sample_data_dir
from mmcd.score import encode_score, score_counts
from mmcd.services.runs import Run, load_run, run_folder, run_id_of
from mmcd.services.scenes import get_scene
from mmcd.services.simulate import SimulateRequest
from mmcd.services.simulate_bright import simulate_bright

SCENE = "simulated-explosion-industrial-03"


@dataclass(frozen=True)
class SampleRun:
    """A run and the scene it was painted from.

    Attributes:
        run: The run, in the workspace.
        scene: The scene.
        stored: The score, shape (y, x), uint8.
        grid: Grid of the score.
    """

    run: Run
    scene: Scene
    stored: np.ndarray
    grid: Grid


def write_run(key: str, scene: str | None, inputs: dict[str, dict[str, str]], *, georeferenced: bool) -> SampleRun:
    """Write a run in which damaged buildings score 0.8 and everything else 0.1; the upper edge is not assessed."""
    source = get_scene(SCENE)
    with RasterSource(source.label) as label:
        classes, grid = label.read().data[0], label.grid
    if not georeferenced:
        grid = Grid.in_pixels(*grid.shape)
    valid = np.ones(grid.shape, bool)
    valid[:3] = False
    stored = encode_score(np.where(classes >= 2, 0.8, 0.1), valid)
    run_id = run_id_of(key)
    folder = run_folder(run_id)
    folder.mkdir(parents=True)
    write_cog(folder / "score.tif", stored, grid)
    write_mask(folder / "score.tif", grid, 0.5, folder / "mask.tif", {})
    write_item(folder, run_id, grid, None, {"mmcd:threshold": 0.5})
    manifest = {
        "run_id": run_id,
        "inputs": {"scene": scene, **inputs},
        "model": {"name": "synthetic", "version": "1", "why": "it was asked for"},
        "threshold": 0.5,
        "warnings": ["Painted from <labels>."],
        "areas": area_summary(score_counts(stored), 0.5, grid.pixel_area_m2),
        "finished": "2026-05-04T13:30:00+00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return SampleRun(load_run(run_id), source, stored, grid)


def _files() -> dict[str, dict[str, str]]:
    folder = sample_data_dir() / SCENE
    return {side: {"path": str(folder / f"{side}.tif")} for side in ("pre", "post")}


@pytest.fixture
def sample_run(workspace: Path) -> SampleRun:
    """A run of a sample scene, which has footprints."""
    return write_run("scene", SCENE, {}, georeferenced=True)


@pytest.fixture
def bare_run(workspace: Path) -> SampleRun:
    """A run of two files: no scene, no footprints."""
    return write_run("files", None, _files(), georeferenced=True)


def add_evidence(painted: SampleRun, smallest: int = 1) -> SampleRun:
    """Let a run's model mark the buildings of the scene's labels whose class is at least ``smallest``."""
    with RasterSource(painted.scene.label) as label:
        classes = label.read().data[0]
    path = painted.run.folder / "building_probability.tif"
    write_cog(path, encode_score(np.where(classes >= smallest, 0.9, 0.2), classes < 9), painted.grid, EVIDENCE_BAND)
    grades = ["background", "intact", "damaged", "destroyed"]
    facts = {"file": path.name, "sha256": file_sha256(path), "classes": grades, "origin": [0, 0]}
    manifest = painted.run.manifest | {"evidence": facts}
    (painted.run.folder / "manifest.json").write_text(json.dumps(manifest))
    more = {"building_probability": "Probability that a building stands or stood there"}
    write_item(painted.run.folder, painted.run.id, painted.grid, None, {"mmcd:threshold": 0.5}, more)
    return replace(painted, run=load_run(painted.run.id))


@pytest.fixture
def model_run(bare_run: SampleRun) -> SampleRun:
    """A run of two files by a model that marks buildings."""
    return add_evidence(bare_run)


@pytest.fixture
def pixel_run(workspace: Path) -> SampleRun:
    """A run without a georeference whose images are gone."""
    return write_run("pixels", None, {}, georeferenced=False)


@pytest.fixture(scope="session")
def patch_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six simulated tiles of 128 px of six events in BRIGHT's layout."""
    root = tmp_path_factory.mktemp("patches") / "tree"
    simulate_bright(SimulateRequest(out=root, scenes=6, size=128, gsd=1.0, layout="bright"))
    return root


@pytest.fixture(scope="session")
def patch_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network as reference system 0 saves its own; on `patch_tree` its distances lie around 1."""
    torch.manual_seed(5)
    network = ContextSiamese(3, 1, "resnet18", embedding_dim=16)
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pth"
    values = {"epoch": 8, "model_state_dict": network.state_dict(), "optimizer_state_dict": {}, "val_loss": 1.5}
    torch.save(values, path)
    return path
