"""Tiny trees in the published layouts of OSCD, PASTIS and GID, whose pixels tell which file they are from."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from mmcd.data.gid import FINE

BANDS = ("B11", "B8A", "B01", "B02", "B10", "B03", "B12", "B04", "B05", "B06", "B07", "B08", "B09")
"""OSCD's bands, in no order."""


def write_tif(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = pixels if pixels.ndim == 3 else pixels[None]
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with rasterio.open(path, "w", driver="GTiff", dtype=str(bands.dtype), **shape) as file:
        file.write(bands)


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def write_city() -> Callable[..., np.ndarray]:
    """Return what writes a city with a square that was built; it returns where."""

    def write(
        images: Path,
        label: Path,
        seed: int,
        shape: tuple[int, int] = (40, 70),
        bands: Sequence[str] = BANDS,
        dated: str = "imgs_{}_rect/{}.tif",
    ) -> np.ndarray:
        random = np.random.default_rng(seed)
        changed = np.zeros(shape, bool)
        top, left = 4 * random.integers(0, 3, 2)
        changed[top : top + 24, left : left + 40] = True
        for band in bands:
            ground = random.integers(1000, 1200, shape)
            for number, values in ((1, ground), (2, np.where(changed, 3000, ground))):
                write_tif(images / dated.format(number, band), values.astype(np.uint16))
        write_png(label, changed * 255)
        return changed

    return write


@pytest.fixture(scope="session")
def oscd(tmp_path_factory, write_city) -> Path:
    """Four training and two test cities in the layout of SACo: labels apart, no lists."""
    root = tmp_path_factory.mktemp("oscd")
    for seed, city in enumerate(("paris", "beirut", "mumbai", "pisa", "rio", "dubai")):
        write_city(root / city, root / "labels" / city / "cm" / "cm.png", seed, (64, 70), ("B03", "B02", "B04"))
    return root


@pytest.fixture(scope="session")
def pastis(tmp_path_factory) -> Path:
    """One patch of 32 px a fold: meadow in the upper half, bright in every band; corn and void below."""
    root = tmp_path_factory.mktemp("pastis")
    for folder in ("DATA_S2", "ANNOTATIONS"):
        (root / folder).mkdir()
    features, random = [], np.random.default_rng(0)
    for fold in range(1, 6):
        number = 10000 + fold
        classes = np.full((32, 32), 3)
        classes[:16], classes[28:], classes[:, :2], classes[0, 0] = 1, 19, 0, 255
        series = 1000 + 100 * np.arange(10)[:, None, None] + random.integers(0, 50, (3, 10, 32, 32))
        series = series + 2000 * (classes == 1) + 5 * np.arange(3)[:, None, None, None]
        np.save(root / "DATA_S2" / f"S2_{number}.npy", series.astype(np.int16))
        np.save(root / "ANNOTATIONS" / f"TARGET_{number}.npy", np.stack([classes, classes * 0, classes * 0]))
        dates = {"0": 20180901 + fold, "1": 20181005, "2": 20190101}
        features.append({"properties": {"ID_PATCH": number, "Fold": fold, "dates-S2": dates}, "geometry": None})
    (root / "metadata.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features[::-1]}))
    norm = {f"Fold_{n}": {"mean": [1000 * n + band for band in range(10)], "std": [500] * 10} for n in range(1, 6)}
    (root / "NORM_S2_patch.json").write_text(json.dumps(norm))
    return root


@pytest.fixture(scope="session")
def gid_fetched(tmp_path_factory) -> Path:
    """GID-15 as torchgeo unpacks it: rivers dark, paddy fields bright, a corner without label."""
    root = tmp_path_factory.mktemp("gid15")
    for number in range(5):
        part = "train" if number < 4 else "val"
        label = np.full((72, 128), 5)
        label[:, : 12 + 16 * number] = 13
        label[:4, :4] = 0
        image = np.where(label == 13, 30, 200) + np.arange(3)[:, None, None]
        write_tif(root / "GID" / "img_dir" / part / f"GF2_{number}.tif", image.astype(np.uint8))
        write_png(root / "GID" / "ann_dir" / part / f"GF2_{number}_15label.png", label)
    return root


@pytest.fixture(scope="session")
def gid_published(tmp_path_factory) -> Path:
    """GID as its authors publish it: labels in colours, no parts."""
    root = tmp_path_factory.mktemp("gid")
    for number in range(5):
        label = np.zeros((3, 20, 30), np.uint8)
        label[:, :10] = np.array(FINE["lake"])[:, None, None]
        label[:, 10:18] = np.array(FINE["garden plot"])[:, None, None]
        write_tif(root / "image_RGB" / f"GF2_{number}.tif", np.full((3, 20, 30), number, np.uint8))
        write_tif(root / "label_15classes" / f"GF2_{number}_label.tif", label)
    return root
