"""The filled pixels are those of GDAL, whatever window they are asked for in and whatever else lies there."""

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask

from mmcd.geo import scanline
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.scanline import Edges

SHAPE = (60, 80)


def filled(edges: Edges, number: int, window: Window) -> np.ndarray:
    """Masks of all polygons in a window, shape (number, y, x)."""
    masks = np.zeros((number, window.height * window.width), int)
    for part in edges.spans(window).parts():
        owner, place = part.pixels()
        np.add.at(masks, (owner, place), 1)
    return masks.reshape(number, *window.shape)


def stars(seed: int, number: int) -> np.ndarray:
    """Polygons with holes and several parts, some beyond the edge, overlapping, some far below a pixel."""
    rng = np.random.default_rng(seed)
    shapes = []
    while len(shapes) < number:
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        radius = rng.uniform(0.05, 15, len(angle))[:, None]
        star = shapely.Polygon(rng.uniform((-5, -5), (85, 65)) + radius * np.c_[np.cos(angle), np.sin(angle)])
        star = shapely.make_valid(star, method="structure", keep_collapsed=False)
        hole = shapely.Point(shapely.get_coordinates(shapely.point_on_surface(star))[0]).buffer(rng.uniform(0, 3))
        shape = shapely.difference(star, hole)
        if shape.area > 0 and shape.geom_type in ("Polygon", "MultiPolygon"):
            shapes.append(shape)
    return np.array(shapes, dtype=object)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), block=st.sampled_from([7, 16, 33, 80]))
def test_pixels_are_those_of_gdal_in_every_window(seed: int, block: int) -> None:
    shapes = stars(seed, 8)
    edges = Edges.of(shapes)
    masks = np.zeros((8, *SHAPE), int)
    for window in blocks(SHAPE, block):
        masks[:, *window.slices] = filled(edges, 8, window)
    transform = Grid.in_pixels(*SHAPE).transform
    for mask, shape in zip(masks, shapes, strict=True):
        np.testing.assert_array_equal(mask, geometry_mask([shape], SHAPE, transform, invert=True))


def test_buildings_that_share_walls_share_no_pixel_and_leave_none() -> None:
    ticks = np.sort(np.random.default_rng(1).uniform(1, 59, 6))
    columns, rows = [0, *ticks, 80], [0, 20.5, 40.5, 60]
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    shapes = np.array(
        [
            shapely.transform(shapely.box(a, c, b, d), lambda points: (points - 40) @ turn * 0.5 + 40)
            for a, b in pairwise(columns)
            for c, d in pairwise(rows)
        ]
    )
    together = filled(Edges.of(shapes), len(shapes), Window(0, 0, *SHAPE)).sum(axis=0)
    whole = geometry_mask([shapely.union_all(shapes)], SHAPE, Grid.in_pixels(*SHAPE).transform, invert=True)
    np.testing.assert_array_equal(together, whole)


def test_a_centre_on_an_edge_belongs_to_one_side() -> None:
    shapes = np.array([shapely.box(0, 0, 10.5, 10), shapely.box(10.5, 0, 20, 10)])
    left, right = filled(Edges.of(shapes), 2, Window(0, 0, 10, 20))
    assert (left + right == 1).all() and right[:, 10].all()


def test_parts_are_bounded_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanline, "_PIXELS", 300)
    monkeypatch.setattr(scanline, "_POLYGONS", 3)
    shapes = stars(3, 40)
    spans = Edges.of(shapes).spans(Window(0, 0, *SHAPE))
    parts = list(spans.parts())
    assert len(parts) > 13
    np.testing.assert_array_equal(np.concatenate([part.start for part in parts]), spans.start)
    owners = [set(part.polygon) for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners)), "a polygon is never in two parts"
    assert max(map(len, owners)) <= 3


def test_polygons_without_a_place_are_nowhere() -> None:
    lost = shapely.transform(shapely.box(0, 0, 5, 5), lambda points: np.full_like(points, np.inf))
    edges = Edges.of(np.array([lost, shapely.box(0, 0, 2, 2)]))
    assert edges.touching(Window(0, 0, *SHAPE)).tolist() == [False, True]
    assert filled(edges, 2, Window(0, 0, *SHAPE)).sum(axis=(1, 2)).tolist() == [0, 4]
    assert not list(Edges.of(np.array([lost])).spans(Window(0, 0, 9, 9)).parts())
