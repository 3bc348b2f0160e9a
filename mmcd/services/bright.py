"""What a BRIGHT folder holds: tiles by event, missing files, and where each tile lies on the ground."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmcd.config import Config
from mmcd.data.bright import EVENTS, BrightTile, check_headers, index_bright
from mmcd.data.bright_splits import PROTOCOLS, protocols_in, read_split
from mmcd.errors import DataError
from mmcd.geo.cog import atomic_path
from mmcd.geo.grid import Grid
from mmcd.progress import Progress, silent


class TilesRequest(Config):
    """Which folder to look at.

    Attributes:
        root: Folder of the data set, in either layout.
        footprints: File for the outlines, GeoJSON in EPSG:4326.
        lists: Folder of the official split lists.
    """

    root: Path
    footprints: Path | None = None
    lists: Path | None = None


@dataclass(frozen=True)
class EventTiles:
    """Tiles of one event.

    Attributes:
        event: As in the ids.
        name: The paper's name; empty for an event that is not BRIGHT's.
        tiles: Tiles with both images.
        labelled: Those with a label.
        parts: Tiles in each part of each protocol, such as ``dfc25 train``.
    """

    event: str
    name: str
    tiles: int
    labelled: int
    parts: dict[str, int]


@dataclass(frozen=True)
class TilesResult:
    """What was found.

    Attributes:
        layout: ``flat`` or ``contest``.
        events: The events, by name.
        warnings: Every file that is missing, misnamed or not as published, one sentence each.
        footprints: The file that was written.
    """

    layout: str
    events: tuple[EventTiles, ...]
    warnings: tuple[str, ...]
    footprints: Path | None

    @property
    def tiles(self) -> int:
        """Tiles with both images."""
        return sum(event.tiles for event in self.events)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "layout": self.layout,
            "tiles": self.tiles,
            "events": [asdict(event) for event in self.events],
            "warnings": list(self.warnings),
            "footprints": None if self.footprints is None else str(self.footprints),
        }


def list_tiles(request: TilesRequest, progress: Progress = silent) -> TilesResult:
    """Count the tiles of a folder, and write their outlines when asked to.

    Args:
        request: Which folder.
        progress: Told of the stage, tiles done and tiles in all; may raise to stop.

    Raises:
        DataError: There is no tile, no list, or none has a georeference to write.
        StorageError: The file cannot be written.
    """
    index = index_bright(request.root)
    warnings = index.report()
    listed = {} if request.lists is None else _listed(request.lists, warnings)
    if request.footprints is not None:
        features = _features(index.tiles, listed, warnings, progress)
        with atomic_path(request.footprints) as temporary:
            temporary.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    events = tuple(
        EventTiles(
            event,
            EVENTS.get(event, ""),
            len(tiles),
            sum(tile.label is not None for tile in tiles),
            dict(sorted(Counter(part for tile in tiles for part in listed.get(tile.id, ())).items())),
        )
        for event, tiles in _by_event(index.tiles).items()
    )
    return TilesResult(index.layout, events, tuple(warnings), request.footprints)


def _listed(lists: Path, warnings: list[str]) -> dict[str, list[str]]:
    """Return the protocols and parts of each id, for the protocols that there are."""
    found: dict[str, list[str]] = {}
    protocols = protocols_in(lists)
    if not protocols:
        raise DataError(
            f"{lists} holds no list, nor folder {', '.join(PROTOCOLS)}.", "Give the folder of BRIGHT's split lists."
        )
    for protocol in protocols:
        split = read_split(lists, protocol)
        warnings += split.warnings
        for image_id, part in split.part_of().items():
            found.setdefault(image_id, []).append(f"{protocol} {part}")
    return found


def _by_event(tiles: Sequence[BrightTile]) -> dict[str, list[BrightTile]]:
    events: dict[str, list[BrightTile]] = {}
    for tile in sorted(tiles, key=lambda tile: tile.event):
        events.setdefault(tile.event, []).append(tile)
    return events


def _features(
    tiles: Sequence[BrightTile], listed: Mapping[str, list[str]], warnings: list[str], progress: Progress
) -> list[dict[str, Any]]:
    """Return a GeoJSON feature for each tile that can be opened and placed; the others are named in ``warnings``."""
    features = []
    for number, tile in enumerate(tiles):
        progress("reading outlines", number, len(tiles))
        try:
            grid = check_headers(tile)
        except DataError as error:
            warnings.append(f"No outline: {error}")
            continue
        outline = grid.geographic_footprint()
        if outline is None:
            warnings.append(f"No outline: {tile.post} has no georeference.")
            continue
        features.append(
            {
                "type": "Feature",
                "id": tile.id,
                "geometry": outline,
                "properties": _properties(tile, grid, listed.get(tile.id, [])),
            }
        )
    progress("reading outlines", len(tiles), len(tiles))
    if not features:
        raise DataError("No tile has a georeference, so there is no outline to write.", "Use the published GeoTIFFs.")
    return features


def _properties(tile: BrightTile, grid: Grid, parts: list[str]) -> dict[str, Any]:
    west, south, east, north = grid.geographic_bounds()
    return {
        "id": tile.id,
        "event": tile.event,
        "name": EVENTS.get(tile.event, ""),
        "folder": tile.part,
        "parts": ", ".join(parts),
        "lon": round((west + east) / 2, 7),
        "lat": round((south + north) / 2, 7),
        "crs": grid.crs,
        "gsd": None if grid.gsd is None else round(grid.gsd, 4),
        "width": grid.width,
        "height": grid.height,
        "labelled": tile.label is not None,
    }
