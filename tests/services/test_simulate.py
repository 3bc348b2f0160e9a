import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from pydantic import ValidationError
from pyogrio import read_dataframe
from rasterio.enums import ColorInterp, Compression
from rio_cogeo.cogeo import cog_validate
from shapely.geometry import box

from mmcd.errors import Cancelled, ConfigError, InputError
from mmcd.geo.catalog import Catalog
from mmcd.paths import sample_data_dir
from mmcd.services.simulate import SAMPLES, SimulateRequest, place_grid, simulate, write_scene
from mmcd.simulate import simulate_scene

LAYERS = ("pre", "post", "label")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("simulated")
    heard: list[tuple[str, int, int]] = []
    result = simulate(
        SimulateRequest(out=folder / "town", scenes=2, size=256, seed=3), lambda *news: heard.append(news)
    )
    assert heard[-1] == ("simulating", 2, 2)
    assert json.loads(json.dumps(result.to_dict()))["scenes"] == list(result.scenes)
    return Catalog.open(result.catalog.parent)


def read(path: Path | None) -> np.ndarray:
    assert path is not None
    with rasterio.open(path) as source:
        return source.read()


def test_catalog_needs_nothing_outside_itself(made: Catalog):
    catalog = pystac.Catalog.from_file(str(made.folder / "catalog.json"))
    items = list(catalog.get_items())
    assert len(items) == 2
    for item in items:
        item.stac_extensions = []  # the core schema comes with pystac, those of extensions need the network
        item.validate()
        for asset in item.assets.values():
            assert not Path(asset.href).is_absolute()
            assert Path(asset.get_absolute_href() or "").is_file()


def test_every_mention_says_simulated(made: Catalog):
    for scene in made.scenes():
        assert scene.simulated
        assert scene.id.startswith("simulated-")
        assert scene.title.startswith("Simulated")
        assert scene.event.startswith("simulated")
        assert "simulated" in scene.place
        assert "simulated" in scene.pre_sensor and "simulated" in scene.post_sensor
        with rasterio.open(scene.post) as source:
            assert source.tags()["simulated"] == "true"


def test_files_are_valid_cogs_on_one_metric_grid(made: Catalog):
    for scene in made.scenes():
        grids = set()
        for layer in LAYERS:
            path = getattr(scene, layer)
            valid, errors, _ = cog_validate(str(path), strict=True, quiet=True)
            assert valid, errors
            with rasterio.open(path) as source:
                assert source.crs.is_projected
                assert source.res == (0.5, 0.5)
                assert source.transform.c % 8 == 0 and source.transform.f % 8 == 0
                grids.add((source.crs.to_string(), tuple(source.transform), source.shape))
                if layer == "pre":
                    assert source.compression == Compression.jpeg
                    assert source.tags(ns="IMAGE_STRUCTURE")["SOURCE_COLOR_SPACE"] == "YCbCr"
                    assert source.tags(ns="IMAGE_STRUCTURE")["JPEG_QUALITY"] == "85"
                    assert source.colorinterp[0] == ColorInterp.red
        assert len(grids) == 1


def test_written_layers_are_the_simulated_arrays(made: Catalog):
    scene = made.scenes()[0]
    again = simulate_scene(_spec(scene.properties["specification"]))
    np.testing.assert_array_equal(read(scene.post), again.post)
    np.testing.assert_array_equal(read(scene.label)[0], again.label)
    difference = read(scene.pre).astype(int) - again.pre
    assert np.abs(difference).mean() < 6  # JPEG at quality 85


def _spec(values: dict):
    from mmcd.simulate import SceneSpec

    return SceneSpec(**(values | {"offset": tuple(values["offset"])}))


def test_footprints_lie_on_their_labels(made: Catalog):
    for scene in made.scenes():
        table = read_dataframe(scene.footprints)
        assert table.crs == "EPSG:4326"
        assert {"id", "height_m", "grade", "damage"} <= set(table.columns)
        label = read(scene.label)[0]
        with rasterio.open(scene.label) as source:
            local = table.to_crs(source.crs)
            large = local[local.area > 30]
            assert len(large) > 5
            assert box(*source.bounds).buffer(0.1).contains(large.union_all())
            points = large.representative_point()
            found = [label[source.index(point.x, point.y)] for point in points]
        assert np.mean(np.array(found) == large.grade) > 0.98


def test_same_request_writes_the_same_pixels(made: Catalog, tmp_path: Path):
    result = simulate(SimulateRequest(out=tmp_path / "again", scenes=1, size=256, seed=3))
    again = Catalog.open(result.catalog.parent).scenes()[0]
    first = made.get(again.id)
    for layer in LAYERS:
        np.testing.assert_array_equal(read(getattr(first, layer)), read(getattr(again, layer)))
    assert first.footprints is not None and again.footprints is not None
    assert first.footprints.read_bytes() == again.footprints.read_bytes()


def test_chosen_event_is_the_only_one(tmp_path: Path):
    simulate(SimulateRequest(out=tmp_path, scenes=3, size=128, event="flood"))
    assert {scene.event_type for scene in Catalog.open(tmp_path).scenes()} == {"flood"}


def test_cancelled_run_lists_only_whole_scenes(tmp_path: Path):
    def cancel(_: str, done: int, __: int) -> None:
        if done == 1:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        simulate(SimulateRequest(out=tmp_path, scenes=3, size=128), cancel)
    scenes = Catalog.open(tmp_path).scenes()
    assert len(scenes) == 1
    assert all(getattr(scenes[0], layer).is_file() for layer in LAYERS)


def test_catalog_is_never_overwritten_and_bad_sizes_write_nothing(made: Catalog, tmp_path: Path):
    with pytest.raises(InputError):
        simulate(SimulateRequest(out=made.folder))
    with pytest.raises(ConfigError):
        simulate(SimulateRequest(out=tmp_path / "new", size=16))
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValidationError):
        SimulateRequest(out=tmp_path, event="meteor")


# --- the shipped samples ------------------------------------------------------------------------------------------


def test_samples_are_eight_scenes_of_five_types_or_more_in_different_zones():
    scenes = Catalog.open(sample_data_dir()).scenes()
    assert [scene.id for scene in scenes] == [scene_id for scene_id, _, _ in SAMPLES]
    assert len({scene.event_type for scene in scenes}) >= 5
    sizes, zones = [], set()
    for scene in scenes:
        assert scene.simulated and scene.gsd == 0.5
        with rasterio.open(scene.post) as source:
            sizes.append(source.shape)
            zones.add(source.crs.to_string())
        assert 0.01 <= (read(scene.label) >= 2).mean() <= 0.05
    assert sorted(sizes) == [(1024, 1024)] * 7 + [(2048, 2048)]
    assert len(zones) == 8


def test_samples_stay_small():
    assert sum(path.stat().st_size for path in sample_data_dir().rglob("*") if path.is_file()) <= 20e6


def _assert_regenerates(number: int, folder: Path) -> None:
    scene_id, place, spec = SAMPLES[number]
    again = write_scene(folder, scene_id, place, simulate_scene(spec))
    shipped = Catalog.open(sample_data_dir()).get(scene_id)
    for layer in LAYERS:
        np.testing.assert_array_equal(read(getattr(shipped, layer)), read(getattr(again, layer)))
    assert again.properties == shipped.properties
    with rasterio.open(shipped.post) as source:
        assert source.transform == place_grid(place, spec).transform


def test_one_sample_is_regenerated(tmp_path: Path):
    _assert_regenerates(3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_every_sample_is_regenerated(number: int, tmp_path: Path):
    _assert_regenerates(number, tmp_path)
