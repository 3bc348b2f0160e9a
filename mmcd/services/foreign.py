"""Which files are taken from elsewhere: only those of a few formats that hold all they show.

GDAL reads some two hundred formats, and finds out by itself which one a file is, whatever it is called. In many of them
a file names others: virtual rasters and pipelines in XML or JSON, headers and indexes in plain text, HDF5 and netCDF
with external links. Such a file from a stranger could show any file of this machine, or have it ask any address of the
network. What the user names by a path on this machine is not restricted.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import rasterio

from mmcd.errors import InputError
from mmcd.geo.raster import GDAL_ERRORS, gdal_environment, gdal_reason, ignore_missing_georeference

Kind = Literal["image", "outlines"]

HEAD_BYTES = 4096
"""How much of a file's beginning tells its format."""

# Formats of pixels and nothing else, in which satellite images are published and which the upload takes.
_IMAGES = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",  # BigTIFF
    b"MM\0+": "GTiff",
    b"\x89PNG\r\n\x1a\n\0": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51\0": "JP2OpenJPEG",  # its code stream without the box around it
}
_OUTLINES = {b"SQLite format 3\0": "GPKG", b"PAR1": "Parquet", b"fgb\x03": "FlatGeobuf"}
_BLANK = b"\xef\xbb\xbf\0 \t\r\n\v\f\x1e"  # blanks, the byte order mark of UTF-8, what separates texts of GeoJSON
# Readers of text look for their words from the first byte to the first zero, and are asked before that of JPEG.
_BINARY_WITHIN = 16
_GEOPACKAGE = slice(68, 70), b"GP"  # SQLite's field for the application: "GPKG", "GP10" or "GP11"
_GEOJSON = {
    "FeatureCollection",
    "Feature",
    "GeometryCollection",
    *(f"{many}{shape}" for many in ("", "Multi") for shape in ("Point", "LineString", "Polygon")),
}
_ACTIONS: dict[Kind, str] = {
    "image": "Give a GeoTIFF, JPEG 2000, PNG or JPEG; any GDAL raster of this machine can be given by its path.",
    "outlines": "Give GeoJSON, GeoPackage, GeoParquet or FlatGeobuf; others of this machine by their path.",
}


def check_head(name: str, head: bytes, kind: Kind) -> str:
    """Return the format of a file from elsewhere.

    Args:
        name: Its name, for the message.
        head: Its first bytes, `HEAD_BYTES` of them or all.
        kind: What it has to be.

    Raises:
        InputError: It is none of the formats that are taken.
    """
    text = head.lstrip(_BLANK)
    if text.startswith(b"<"):
        raise InputError(
            f"{name[:80]} is XML: virtual rasters and web pages are not taken from elsewhere.", _ACTIONS[kind]
        )
    signatures = _IMAGES if kind == "image" else _OUTLINES
    form = next((form for sign, form in signatures.items() if head.startswith(sign)), None)
    if kind == "outlines" and text.startswith(b"{"):
        form = "GeoJSON"
    place, sign = _GEOPACKAGE
    mixed = kind == "image" and b"\0" not in head[:_BINARY_WITHIN]
    if form is None or mixed or (form == "GPKG" and head[place] != sign):
        raise InputError(f"{name[:80]} is of no format that is taken from elsewhere.", _ACTIONS[kind])
    return form


def check_file(name: str, path: Path, kind: Kind) -> str:
    """Refuse a file from elsewhere that cannot be read or may name others; return its format.

    Args:
        name: Its name, for the message.
        path: Where it lies now; the name says nothing.
        kind: What it has to be.

    Raises:
        InputError: It is none of the formats that are taken, or damaged.
    """
    with path.open("rb") as file:
        form = check_head(name, file.read(HEAD_BYTES), kind)
    if kind == "image":
        _check_image(name, path, form)
    elif form == "GeoJSON":
        _check_json(name, path)
    return form


def _check_image(name: str, path: Path, driver: str) -> None:
    """Open a file by the one driver of its format: what that refuses, GDAL would offer to all others."""
    try:
        with gdal_environment(), ignore_missing_georeference(), rasterio.open(path, driver=driver) as file:
            leads_out = bool(file.tags(ns="OVERVIEWS"))
    except GDAL_ERRORS as error:
        raise InputError(f"{name[:80]} is damaged: {gdal_reason(error)}.", _ACTIONS["image"]) from error
    if leads_out:  # GDAL takes the file that this metadata names for the image in small
        raise InputError(f"{name[:80]} names another file as its overview.", _ACTIONS["image"])


def _check_json(name: str, path: Path) -> None:
    """Refuse JSON that says to be anything but GeoJSON, such as a pipeline of GDAL."""
    try:
        kinds = [kind for text in _json_types(path.read_text(encoding="utf-8-sig")) for kind in text]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name[:80]} is not JSON: {str(error)[:200]}.", _ACTIONS["outlines"]) from error
    if not all(isinstance(kind, str) and kind in _GEOJSON for kind in kinds):
        raise InputError(f"{name[:80]} is JSON, but not GeoJSON.", _ACTIONS["outlines"])


def _json_types(text: str) -> Iterator[list[Any]]:
    """Yield what each object of a text gives as its type; GeoJSON may come as one object a line."""
    # Only that is kept: numbers and inner objects go as soon as they are read, repeated names do not hide one another.
    decoder = json.JSONDecoder(
        object_pairs_hook=lambda pairs: [value for name, value in pairs if name == "type"],
        parse_float=len,
        parse_int=len,
        strict=False,
    )
    place, blank = 0, _BLANK.decode("latin-1")
    while place < len(text):
        if text[place] in blank:
            place += 1
        else:
            found, place = decoder.raw_decode(text, place)
            yield found if text[place - 1] == "}" else [found]
