"""Real Sentinel files as they are delivered, through the flood weights: dB, amplitude, complex, GCPs only, 13 bands."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from scipy.ndimage import gaussian_filter

from mmcd.geo.cog import Band, write_cog
from mmcd.geo.grid import Grid, transform_bounds
from mmcd.geo.raster import RasterSource
from mmcd.services.inference import PredictRequest, RunResult, predict

pytestmark = [pytest.mark.real_data, pytest.mark.usefixtures("workspace")]


def run(pre: Path, post: Path, out: Path, **more: object) -> RunResult:
    return predict(PredictRequest.checked(pre=pre, post=post, out=out, device="cpu", **more))


def optical_over(radar: Path, path: Path) -> Path:
    """Write smooth reflectance of three named bands over a radar file's footprint."""
    with RasterSource(radar) as source:
        west, south, east, north = source.grid.bounds
        crs = source.grid.crs
    height, width = int((north - south) / 200), int((east - west) / 200)
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(3, height, width)), (0, 4, 4))
    reflectance = np.clip(2000 + 8000 * noise, 1, 9000).astype(np.uint16)
    grid = Grid(crs, Affine(200, 0, west, 0, -200, north), height, width)
    return write_cog(path, reflectance, grid, Band(dtype="uint16", names=("B11", "B8", "B3")))


def middle_of(radar: Path, metres: float = 3000) -> str:
    """Return W,S,E,N of a square in the middle of a radar file; the fixtures are thumbnails of whole swaths."""
    with RasterSource(radar) as source:
        west, south, east, north = source.grid.bounds
        x, y, half = (west + east) / 2, (south + north) / 2, metres / 2
        box = transform_bounds((x - half, y - half, x + half, y + half), str(source.grid.crs), "EPSG:4326")
    return ",".join(f"{value:.6f}" for value in box)


def test_a_sentinel_pair_in_db_and_reflectance(shared_data: Path, tmp_path: Path) -> None:
    """13 unnamed optical bands and VV/VH in dB, in degrees. Both show one day, so what is found are false alarms."""
    folder = shared_data / "sen1floods11_sample"
    name = "Spain_7370579"
    result = run(folder / "S2" / f"{name}_S2Hand.tif", folder / "S1" / f"{name}_S1Hand.tif", tmp_path / "out")
    manifest = result.manifest
    assert manifest["model"]["name"] == "flood-s2s1"
    assert manifest["stretch"]["post"]["radiometry"] == "db"
    assert -40 < manifest["stretch"]["post"]["low"][0] < manifest["stretch"]["post"]["high"][0] < 10
    assert manifest["stretch"]["pre"]["radiometry"] == "reflectance"
    assert manifest["grid"]["crs"] == "EPSG:32630"
    assert manifest["areas"]["assessed_px"] > 200_000
    assert manifest["areas"]["changed_share"] < 0.2
    with rasterio.open(result.folder / "score.tif") as file:
        assert np.unique(file.read(1)).size > 50


def test_a_grd_with_ground_control_points_only(shared_data: Path, tmp_path: Path) -> None:
    post = shared_data / "s1_gcp_fixtures" / "cog_gcps.tif"
    result = run(optical_over(post, tmp_path / "pre.tif"), post, tmp_path / "out", region=middle_of(post))
    assert result.manifest["stretch"]["post"]["radiometry"] == "amplitude"
    assert result.manifest["grid"]["crs"].startswith("EPSG:32")
    assert result.manifest["areas"]["assessed_px"] > 10_000


def test_a_complex_slc(shared_data: Path, tmp_path: Path) -> None:
    post = shared_data / "s1_gcp_fixtures" / "slc.tif"
    result = run(optical_over(post, tmp_path / "pre.tif"), post, tmp_path / "out", region=middle_of(post))
    assert result.manifest["stretch"]["post"]["radiometry"] == "complex"
    assert result.manifest["stretch"]["post"]["unit"] == "db"
    assert result.manifest["areas"]["assessed_px"] > 1_000
