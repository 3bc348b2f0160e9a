"""Outlines of change: those of the whole mask, whatever the blocks they were found in."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.features import shapes
from scipy.ndimage import gaussian_filter, label

from mmcd import export
from mmcd.errors import InputError, StorageError
from mmcd.export import change_polygons, write_vectors
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid
from mmcd.score import threshold_value

GRID = Grid("EPSG:32631", Affine(0.5, 0, 500_000, 0, -0.5, 5_700_000), 240, 310)


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Patches of all sizes, many of them across the borders of blocks, and single pixels."""
    noise = np.random.default_rng(4).normal(size=GRID.shape)
    stored = np.clip(120 + 900 * gaussian_filter(noise, 3) + 25 * noise, 1, 255).astype(np.uint8)
    stored[60:64, 5:300] = 250  # a road through every block of a row
    stored[100:110, 100:110] = 0
    return write_cog(tmp_path_factory.mktemp("score") / "score.tif", stored, GRID), stored


def test_they_are_those_of_the_whole_mask(score: tuple[Path, np.ndarray]) -> None:
    path, stored = score
    changed = (stored >= threshold_value(0.6)).astype(np.uint8)
    labels, _ = label(changed)
    large = np.isin(labels, np.flatnonzero(np.bincount(labels.ravel()) >= 16)) & (labels > 0)
    wanted = [shapely.geometry.shape(area) for area, _ in shapes(changed, mask=large, transform=GRID.transform)]
    found = change_polygons(path, 0.6)
    assert len(found) == len(wanted) > 50
    assert shapely.area(found.geometry).sum() == pytest.approx(0.25 * large.sum())
    assert shapely.equals(shapely.union_all(found.geometry), shapely.union_all(wanted))


@pytest.mark.parametrize("block", [33, 100])
def test_blocks_change_nothing(score: tuple[Path, np.ndarray], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = change_polygons(score[0], 0.6)
    monkeypatch.setattr(export, "_STRIP", block)
    parts = change_polygons(score[0], 0.6)
    assert set(parts.ids) == set(whole.ids), "ids are hashes of outlines, so every corner agrees"


def test_a_speckled_score_is_refused(score: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MAX_CHANGES", 50)
    with pytest.raises(InputError, match=r"more than 50 patches .* 0\.6.*Raise the threshold or the minimum area"):
        change_polygons(score[0], 0.6)


def test_the_smallest_patch_and_none_at_all(score: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    assert shapely.area(change_polygons(score[0], 0.6, 100).geometry).min() >= 25
    assert len(change_polygons(score[0], 1.0, 10_000)) == 0
    bare = write_cog(tmp_path / "score.tif", score[1], Grid.in_pixels(*GRID.shape))
    found = change_polygons(bare, 0.6)
    assert found.crs is None
    assert shapely.total_bounds(found.geometry).tolist() == [0, 0, 310, 240]


def test_vectors_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame({"id": ["a"]}, geometry=[shapely.box(0, 0, 10, 10)], crs=GRID.crs)
    write_vectors(tmp_path / "a.gpkg", frame, "changes", {"model": "tiny"})
    write_vectors(tmp_path / "a.gpkg", frame, "changes", {"model": "tiny"})
    assert len(geopandas.read_file(tmp_path / "a.gpkg", layer="changes")) == 1
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        write_vectors(tmp_path / "file" / "a.gpkg", frame, "changes", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gpkg", "file"]
