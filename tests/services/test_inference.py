"""The service behind `mmcd infer predict` and the Damage map, on real and made pairs."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from rasterio.shutil import copy
from rasterio.vrt import WarpedVRT
from rio_cogeo.cogeo import cog_validate

from mmcd.cards import read_card, write_card
from mmcd.errors import Cancelled, InputError, ModelError, RegionError, UsageError
from mmcd.score import threshold_value
from mmcd.services.inference import PredictRequest, predict
from mmcd.services.masks import mask_at
from mmcd.services.runs import list_runs, load_run

Pair = tuple[Path, Path]
pytestmark = pytest.mark.usefixtures("workspace")


def request(pair: Pair, card_path: Path, **more: object) -> PredictRequest:
    return PredictRequest.checked(pre=pair[0], post=pair[1], model=str(card_path), device="cpu", **more)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def test_a_run_writes_files_that_agree(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stages: list[str] = []
    result = predict(request(pair, card_path, out=out), lambda stage, done, total: stages.append(stage))
    names = ["embeddings.parquet", "item.json", "manifest.json", "mask.tif", "score.tif"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert {"prepare", "load model", "score", "write"} <= set(stages)
    for name in ("score", "mask"):
        valid, errors, _ = cog_validate(out / f"{name}.tif", strict=True)
        assert valid, errors
    score, mask = read(out / "score.tif"), read(out / "mask.tif")
    expected = np.where(score >= threshold_value(0.5), 1, 0)
    np.testing.assert_array_equal(mask, np.where(score == 0, 255, expected))
    with rasterio.open(out / "score.tif") as file:
        assert (file.nodata, file.scales[0]) == (0, pytest.approx(1 / 254))
        assert file.tags()["MMCD_MODEL"] == "tiny 0"

    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(result.manifest))
    areas = manifest["areas"]
    assert areas["changed_px"] == int((mask == 1).sum())
    assert areas["changed_km2"] == pytest.approx((mask == 1).sum() * 100 / 1e6)
    assert areas["not_assessed_px"] == int((score == 0).sum())
    assert manifest["inputs"]["pre"]["sha256"]
    assert set(manifest["seconds"]) >= {"prepare", "load model", "score", "write", "mask"}

    item = pystac.Item.from_file(out / "item.json")
    assert (out / item.assets["score"].href).exists()
    west, south, east, north = item.bbox
    assert 19 < west < east < 21
    assert 41 < south < north < 42


def test_a_region_in_degrees_has_the_bytes_of_the_whole(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    whole = predict(request(pair, card_path, out=tmp_path / "whole"))
    part = predict(request(pair, card_path, out=tmp_path / "part", region="19.82,41.50,19.85,41.53", tile=512))
    with rasterio.open(whole.folder / "score.tif") as a, rasterio.open(part.folder / "score.tif") as b:
        window = rasterio.windows.from_bounds(*b.bounds, a.transform).round_lengths().round_offsets()
        assert 0 < window.width < a.width
        np.testing.assert_array_equal(a.read(1, window=window), b.read(1))


def test_a_polygon_assesses_only_what_lies_inside(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    triangle = shapely.Polygon([(402_000, 4_594_000), (407_000, 4_594_000), (402_000, 4_599_000)])
    geopandas.GeoSeries([triangle], crs="EPSG:32634").to_file(tmp_path / "region.gpkg")
    whole = predict(request(pair, card_path, out=tmp_path / "whole"))
    part = predict(request(pair, card_path, out=tmp_path / "part", region=str(tmp_path / "region.gpkg")))
    with rasterio.open(whole.folder / "score.tif") as a, rasterio.open(part.folder / "score.tif") as b:
        window = rasterio.windows.from_bounds(*b.bounds, a.transform).round_lengths().round_offsets()
        inside, everything = b.read(1), a.read(1, window=window)
    assert 0.4 < (inside > 0).mean() < 0.6
    np.testing.assert_array_equal(inside[inside > 0], everything[inside > 0])


def test_the_same_request_finds_its_run_again(pair: Pair, card_path: Path) -> None:
    first = predict(request(pair, card_path))
    run_id = first.manifest["run_id"]
    assert [run.id for run in list_runs()] == [run_id]
    again = predict(request(pair, card_path, tile=512))
    assert again.manifest == first.manifest
    other = predict(request(pair, card_path, region="19.82,41.50,19.85,41.53"))
    assert other.manifest["run_id"] != run_id
    strict = mask_at(run_id, 0.9)
    assert (read(strict) == 1).sum() == (read(load_run(run_id).score) >= threshold_value(0.9)).sum()


def test_a_run_of_another_workspace_has_another_id(
    pair: Pair, card_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = predict(request(pair, card_path, out=tmp_path / "a")).manifest["run_id"]
    monkeypatch.setenv("MMCD_WORKSPACE", str(tmp_path / "other"))
    assert predict(request(pair, card_path, out=tmp_path / "b")).manifest["run_id"] != first


@pytest.mark.parametrize("run_id", ["../../etc", "0" * 31, "G" * 32, ""])
def test_only_our_ids_become_paths(run_id: str) -> None:
    with pytest.raises(InputError, match="not the id of a run"):
        load_run(run_id)


def test_a_cancelled_run_leaves_nothing_at_the_final_names_and_goes_on(
    pair: Pair, card_path: Path, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "score" and done == 2:
            raise Cancelled("stop")

    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        predict(request(pair, card_path, out=out, tile=512), stop)
    assert [path.name for path in out.iterdir()] == [".unfinished"]
    resumed = predict(request(pair, card_path, out=out, tile=512))
    assert resumed.manifest["resumed"]
    assert not (out / ".unfinished").exists()
    fresh = predict(request(pair, card_path, out=tmp_path / "fresh"))
    assert (out / "score.tif").read_bytes() == (fresh.folder / "score.tif").read_bytes()


def test_another_threshold_gives_the_same_score_and_another_mask(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    low = predict(request(pair, card_path, out=tmp_path / "low", threshold=0.2))
    high = predict(request(pair, card_path, out=tmp_path / "high", threshold=0.8))
    assert (low.folder / "score.tif").read_bytes() == (high.folder / "score.tif").read_bytes()
    assert low.manifest["areas"]["changed_px"] > high.manifest["areas"]["changed_px"]


def test_pairs_in_two_systems_meet_in_one(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    with rasterio.open(pair[0]) as source, WarpedVRT(source, crs="EPSG:4326") as warped:
        copy(warped, tmp_path / "geo.tif", driver="GTiff")
    result = predict(request((tmp_path / "geo.tif", pair[1]), card_path, out=tmp_path / "out"))
    with rasterio.open(result.folder / "score.tif") as file, rasterio.open(pair[1]) as post:
        assert file.crs == post.crs
        assert file.res == post.res
    same = predict(request(pair, card_path, out=tmp_path / "same"))
    a, b = (areas.manifest["areas"]["changed_share"] for areas in (result, same))
    assert a == pytest.approx(b, abs=0.1)


def test_a_card_whose_bands_are_not_there_is_refused(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not fit.*asks for B11, B8, B3"):
        predict(request((pair[1], pair[1]), card_path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_refused(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    card = read_card(card_path)
    (tmp_path / card.weights).write_bytes((card_path.parent / card.weights).read_bytes()[:-1] + b"x")
    write_card(card, tmp_path / "tiny.toml")
    with pytest.raises(ModelError, match="do not match their card"):
        predict(request(pair, tmp_path / "tiny.toml", out=tmp_path / "out"))


def test_a_region_outside_is_refused(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="outside the scene"):
        predict(request(pair, card_path, out=tmp_path / "out", region="1,2,3,4"))
    assert not (tmp_path / "out").exists()


def test_a_request_needs_two_files_or_a_scene(pair: Pair) -> None:
    with pytest.raises(UsageError, match="two files or a scene"):
        PredictRequest.checked(pre=pair[0])
    with pytest.raises(UsageError, match="--tile 3"):
        PredictRequest.checked(scene="x", tile=3)


def test_a_full_disk_is_one_sentence_and_nothing_is_left(pair: Pair, card_path: Path, tmp_path: Path) -> None:
    """A real limit of the operating system: files of this process may not grow beyond 100 kB."""
    out = tmp_path / "out"
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from mmcd.services.inference import PredictRequest, predict
from mmcd.errors import StorageError
pre, post = {str(pair[0])!r}, {str(pair[1])!r}
request = PredictRequest.checked(pre=pre, post=post, model={str(card_path)!r}, out={str(out)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
try:
    predict(request)
except StorageError as error:
    print("stopped:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.startswith("stopped:"), done.stderr
    assert "cannot be written" in done.stdout
    assert not [path for path in out.iterdir() if path.name != ".unfinished"]
