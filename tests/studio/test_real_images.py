"""Display of real files: complex radar, ground control points, decibels, 13 bands, plain pictures."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from mmcd.geo.catalog import Scene
from mmcd.studio import tiles
from mmcd.studio.readers import ReaderPool

pytestmark = pytest.mark.real_data

FILES = [
    "s1_gcp_fixtures/cog_gcps.tif",
    "s1_gcp_fixtures/slc.tif",
    "spacenet6_rotterdam/sar_vv.tif",
    "spacenet6_rotterdam/rgb_unmasked.tif",
    "sen1floods11_sample/S1/Spain_7370579_S1Hand.tif",
    "sen1floods11_sample/S2/Spain_7370579_S2Hand.tif",
    "xbd_joplin/images/joplin-tornado_00000002_post_disaster.png",
]


@pytest.mark.parametrize("name", FILES)
def test_real_images_are_shown_with_contrast(shared_data: Path, name: str):
    path = shared_data / name
    scene = Scene(id="x", title="", event="", event_type="", place="", pre=path, post=path)
    with rasterio.MemoryFile(tiles.overview(scene)) as memory, memory.open() as image:
        shown = image.read()
    visible = shown[0][shown[-1] > 0]
    assert visible.size > 1000
    assert 15 < np.median(visible) < 215
    assert visible.std() > 8


def test_radar_is_shown_in_decibels_whatever_it_is_stored_as(shared_data: Path):
    for name in ("s1_gcp_fixtures/cog_gcps.tif", "spacenet6_rotterdam/sar_vv.tif"):
        assert tiles.display_plan(shared_data / name).stretch.unit == "db"
    assert tiles.display_plan(shared_data / FILES[4]).stretch.radiometry == "db"


def test_sentinel_2_is_shown_in_true_colour(shared_data: Path):
    assert tiles.display_plan(shared_data / FILES[5]).indexes == (4, 3, 2)


def test_masks_and_damage_grades_are_told_apart(shared_data: Path, prepared):
    assert tiles.changed_from(shared_data / "sen1floods11_sample" / "Labels" / "Spain_7370579_LabelHand.tif") == 1
    assert tiles.changed_from(prepared.placed.label) == 2


def test_ground_control_points_place_an_image(shared_data: Path):
    with ReaderPool().lend(shared_data / FILES[0]) as reader:
        west, south, east, north = reader.get_geographic_bounds("EPSG:4326")
    assert -180 < west < east < 180
    assert -90 < south < north < 90
