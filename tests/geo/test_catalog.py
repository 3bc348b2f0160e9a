"""Scenes go to disk as STAC and come back the same, wherever the folder is moved."""

import json
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pystac
import pytest

from mmcd.errors import InputError
from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.raster import RasterSource

from .conftest import WriteRaster


@pytest.fixture
def scene(write_raster: WriteRaster, tmp_path: Path) -> Scene:
    """A scene whose images lie inside the catalog's folder, its label outside."""
    (tmp_path / "scenes" / "ahr").mkdir(parents=True)
    pre = write_raster("scenes/ahr/pre.tif", np.ones((3, 20, 30), np.uint8))
    post = write_raster("scenes/ahr/post.tif", np.ones((20, 30), np.uint8))
    label = write_raster("label.tif", np.ones((20, 30), np.uint8))
    with RasterSource(post) as source:
        grid = source.grid
    return Scene(
        id="ahr",
        title="Ahr valley",
        event="Flood of July 2021",
        event_type="flood",
        place="Altenahr, Germany",
        pre=pre,
        post=post,
        label=label,
        pre_date=date(2021, 6, 1),
        post_date=date(2021, 7, 18),
        event_date=date(2021, 7, 14),
        pre_sensor="Sentinel-2",
        post_sensor="Sentinel-1",
        gsd=grid.gsd,
        geometry=grid.geographic_footprint(),
        licence="CC BY 4.0",
        simulated=True,
        properties={"looks": 4, "note": "ä"},
    )


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog.create(tmp_path / "scenes")


def test_a_scene_comes_back_as_it_went(catalog: Catalog, scene: Scene) -> None:
    catalog.add(scene)
    opened = Catalog.open(catalog.folder)
    assert opened.scenes() == [scene]
    assert opened.get("ahr") == scene


def test_the_folder_can_be_moved(catalog: Catalog, scene: Scene, tmp_path: Path) -> None:
    catalog.add(replace(scene, label=None))
    moved = catalog.folder.rename(tmp_path / "elsewhere")
    found = Catalog.open(moved).get("ahr")
    assert found.pre == moved / "ahr" / "pre.tif" and found.pre.is_file()


def test_hrefs_are_relative_inside_and_absolute_outside(catalog: Catalog, scene: Scene) -> None:
    catalog.add(scene)
    item = json.loads((catalog.folder / "ahr" / "ahr.json").read_text())
    assert item["assets"]["post"]["href"] == "post.tif"
    assert Path(item["assets"]["label"]["href"]) == scene.label


def test_it_is_stac_for_everyone(catalog: Catalog, scene: Scene) -> None:
    catalog.add(scene)
    public = pystac.Catalog.from_file(str(catalog.folder / "catalog.json"))
    (item,) = public.get_items()
    assert item.get_parent() is public
    assert Path(item.assets["pre"].get_absolute_href() or "") == scene.pre
    assert item.properties["proj:code"] == "EPSG:32631" and item.properties["proj:shape"] == [20, 30]
    assert item.bbox and item.bbox[0] < item.bbox[2] and item.bbox[1] < item.bbox[3]
    assert item.datetime and item.datetime.date() == scene.post_date


def test_a_scene_without_georeference_or_dates(catalog: Catalog, scene: Scene, write_raster: WriteRaster) -> None:
    post = write_raster("scenes/post.png", np.ones((8, 8), np.uint8), crs=None, transform=None, driver="PNG")
    bare = replace(scene, post=post, pre_date=None, post_date=None, event_date=None, geometry=None, gsd=None)
    catalog.add(bare)
    assert catalog.scenes() == [bare]
    item = json.loads((catalog.folder / "ahr" / "ahr.json").read_text())
    assert item["geometry"] is None and "bbox" not in item
    assert item["properties"]["mmcd:undated"] is True


def test_two_hundred_scenes_are_read_quickly(catalog: Catalog, scene: Scene) -> None:
    for number in range(200):
        catalog.add(replace(scene, id=f"scene-{number}"))
    opened = Catalog.open(catalog.folder)
    start = time.perf_counter()
    assert [found.id for found in opened.scenes()] == [f"scene-{number}" for number in range(200)]
    assert time.perf_counter() - start < 2


def test_an_item_is_parsed_again_only_when_its_file_is_another_one(catalog: Catalog, scene: Scene) -> None:
    catalog.add(scene)
    first = catalog.get("ahr")
    assert catalog.get("ahr") is first and catalog.scenes()[0] is first
    path = catalog.folder / "ahr" / "ahr.json"
    path.write_text(path.read_text().replace("Ahr valley", "Ahr Valley"))
    assert catalog.get("ahr").title == Catalog.open(catalog.folder).scenes()[0].title == "Ahr Valley"


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "a/b"])
def test_ids_are_plain_names(catalog: Catalog, scene: Scene, name: str) -> None:
    with pytest.raises(InputError, match="not a scene id"):
        catalog.add(replace(scene, id=name))


def test_an_id_is_taken_once(catalog: Catalog, scene: Scene) -> None:
    catalog.add(scene)
    with pytest.raises(InputError, match="already"):
        catalog.add(scene)
    with pytest.raises(InputError, match="holds a catalog already"):
        Catalog.create(catalog.folder)


def test_a_removed_scene_is_gone_and_its_files_stay(catalog: Catalog, scene: Scene) -> None:
    catalog.add(scene)
    catalog.add(replace(scene, id="other"))
    catalog.remove("ahr")
    again = Catalog.open(catalog.folder)
    assert [found.id for found in again.scenes()] == ["other"]
    assert (again.holds("other"), again.holds("ahr")) == (True, False)
    assert scene.pre.is_file()
    again.remove("other")
    assert not (catalog.folder / "other").exists()
    with pytest.raises(InputError, match="no scene 'other'"):
        again.remove("other")
    again.add(scene)
    assert Catalog.open(catalog.folder).get("ahr") == scene


def test_what_is_missing_or_damaged_is_named(catalog: Catalog, scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scene 'x'"):
        catalog.get("x")
    with pytest.raises(InputError, match="cannot be read"):
        Catalog.open(tmp_path / "nowhere")
    catalog.add(scene)
    path = catalog.folder / "ahr" / "ahr.json"
    for content, reason in (("{", "not JSON"), ("[]", "no JSON object"), ('{"type": "Feature"}', "not a STAC item")):
        path.write_text(content)
        with pytest.raises(InputError, match=reason) as caught:
            catalog.scenes()
        assert str(path) in caught.value.message
    (catalog.folder / "catalog.json").write_text('{"type": "Feature"}')
    with pytest.raises(InputError, match="not a STAC catalog"):
        Catalog.open(catalog.folder)
