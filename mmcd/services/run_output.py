"""What every run writes and says, whatever model made its score: the folder it grows in, its products and facts.

A run grows in a hidden folder beside its final place and is published whole, the manifest last.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmcd.cards import file_sha256
from mmcd.errors import InputError, StorageError, UsageError
from mmcd.export import area_summary, count_scores, write_item, write_mask
from mmcd.geo.catalog import Scene
from mmcd.geo.grid import Grid
from mmcd.geo.vector import Region
from mmcd.services.runs import OPTIONAL_FILES, RUN_FILES

UNFINISHED = ".unfinished"
"""Hidden folder in which a run grows."""

_PUBLISHING = "publishing"  # In the folder in which a run grows, once its files begin to move to their final names.


@dataclass
class Clock:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside, under a name."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begun, 3)


@dataclass(frozen=True)
class Products:
    """What mask and STAC item of a run are made of.

    Attributes:
        folder: Folder that holds the score.
        run_id: Id of the run.
        grid: Grid of the results.
        threshold: Probability from which a pixel counts as changed.
        model: Name and version of the model.
        scene: The scene; None of two files.
        more: Title of each further raster by its name, without suffix.
        two_optical: Whether both images are optical, for the item's title.
    """

    folder: Path
    run_id: str
    grid: Grid
    threshold: float
    model: str
    scene: Scene | None = None
    more: dict[str, str] | None = None
    two_optical: bool = False

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the rasters."""
        return {"MMCD_RUN": self.run_id, "MMCD_MODEL": self.model}


def outline_of(region: Region | None) -> Region | None:
    """Return the region when pixels of its window lie outside; a box is answered as a whole window."""
    return None if region is None or region.polygon.equals(region.polygon.envelope) else region


def input_facts(scene: Scene | None, pre: Path, post: Path) -> dict[str, Any]:
    """Return what a manifest says of the images.

    Raises:
        InputError: One is not a file.
    """
    facts: dict[str, Any] = {"scene": scene.id if scene else None}
    for name, path in (("pre", pre), ("post", post)):
        facts[name] = {"path": str(path), "bytes": path.stat().st_size, "sha256": _hash(path)}
    return facts


def _hash(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    raise InputError(f"{path} is not a file.", "Give a raster file.")


def grid_facts(grid: Grid) -> dict[str, Any]:
    """Return what a manifest says of a grid."""
    return {
        "crs": grid.crs,
        "transform": list(grid.transform)[:6],
        "shape": list(grid.shape),
        "gsd_m": grid.gsd,
        "georeferenced": grid.crs is not None,
    }


def place_notes(grid: Grid) -> tuple[str, ...]:
    """Return what the user should know of a place without a georeference."""
    if grid.crs is not None:
        return ()
    return ("There is no georeference: the pair is compared pixel by pixel and areas are given in pixels.",)


def work_folder(folder: Path, needed: int) -> Path:
    """Return the hidden folder in which a run grows, on the same disk as its final place.

    Args:
        folder: The final place; created when missing.
        needed: Bytes that the run takes there.

    Raises:
        StorageError: It cannot be written, or the disk has less space.
    """
    work = folder / UNFINISHED
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}.", "Choose another folder with --out."
        ) from error
    refuse_full_disk(work, needed, folder)
    return work


def refuse_full_disk(there: Path, needed: int, named: Path | None = None) -> None:
    """Refuse to begin what a disk has no room for.

    Args:
        there: A folder on the disk.
        needed: Bytes that are going to be written.
        named: Folder that the user asked for, if another.

    Raises:
        StorageError: The disk has less space.
    """
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"The run needs about {needed / 1e6:,.0f} MB in {named or there}, {free / 1e6:,.0f} MB are free.",
            "Free some space, choose another folder or a smaller part of the data.",
        )


def write_products(products: Products) -> dict[str, Any]:
    """Write mask and STAC item beside the score; return the areas."""
    score, scene = products.folder / "score.tif", products.scene
    write_mask(score, products.grid, products.threshold, products.folder / "mask.tif", products.tags)
    areas = area_summary(count_scores(score), products.threshold, products.grid.pixel_area_m2)
    day = scene.post_date if scene else None
    taken = datetime(day.year, day.month, day.day, tzinfo=UTC) if day else None
    properties = {
        "mmcd:model": products.model,
        "mmcd:threshold": products.threshold,
        "mmcd:changed_share": areas["changed_share"],
        "mmcd:scene": scene.id if scene else None,
        "mmcd:simulated": scene.simulated if scene else None,
    }
    known = {name: value for name, value in properties.items() if value is not None}
    if products.two_optical:
        known["title"] = "Change between two optical images"
    write_item(products.folder, products.run_id, products.grid, taken, known, products.more)
    return areas


def spare_foreign_files(folder: Path, more: Sequence[str] = ()) -> None:
    """Refuse a folder in which a run would overwrite what no run wrote, or the manifest of something else.

    Args:
        folder: The final place.
        more: Files of `OPTIONAL_FILES` that the run writes.

    Raises:
        UsageError: It would.
    """
    if (folder / UNFINISHED / _PUBLISHING).exists():  # a run stopped between two of its final names
        return
    manifest = _manifest_in(folder)
    own = {*RUN_FILES, *(name for name, key in OPTIONAL_FILES.items() if key in manifest)}
    for name in [*RUN_FILES, *more]:
        if not ("run_id" in manifest and name in own) and os.path.lexists(folder / name):
            raise UsageError(f"{folder / name} is there already and is of no run.", "Choose another --out.")


def _manifest_in(folder: Path) -> dict[str, Any]:
    """Return the manifest that lies in a folder; empty when there is none, or it is of something else."""
    try:
        values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def publish(work: Path, folder: Path) -> None:
    """Move the results to their final names; the manifest last, because it marks a run as finished.

    Raises:
        StorageError: The folder cannot be written.
    """
    made, there = _manifest_in(work), _manifest_in(folder)
    try:
        (work / _PUBLISHING).touch()
        for name, key in OPTIONAL_FILES.items():
            if key in made:
                (work / name).replace(folder / name)
            elif key in there:  # of an earlier run into this folder, by another model or method
                (folder / name).unlink(missing_ok=True)
        for name in RUN_FILES:
            (work / name).replace(folder / name)
        shutil.rmtree(work)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}.", "Free some space and run again."
        ) from error
