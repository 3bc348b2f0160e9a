"""Bands by name, units by value, one stretch a scene: on made-up files and on the real ones people have."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmcd.cards import Level
from mmcd.errors import InputError
from mmcd.geo.grid import Grid, Window
from mmcd.geo.raster import Raster, RasterSource
from mmcd.geo.sensors import (
    SENTINEL2_L1C,
    SceneStretch,
    Selection,
    band_names,
    detect_modality,
    detect_radiometry,
    select_bands,
    standard_name,
    to_unit,
)

from .conftest import WriteRaster

FLOOD_PRE = ("B11", "B8", "B3")


def sample(values: np.ndarray) -> Raster:
    stack = np.atleast_3d(values).astype(np.float32)
    return Raster(stack, np.ones(stack.shape[1:], bool), Grid.in_pixels(*stack.shape[1:]))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("B02", "B2"),
        ("b8a", "B8A"),
        ("blue", "B2"),
        ("R", "B4"),
        ("B4 - red", "B4"),
        ("B8A, nir narrow", "B8A"),
        ("Sigma0_VV_db", "VV"),
        ("Amplitude_VH", "VH"),
        ("hh", "HH"),
        ("B99", None),
        ("Resize (ETM+ Meta (Band 1))", None),
        ("", None),
        (None, None),
    ],
)
def test_names_in_descriptions(text: str | None, name: str | None) -> None:
    assert standard_name(text) == name


def test_unnamed_bands_are_named_by_their_number() -> None:
    assert band_names([None] * 13) == SENTINEL2_L1C
    assert "B10" not in band_names([None] * 12)
    assert band_names([None] * 3) == ("B4", "B3", "B2")
    assert band_names([None] * 2) == ("VV", "VH")
    assert band_names([None] * 5) == (None,) * 5
    assert band_names(["elevation"]) == (None,), "a name that says something else is not overruled"


class TestSelection:
    def choose(self, path: Path, wanted: tuple[str, ...]) -> Selection:
        with RasterSource(path) as source:
            return select_bands(source, wanted)

    def test_by_name_in_the_order_of_the_model(self, write_raster: WriteRaster) -> None:
        path = write_raster("a.tif", np.ones((4, 8, 8), np.uint16), names=("blue", "B03", "NIR", "SWIR16"))
        assert self.choose(path, FLOOD_PRE) == Selection((4, 3, 2))

    def test_unnamed_bands_are_taken_with_a_note(self, write_raster: WriteRaster) -> None:
        three = self.choose(write_raster("three.tif", np.ones((3, 8, 8), np.uint8)), FLOOD_PRE)
        assert three.indexes == (1, 2, 3) and "in order for B11, B8, B3" in three.notes[0]
        thirteen = self.choose(write_raster("s2.tif", np.ones((13, 8, 8), np.uint16)), FLOOD_PRE)
        assert thirteen.indexes == (12, 8, 3) and thirteen.notes
        one = self.choose(write_raster("s1.tif", np.ones((8, 8), np.float32)), ("VV",))
        assert one.indexes == (1,) and one.notes
        quad = self.choose(write_raster("quad.tif", np.ones((4, 8, 8), np.float32)), ("VV",))
        assert quad.indexes == (1,) and "first of 4" in quad.notes[0]

    def test_the_other_copolarised_band_stands_in(self, write_raster: WriteRaster) -> None:
        path = write_raster("a.tif", np.ones((2, 8, 8), np.float32), names=("HV", "HH"))
        assert self.choose(path, ("VV",)).indexes == (2,)
        assert self.choose(path, ("VV", "VH")).indexes == (2, 1)
        assert "HH is used in its place" in self.choose(path, ("VV",)).notes[0]

    def test_missing_bands_say_what_is_there_and_what_is_wanted(self, write_raster: WriteRaster) -> None:
        path = write_raster("a.tif", np.ones((3, 8, 8), np.uint16), names=("B04", "B03", "B02"))
        with pytest.raises(InputError, match="has B4, B3, B2; the model asks for B11, B8, B3"):
            self.choose(path, FLOOD_PRE)
        with pytest.raises(InputError, match="the model asks for VV"):
            self.choose(path, ("VV",))

    def test_a_guess_is_made_only_when_asked_for(self, write_raster: WriteRaster) -> None:
        path = write_raster("a.tif", np.ones((2, 8, 8), np.uint16), names=("B04", "B03"))
        with RasterSource(path) as source:
            guess = select_bands(source, FLOOD_PRE, substitute=True)
        assert guess.indexes == (1, 2, 1) and "a guess" in guess.notes[0]


class TestRadiometry:
    def test_kinds_of_numbers(self, rng: np.random.Generator) -> None:
        gamma = rng.gamma(4, 0.05, (1, 64, 64))
        assert detect_radiometry(sample(gamma), "uint8") == "uint8"
        assert detect_radiometry(sample(gamma), "complex_int16") == "complex"
        assert detect_radiometry(sample(gamma), "float32") == "intensity"
        assert detect_radiometry(sample(10 * np.log10(gamma)), "float32") == "db"
        assert detect_radiometry(sample(300 * np.sqrt(gamma)), "uint16") == "amplitude"
        assert detect_radiometry(sample(np.repeat(gamma, 3, axis=0)), "float32") == "reflectance"
        assert detect_radiometry(sample(1e4 * gamma), "uint16", "optical") == "reflectance"
        assert detect_radiometry(sample(rng.normal(0, 1e4, (1, 64, 64))), "float32") == "unknown"

    def test_slightly_negative_reflectance_is_not_db(self, rng: np.random.Generator) -> None:
        assert detect_radiometry(sample(rng.normal(0.1, 0.06, (4, 64, 64))), "float32") == "reflectance"

    def test_backscatter_becomes_db(self) -> None:
        power = np.array([1.0, 0.1, 0.0], np.float32)
        assert np.allclose(to_unit(power, "intensity", "db"), [0, -10, np.nan], equal_nan=True)
        assert np.allclose(to_unit(np.sqrt(power), "amplitude", "db"), [0, -10, np.nan], equal_nan=True, atol=1e-5)
        assert (to_unit(np.array([-12.5]), "db", "db") == -12.5).all()
        assert (to_unit(np.array([0.3]), "reflectance", "reflectance") == np.float32(0.3)).all()


class TestStretch:
    def test_8_bit_display_values_pass(self, write_raster: WriteRaster) -> None:
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        with RasterSource(write_raster("a.tif", ramp)) as source:
            stretch = SceneStretch.measure(source, "db")
        assert np.allclose(stretch.apply(ramp[None]), ramp / 255)

    def test_percentiles_of_the_whole_scene_become_0_and_1(
        self, write_raster: WriteRaster, rng: np.random.Generator
    ) -> None:
        values = rng.integers(100, 4000, (2, 300, 300)).astype(np.uint16)
        values[:, :50] = 0
        with RasterSource(write_raster("a.tif", values, nodata=0)) as source:
            stretch = SceneStretch.measure(source, "reflectance", (2, 98))
            part = stretch.apply(source.read(Window(100, 100, 50, 50)).data)
            whole = stretch.apply(source.read().data)
        assert stretch.low == pytest.approx(np.percentile(values[:, 50:], 2, axis=(1, 2)), rel=0.02)
        assert stretch.high == pytest.approx(np.percentile(values[:, 50:], 98, axis=(1, 2)), rel=0.02)
        assert (part == whole[:, 100:150, 100:150]).all()
        assert part.dtype == np.float32 and part.min() == 0 and part.max() == 1

    def test_a_level_moves_a_percentile_of_the_scene(self, write_raster: WriteRaster, rng: np.random.Generator) -> None:
        display = rng.integers(20, 120, (1, 200, 200)).astype(np.uint8)
        with RasterSource(write_raster("a.tif", display)) as source:
            stretch = SceneStretch.measure(source, "db", level=Level(percentile=75, value=0.7))
        stretched = stretch.apply(display)
        assert np.percentile(stretched, 75) == pytest.approx(0.7, abs=0.01)
        assert stretched.std() == pytest.approx((display / 255).std(), rel=0.01), "only the level may change"

    def test_a_level_holds_whatever_the_backscatter_is_offset_by(
        self, write_raster: WriteRaster, rng: np.random.Generator
    ) -> None:
        land = rng.normal(-9, 1.5, (1, 200, 200)).astype(np.float32)
        flooded = land.copy()
        flooded[:, :50] -= 10
        found = []
        for name, values in {"dry": land, "flooded": flooded, "wet and uncalibrated": flooded + 13}.items():
            with RasterSource(write_raster(f"{name}.tif", values)) as source:
                stretch = SceneStretch.measure(source, "db", (1, 99), Level(percentile=75, value=0.7))
            found.append(stretch.apply(values)[0, 100:])
        assert np.allclose(found[1], found[2], atol=1e-4)
        assert abs(found[0].mean() - found[1].mean()) < 0.15

    def test_calibration_and_power_or_amplitude_make_no_difference(
        self, write_raster: WriteRaster, rng: np.random.Generator
    ) -> None:
        power = rng.gamma(4, 30.0, (1, 200, 200)).astype(np.float32)
        stretched = []
        for name, values in {"power": power, "amplitude": 7 * np.sqrt(power), "db": 10 * np.log10(power) - 60}.items():
            with RasterSource(write_raster(f"{name}.tif", values.astype(np.float32))) as source:
                stretched.append(SceneStretch.measure(source, "db").apply(values))
        assert np.allclose(stretched[0], stretched[1], atol=1e-4)
        assert np.allclose(stretched[0], stretched[2], atol=1e-4)

    def test_the_fill_around_a_radar_image_is_no_measurement(self, write_raster: WriteRaster) -> None:
        values = np.array([[[0, 40, 900]]], np.uint16)
        with RasterSource(write_raster("a.tif", values)) as source:
            stretch = SceneStretch.measure(source, "db")
        assert stretch.measured(values).tolist() == [[False, True, True]]
        assert stretch.apply(values)[0, 0, 0] == 0

    def test_a_constant_band_is_0(self, write_raster: WriteRaster) -> None:
        with RasterSource(write_raster("a.tif", np.full((9, 9), 700, np.uint16))) as source:
            assert (SceneStretch.measure(source, "reflectance").apply(source.read().data) == 0).all()

    def test_an_empty_file_is_refused(self, write_raster: WriteRaster) -> None:
        path = write_raster("a.tif", np.full((9, 9), np.nan, np.float32))
        with RasterSource(path) as source, pytest.raises(InputError, match="no measurement"):
            SceneStretch.measure(source, "db")

    @given(st.lists(st.tuples(st.floats(-60, 0), st.floats(0, 60)), min_size=1, max_size=13))
    def test_it_goes_through_json(self, limits: list[tuple[float, float]]) -> None:
        low, high = zip(*limits, strict=True)
        stretch = SceneStretch("db", "db", low, high)
        assert SceneStretch.from_dict(json.loads(json.dumps(stretch.to_dict()))) == stretch


@pytest.mark.real_data
class TestRealFiles:
    @pytest.mark.parametrize(
        ("file", "wanted", "unit", "radiometry", "modality"),
        [
            ("sen1floods11_sample/S1/Spain_7370579_S1Hand.tif", ("VV",), "db", "db", "sar"),
            ("sen1floods11_sample/S2/Spain_7370579_S2Hand.tif", FLOOD_PRE, "reflectance", "reflectance", "optical"),
            ("s1_gcp_fixtures/cog_gcps.tif", ("VV",), "db", "amplitude", "sar"),
            ("s1_gcp_fixtures/slc.tif", ("VV",), "db", "complex", "sar"),
            ("spacenet6_rotterdam/rgb_unmasked.tif", FLOOD_PRE, "reflectance", "uint8", "optical"),
            ("spacenet6_rotterdam/sar_masked.tif", ("VV",), "db", "db", "sar"),
            ("spacenet6_rotterdam/sar_hh.tif", ("VV",), "db", "complex", "sar"),
            ("ombria/OmbriaS2/test/BEFORE/S2_before_0018.png", FLOOD_PRE, "reflectance", "uint8", "optical"),
            ("ombria/OmbriaS1/test/AFTER/S1_after_0018.png", ("VV",), "db", "uint8", None),
        ],
    )
    def test_they_are_understood(
        self, shared_data: Path, file: str, wanted: tuple[str, ...], unit: str, radiometry: str, modality: str | None
    ) -> None:
        with RasterSource(shared_data / file) as source:
            chosen = select_bands(source, wanted)
            assert detect_modality(source, source.read_decimated(100_000)) == modality
        with RasterSource(shared_data / file, chosen.indexes) as source:
            stretch = SceneStretch.measure(source, unit)  # type: ignore[arg-type]
            raster = source.read()
        assert stretch.radiometry == radiometry
        shown = stretch.apply(raster.data)[:, raster.valid & stretch.measured(raster.data)]
        assert shown.min() >= 0 and shown.max() <= 1
        assert 0.1 < shown.mean() < 0.9 and shown.std() > 0.05

    def test_sentinel2_bands_are_found_by_name(self, shared_data: Path) -> None:
        with RasterSource(shared_data / "sen1floods11_sample/S2/Spain_7370579_S2Hand.tif") as source:
            assert band_names(source.band_names) == SENTINEL2_L1C
            assert select_bands(source, FLOOD_PRE) == Selection((12, 8, 3))
