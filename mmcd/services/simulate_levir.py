"""Writes simulated building change in LEVIR-CD's layout: folders A, B and label for train, val and test.

Every pair is a crop of a simulated town and named after it, as LEVIR-CD's crops are; a town lies in one part only, so
validation and test show towns that training never saw. Names begin with ``simulated-``.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rio_tiler.utils import render

from mmcd.data.levir_files import FOLDERS, PARTS, Part
from mmcd.errors import ConfigError
from mmcd.geo.cog import atomic_path
from mmcd.progress import Progress, silent
from mmcd.services.simulate import LICENCE, SimulateRequest, SimulateResult, refuse_filled
from mmcd.simulate import GrowthSpec, SimulatedGrowth, simulate_growth
from mmcd.simulate.layouts import LAYOUTS
from mmcd.simulate.palettes import PALETTES
from mmcd.simulate.shapes import Array

PAIRS = 24
"""Pairs that are written if no number is asked for: six towns, four of them to learn from."""

_SIDE = 2
"""Crops along one side of a town."""

_TURNS: tuple[Part, ...] = ("train", "val", "test", "train", "train", "train")
"""Part of each town in turn."""


@dataclass(frozen=True)
class _Town:
    """A town to simulate: its name, its part, what it looks like, and how many of its crops are written."""

    name: str
    part: Part
    spec: GrowthSpec
    crops: int


def simulate_levir(request: SimulateRequest, progress: Progress = silent) -> SimulateResult:
    """Simulate towns that grow and write crops of them.

    Args:
        request: How many pairs of which size where.
        progress: Told of the stage, towns done and towns in all; may raise to stop.

    Raises:
        ConfigError: The specification cannot be simulated, or the pairs are too few for three parts.
        InputError: The folder holds files already.
        StorageError: The folder cannot be written.
    """
    refuse_filled(request.out)
    towns = _planned(request)
    for town in towns:
        town.spec.check()
    ids: list[str] = []
    for number, town in enumerate(towns):
        progress("simulating", number, len(towns))
        ids += _write_town(request.out, town, simulate_growth(town.spec), request.size)
    _write_notes(request.out, towns)
    progress("simulating", len(towns), len(towns))
    return SimulateResult(request.out, tuple(ids))


def _planned(request: SimulateRequest) -> list[_Town]:
    """Return the towns; the pairs are spread over them evenly, and every part has one."""
    if request.scenes < len(PARTS):
        raise ConfigError(
            f"{request.scenes} pairs cannot be split into train, val and test by town.",
            f"Give --scenes {len(PARTS)} or more.",
        )
    if request.event is not None:
        raise ConfigError("Towns that grow have no event.", "Leave --event out with --layout levir.")
    count = max(len(PARTS), -(-request.scenes // _SIDE**2))
    towns = []
    for number in range(count):
        seed = request.seed + number
        layout, palette = LAYOUTS[seed % len(LAYOUTS)], PALETTES[(seed + seed // len(LAYOUTS)) % len(PALETTES)]
        spec = GrowthSpec(size=_SIDE * request.size, gsd=request.gsd, seed=seed, layout=layout, palette=palette)
        crops = request.scenes // count + (number < request.scenes % count)
        towns.append(_Town(f"simulated-{layout}-{palette}-{seed:05d}", _TURNS[number % len(_TURNS)], spec, crops))
    return towns


def _write_town(out: Path, town: _Town, growth: SimulatedGrowth, size: int) -> list[str]:
    """Write the crops of a town and return their ids."""
    label = np.where(growth.label > 0, np.uint8(255), np.uint8(0))[None]
    ids = []
    for number in range(town.crops):
        row, column = (place * size for place in divmod(number, _SIDE))
        stem = f"{town.name}_{row:04d}_{column:04d}"
        for folder, image in zip(FOLDERS, (growth.pre, growth.post, label), strict=True):
            _write_png(out / town.part / folder / f"{stem}.png", image[:, row : row + size, column : column + size])
        ids.append(f"{town.part}/{stem}")
    return ids


def _write_png(path: Path, image: Array) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(render(np.ascontiguousarray(image), img_format="PNG"))


def _write_notes(out: Path, towns: list[_Town]) -> None:
    """Write what the pairs are and how to make them again."""
    notes = {
        "simulated": True,
        "licence": LICENCE,
        "content": "Two simulated optical images (A before, B after) of one town; label 255 where a building was "
        "raised or torn down. Season, sun, haze, vehicles, crops and renewed roofs differ and are no change.",
        "towns": [{"name": town.name, "part": town.part, **asdict(town.spec)} for town in towns],
    }
    with atomic_path(out / "simulated.json") as temporary:
        temporary.write_text(json.dumps(notes, indent=2) + "\n")
