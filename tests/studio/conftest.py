"""A workspace with two small scenes and a finished run, written as mmcd writes them, and the map's assets."""

import importlib
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
import streamlit as st
from affine import Affine
from rasterio.warp import transform
from scipy.ndimage import gaussian_filter

from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.grid import Grid
from mmcd.score import encode_score

with pytest.MonkeyPatch.context() as patch:  # benchmarks/ is no package
    patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    bench_app = importlib.import_module("bench_app")

SIZE = 512
THRESHOLD = 0.5
# New Zealand: far from every sample scene, so that its marker stands alone on the world map.
GRID = Grid("EPSG:32759", Affine(10.0, 0, 500_000, 0, -10.0, 5_100_000), SIZE, SIZE)
HOLE = 64  # pixels of the upper left corner that were not assessed
HOUSE = 20  # side of a building in pixels
HOUSES = {"north-west": (10, 10), **{f"house-{col}": (col, 220) for col in (40, 140, 240, 340, 440)}}  # column, row


@dataclass(frozen=True)
class Prepared:
    """What the workspace holds.

    Attributes:
        folder: The workspace.
        placed: A georeferenced, labelled flood.
        loose: A scene without a georeference.
        run_id: A finished run of ``placed``: probability grows from 0 at the left edge to 1 at the right one.
        stored: Its score, shape (512, 512), uint8.
    """

    folder: Path
    placed: Scene
    loose: Scene
    run_id: str
    stored: np.ndarray


def write_image(path: Path, values: np.ndarray, names: tuple[str, ...], grid: Grid | None = GRID) -> Path:
    """Write (band, y, x) values as a plain GeoTIFF, without georeference when there is no grid."""
    count, height, width = values.shape
    place = {"crs": grid.crs, "transform": grid.transform} if grid else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, **place
    ) as file:
        file.write(values)
        file.descriptions = names
    return path


def _write_footprints(path: Path) -> Path:
    """Write square buildings in degrees."""
    features = []
    for name, (col, row) in HOUSES.items():
        cols, rows = [col, col + HOUSE, col + HOUSE, col, col], [row, row, row + HOUSE, row + HOUSE, row]
        xs, ys = zip(*(GRID.transform * corner for corner in zip(cols, rows, strict=True)), strict=True)
        ring = list(zip(*transform(GRID.crs, "EPSG:4326", xs, ys), strict=True))
        shape = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {"id": name}, "geometry": shape})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def _add_scenes(folder: Path) -> tuple[Scene, Scene]:
    generator = np.random.default_rng(0)
    smooth = gaussian_filter(generator.normal(size=(3, SIZE, SIZE)), (0, 4, 4))
    optical = np.clip(110 + 500 * smooth, 1, 255).astype(np.uint8)
    radar = (generator.gamma(4, 60, (1, SIZE, SIZE)) * (1 + 2 * smooth[:1])).clip(1).astype(np.float32)
    radar[0, 150:300, 200:380] *= 0.2
    label = np.zeros((1, SIZE, SIZE), np.uint8)
    label[0, 150:300, 200:380] = 3
    west, south, east, north = GRID.geographic_bounds()
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    placed = Scene(
        id="valley-flood",
        title="Valley flood",
        event="Valley flood",
        event_type="flood",
        place="Test valley",
        pre=write_image(folder / "valley" / "pre.tif", optical, ("B11", "B8", "B3")),
        post=write_image(folder / "valley" / "post.tif", radar, ("VV",)),
        label=write_image(folder / "valley" / "label.tif", label, ("label",)),
        footprints=_write_footprints(folder / "valley" / "footprints.geojson"),
        pre_date=date(2024, 5, 1),
        post_date=date(2024, 5, 20),
        gsd=10.0,
        geometry={"type": "Polygon", "coordinates": [ring]},
        licence="CC0-1.0",
        simulated=True,
    )
    loose = Scene(
        id="loose-tiles",
        title="Tiles without a place",
        event="Quake",
        event_type="earthquake",
        place="",
        pre=write_image(folder / "loose" / "pre.tif", optical, ("", "", ""), None),
        post=write_image(folder / "loose" / "post.tif", radar, ("",), None),
    )
    catalog = Catalog.create(folder)
    catalog.add(placed)
    catalog.add(loose)
    return placed, loose


def _add_run(scene: Scene) -> tuple[str, np.ndarray]:
    valid = np.ones((SIZE, SIZE), bool)
    valid[:HOLE, :HOLE] = False
    stored = encode_score(np.tile(np.linspace(0, 1, SIZE), (SIZE, 1)), valid)
    run_id = bench_app.paint_run(
        "a finished run",
        scene.id,
        stored,
        GRID,
        THRESHOLD,
        model={"name": "ramp", "version": "1", "why": "it was asked for"},
        warnings=["The season differs."],
        finished="2026-05-04T13:30:00+00:00",
    )
    return run_id, stored


def prepare(workspace: Path) -> Prepared:
    """Fill the workspace that ``MMCD_WORKSPACE`` names."""
    placed, loose = _add_scenes(workspace / "scenes")
    return Prepared(workspace, placed, loose, *_add_run(placed))


@pytest.fixture
def fresh_caches() -> None:
    """Each test has a workspace of its own, the caches know only one."""
    st.cache_data.clear()
    st.cache_resource.clear()


def filled_workspace(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Return a new workspace with the two scenes and the finished run."""
    folder = tmp_path_factory.mktemp("studio") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCD_WORKSPACE", str(folder))
        return prepare(folder.resolve())


@pytest.fixture(scope="session")
def shared_workspace(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A filled workspace that no test changes."""
    return filled_workspace(tmp_path_factory)


@pytest.fixture
def prepared(shared_workspace: Prepared, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """The filled workspace, made the current one."""
    monkeypatch.setenv("MMCD_WORKSPACE", str(shared_workspace.folder))
    return shared_workspace
