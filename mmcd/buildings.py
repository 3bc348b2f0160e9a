"""What a score says about each building: counted once, graded at any threshold.

A building keeps the histogram of its 256 stored scores, so moving the threshold is a look-up and reads no raster.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from mmcd.errors import InputError
from mmcd.geo.footprints import Footprints, read_footprints
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import RasterSource
from mmcd.geo.scanline import Edges, Spans
from mmcd.progress import Progress, silent
from mmcd.score import NOT_ASSESSED, decode_score, threshold_value

__all__ = [
    "GRADES",
    "GRADE_LOOKS",
    "RULES",
    "BuildingCounts",
    "BuildingTable",
    "Footprints",
    "Grade",
    "GradeLook",
    "GradeRules",
    "count_buildings",
    "read_footprints",
]

Grade = Literal["intact", "possibly damaged", "damaged", "destroyed", "not assessed"]
GRADES: tuple[Grade, ...] = get_args(Grade)


@dataclass(frozen=True)
class GradeLook:
    """How the outline of a building of one grade is drawn.

    Attributes:
        name: The grade.
        colour: Colour of the line (Okabe and Ito 2008, made for all kinds of colour vision).
        weight: Width of the line in pixels: the worse, the wider.
        dash: Dashes of the line; None for an unbroken one.
        crossed: Whether the outline is crossed out.
    """

    name: Grade
    colour: str
    weight: float
    dash: str | None = None
    crossed: bool = False


GRADE_LOOKS = (
    GradeLook("not assessed", "#9aa5b1", 1.5, "1 4"),
    GradeLook("intact", "#56b4e9", 1.5),
    GradeLook("possibly damaged", "#f0e442", 2.5, "5 4"),
    GradeLook("damaged", "#e69f00", 3),
    GradeLook("destroyed", "#ff5a1f", 3.5, crossed=True),
)
"""How each grade is drawn on every map: what was not assessed, then one grade a cut that is reached, see
`BuildingCounts.grade_cuts`. Colours are told apart on dark radar images and on paper, lines without any colour.
"""

# The three shares rest on damage-vhr-sim 1.0 on its 40 simulated validation scenes, whose climate training never saw:
# 4,063 buildings, 607 of them damaged or destroyed, at the card's threshold. No real event has confirmed them.
POSSIBLY_DAMAGED_SHARE = 0.1
"""From a tenth of a building changed: 94 of 100 intact ones stay below, where a shift of one pixel changes a rim."""

DAMAGED_SHARE = 0.3
"""From three tenths changed: 96 of 100 intact ones stay below, and 3 of 4 buildings beyond are damaged or destroyed."""

DESTROYED_SHARE = 0.8
"""From eight tenths changed: between the medians of the damaged (0.74) and the destroyed ones (0.88) beyond the step
before. Radar tells these two apart weakly: 73 of 100 destroyed ones reach it, 63 of 100 damaged ones do not.
"""

MIN_ASSESSED_SHARE = 0.5
"""A building of which less than half was assessed gets no grade: the unseen half could hold any."""

_BLOCK = 2048  # Side of what is read at once; the score is tiled by 512, so no tile is decoded twice.
_ROWS = 2**13  # Buildings whose cumulated counts are looked at at once, 16 MB.


@dataclass(frozen=True)
class GradeRules:
    """From which changed share a building gets which grade.

    Attributes:
        possibly_damaged: Smallest changed share of a possibly damaged building, in [0, 1].
        damaged: The same of a damaged one.
        destroyed: The same of a destroyed one.
        min_assessed: Assessed share below which there is no grade, in [0, 1].
    """

    possibly_damaged: float = POSSIBLY_DAMAGED_SHARE
    damaged: float = DAMAGED_SHARE
    destroyed: float = DESTROYED_SHARE
    min_assessed: float = MIN_ASSESSED_SHARE

    @property
    def steps(self) -> tuple[float, float, float]:
        """The three changed shares, ascending."""
        return self.possibly_damaged, self.damaged, self.destroyed

    def grades(self, changed: NDArray[np.float64], assessed: NDArray[np.float64]) -> NDArray[np.object_]:
        """Return the grade of each building, shape (N,).

        Args:
            changed: Changed share of the assessed part in [0, 1], shape (N,); not a number where nothing is assessed.
            assessed: Assessed share in [0, 1], shape (N,).
        """
        step = sum((changed >= share).astype(np.intp) for share in self.steps)
        graded = (assessed >= self.min_assessed) & np.isfinite(changed)
        return np.array(GRADES, dtype=object)[np.where(graded, step, len(self.steps) + 1)]


RULES = GradeRules()
"""The rules of the app and the command line."""


@dataclass(frozen=True)
class BuildingTable:
    """Buildings at one threshold.

    Attributes:
        frame: One row a building, in the order of the footprints: ``id``, ``area_m2`` (not a number in pixel space),
            ``area_px``, ``assessed_share`` in [0, 1], ``changed_share`` of the assessed part in [0, 1], ``mean_score``
            and ``max_score`` in [0, 1], ``grade``, and ``reason``: why there is no grade or what limits it, else empty.
        threshold: Probability from which a pixel counts as changed.
    """

    frame: pd.DataFrame
    threshold: float

    def totals(self) -> dict[str, Any]:
        """Return the number of buildings, and number, area in m² and area in pixels by grade."""
        grades = {}
        for grade in GRADES:
            rows = self.frame[self.frame["grade"] == grade]
            areas = {name: float(rows[name].sum()) for name in ("area_m2", "area_px")}
            grades[grade] = {"buildings": len(rows), **areas}
        return {"buildings": len(self.frame), "threshold": self.threshold, "grades": grades}


@dataclass(frozen=True)
class BuildingCounts:
    """Histograms of the stored scores in each building.

    Attributes:
        ids: Name of each building.
        counts: How often each stored byte occurs in it, byte 0 being not assessed, shape (N, 256), uint32. A building
            without any pixel centre holds one: the pixel it stands in.
        area_px: Area in pixels, shape (N,); not a number for a building without a place.
        pixel_area_m2: Ground area of a pixel; None in pixel space.
        beyond: How many of its pixels lie beyond the edge of the score, counted in byte 0 too, shape (N,), uint32.
        tiny: Whether it holds no pixel centre, shape (N,), bool.
    """

    ids: tuple[str, ...]
    counts: NDArray[np.uint32]
    area_px: NDArray[np.float64]
    pixel_area_m2: float | None
    beyond: NDArray[np.uint32]
    tiny: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def assessed(self) -> NDArray[np.int64]:
        """Number of assessed pixels of each building, shape (N,)."""
        pixels: NDArray[np.int64] = self.counts[:, NOT_ASSESSED + 1 :].sum(axis=1, dtype=np.int64)
        return pixels

    @cached_property
    def assessed_share(self) -> NDArray[np.float64]:
        """Assessed share of each building in [0, 1], shape (N,)."""
        share: NDArray[np.float64] = self.assessed / (self.assessed + self.counts[:, NOT_ASSESSED])
        return share

    @cached_property
    def mean_score(self) -> NDArray[np.float64]:
        """Mean probability in each building, shape (N,); not a number where nothing is assessed."""
        probability = np.nan_to_num(decode_score(np.arange(256, dtype=np.uint8)).astype(np.float64))
        parts = [self.counts[rows] @ probability for rows in self._parts()]
        return self._share(np.concatenate([np.zeros(0), *parts]))

    @cached_property
    def max_score(self) -> NDArray[np.float64]:
        """Largest probability in each building, shape (N,); not a number where nothing is assessed."""
        largest = 255 - np.argmax(self.counts[:, ::-1] > 0, axis=1)
        return decode_score(largest.astype(np.uint8)).astype(np.float64)

    @property
    def area_m2(self) -> NDArray[np.float64]:
        """Area in square metres, shape (N,); not a number in pixel space."""
        return self.area_px * np.float64(np.nan if self.pixel_area_m2 is None else self.pixel_area_m2)

    def changed_share(self, threshold: float) -> NDArray[np.float64]:
        """Return the changed share of each building's assessed part, shape (N,); not a number where there is none."""
        return self._share(self.counts[:, threshold_value(threshold) :].sum(axis=1, dtype=np.int64))

    def grade_cuts(self, rules: GradeRules = RULES) -> NDArray[np.uint8]:
        """Return the stored bytes up to which each building keeps a grade, shape (N, 3).

        A building is at least possibly damaged, damaged or destroyed at a threshold whose stored byte
        (`mmcd.score.threshold_value`) is at most its first, second or third cut. So three bytes a building hold its
        grade at every threshold; 0 means never.
        """
        cuts = np.zeros((len(self), 3), np.uint8)
        for rows in self._parts():
            tail = np.cumsum(self.counts[rows, :0:-1], axis=1, dtype=np.int64)[:, ::-1]
            with np.errstate(invalid="ignore"):
                share = tail / tail[:, :1]
            for number, step in enumerate(rules.steps):
                cuts[rows, number] = (share >= step).sum(axis=1)
        return cuts

    def at(self, threshold: float, rules: GradeRules = RULES) -> BuildingTable:
        """Return the table at a threshold.

        Args:
            threshold: Probability from which a pixel counts as changed, in [0, 1].
            rules: From changed share to grade.
        """
        changed, assessed = self.changed_share(threshold), self.assessed_share
        frame = pd.DataFrame(
            {
                "id": self.ids,
                "area_m2": self.area_m2,
                "area_px": self.area_px,
                "assessed_share": assessed,
                "changed_share": changed,
                "mean_score": self.mean_score,
                "max_score": self.max_score,
                "grade": rules.grades(changed, assessed),
                "reason": self.reasons(rules),
            }
        )
        return BuildingTable(frame, threshold)

    def reasons(self, rules: GradeRules = RULES) -> NDArray[np.object_]:
        """Return why each building has no grade, or what limits it, shape (N,); empty where nothing does."""
        assessed, pixels = self.assessed_share, self.assessed + self.counts[:, NOT_ASSESSED]
        reasons = np.full(len(self), "", dtype=object)
        reasons[self.tiny] = "Smaller than a pixel: the pixel it stands in was taken."
        for number in np.flatnonzero(assessed < rules.min_assessed):
            reasons[number] = f"Only {assessed[number]:.0%} of it was assessed."
        reasons[assessed == 0] = "Nothing was assessed here: no usable data, or outside the chosen region."
        reasons[self.beyond == pixels] = "Lies outside the analysed area."
        reasons[~np.isfinite(self.area_px)] = "Its coordinates have no place in the CRS of the images."
        return reasons

    def save(self, path: Path) -> None:
        """Write to a NumPy archive; only counts that are not zero take space."""
        place = np.flatnonzero(self.counts)
        np.savez_compressed(
            path,
            ids=np.array(self.ids, dtype=np.str_),
            place=place,
            value=self.counts.ravel()[place],
            area_px=self.area_px,
            pixel_area_m2=np.float64(np.nan if self.pixel_area_m2 is None else self.pixel_area_m2),
            beyond=self.beyond,
            tiny=self.tiny,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: The file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                ids, area = stored["ids"], float(stored["pixel_area_m2"])
                counts = np.zeros((len(ids), 256), np.uint32)
                counts.ravel()[stored["place"]] = stored["value"]
                return cls(
                    tuple(ids.tolist()),
                    counts,
                    stored["area_px"],
                    None if np.isnan(area) else area,
                    stored["beyond"],
                    stored["tiny"],
                )
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged: {error}.", "Delete it; it is counted again.") from error

    def _parts(self) -> Iterator[slice]:
        """Yield slices of buildings whose counts as 64-bit numbers take little memory."""
        for begin in range(0, len(self), _ROWS):
            yield slice(begin, begin + _ROWS)

    def _share(self, part: NDArray[Any]) -> NDArray[np.float64]:
        """Return a sum over the assessed pixels as a share of them; not a number where there are none."""
        with np.errstate(invalid="ignore"):
            share: NDArray[np.float64] = np.where(self.assessed > 0, part / self.assessed, np.nan)
        return share


def count_buildings(
    score: Path, footprints: Footprints, block: int = _BLOCK, progress: Progress = silent
) -> BuildingCounts:
    """Count the stored scores in each building.

    A pixel belongs to a building when its centre lies inside. Where buildings overlap, a pixel counts for each.

    Args:
        score: Score COG.
        footprints: Buildings; in pixels of the score when they have no CRS.
        block: Side in pixels of what is read at once; never changes the result.
        progress: Called after each block.

    Raises:
        InputError: The score cannot be read, or only one of the two has a georeference.
        Cancelled: The progress callback asked to stop.
    """
    with RasterSource(score) as source:
        grid = source.grid
        shapes = footprints.in_pixels_of(grid)
        edges = Edges.of(shapes)
        counts = np.zeros((len(footprints), 256), np.uint32)
        windows = list(blocks(grid.shape, block))
        for number, window in enumerate(windows, start=1):
            if edges.touching(window).any():
                _add(counts, edges.spans(window), _values(source, window))
            progress("buildings", number, len(windows))
        area, beyond = _areas(shapes, edges, grid)
        tiny = np.flatnonzero(counts.sum(axis=1, dtype=np.int64) + beyond == 0)
        _add_single(counts, tiny, shapes, source, block)
    counts[:, NOT_ASSESSED] += beyond
    small = np.zeros(len(footprints), bool)
    small[tiny] = True
    return BuildingCounts(footprints.ids, counts, area, grid.pixel_area_m2, beyond, small)


def _values(source: RasterSource, window: Window) -> NDArray[np.uint8]:
    raster = source.read(window)
    return np.where(raster.valid, raster.data[0], NOT_ASSESSED).astype(np.uint8)


def _add(counts: NDArray[np.uint32], spans: Spans, values: NDArray[np.uint8]) -> None:
    """Add the values under each span to the histogram of its polygon."""
    flat = values.ravel()
    for part in spans.parts():
        buildings, number = np.unique(part.polygon, return_inverse=True)
        owner, place = Spans(number, part.start, part.length).pixels()
        table = np.bincount(owner * 256 + flat[place], minlength=len(buildings) * 256)
        counts[buildings] += table.reshape(-1, 256).astype(np.uint32)


def _areas(shapes: NDArray[np.object_], edges: Edges, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    """Return the area of each building in pixels and how many of its pixels lie beyond the edge of the score."""
    placed = np.isfinite(edges.boxes[:, 0])
    area = np.full(len(shapes), np.nan)
    area[placed] = shapely.area(shapes[placed])
    beyond = np.zeros(len(shapes), np.uint32)
    left, top, right, bottom = edges.boxes.T
    crossing = np.flatnonzero((left < 0) | (top < 0) | (right > grid.width) | (bottom > grid.height))
    inside = shapely.area(shapely.intersection(shapes[crossing], shapely.box(0, 0, grid.width, grid.height)))
    beyond[crossing] = np.rint(np.clip(area[crossing] - inside, 0, 2**31))
    apart = ~edges.touching(grid.window)
    beyond[apart] = np.maximum(beyond[apart], 1)  # without a place or wholly outside
    return area, beyond


def _add_single(
    counts: NDArray[np.uint32], tiny: NDArray[np.intp], shapes: NDArray[np.object_], source: RasterSource, block: int
) -> None:
    """Count the one pixel under each building that holds no pixel centre."""
    points = shapely.get_coordinates(shapely.point_on_surface(shapes[tiny]))
    cols, rows = np.floor(points).astype(np.int64).T
    cols, rows = np.clip(cols, 0, source.grid.width - 1), np.clip(rows, 0, source.grid.height - 1)
    for window in blocks(source.grid.shape, block) if len(tiny) else ():
        row, col = rows - window.row, cols - window.col
        here = (row >= 0) & (row < window.height) & (col >= 0) & (col < window.width)
        if here.any():
            counts[tiny[here], _values(source, window)[row[here], col[here]]] += 1
