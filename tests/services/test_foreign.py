"""What is taken from elsewhere: files that really lead GDAL to another file of this machine are refused."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

from mmcd.errors import InputError
from mmcd.services.foreign import Kind, check_file
from mmcd.services.sources import keep_upload

SIDE = 64
SECRET = 77

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write(path: Path, value: int, driver: str = "GTiff", **options: object) -> Path:
    shape = {"count": 1, "height": SIDE, "width": SIDE, "dtype": "uint8"}
    with rasterio.open(path, "w", driver=driver, **shape, **options) as file:
        file.write(np.full((1, SIDE, SIDE), value, np.uint8))
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image of this machine that nobody else should see."""
    return write(tmp_path / "secret.tif", SECRET)


def virtual(secret: Path) -> bytes:
    source = f'<SourceFilename relativeToVRT="0">{secret}</SourceFilename><SourceBand>1</SourceBand>'
    band = f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource>{source}</SimpleSource></VRTRasterBand>'
    return f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{band}</VRTDataset>'.encode()


def refused(path: Path, words: str, kind: Kind = "image") -> None:
    with pytest.raises(InputError, match=words):
        check_file("given", path, kind)


@pytest.mark.parametrize(
    ("driver", "options"),
    [
        ("GTiff", {}),
        ("GTiff", {"BIGTIFF": "YES"}),
        ("GTiff", {"ENDIANNESS": "BIG"}),
        ("GTiff", {"BIGTIFF": "YES", "ENDIANNESS": "BIG"}),
        ("COG", {}),
        ("PNG", {}),
        ("JPEG", {}),
        ("JP2OpenJPEG", {}),
        ("JP2OpenJPEG", {"CODEC": "J2K"}),
    ],
)
def test_images_of_the_usual_formats_are_taken(tmp_path: Path, driver: str, options: dict[str, str]) -> None:
    check_file("given", write(tmp_path / "image", 9, driver, **options), "image")


def test_a_virtual_raster_in_the_comment_of_a_jpeg_is_refused(tmp_path: Path, secret: Path) -> None:
    picture = write(tmp_path / "plain.jpg", 9, "JPEG").read_bytes()
    comment = (virtual(secret) + b"\0").ljust(0x2020 - 2, b"\0")
    path = tmp_path / "picture.jpg"
    path.write_bytes(picture[:2] + b"\xff\xfe\x20\x20" + comment + picture[2:])
    with rasterio.open(path) as file:  # whoever asks GDAL alone is shown the other file
        assert (file.driver, int(file.read(1)[0, 0])) == ("VRT", SECRET)
    refused(path, "no format that is taken")


def test_an_image_that_names_another_as_its_overview_is_refused(tmp_path: Path, secret: Path) -> None:
    path = write(tmp_path / "image.tif", 9)
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(secret))
    with rasterio.open(path) as file:
        assert file.overviews(1)
    refused(path, "names another file as its overview")


@pytest.mark.parametrize(
    "content",
    [
        b"ncols 2\nnrows 2\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n3 4\n",
        b'{"type": "gdal_streamed_alg", "command_line": "gdal raster read /secret.tif"}',
        b"ENVI\nsamples = 64\n",
        b'PDS_VERSION_ID = PDS3\n^IMAGE = "secret.img"\n',
        b"\x89HDF\r\n\x1a\n" + bytes(64),
        b"CDF\x02" + bytes(64),
        b" " * 8192 + b"<VRTDataset/>",
        b"",
    ],
    ids=["grid", "pipeline", "envi", "pds", "hdf5", "netcdf", "padded", "empty"],
)
def test_formats_that_may_name_other_files_are_refused(workspace: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="no format that is taken"):
        keep_upload("image.tif", content)
    assert not list((workspace / "sources").rglob("*.tif*"))


def test_a_beginning_alone_is_no_image(workspace: Path) -> None:
    """What its own driver refuses, GDAL would offer to all others."""
    with pytest.raises(InputError, match=r"image\.tif is damaged"):
        keep_upload("image.tif", b"II*\0" + bytes(508) + b"\x89HDF\r\n\x1a\n" + bytes(64))
    assert not list((workspace / "sources").rglob("*.tif*"))


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.geojsonl", "a.fgb", "a.parquet"])
def test_outlines_of_the_usual_formats_are_taken(tmp_path: Path, name: str) -> None:
    square = shapely.box(0, 0, 1, 1)
    frame = geopandas.GeoDataFrame({"type": ["gdal_streamed_alg"]}, geometry=[square], crs="EPSG:4326")
    if name.endswith("parquet"):
        frame.to_parquet(tmp_path / name)
    else:
        driver = {"driver": "GeoJSONSeq"} if name.endswith("l") else {}
        frame.to_file(tmp_path / name, **driver)
    check_file("given", tmp_path / name, "outlines")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"type": "gdal_streamed_alg", "command_line": "gdal vector read /x"}', "not GeoJSON"),
        ('{"\\u0074ype": "gdal_streamed_\\u0061lg", "type": "FeatureCollection", "features": []}', "not GeoJSON"),
        ('{"type": "Feature"}\n{"type": "gdal_streamed_alg"}', "not GeoJSON"),
        ('{"type": {"type": "Feature"}}', "not GeoJSON"),
        ('{"type": "Feature"', "is not JSON"),
        ('{"a":' + "[" * 100_000, "is not JSON"),
        ("id,geometry\n1,POINT (0 0)", "no format that is taken"),
        ("SQLite format 3\0" + "\0" * 100, "no format that is taken"),
        ("PK\x03\x04", "no format that is taken"),
        ("<OGRVRTDataSource/>", "is XML"),
    ],
)
def test_other_outlines_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(content)
    refused(path, words, "outlines")


def test_members_of_geojson_may_be_called_type_themselves(tmp_path: Path) -> None:
    feature = {"type": "Feature", "properties": {"type": "house", "of": {"type": "stone"}}, "geometry": None}
    path = tmp_path / "a.geojson"
    path.write_text("\ufeff " + json.dumps({"type": "FeatureCollection", "features": [feature]}))
    check_file("given", path, "outlines")
