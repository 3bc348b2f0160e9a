"""COGs are whole and valid or not there; their bytes depend on values alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rio_cogeo.cogeo import cog_validate

from mmcd.errors import InputError, StorageError
from mmcd.geo.cog import MASK_BAND, SCORE_BAND, Band, CogWriter, atomic_path, write_cog
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import RasterSource, ignore_missing_georeference
from mmcd.score import decode_score

from .conftest import CORNER, UTM31

GRID = Grid(UTM31, CORNER, 700, 1100)
PIXELS = Grid.in_pixels(600, 650)


@pytest.fixture
def scores(rng: np.random.Generator) -> np.ndarray:
    """Stored scores with a part that was not assessed, shape of GRID, uint8."""
    values = rng.integers(1, 256, GRID.shape, dtype=np.uint8)
    values[:, 900:] = 0
    return values


def in_blocks(values: np.ndarray, block: int = 256) -> list[tuple[Window, np.ndarray]]:
    return [(window, values[window.slices]) for window in blocks(values.shape, block)]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_score_cog_says_what_its_bytes_mean(tmp_path: Path, scores: np.ndarray) -> None:
    path = write_cog(tmp_path / "score.tif", scores, GRID, tags={"MMCD_MODEL": "flood"})
    assert cog_validate(str(path), strict=True, quiet=True)[0]
    with rasterio.open(path) as file:
        stored = file.read(1)
        assert (stored == scores).all()
        assert file.crs.to_epsg() == 32631 and file.transform == CORNER
        assert file.nodata == 0 and file.block_shapes == [(512, 512)]
        assert file.descriptions == ("change probability",)
        assert file.tags()["MMCD_MODEL"] == "flood"
        probability = np.where(stored == 0, np.nan, stored * file.scales[0] + file.offsets[0])
    assert np.allclose(probability, decode_score(scores), equal_nan=True, atol=1e-6)


def test_overviews_hold_stored_values_only(tmp_path: Path) -> None:
    """Averaging would mix 0 (not assessed) into low probabilities."""
    values = np.where(np.indices(GRID.shape).sum(0) % 2, 255, 0).astype(np.uint8)
    path = write_cog(tmp_path / "score.tif", values, GRID)
    with rasterio.open(path) as file:
        assert file.overviews(1)
    with rasterio.open(path, overview_level=0) as overview:
        assert set(np.unique(overview.read(1))) <= {0, 255}


@pytest.mark.parametrize("grid", [GRID, PIXELS], ids=["map", "pixels"])
def test_order_and_size_of_blocks_do_not_change_a_byte(tmp_path: Path, rng: np.random.Generator, grid: Grid) -> None:
    values = rng.integers(0, 256, grid.shape, dtype=np.uint8)
    first = write_cog(tmp_path / "first.tif", values, grid)
    again = write_cog(tmp_path / "again.tif", values, grid)
    shuffled = in_blocks(values, 200)
    rng.shuffle(shuffled)  # type: ignore[arg-type]
    second = write_cog(tmp_path / "second.tif", shuffled, grid)
    assert first.read_bytes() == second.read_bytes() == again.read_bytes()
    with RasterSource(first) as source:
        assert source.grid == grid


def test_blocks_that_never_came_are_not_assessed(tmp_path: Path, scores: np.ndarray) -> None:
    score = write_cog(tmp_path / "score.tif", in_blocks(scores)[:3], GRID)
    mask = write_cog(tmp_path / "mask.tif", [(Window(0, 0, 9, 9), np.ones((9, 9), np.uint8))], GRID, MASK_BAND)
    with RasterSource(score) as source:
        assert source.read().valid.sum() == 3 * 256 * 256
    with RasterSource(mask) as source:
        assert source.read().valid.sum() == 81


def test_a_jpeg_image_and_a_float_image(tmp_path: Path, rng: np.random.Generator) -> None:
    smooth = np.tile(np.linspace(20, 200, 650).astype(np.uint8), (3, 600, 1))
    band = Band(names=("red", "green", "blue"), compression="jpeg", overviews="average")
    with RasterSource(write_cog(tmp_path / "rgb.tif", smooth, PIXELS, band)) as source:
        assert source.band_names == ("red", "green", "blue")
        assert np.abs(source.read().data - smooth).max() < 12
    floats = rng.normal(size=(1, 600, 650)).astype(np.float32)
    with RasterSource(write_cog(tmp_path / "f.tif", floats, PIXELS, Band(dtype="float32"))) as source:
        assert (source.read().data == floats).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_write_that_is_broken_off_leaves_nothing(
    tmp_path: Path, scores: np.ndarray, error: type[BaseException]
) -> None:
    def broken() -> Iterator[tuple[Window, np.ndarray]]:
        yield from in_blocks(scores)[:2]
        raise error

    with pytest.raises(error):
        write_cog(tmp_path / "out" / "score.tif", broken(), GRID)
    assert leftovers(tmp_path / "out") == []


def test_a_file_that_was_there_survives_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "item.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and leftovers(tmp_path) == ["item.json"]


def test_a_killed_run_goes_on_from_its_working_file(tmp_path: Path, scores: np.ndarray) -> None:
    """The first half is written by a process that dies without a word, the second by this one."""
    np.save(tmp_path / "scores.npy", scores)
    script = f"""
import os, numpy as np
from pathlib import Path
from affine import Affine
from mmcd.geo.cog import CogWriter
from mmcd.geo.grid import Grid, blocks
folder, values = Path({str(tmp_path)!r}), np.load({str(tmp_path / "scores.npy")!r})
writer = CogWriter(folder / "score.tif", Grid({UTM31!r}, Affine(*{tuple(CORNER)[:6]}), *values.shape),
                   partial=folder / "score.part")
for window in list(blocks(values.shape, 256))[:7]:
    writer.write(window, values[window.slices])
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert not (tmp_path / "score.tif").exists()
    with CogWriter(tmp_path / "score.tif", GRID, partial=tmp_path / "score.part") as writer:
        assert writer.resumed
        for window, values in in_blocks(scores)[7:]:
            writer.write(window, values)
        resumed = writer.commit()
    whole = write_cog(tmp_path / "whole.tif", scores, GRID)
    assert resumed.read_bytes() == whole.read_bytes()
    assert leftovers(tmp_path) == ["score.tif", "scores.npy", "whole.tif"]


def test_a_working_file_is_kept_until_the_commit(tmp_path: Path, scores: np.ndarray) -> None:
    partial = tmp_path / "score.part"
    with CogWriter(tmp_path / "score.tif", GRID, partial=partial) as writer:
        writer.write(*in_blocks(scores)[0])
    assert leftovers(tmp_path) == ["score.part"]
    with pytest.raises(StorageError, match="another size"):
        CogWriter(tmp_path / "score.tif", PIXELS, partial=partial)
    assert leftovers(tmp_path) == ["score.part"]


@pytest.mark.parametrize(
    ("window", "values"),
    [
        (Window(0, 0, 4, 4), np.zeros((4, 5), np.uint8)),
        (Window(0, 0, 4, 4), np.zeros((4, 4), np.float32)),
        (Window(0, 0, 4, 4), np.zeros((2, 4, 4), np.uint8)),
        (Window(698, 0, 4, 4), np.zeros((4, 4), np.uint8)),
        (Window(-1, 0, 4, 4), np.zeros((4, 4), np.uint8)),
    ],
    ids=["shape", "dtype", "bands", "below", "above"],
)
def test_a_block_that_does_not_fit_is_refused(tmp_path: Path, window: Window, values: np.ndarray) -> None:
    with pytest.raises(InputError, match="does not fit"):
        write_cog(tmp_path / "score.tif", [(window, values)], GRID)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("limit", [300_000, 900_000], ids=["while blocks come", "while the COG is made"])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """The system refuses to let any file grow beyond a limit, as a full disk does; GDAL's own writes included.

    The working file has 770,000 bytes. The values do not compress, so the COG with its overviews is longer than that.
    """
    script = f"""
import resource, numpy as np
from pathlib import Path
from affine import Affine
from mmcd.errors import StorageError
from mmcd.geo.cog import write_cog
from mmcd.geo.grid import Grid
values = np.random.default_rng(0).integers(0, 256, {GRID.shape}, dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
grid = Grid({UTM31!r}, Affine(*{tuple(CORNER)[:6]}), *values.shape)
try:
    write_cog(Path({str(tmp_path)!r}) / "score.tif", values, grid)
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout or "not a valid COG" in done.stdout, done.stdout + done.stderr
    assert "Free some space" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_cog(tmp_path / "file" / "score.tif", np.zeros(GRID.shape, np.uint8), GRID)


def test_a_local_crs_and_a_rotated_grid_come_back(tmp_path: Path) -> None:
    grid = Grid(UTM31, CORNER @ Affine.rotation(10), 40, 50)
    with RasterSource(write_cog(tmp_path / "a.tif", np.ones(grid.shape, np.uint8), grid, SCORE_BAND)) as source:
        assert source.grid.transform.almost_equals(grid.transform, 1e-6)
    with ignore_missing_georeference(), rasterio.open(tmp_path / "a.tif") as file:
        assert file.read(1).all()
