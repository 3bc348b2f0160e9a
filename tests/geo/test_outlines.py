"""Buildings of a model's own: the same outlines and names whatever the blocks and the region."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcd.errors import InputError
from mmcd.geo import outlines
from mmcd.geo.cog import write_cog
from mmcd.geo.footprints import Footprints
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.outlines import EVIDENCE_BAND, evidence_footprints, outline_patches
from mmcd.score import encode_score

GRID = Grid("EPSG:32631", Affine(0.5, 0, 500_000, 0, -0.5, 5_700_000), 200, 300)
BUILDINGS = {  # row, column, height, width
    "b-3-5": (3, 5, 10, 12),
    "b-40-50": (40, 50, 40, 30),  # across the corner of four blocks of 64 px
    "b-60-200": (60, 200, 8, 90),
    "b-150-0": (150, 0, 50, 20),  # at two edges of the scene
}


def painted(path: Path, grid: Grid = GRID, window: Window | None = None) -> Path:
    """Write evidence of 0.5 in the buildings and in a shed of 79 px, just below it elsewhere; a corner is unknown."""
    probability = np.full(GRID.shape, 0.49)
    for row, col, height, width in (*BUILDINGS.values(), (100, 100, 1, 79)):
        probability[row : row + height, col : col + width] = 0.5
    valid = np.ones(GRID.shape, bool)
    valid[180:, 280:] = False
    stored = encode_score(probability, valid)
    part = window or GRID.window
    return write_cog(path, stored[part.slices], grid.crop(part), EVIDENCE_BAND)


def areas(found: Footprints) -> dict[str, float]:
    return dict(zip(found.ids, shapely.area(found.geometry).tolist(), strict=True))


@pytest.mark.parametrize("block", [64, 2048])
def test_known_rectangles_are_found_with_their_area_and_place(tmp_path: Path, block: int) -> None:
    found = evidence_footprints(painted(tmp_path / "buildings.tif"), block=block)
    assert found.crs == "EPSG:32631"
    assert areas(found) == {name: 0.25 * height * width for name, (_, _, height, width) in BUILDINGS.items()}
    west, north = 500_000 + 50 * 0.5, 5_700_000 - 40 * 0.5
    wanted = shapely.box(west, north - 20, west + 15, north)
    assert shapely.equals(found.geometry[found.ids.index("b-40-50")], wanted), "one building across four blocks"


def test_what_is_smaller_than_20_square_metres_is_left_out(tmp_path: Path) -> None:
    path = painted(tmp_path / "buildings.tif")
    assert "b-100-100" not in areas(evidence_footprints(path)), "79 pixels are 19.75 m²"
    assert areas(evidence_footprints(path, min_area=19.75))["b-100-100"] == 19.75
    assert len(evidence_footprints(path, min_area=10_000)) == 0


def test_without_a_georeference_area_is_counted_in_pixels(tmp_path: Path) -> None:
    found = evidence_footprints(painted(tmp_path / "buildings.tif", Grid.in_pixels(*GRID.shape)))
    assert found.crs is None
    assert areas(found)["b-100-100"] == 79
    assert len(found) == len(BUILDINGS) + 1


def test_a_region_names_its_buildings_as_the_whole_scene_does(tmp_path: Path) -> None:
    whole = evidence_footprints(painted(tmp_path / "whole.tif"))
    part = evidence_footprints(painted(tmp_path / "part.tif", window=Window(30, 40, 60, 255)), (30, 40), block=64)
    assert part.ids == ("b-40-50", "b-60-200")
    for name, shape in zip(part.ids, part.geometry, strict=True):
        assert shapely.equals(shape, whole.geometry[whole.ids.index(name)])


def test_speckle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "MAX_BUILDINGS", 3)
    with pytest.raises(InputError, match=r"more than 3 buildings here.*file of footprints, or analyse a smaller"):
        evidence_footprints(painted(tmp_path / "buildings.tif"))


@pytest.mark.parametrize("block", [7, 16, 2048])
def test_whether_there_are_too_many_does_not_depend_on_the_blocks(block: int) -> None:
    mask = np.zeros((30, 40), bool)
    mask[:, ::4] = True
    masks = [(window, mask[window.slices]) for window in blocks((30, 40), block)]
    found = outline_patches(masks, 3, 10)
    assert found is not None and len(found) == 10
    assert outline_patches(masks, 3, 9) is None


def test_pieces_to_join_have_a_bound_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "_MOST_PIECES", 5)
    mask = np.ones((8, 8), bool)
    assert outline_patches([(window, mask[window.slices]) for window in blocks((8, 8), 2)], 3, 10) is None
    assert outline_patches([(window, mask[window.slices]) for window in blocks((8, 8), 4)], 3, 10) is not None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 40), st.floats(0.2, 0.8))
def test_blocks_change_no_outline_and_no_name(seed: int, block: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((30, 40)) < share
    whole = outline_patches([(Window(0, 0, 30, 40), mask)], 3, 10_000)
    cut = outline_patches([(window, mask[window.slices]) for window in blocks((30, 40), block)], 3, 10_000)
    assert whole is not None and cut is not None
    names = [outlines._first_pixels(found).tolist() for found in (whole, cut)]
    assert sorted(names[0]) == sorted(names[1])
    assert all(mask[row, col] and not mask[row, :col][-1:].any() for row, col in names[0])
    ordered = [
        found[np.lexsort(np.array(name).reshape(-1, 2).T)] for found, name in zip((whole, cut), names, strict=True)
    ]
    np.testing.assert_array_equal(*(shapely.area(found) for found in ordered))
    assert shapely.equals(*ordered).all()
