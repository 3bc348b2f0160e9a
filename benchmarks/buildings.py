"""Seconds and memory to count 100,000 buildings against a score of 10,000 x 10,000 pixels.

    OMP_NUM_THREADS=1 python benchmarks/buildings.py

Footprints are rotated rectangles and L-shapes of 6 to 24 m on a 0.5 m grid, written to a GeoPackage in degrees; the
score is smooth noise in a COG as a run writes it. Reading the file, counting it, and a table at one threshold are timed
apart; what counts, from both files to the table, is their sum. Processor seconds are what a machine with nothing else
to do needs; the clock says more where others work on it too, so the load is printed.
"""

import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import geopandas
import numpy as np
import shapely
from affine import Affine
from scipy.ndimage import gaussian_filter

from mmcd.buildings import count_buildings, read_footprints
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid, Window, blocks

SIZE, BUILDINGS, BLOCK, GSD = 10_000, 100_000, 1000, 0.5
GRID = Grid("EPSG:32634", Affine(GSD, 0, 400_000, 0, -GSD, 4_600_000), SIZE, SIZE)
TARGET_SECONDS = 10.0


def score_blocks() -> Iterator[tuple[Window, np.ndarray]]:
    generator = np.random.default_rng(0)
    for window in blocks(GRID.shape, BLOCK):
        noise = gaussian_filter(generator.normal(size=window.shape), 4)
        yield window, np.clip(128 + 900 * noise, 1, 255).astype(np.uint8)


def outlines() -> geopandas.GeoSeries:
    generator = np.random.default_rng(1)
    side = np.ceil(np.sqrt(BUILDINGS))
    cell = SIZE * GSD / side
    row, col = np.divmod(np.arange(BUILDINGS), side)
    centre = np.stack([(col + 0.5) * cell, -(row + 0.5) * cell], axis=1) + generator.uniform(-2, 2, (BUILDINGS, 2))
    half, notch = generator.uniform(3, 12, (BUILDINGS, 2)), generator.uniform(0.2, 1, (BUILDINGS, 1))
    corners = np.array([[-1, -1], [1, -1], [1, 0], [0, 0], [0, 1], [-1, 1], [-1, -1]], float)
    points = np.repeat(corners[None], BUILDINGS, axis=0)
    points[:, 2:5] = np.where(notch[..., None] < 0.6, points[:, 2:5], [[1, 1], [1, 1], [1, 1]])
    angle = generator.uniform(0, np.pi, BUILDINGS)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    placed = np.einsum("nij,nkj->nki", turn, points * half[:, None]) + centre[:, None] + (400_000, 4_600_000)
    return geopandas.GeoSeries(shapely.polygons(placed), crs=GRID.crs).to_crs("EPSG:4326")


def timed(work: Callable[[], object]) -> tuple[object, np.ndarray]:
    """Return the answer, and seconds of the processor and of the clock."""
    start = time.process_time(), time.perf_counter()
    answer = work()
    return answer, np.subtract((time.process_time(), time.perf_counter()), start)


def peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        score, vectors = Path(folder) / "score.tif", Path(folder) / "buildings.gpkg"
        write_cog(score, score_blocks(), GRID)
        shapes = outlines()
        geopandas.GeoDataFrame({"id": np.arange(BUILDINGS)}, geometry=shapes).to_file(vectors)
        before = peak_memory_mb()
        footprints, reading = timed(lambda: read_footprints(vectors))
        counts, counting = timed(lambda: count_buildings(score, footprints))
        table, look_up = timed(lambda: counts.at(0.5))
    pixels = int(counts.counts.sum())
    print(f"machine      {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()}")
    print(f"buildings    {len(footprints):,} of {pixels / len(footprints):.0f} pixels on average, in EPSG:4326")
    print(f"score        {SIZE:,} x {SIZE:,} uint8 COG")
    print(f"{'':<13}{'processor':>10}{'clock':>9}")
    steps = {"read file": reading, "count": counting, "table": look_up, "all": reading + counting + look_up}
    for name, (processor, clock) in steps.items():
        print(f"{name:<13}{processor:>8.2f} s{clock:>7.2f} s")
    print(f"target       below {TARGET_SECONDS:.0f} s for all")
    print(f"memory       {peak_memory_mb():,.0f} MB at most, {before:,.0f} MB before counting")
    print(f"grades       {table.totals()['grades']['damaged']['buildings']:,} damaged at 0.5")


if __name__ == "__main__":
    main()
