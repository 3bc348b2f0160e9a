"""Every kind of file ends as the same thing: float32 values, a mask and a grid, the same bytes for every window."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from scipy.ndimage import map_coordinates

from mmcd.errors import InputError
from mmcd.geo.grid import Grid, Window, blocks
from mmcd.geo.raster import AlignedSource, RasterSource, output_grid

from .conftest import CORNER, UTM31, WriteRaster


def stitched(source: RasterSource | AlignedSource, block: int) -> tuple[np.ndarray, np.ndarray]:
    """All pixels, read block by block."""
    grid = source.grid
    first = source.read(Window(0, 0, 1, 1))
    data, valid = np.zeros((len(first.data), *grid.shape), np.float32), np.zeros(grid.shape, bool)
    for window in blocks(grid.shape, block):
        part = source.read(window)
        data[:, *window.slices], valid[window.slices] = part.data, part.valid
    return data, valid


class TestValidity:
    def test_zero_is_nodata_only_where_all_bands_hold_it(self, write_raster: WriteRaster) -> None:
        values = np.array([[[0, 0, 5]], [[0, 7, 5]]], np.uint8)
        with RasterSource(write_raster("a.tif", values, nodata=0)) as source:
            assert source.read().valid.tolist() == [[False, True, True]]

    def test_another_nodata_value_spoils_the_pixel_in_any_band(self, write_raster: WriteRaster) -> None:
        values = np.array([[[-9999, 3, 5]], [[2, -9999, 5]]], np.float32)
        with RasterSource(write_raster("a.tif", values, nodata=-9999)) as source:
            raster = source.read()
        assert raster.valid.tolist() == [[False, False, True]]
        assert raster.data[:, ~raster.valid].tolist() == [[0, 0], [0, 0]]

    @pytest.mark.parametrize("nodata", [None, np.nan])
    def test_values_that_are_not_finite_are_not_measured(self, write_raster: WriteRaster, nodata: float | None) -> None:
        values = np.array([[np.nan, np.inf, -3.0]], np.float32)
        with RasterSource(write_raster("a.tif", values, nodata=nodata)) as source:
            assert source.read().valid.tolist() == [[False, False, True]]

    def test_an_alpha_band_is_a_mask_and_not_a_band(self, write_raster: WriteRaster) -> None:
        values = np.array([[[1, 2]], [[3, 4]], [[5, 6]], [[255, 0]]], np.uint8)
        path = write_raster("a.tif", values, photometric="RGB", alpha="yes")
        with rasterio.open(path) as file:
            assert file.colorinterp[3] is ColorInterp.alpha
        with RasterSource(path) as source:
            assert source.count == 3
            assert source.read().valid.tolist() == [[True, False]]

    def test_an_internal_mask_is_used(self, write_raster: WriteRaster) -> None:
        path = write_raster("a.tif", np.full((4, 4), 9, np.uint8))
        with rasterio.open(path, "r+") as file:
            file.write_mask(np.eye(4, dtype=bool))
        with RasterSource(path) as source:
            assert (source.read().valid == np.eye(4, dtype=bool)).all()
            shifted = Grid(UTM31, CORNER @ Affine.translation(0.5, 0), 4, 3)
            warped = source.aligned(shifted).read()
        assert (warped.data[0][warped.valid] == 9).all()

    def test_beyond_the_edge_nothing_is_measured(self, write_raster: WriteRaster) -> None:
        with RasterSource(write_raster("a.tif", np.full((4, 5), 9, np.uint8))) as source:
            raster = source.read(Window(-2, 3, 4, 6))
        assert raster.data.shape == (1, 4, 6)
        assert raster.valid.sum() == 2 * 2 and raster.valid[2:, :2].all()
        assert raster.grid.transform == CORNER @ Affine.translation(3, -2)


class TestKindsOfFiles:
    @pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
    def test_complex_samples_are_read_as_magnitude(self, write_raster: WriteRaster, dtype: str) -> None:
        values = np.array([[3 + 4j, -5j]], np.complex64)
        with RasterSource(write_raster("a.tif", values, dtype=dtype)) as source:
            assert source.complex
            assert source.read().data.tolist() == [[[5, 5]]]

    def test_magnitude_is_taken_before_warping(self, write_raster: WriteRaster) -> None:
        """Phases of neighbours cancel: interpolated complex samples would be near 0."""
        signs = np.where(np.indices((40, 40)).sum(0) % 2, 1, -1)
        with RasterSource(write_raster("a.tif", (8 * signs).astype(np.complex64))) as source:
            half = Grid(UTM31, CORNER @ Affine.translation(10.5, 10.5), 8, 8)
            assert np.allclose(source.aligned(half).read().data, 8)

    def test_bands_are_read_in_the_order_asked_for(self, write_raster: WriteRaster) -> None:
        values = np.arange(4, dtype=np.uint16).reshape(4, 1, 1) * np.ones((4, 3, 3), np.uint16)
        with RasterSource(write_raster("a.tif", values, names=("a", "b", "c", "d")), [4, 2]) as source:
            assert source.read().data[:, 0, 0].tolist() == [3, 1]
            assert source.band_names == ("d", "b")
        with pytest.raises(InputError, match=r"has 4 bands; bands \[5\]"):
            RasterSource(write_raster("a.tif", values), [5])

    def test_without_georeference_it_is_pixel_space(self, write_raster: WriteRaster) -> None:
        path = write_raster("a.png", np.ones((6, 5), np.uint8), crs=None, transform=None, driver="PNG")
        with RasterSource(path) as source:
            assert source.georeference == "none"
            assert source.grid == Grid.in_pixels(6, 5)

    def test_any_file_name_will_do(self, write_raster: WriteRaster) -> None:
        path = write_raster("rivière <a> & 'b' \"c\".tif", np.full((4, 4), 7, np.uint8))
        with RasterSource(path) as source:
            assert (source.read().data == 7).all()

    def test_control_points_alone_become_a_metric_grid(self, write_raster: WriteRaster, tmp_path: Path) -> None:
        """A ramp along longitude, placed by control points: values must match the longitude where they end up."""
        lon, lat, step = 4.0, 51.0, 0.001
        ramp = np.tile(np.arange(100, dtype=np.float32), (80, 1))
        points = [
            GroundControlPoint(row, col, lon + col * step, lat - row * step)
            for row in (0, 40, 80)
            for col in (0, 50, 100)
        ]
        path = tmp_path / "gcps.tif"
        profile = {"driver": "GTiff", "width": 100, "height": 80, "count": 1, "dtype": "float32"}
        with rasterio.open(path, "w", **profile, gcps=points, crs="EPSG:4326") as file:
            file.write(ramp, 1)
        with RasterSource(path) as source:
            assert source.georeference == "gcps"
            assert source.grid.crs == UTM31 and source.grid.gsd == pytest.approx(90, rel=0.05)
            raster = source.read()
            row, col = source.grid.height // 2, source.grid.width // 2
            centre = source.grid.crop(Window(row, col, 1, 1)).geographic_bounds()
        assert raster.data[0, row, col] == pytest.approx(((centre[0] + centre[2]) / 2 - lon) / step - 0.5, abs=0.1)
        assert not raster.valid[0, 0]


class TestBadFiles:
    @pytest.mark.parametrize(
        ("content", "reason"), [(None, "does not exist"), (b"", r"empty \(0 bytes\)"), (b"hello", "not a raster")]
    )
    def test_what_is_no_raster_says_so(self, tmp_path: Path, content: bytes | None, reason: str) -> None:
        path = tmp_path / "a.tif"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=reason) as caught:
            RasterSource(path)
        assert str(path) in caught.value.message and caught.value.hint

    @pytest.mark.parametrize("warped", [False, True])
    def test_a_truncated_file_fails_at_the_read_that_fails(
        self, write_raster: WriteRaster, rng: np.random.Generator, warped: bool
    ) -> None:
        values = rng.integers(0, 255, (1, 1024, 1024), dtype=np.uint8)
        path = write_raster("a.tif", values, tiled=True, blockxsize=256, blockysize=256, compress="deflate")
        path.write_bytes(path.read_bytes()[:500_000])
        with RasterSource(path) as source:
            grid = source.grid.crop(source.grid.window)
            if warped:
                grid = Grid(grid.crs, grid.transform @ Affine.translation(0.5, 0.5), 1000, 1000)
            view = source.aligned(grid)
            assert view.read(Window(0, 0, 100, 100)).valid.all()
            with pytest.raises(InputError, match="damaged") as caught:
                view.read(Window(900, 900, 100, 100))
        assert str(path) in caught.value.message

    @pytest.mark.parametrize("driver", ["PNG", "JPEG"])
    def test_a_truncated_picture_is_not_read_as_grey(
        self, write_raster: WriteRaster, rng: np.random.Generator, driver: str
    ) -> None:
        path = write_raster("a", rng.integers(0, 255, (3, 64, 64), dtype=np.uint8), None, None, driver=driver)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="damaged"), RasterSource(path) as source:
            source.read()


class TestOtherGrids:
    """Reading a window in another grid gives the same bytes whatever the window."""

    targets = pytest.mark.parametrize(
        "target",
        [
            Grid(UTM31, CORNER @ Affine.translation(3.3, 2.7), 300, 330),
            Grid(UTM31, CORNER @ Affine.scale(0.4), 600, 700),
            Grid(UTM31, CORNER @ Affine.scale(3.7), 90, 100),
            Grid("EPSG:32632", Affine(7, 0, 83_000, 0, -7, 5_717_000), 500, 530),
            Grid("EPSG:4326", Affine(1e-4, 0, 3.0, 0, -1e-4, 51.46), 300, 450),
            Grid("EPSG:3857", Affine(35, 0, 333_900, 0, -35, 6_703_000), 160, 200),
        ],
        ids=["half-pixel", "finer", "coarser", "other-zone", "degrees", "mercator-coarser"],
    )

    @targets
    @pytest.mark.parametrize("bands", [1, 3])
    def test_windows_make_up_the_whole(
        self, write_raster: WriteRaster, rng: np.random.Generator, target: Grid, bands: int
    ) -> None:
        values = rng.normal(size=(bands, 330, 350)).astype(np.float32)
        values[:, 100:130, 50:60] = np.nan
        with RasterSource(write_raster("a.tif", values)) as source:
            whole = source.aligned(target).read()
            assert 0.3 < whole.valid.mean() < 1
            for block in (37, 128):
                data, valid = stitched(source.aligned(target), block)
                assert data.tobytes() == whole.data.tobytes()
                assert (valid == whole.valid).all()

    def test_rotated_files_too(self, write_raster: WriteRaster, rng: np.random.Generator) -> None:
        values = rng.normal(size=(1, 200, 220)).astype(np.float32)
        path = write_raster("a.tif", values, transform=CORNER @ Affine.rotation(90.5))
        with RasterSource(path) as source:
            target = Grid(UTM31, CORNER @ Affine.translation(-190, 10), 190, 180)
            whole = source.aligned(target).read()
            data, _ = stitched(source.aligned(target), 37)
            assert data.tobytes() == whole.data.tobytes()
            rows, cols = np.mgrid[: target.height, : target.width] + 0.5
            x, y = (~source.grid.transform @ target.transform) @ (cols, rows)
        expected = map_coordinates(values[0], [y - 0.5, x - 0.5], order=1, cval=np.nan)
        known = np.isfinite(expected)
        assert known.mean() > 0.5
        assert np.abs(whole.data[0] - expected)[known].max() < 0.05

    def test_a_ramp_is_interpolated_without_a_shift(self, write_raster: WriteRaster) -> None:
        ramp = np.add.outer(np.arange(60), 100.0 * np.arange(70)).astype(np.float32)
        with RasterSource(write_raster("a.tif", ramp)) as source:
            target = Grid(UTM31, CORNER @ Affine.translation(10.25, 20.5) @ Affine.scale(0.5), 20, 20)
            raster = source.aligned(target).read()
        rows, cols = np.mgrid[:20, :20]
        expected = (20.5 + (rows + 0.5) / 2 - 0.5) + 100 * (10.25 + (cols + 0.5) / 2 - 0.5)
        assert np.abs(raster.data[0] - expected).max() < 0.05

    def test_a_coarser_grid_averages_every_pixel(self, write_raster: WriteRaster, rng: np.random.Generator) -> None:
        values = rng.normal(size=(400, 400)).astype(np.float32)
        with RasterSource(write_raster("a.tif", values)) as source:
            target = Grid(UTM31, CORNER @ Affine.scale(8), 50, 50)
            raster = source.aligned(target).read()
        means = values.reshape(50, 8, 50, 8).mean(axis=(1, 3))
        assert np.abs(raster.data[0] - means).max() < 1e-5

    def test_labels_keep_their_values(self, write_raster: WriteRaster, rng: np.random.Generator) -> None:
        labels = rng.integers(0, 4, (100, 100), dtype=np.uint8)
        with RasterSource(write_raster("a.tif", labels)) as source:
            for scale in (0.3, 2.6):
                target = Grid(UTM31, CORNER @ Affine.scale(scale), 30, 30)
                assert set(np.unique(source.aligned(target, "nearest").read().data)) <= {0, 1, 2, 3}

    def test_nodata_does_not_leak_into_its_neighbours(self, write_raster: WriteRaster) -> None:
        values = np.full((40, 40), 100.0, np.float32)
        values[:, 20:] = -9999
        with RasterSource(write_raster("a.tif", values, nodata=-9999)) as source:
            raster = source.aligned(Grid(UTM31, CORNER @ Affine.scale(0.7), 50, 50)).read()
        assert np.allclose(raster.data[0][raster.valid], 100, rtol=1e-6)

    def test_one_lattice_is_read_without_resampling(self, write_raster: WriteRaster, rng: np.random.Generator) -> None:
        values = rng.integers(0, 255, (50, 60), dtype=np.uint8)
        with RasterSource(write_raster("a.tif", values)) as source:
            view = source.aligned(source.grid.crop(Window(10, 20, 64, 64)))
            raster = view.read(Window(-4, 0, 20, 20))
            assert view.direct
        assert (raster.data[0, 4:] == values[10:26, 20:40]).all()
        assert not raster.valid[:4].any(), "outside the view's grid nothing is read, even where the file goes on"

    def test_pixel_space_cannot_be_brought_to_a_map(self, write_raster: WriteRaster) -> None:
        path = write_raster("a.png", np.ones((6, 5), np.uint8), crs=None, transform=None, driver="PNG")
        with RasterSource(path) as source:
            assert source.aligned(Grid.in_pixels(6, 5)).read().valid.all()
            with pytest.raises(InputError, match="no georeference"):
                source.aligned(Grid(UTM31, CORNER, 6, 5))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "card_gsd"),
    [
        ("sen1floods11_sample/S1/Spain_7370579_S1Hand.tif", 10),
        ("sen1floods11_sample/S2/Spain_7370579_S2Hand.tif", 10),
        ("s1_gcp_fixtures/cog_gcps.tif", None),
        ("s1_gcp_fixtures/slc.tif", 100),
        ("spacenet6_rotterdam/sar_vv.tif", None),
    ],
)
def test_real_files_are_read_the_same_by_any_window(shared_data: Path, file: str, card_gsd: float | None) -> None:
    path = shared_data / file
    grid = output_grid(path, path, card_gsd)
    assert grid.projected and grid.north_up and grid.crs and grid.crs.startswith("EPSG:32")
    with RasterSource(path) as source:
        whole = source.aligned(grid).read()
        data, valid = stitched(source.aligned(grid), 176)
    assert whole.valid.mean() > 0.6
    assert data.tobytes() == whole.data.tobytes() and (valid == whole.valid).all()


def test_a_decimated_read_takes_pixels_and_ignores_overviews(
    write_raster: WriteRaster, rng: np.random.Generator
) -> None:
    values = rng.integers(0, 255, (2, 700, 900), dtype=np.uint8)
    path = write_raster("a.tif", values)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8], Resampling.average)
    with RasterSource(path) as source:
        sample = source.read_decimated(10_000)
    assert (sample.data == values[:, ::8, ::8]).all()
    assert sample.valid.size <= 10_000
    assert sample.grid.transform == CORNER @ Affine.scale(8)


def test_output_grid_of_two_files(write_raster: WriteRaster) -> None:
    pre = write_raster("pre.tif", np.ones((3, 64, 64), np.uint8), transform=CORNER @ Affine.translation(-8, -8))
    post = write_raster("post.tif", np.ones((100, 100), np.uint8))
    assert output_grid(pre, post) == Grid(UTM31, CORNER, 64, 64)
    assert output_grid(pre, post, card_gsd=5).gsd == 5


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A float32 pair of 8,000² px and four bands, 1 GB each, is read by windows in well under 300 MB more."""
    script = f"""
import resource, rasterio
from affine import Affine
from mmcd.geo.grid import Window, Grid
from mmcd.geo.raster import RasterSource
profile = dict(driver="GTiff", width=8000, height=8000, count=4, dtype="float32", crs="EPSG:32631",
               transform=Affine(1, 0, 5e5, 0, -1, 5.7e6), tiled=True, blockxsize=256, blockysize=256, sparse_ok=True)
with rasterio.open({str(tmp_path / "a.tif")!r}, "w", **profile):
    pass
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with RasterSource({str(tmp_path / "a.tif")!r}) as source:
    view = source.aligned(Grid("EPSG:32631", Affine(1, 0, 5e5 + .5, 0, -1, 5.7e6), 8000, 8000))
    for col in range(0, 8000, 1000):
        source.read(Window(4000, col, 768, 768)), view.read(Window(4000, col, 768, 768))
    source.read_decimated()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300
