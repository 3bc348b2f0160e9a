"""Writes a small tree of simulated tiles in the layouts that BRIGHT is published in, with split lists.

Names, folders, data types and georeference are BRIGHT's, so that whatever reads the tree reads BRIGHT. Events are named
as simulated, and so are the files' tags.
"""

from dataclasses import replace
from pathlib import Path

from affine import Affine

from mmcd.data.bright import CONTEST_FOLDER, FOLDERS, LAYERS, SUFFIXES, Layer
from mmcd.geo.cog import Band, atomic_path, write_cog
from mmcd.geo.grid import Grid
from mmcd.progress import Progress, silent
from mmcd.services.simulate import LICENCE, PLACES, SimulateRequest, SimulateResult, place_grid, refuse_filled
from mmcd.simulate import SceneSpec, SimulatedScene, simulate_scene
from mmcd.simulate.events import EVENTS, Event
from mmcd.simulate.layouts import LAYOUTS
from mmcd.simulate.palettes import PALETTES

EVENT_NAMES: dict[Event, str] = {event: f"simulated-{event}" for event in EVENTS} | {
    "volcano": "simulated_island-volcano"  # an underscore in the event, as la_palma-volcano has one
}

_BANDS: dict[Layer, Band] = {"pre": Band(names=("red", "green", "blue")), "post": Band(), "label": Band()}
_ROW = 2  # Tiles that touch each other; the next two lie a tile's side apart.
_LISTS = {  # Part of each tile of an event, in turn; contest folders hold its train and val lists.
    "standard_ML": ("train", "val", "test", "train"),
    "dfc25": ("train", "val", "holdout", "train"),
}


def simulate_bright(request: SimulateRequest, progress: Progress = silent) -> SimulateResult:
    """Simulate tiles and write them as BRIGHT's files; events take turns, so three tiles are of three events.

    Args:
        request: How many tiles of which size where, and ``bright`` (flat) or ``dfc25`` (the contest's folders).
        progress: Told of the stage, tiles done and tiles in all; may raise to stop.

    Raises:
        ConfigError: The specification cannot be simulated.
        InputError: The folder holds files already.
        StorageError: The folder cannot be written.
    """
    refuse_filled(request.out)
    planned = _planned(request)
    for _, spec, _ in planned:
        spec.resolved()
    ids = tuple(image_id for image_id, _, _ in planned)
    parts = {protocol: _parts(ids, turns) for protocol, turns in _LISTS.items()}
    for number, (image_id, spec, grid) in enumerate(planned):
        progress("simulating", number, len(planned))
        folder = request.out
        if request.layout == "dfc25":
            folder = folder / CONTEST_FOLDER / ("val" if parts["dfc25"][image_id] == "val" else "train")
        _write_tile(folder, image_id, simulate_scene(spec), grid)
    _write_lists(request.out / "splits", parts)
    progress("simulating", len(planned), len(planned))
    return SimulateResult(request.out, ids)


def _planned(request: SimulateRequest) -> list[tuple[str, SceneSpec, Grid]]:
    """Return id, specification and grid of every tile; tiles of an event lie at one place, two by two in touch."""
    counted: dict[Event, int] = {}
    planned = []
    for number in range(request.scenes):
        seed = request.seed + number
        event = request.event or EVENTS[seed % len(EVENTS)]
        count = counted.get(event, 0)
        counted[event] = count + 1
        layout, palette = LAYOUTS[seed % len(LAYOUTS)], PALETTES[seed // len(LAYOUTS) % len(PALETTES)]
        spec = SceneSpec(size=request.size, gsd=request.gsd, seed=seed, event=event, layout=layout, palette=palette)
        grid = place_grid(PLACES[EVENTS.index(event) % len(PLACES)], spec)
        column = count // _ROW * (_ROW + 1) + count % _ROW
        grid = replace(grid, transform=grid.transform @ Affine.translation(column * request.size, 0))
        planned.append((f"{EVENT_NAMES[event]}_{count:08d}", spec, grid))
    return planned


def _parts(ids: tuple[str, ...], turns: tuple[str, ...]) -> dict[str, str]:
    """Return the part of each tile: the tiles of every event take turns."""
    counted: dict[str, int] = {}
    parts = {}
    for image_id in ids:
        event = image_id.rpartition("_")[0]
        parts[image_id] = turns[counted.get(event, 0) % len(turns)]
        counted[event] = counted.get(event, 0) + 1
    return parts


def _write_tile(folder: Path, image_id: str, scene: SimulatedScene, grid: Grid) -> None:
    tags = {"simulated": "true", "scene": image_id, "licence": LICENCE}
    values = {"pre": scene.pre, "post": scene.post, "label": scene.label}
    for layer in LAYERS:
        path = folder / FOLDERS[layer] / f"{image_id}{SUFFIXES[layer]}"
        write_cog(path, values[layer], grid, _BANDS[layer], tags)


def _write_lists(folder: Path, parts: dict[str, dict[str, str]]) -> None:
    """Write one list a part and protocol; few-shot has the first train and the first val tile of each event."""
    lists = {protocol: _by_part(members) for protocol, members in parts.items()}
    standard = lists["standard_ML"]
    lists["few_shot"] = {part: _first_of_each_event(standard.get(part, [])) for part in ("train", "val")}
    for protocol, members in lists.items():
        for part, ids in members.items():
            with atomic_path(folder / protocol / f"{part}_set.txt") as temporary:
                temporary.write_text("\n".join(ids))


def _by_part(parts: dict[str, str]) -> dict[str, list[str]]:
    return {part: [i for i, own in parts.items() if own == part] for part in dict.fromkeys(parts.values())}


def _first_of_each_event(ids: list[str]) -> list[str]:
    return list({image_id.rpartition("_")[0]: image_id for image_id in reversed(ids)}.values())[::-1]
