"""Small rasters written by rasterio itself, so that a mistake in our writer cannot hide one in our reader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from mmcd.geo.raster import ignore_missing_georeference

UTM31 = "EPSG:32631"
CORNER = Affine(10, 0, 500_000, 0, -10, 5_700_000)

WriteRaster = Callable[..., Path]


@pytest.fixture
def write_raster(tmp_path: Path) -> WriteRaster:
    """Write an array (band, y, x) or (y, x) as a GeoTIFF and return its path."""

    def write(
        name: str, values: NDArray[Any], crs: str | None = UTM31, transform: Affine | None = CORNER, **options: Any
    ) -> Path:
        stack = values[None] if values.ndim == 2 else values
        names = options.pop("names", ())
        profile = {"driver": "GTiff", "count": len(stack), "height": stack.shape[1], "width": stack.shape[2]}
        profile |= {"dtype": options.pop("dtype", stack.dtype), "crs": crs, "transform": transform} | options
        path = tmp_path / name
        with ignore_missing_georeference(), rasterio.open(path, "w", **profile) as file:
            file.write(stack)
            file.descriptions = tuple(names) or file.descriptions
        return path

    return write


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(7)
