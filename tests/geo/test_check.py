"""The ingest check: every finding it can make is made by a pair that calls for it, and nothing makes it raise."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject
from scipy.ndimage import gaussian_filter

from mmcd.geo.check import CheckReport, check_pair

from .conftest import CORNER, WriteRaster


def codes(report: CheckReport, severity: str | None = None) -> set[str]:
    return {f"{f.subject}:{f.code}" for f in report.findings if severity in (None, f.severity)}


@pytest.fixture
def optical(rng: np.random.Generator) -> np.ndarray:
    """A smooth three-band picture without flat or saturated places, shape (3, 160, 160)."""
    smooth = gaussian_filter(rng.normal(size=(3, 160, 160)), (0, 2, 2))
    return np.clip(128 + 300 * smooth, 2, 250).astype(np.uint8)


@pytest.fixture
def radar(rng: np.random.Generator) -> np.ndarray:
    """Speckle in dB, shape (160, 160)."""
    return (10 * np.log10(rng.gamma(4, 0.02, (160, 160)))).astype(np.float32)


@pytest.fixture
def pair(write_raster: WriteRaster, optical: np.ndarray, radar: np.ndarray) -> tuple[Path, Path]:
    pre = write_raster("pre.tif", optical, names=("red", "green", "blue"))
    return pre, write_raster("post.tif", radar, names=("VV",))


def test_a_good_pair_has_notes_only(pair: tuple[Path, Path]) -> None:
    report = check_pair(*pair, pre_date=date(2024, 1, 1), post_date=date(2024, 2, 1))
    assert not report.refused
    assert {f.severity for f in report.findings} == {"note"}
    facts = {"pre:facts", "pre:values", "post:facts", "post:values"}
    assert codes(report) == facts | {f"pair:{code}" for code in ("dates", "overlap", "gsd_ratio", "grid", "offset")}
    assert report.pre and report.pre.modality == "optical" and report.pre.bands == ("B4", "B3", "B2")
    assert report.post and report.post.radiometry == "db" and report.grid == report.post.grid


def test_the_report_is_json(pair: tuple[Path, Path]) -> None:
    values = json.loads(json.dumps(check_pair(*pair).to_dict(), allow_nan=False))
    assert values["refused"] is False and values["post"]["grid"]["gsd"] == 10
    assert {"severity", "subject", "code", "message", "action"} == set(values["findings"][0])


class TestRefusals:
    @pytest.mark.parametrize(("content", "code"), [(None, "missing"), (b"", "empty"), (b"hello", "not_raster")])
    def test_what_is_no_image(self, pair: tuple[Path, Path], tmp_path: Path, content: bytes | None, code: str) -> None:
        path = tmp_path / "bad.tif"
        if content is not None:
            path.write_bytes(content)
        assert codes(check_pair(path, pair[1]), "refuse") == {f"pre:{code}"}
        assert codes(check_pair(pair[0], path), "refuse") == {f"post:{code}"}

    def test_a_damaged_file(self, pair: tuple[Path, Path], write_raster: WriteRaster, optical: np.ndarray) -> None:
        path = write_raster("cut.png", optical, crs=None, transform=None, driver="PNG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        report = check_pair(path, pair[1])
        assert codes(report, "refuse") == {"pre:damaged"} and report.pre is None and report.post is not None

    def test_a_file_of_nodata(self, pair: tuple[Path, Path], write_raster: WriteRaster) -> None:
        empty = write_raster("empty.tif", np.full((160, 160), np.nan, np.float32))
        assert codes(check_pair(pair[0], empty), "refuse") == {"post:no_measurement"}

    def test_two_places(self, pair: tuple[Path, Path], write_raster: WriteRaster, radar: np.ndarray) -> None:
        away = write_raster("away.tif", radar, transform=CORNER @ Affine.translation(155, 0))
        report = check_pair(pair[0], away)
        assert codes(report, "refuse") == {"pair:overlap"} and "3.1%" in report.findings[0].message
        beside = write_raster("beside.tif", radar, transform=CORNER @ Affine.translation(140, 0))
        assert "pair:overlap" in codes(check_pair(pair[0], beside), "warn")

    def test_two_sizes_in_pixel_space(self, write_raster: WriteRaster, optical: np.ndarray, radar: np.ndarray) -> None:
        pre = write_raster("pre.png", optical, crs=None, transform=None, driver="PNG")
        post = write_raster("post.tif", radar[:100], crs=None, transform=None)
        assert codes(check_pair(pre, post), "refuse") == {"pair:size_mismatch"}


class TestWarnings:
    def warned(self, pre: Path, post: Path) -> set[str]:
        report = check_pair(pre, post)
        assert not report.refused, report.findings
        return codes(report, "warn")

    def test_pixel_space(self, write_raster: WriteRaster, optical: np.ndarray, radar: np.ndarray) -> None:
        pre = write_raster("pre.png", optical, crs=None, transform=None, driver="PNG")
        post = write_raster("post.tif", radar, crs=None, transform=None)
        assert self.warned(pre, post) == {"pre:no_crs", "post:no_crs", "pair:pixel_space"}

    def test_an_unknown_unit(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        """GeoTIFF turns an unknown unit into metres, so a virtual file around it states the CRS."""
        images = []
        for path, bands in zip(pair, (3, 1), strict=True):
            lines = "".join(
                f'<VRTRasterBand dataType="Float32" band="{i}"><SimpleSource><SourceFilename>{path}</SourceFilename>'
                f"<SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
                for i in range(1, bands + 1)
            )
            place = '<SRS>LOCAL_CS["arbitrary",UNIT["unknown",1]]</SRS><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform>'
            images.append(tmp_path / f"{path.stem}.vrt")
            images[-1].write_text(f'<VRTDataset rasterXSize="160" rasterYSize="160">{place}{lines}</VRTDataset>')
        assert self.warned(*images) == {"pre:unknown_unit", "post:unknown_unit"}

    def test_very_different_gsd(self, pair: tuple[Path, Path], write_raster: WriteRaster, optical: np.ndarray) -> None:
        coarse = write_raster("coarse.tif", optical, transform=CORNER @ Affine.scale(5))
        assert self.warned(coarse, pair[1]) == {"pair:gsd_ratio"}

    def test_holes_constant_and_saturated_bands(
        self, pair: tuple[Path, Path], write_raster: WriteRaster, optical: np.ndarray, radar: np.ndarray
    ) -> None:
        spoiled = optical.copy()
        spoiled[0], spoiled[1, :30] = 7, 255
        holed = radar.copy()
        holed[:40] = np.nan
        pre, post = write_raster("spoiled.tif", spoiled), write_raster("holed.tif", holed)
        assert self.warned(pre, post) == {"pre:constant_band", "pre:saturated_band", "post:missing_values"}
        message = next(f.message for f in check_pair(pre, post).findings if f.code == "missing_values")
        assert message.startswith("25.0%")

    def test_dates_in_the_wrong_order(self, pair: tuple[Path, Path]) -> None:
        report = check_pair(*pair, pre_date=date(2024, 2, 1), post_date=date(2024, 1, 1))
        assert codes(report, "warn") == {"pair:dates_reversed"}

    def test_dates_from_the_files_own_tags(self, pair: tuple[Path, Path]) -> None:
        for path, day in zip(pair, ("2024:05:02 10:00:00", "2024:05:01 10:00:00"), strict=True):
            with rasterio.open(path, "r+") as file:
                file.update_tags(TIFFTAG_DATETIME=day)
        assert self.warned(*pair) == {"pair:dates_reversed"}

    def test_radar_first(self, pair: tuple[Path, Path]) -> None:
        assert self.warned(pair[1], pair[0]) == {"pair:swapped"}

    def test_unnamed_speckle_first(
        self, pair: tuple[Path, Path], write_raster: WriteRaster, rng: np.random.Generator
    ) -> None:
        amplitude = (300 * np.sqrt(rng.gamma(1, 1, (160, 160)))).astype(np.uint16)
        report = check_pair(write_raster("sar.tif", amplitude), pair[0])
        assert "pair:swapped" in codes(report, "warn") and report.pre and report.pre.modality == "sar"

    def test_an_offset(self, write_raster: WriteRaster, optical: np.ndarray) -> None:
        pre = write_raster("pre.tif", optical, transform=CORNER @ Affine.translation(4, 0))
        post = write_raster("post.tif", 255 - optical)
        report = check_pair(pre, post)
        assert codes(report, "warn") == {"pair:offset"}
        assert report.offset and report.offset.dx_m == pytest.approx(40, abs=3)
        assert "pair:both_optical" in codes(report, "note")

    def test_one_file_twice(self, pair: tuple[Path, Path]) -> None:
        assert self.warned(pair[0], pair[0]) == {"pair:same_file"}


@pytest.mark.real_data
class TestRealPairs:
    def test_sentinel_in_degrees(self, shared_data: Path) -> None:
        folder = shared_data / "sen1floods11_sample"
        report = check_pair(folder / "S2/Spain_7370579_S2Hand.tif", folder / "S1/Spain_7370579_S1Hand.tif")
        assert not codes(report, "warn") and not report.refused
        assert report.grid and report.grid.crs == "EPSG:32630" and report.grid.gsd == pytest.approx(8.93, abs=0.01)

    @pytest.mark.parametrize("swapped", [False, True])
    def test_ombria_tiles(self, shared_data: Path, swapped: bool) -> None:
        folder = shared_data / "ombria"
        pre = folder / "OmbriaS2/test/BEFORE/S2_before_0018.png"
        post = folder / "OmbriaS1/test/AFTER/S1_after_0018.png"
        report = check_pair(post, pre) if swapped else check_pair(pre, post)
        assert not report.refused and "pair:pixel_space" in codes(report, "warn")
        assert ("pair:swapped" in codes(report, "warn")) == swapped

    def test_rotterdam_in_two_crs(self, shared_data: Path, tmp_path: Path) -> None:
        folder = shared_data / "spacenet6_rotterdam"
        pre = tmp_path / "pre.tif"
        with rasterio.open(folder / "rgb_unmasked.tif") as file:
            transform, width, height = calculate_default_transform(
                file.crs, "EPSG:28992", file.width, file.height, *file.bounds
            )
            place = {"crs": "EPSG:28992", "transform": transform, "width": width, "height": height}
            with rasterio.open(pre, "w", **(file.profile | place | {"nodata": 0})) as target:
                for band in file.indexes:
                    reproject(rasterio.band(file, band), rasterio.band(target, band), resampling=Resampling.bilinear)
        report = check_pair(pre, folder / "sar_masked.tif")
        assert not report.refused and "pair:different_crs" in codes(report, "note")
        assert report.grid and report.grid.crs == "EPSG:32631"
        assert report.offset and report.offset.confidence > 0.4
        assert max(abs(report.offset.dx_px), abs(report.offset.dy_px)) < 1

    def test_control_points_and_complex_samples(self, shared_data: Path) -> None:
        folder = shared_data / "s1_gcp_fixtures"
        report = check_pair(folder / "cog_gcps.tif", folder / "slc.tif")
        assert {"pre:only_gcps", "post:only_gcps", "post:complex"} <= codes(report, "warn")
        assert codes(report, "refuse") == {"pair:overlap"}
        assert report.pre and report.pre.grid.gsd == pytest.approx(201, abs=1)
