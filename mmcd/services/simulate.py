"""Writes simulated scenes as a STAC catalog that needs nothing else, the sample scenes among them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, Self

import geopandas as gpd
from affine import Affine
from pydantic import Field, model_validator
from pyproj import Transformer
from shapely.geometry import Polygon

from mmcd.config import Config
from mmcd.errors import InputError
from mmcd.geo.catalog import Catalog, Scene
from mmcd.geo.cog import Band, atomic_path, write_cog
from mmcd.geo.grid import LATTICE, Grid, utm_crs
from mmcd.progress import Progress, silent
from mmcd.simulate import SceneSpec, SimulatedScene, simulate_scene
from mmcd.simulate.events import EVENTS, Event
from mmcd.simulate.layouts import LAYOUTS
from mmcd.simulate.palettes import PALETTES

LICENCE = "CC0-1.0"
GRADES = ("background", "intact", "damaged", "destroyed")

_OPTICAL = Band(names=("red", "green", "blue"), compression="jpeg", overviews="average")
_RADAR = Band(names=("VV",), overviews="average")
_LABEL = Band(names=("damage grade",))


@dataclass(frozen=True)
class Place:
    """Open land that a simulated town is laid on.

    Attributes:
        name: Where it is, for people.
        lon: Longitude of the scene's centre, degrees.
        lat: Latitude of the scene's centre, degrees.
    """

    name: str
    lon: float
    lat: float


PLACES = (
    Place("Konya plain, Türkiye", 33.4312, 37.6120),
    Place("Haouz plain, Morocco", -7.5240, 31.9140),
    Place("Coast of Al Wusta, Oman", 57.7580, 19.8920),
    Place("Wimmera, Australia", 142.4610, -36.8130),
    Place("Camagüey savanna, Cuba", -77.6830, 21.2140),
    Place("Po plain, Italy", 11.3870, 45.0210),
    Place("Red River valley, United States", -96.9120, 47.2350),
    Place("Lowlands of East Java, Indonesia", 113.4210, -8.3120),
)

SAMPLES: tuple[tuple[str, Place, SceneSpec], ...] = (
    (
        "simulated-earthquake-grid-01",
        PLACES[0],
        SceneSpec(size=2048, seed=119, event="earthquake", layout="grid", palette="mediterranean", looks=4),
    ),
    (
        "simulated-earthquake-organic-02",
        PLACES[1],
        SceneSpec(seed=102, event="earthquake", layout="organic", palette="arid", looks=4),
    ),
    (
        "simulated-explosion-industrial-03",
        PLACES[2],
        SceneSpec(seed=103, event="explosion", layout="industrial", palette="arid", looks=4),
    ),
    (
        "simulated-wildfire-village-04",
        PLACES[3],
        SceneSpec(seed=109, event="wildfire", layout="village", palette="temperate", looks=4),
    ),
    (
        "simulated-hurricane-grid-05",
        PLACES[4],
        SceneSpec(seed=105, event="hurricane", layout="grid", palette="tropical", looks=4),
    ),
    (
        "simulated-flood-organic-06",
        PLACES[5],
        SceneSpec(seed=129, event="flood", layout="organic", palette="temperate", looks=4),
    ),
    (
        "simulated-flood-village-07",
        PLACES[6],
        SceneSpec(seed=107, event="flood", layout="village", palette="winter", looks=4),
    ),
    (
        "simulated-volcano-radial-08",
        PLACES[7],
        SceneSpec(seed=108, event="volcano", layout="radial", palette="tropical", looks=4),
    ),
)
"""Id, place and specification of the scenes in ``sample_data/``."""


class SimulateRequest(Config):
    """Which scenes to write where.

    Attributes:
        out: Folder of the new catalog; must not hold one.
        scenes: Number of scenes; layouts and palettes take turns.
        size: Height and width, pixels.
        gsd: Metres a pixel.
        seed: Seed of the first scene; the next ones count up.
        event: Event type; None lets all types take turns.
        layout: ``catalog`` writes a STAC catalog of COGs and GeoJSON footprints; ``bright`` and ``dfc25`` are for
            `mmcd.services.simulate_bright`: tiles in BRIGHT's flat layout or in its contest's folders; ``levir`` is for
            `mmcd.services.simulate_levir`: pairs of optical images with building change in LEVIR-CD's folders;
            ``seasonal`` is for `mmcd.services.simulate_seasonal`: Sentinel-2 series in SeCo's and CACo's folders.
        changed_share: Share of the locations of seasonal series that changed.
        samples: Write the scenes of ``sample_data/``, as a catalog; other choices are not looked at.
    """

    out: Path
    scenes: int = Field(default=1, ge=1, le=10_000)
    size: int = 1024
    gsd: float = 0.5
    seed: int = Field(default=0, ge=0)
    event: Event | None = None
    layout: Literal["catalog", "bright", "dfc25", "levir", "seasonal"] = "catalog"
    changed_share: float = Field(default=0.5, ge=0, le=1)
    samples: bool = False

    @model_validator(mode="after")
    def _samples_are_a_catalog(self) -> Self:
        if self.samples and self.layout != "catalog":
            raise ValueError(f"--samples writes a catalog and cannot be had in --layout {self.layout}")
        return self


@dataclass(frozen=True)
class SimulateResult:
    """What was written.

    Attributes:
        catalog: Path of the ``catalog.json``, or the folder in the layout of another data set.
        scenes: Ids of its scenes, tiles, pairs or locations.
    """

    catalog: Path
    scenes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"catalog": str(self.catalog), "scenes": list(self.scenes)}


def refuse_filled(folder: Path) -> None:
    """Refuse a folder that is to be filled and is not empty.

    Raises:
        InputError: It holds files.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} holds files already.", "Choose a new folder.")


def simulate(request: SimulateRequest, progress: Progress = silent) -> SimulateResult:
    """Simulate scenes and write them as a catalog; a scene is listed once all its files are whole.

    Args:
        request: Which scenes to write where.
        progress: Told of the stage, scenes done and scenes in all; may raise to stop.

    Raises:
        ConfigError: The specification cannot be simulated.
        InputError: The folder holds a catalog already.
        StorageError: The folder cannot be written.
    """
    planned = SAMPLES if request.samples else _planned(request)
    for _, _, spec in planned:
        spec.resolved()
    catalog = Catalog.create(request.out, title="Simulated disaster scenes")
    for number, (scene_id, place, spec) in enumerate(planned):
        progress("simulating", number, len(planned))
        catalog.add(write_scene(catalog.folder, scene_id, place, simulate_scene(spec)))
    progress("simulating", len(planned), len(planned))
    return SimulateResult(catalog.folder / "catalog.json", tuple(scene_id for scene_id, _, _ in planned))


def _planned(request: SimulateRequest) -> tuple[tuple[str, Place, SceneSpec], ...]:
    """Return id, place and specification of the requested scenes."""
    planned = []
    for number in range(request.scenes):
        seed = request.seed + number
        event = request.event or EVENTS[seed % len(EVENTS)]
        layout, palette = LAYOUTS[seed % len(LAYOUTS)], PALETTES[seed // len(LAYOUTS) % len(PALETTES)]
        spec = SceneSpec(size=request.size, gsd=request.gsd, seed=seed, event=event, layout=layout, palette=palette)
        planned.append((f"simulated-{event}-{layout}-{seed:05d}", PLACES[seed % len(PLACES)], spec))
    return tuple(planned)


def write_scene(folder: Path, scene_id: str, place: Place, scene: SimulatedScene) -> Scene:
    """Write the files of one scene to ``folder/scene_id`` and return its description.

    Args:
        folder: Folder of the catalog.
        scene_id: Name of the scene and of its folder.
        place: Where to put it on the map.
        scene: Images and truth.

    Raises:
        StorageError: The folder cannot be written.
    """
    grid, spec, home = place_grid(place, scene.spec), scene.spec, folder / scene_id
    tags = {"simulated": "true", "scene": scene_id, "licence": LICENCE}
    pre = write_cog(home / "pre.tif", scene.pre, grid, _OPTICAL, tags)
    post = write_cog(home / "post.tif", scene.post, grid, _RADAR, tags)
    label = write_cog(home / "label.tif", scene.label, grid, _LABEL, tags)
    footprints = _write_footprints(home / "footprints.geojson", scene, grid)
    happened = date(2024, 1, 15) + timedelta(days=23 * (spec.seed % 31))
    return Scene(
        id=scene_id,
        title=f"Simulated {spec.event}, {spec.layout} layout, {spec.palette} climate",
        event=f"simulated-{spec.event}",
        event_type=spec.event,
        place=f"{place.name} (coordinates only; town and event are simulated)",
        pre=pre,
        post=post,
        label=label,
        footprints=footprints,
        pre_date=happened - timedelta(days=160),
        post_date=happened + timedelta(days=4),
        event_date=happened,
        pre_sensor="simulated optical",
        post_sensor="simulated SAR",
        gsd=spec.gsd,
        geometry=grid.geographic_footprint(),
        licence=LICENCE,
        simulated=True,
        properties={
            "specification": asdict(spec) | {"offset": list(spec.offset or ())},
            "buildings": {name: sum(b.grade == grade for b in scene.buildings) for grade, name in _graded()},
            "changed_share": round(float((scene.label >= 2).mean()), 5),
        },
    )


def place_grid(place: Place, spec: SceneSpec) -> Grid:
    """Return the UTM grid of a scene centred on a place, its origin on the lattice of 16 pixels."""
    crs = utm_crs(place.lon, place.lat)
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(place.lon, place.lat)
    step, half = LATTICE * spec.gsd, spec.size * spec.gsd / 2
    west, north = round((x - half) / step) * step, round((y + half) / step) * step
    return Grid(crs, Affine(spec.gsd, 0.0, west, 0.0, -spec.gsd, north), spec.size, spec.size)


def _graded() -> list[tuple[int, str]]:
    return [(grade, name) for grade, name in enumerate(GRADES) if grade]


def _write_footprints(path: Path, scene: SimulatedScene, grid: Grid) -> Path:
    """Write building polygons as GeoJSON in EPSG:4326, coordinates to a centimetre."""
    place, origin = grid.transform, (grid.transform.c, grid.transform.f)
    corners = [building.polygon * (place.a, place.e) + origin for building in scene.buildings]
    table = gpd.GeoDataFrame(
        {
            "id": [building.id for building in scene.buildings],
            "height_m": [building.height for building in scene.buildings],
            "grade": [building.grade for building in scene.buildings],
            "damage": [GRADES[building.grade] for building in scene.buildings],
        },
        geometry=[Polygon(polygon) for polygon in corners],
        crs=grid.crs,
    )
    with atomic_path(path) as temporary:
        table.to_crs("EPSG:4326").to_file(
            temporary, driver="GeoJSON", layer="footprints", engine="pyogrio", COORDINATE_PRECISION=7
        )
    return path
