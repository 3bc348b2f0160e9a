"""Writes simulated seasonal series in the layout of SeCo and CACo: location / acquisition / one GeoTIFF a band.

Names, data types and grids are those of Sentinel-2 level 2A in that layout, so that whatever reads the tree reads SeCo
and CACo. Locations are named as simulated and lie around a few places, as SeCo's lie around cities.
"""

import csv
import io
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS

from mmcd.errors import ConfigError
from mmcd.geo.cog import atomic_path, storage_errors
from mmcd.geo.positions import NearPoints
from mmcd.geo.raster import gdal_environment
from mmcd.progress import Progress, silent
from mmcd.services.simulate import LICENCE, PLACES, SimulateRequest, SimulateResult, refuse_filled
from mmcd.simulate.shapes import Array
from mmcd.simulate.spectral import (
    BAND_METRES,
    CHANGE_KINDS,
    GSD,
    SeriesSpec,
    SimulatedSeries,
    at_own_resolution,
    simulate_series,
)

SIZE = 264
"""Side in pixels of 10 m if none is asked for, which is SeCo's."""

METRES = float(GSD)
"""Side of a pixel on the ground."""

LOCATIONS = 24
"""Locations that are written if no number is asked for."""

TRUTH = "changed.csv"
_COLUMNS = ("location", "changed", "kind", "changed_share", "lon", "lat")
_METRES_PER_DEGREE = 111_320
_DEGREES = CRS.from_epsg(4326)


@dataclass(frozen=True)
class _Location:
    """A location to simulate: its name, where its middle lies in degrees, and what happens there."""

    name: str
    lon: float
    lat: float
    spec: SeriesSpec


def simulate_seasonal(request: SimulateRequest, progress: Progress = silent) -> SimulateResult:
    """Simulate locations and write their acquisitions; a location appears once all its files are whole.

    ``changed.csv`` says of every location whether and how it changed, also after a run that was stopped.

    Args:
        request: How many locations of which size where, and which share of them changed.
        progress: Told of the stage, locations done and locations in all; may raise to stop.

    Raises:
        ConfigError: The specification cannot be simulated.
        InputError: The folder holds files already.
        StorageError: The folder cannot be written.
    """
    refuse_filled(request.out)
    locations = _planned(request)
    for location in locations:
        location.spec.check()
    rows: list[tuple[object, ...]] = []
    try:
        for number, location in enumerate(locations):
            progress("simulating", number, len(locations))
            series = simulate_series(location.spec)
            _write_location(request.out, location, series)
            rows.append(_truth(location, series))
    finally:
        if rows:
            _write_notes(request.out, locations[: len(rows)], rows)
    progress("simulating", len(locations), len(locations))
    return SimulateResult(request.out, tuple(location.name for location in locations))


def _planned(request: SimulateRequest) -> list[_Location]:
    """Return the locations; the share that changed is met to the nearest whole location."""
    if request.event is not None:
        raise ConfigError("Seasonal series have no event.", "Leave --event out with --layout seasonal.")
    if request.gsd != GSD:
        raise ConfigError(
            f"Seasonal series have pixels of {GSD} m, not {request.gsd:g}.", "Leave --gsd out with --layout seasonal."
        )
    random = np.random.default_rng(request.seed)
    changed = np.zeros(request.scenes, dtype=bool)
    changed[random.permutation(request.scenes)[: round(request.changed_share * request.scenes)]] = True
    kinds = [CHANGE_KINDS[number % len(CHANGE_KINDS)] for number in np.cumsum(changed)]
    points = np.array([(place.lon, place.lat) for place in PLACES])
    positions = NearPoints(points).draw(request.scenes, random)
    planned = []
    for number, (lon, lat) in enumerate(positions.tolist()):
        kind = kinds[number] if changed[number] else None
        spec = SeriesSpec(size=request.size, seed=request.seed + number, change=kind, south=lat < 0)
        planned.append(_Location(f"simulated-{spec.seed:06d}", lon, lat, spec))
    return planned


def _write_location(out: Path, location: _Location, series: SimulatedSeries) -> None:
    """Write the folder of a location under a hidden name, then give it its own."""
    home = out / location.name
    tags = {"simulated": "true", "location": location.name, "licence": LICENCE}
    with storage_errors(home), gdal_environment():
        out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".simulated-", dir=out))
        try:
            for day, image in zip(series.dates, series.images, strict=True):
                folder = temporary / location.name / f"{day:%Y%m%d}T100000_simulated"
                folder.mkdir(parents=True)
                for name, band in at_own_resolution(image).items():
                    _write_band(folder / f"{name}.tif", band, _transform(location, BAND_METRES[name]), name, tags)
            (temporary / location.name).rename(home)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _transform(location: _Location, metres: int) -> Affine:
    """Return where pixels of a band lie, in degrees; all bands share the upper left corner."""
    down = 1 / _METRES_PER_DEGREE
    right = down / np.cos(np.radians(location.lat))
    half = location.spec.size * GSD / 2
    west, north = location.lon - half * right, location.lat + half * down
    return Affine(metres * right, 0.0, west, 0.0, -metres * down, north)


def _write_band(path: Path, band: Array, transform: Affine, name: str, tags: dict[str, str]) -> None:
    height, width = band.shape
    profile = {"driver": "GTiff", "dtype": band.dtype, "count": 1, "height": height, "width": width}
    with rasterio.open(path, "w", crs=_DEGREES, transform=transform, compress="deflate", **profile) as file:
        file.write(band, 1)
        file.set_band_description(1, name)
        file.update_tags(**tags)


def _truth(location: _Location, series: SimulatedSeries) -> tuple[object, ...]:
    kind = location.spec.change or ""
    share = f"{series.changed.mean():.4f}"
    return location.name, int(bool(kind)), kind, share, f"{location.lon:.5f}", f"{location.lat:.5f}"


def _write_notes(out: Path, locations: list[_Location], rows: list[tuple[object, ...]]) -> None:
    """Write what changed where, what the files are and how to make them again."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *rows])
    with atomic_path(out / TRUTH) as temporary:
        temporary.write_text(text.getvalue())
    notes = {
        "simulated": True,
        "licence": LICENCE,
        "content": "Simulated Sentinel-2 level-2A series, reflectance times 10000. The older half of the acquisitions "
        f"and the recent one lie years apart; {TRUTH} says where ground changed between them. Season, crop rotation, "
        "soil moisture and haze differ between all acquisitions and are no change.",
        "locations": [{"name": each.name, **asdict(each.spec)} for each in locations],
    }
    with atomic_path(out / "simulated.json") as temporary:
        temporary.write_text(json.dumps(notes, indent=2) + "\n")
