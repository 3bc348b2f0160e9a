"""What the numbers in a band mean: names, units, and the one stretch of a whole scene that a model sees.

Sentinel-2 bands are named as ESA names them (``B1`` ... ``B8``, ``B8A``, ``B9`` ... ``B12``), radar bands by
polarisation (``VV``, ``VH``, ``HH``, ``HV``).
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from mmcd.cards import Level, Modality, Unit
from mmcd.errors import InputError
from mmcd.geo.grid import Window
from mmcd.geo.raster import Raster, RasterSource

Radiometry = Literal["uint8", "reflectance", "db", "amplitude", "intensity", "complex", "unknown"]

SENTINEL2_L1C = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
"""The 13 bands of a level-1C product, in file order."""

SENTINEL2_L2A = tuple(name for name in SENTINEL2_L1C if name != "B10")
"""The 12 bands of a level-2A product: cirrus is not a surface reflectance."""

POLARISATIONS = ("VV", "VH", "HH", "HV")

_ALIASES = {
    "B4": ("RED", "R"),
    "B3": ("GREEN", "G"),
    "B2": ("BLUE", "B"),
    "B1": ("COASTAL", "AEROSOL"),
    "B8": ("NIR", "N"),
    "B11": ("SWIR1", "SWIR16"),
    "B12": ("SWIR2", "SWIR22"),
}
_UNNAMED = {13: SENTINEL2_L1C, 12: SENTINEL2_L2A, 3: ("B4", "B3", "B2"), 2: ("VV", "VH"), 1: ("VV",)}
_SAME_KIND = {"VV": "HH", "HH": "VV", "VH": "HV", "HV": "VH"}  # Co- and cross-polarised backscatter stay apart.

_MODALITY_OF_UNIT: dict[Unit, Modality] = {"db": "sar", "reflectance": "optical"}

_RADAR_WORDS = re.compile(r"sentinel-?1|\b(GRD|SLC|SAR)\b|capella|iceye|terrasar|radarsat|cosmo-?sky", re.IGNORECASE)
_DB_NEGATIVE_SHARE = 0.2  # Backscatter in dB is mostly negative; atmospherically corrected reflectance hardly ever.
_DB_RANGE = (-100.0, 60.0)
_REFLECTANCE_MAX = 2.0  # Clouds and glint pass 1; scaled integers lie in the hundreds and thousands.
_SPECKLE_CV = 0.15  # Fully developed speckle has std/mean 0.52/sqrt(looks) in amplitude: this is about 12 looks.
_SPECKLE_BOX = 5
_SPECKLE_PIXELS = 512


@dataclass(frozen=True)
class Selection:
    """Bands of a file chosen for a model.

    Attributes:
        indexes: Band numbers in the order that was asked for, from 1.
        notes: What had to be assumed, for people; empty when every band was found by its name.
    """

    indexes: tuple[int, ...]
    notes: tuple[str, ...] = ()


def standard_name(text: str | None) -> str | None:
    """Return the standard name in a band's description (``B02``, ``blue``, ``Sigma0_VV_db``), None without one."""
    tokens = [token for token in re.split(r"[^A-Z0-9]+", (text or "").upper()) if token]
    if len(tokens) == 1 and (single := _standard_token(tokens[0])):
        return single
    found = {name for token in tokens if len(token) > 1 and (name := _standard_token(token))}
    numbered = found & set(tokens)  # "B8A, nir narrow": the number says more than the colour.
    chosen = numbered if len(numbered) == 1 else found
    return chosen.pop() if len(chosen) == 1 else None


def band_names(descriptions: Sequence[str | None]) -> tuple[str | None, ...]:
    """Return standard names of bands: from their descriptions, else from their number, else None for each.

    Unnamed bands: 13 are Sentinel-2 level 1C, 12 level 2A, 3 red, green and blue, 2 VV and VH, 1 VV.
    """
    named = tuple(standard_name(text) for text in descriptions)
    if any(named) or any(descriptions):
        return named
    return _UNNAMED.get(len(descriptions), named)


def select_bands(source: RasterSource, wanted: Sequence[str], substitute: bool = False) -> Selection:
    """Choose the bands of a file that a model asks for.

    Files without names are met half-way, always with a note: as many bands as wanted are taken in order; of unnamed
    radar bands the first ones; a co-polarised band stands in for the other co-polarised one.

    Args:
        source: The file, opened with all its bands.
        wanted: Band names in channel order, standard or not.
        substitute: Let the file's first bands, over and over, stand in for missing ones: for a pair that no model was
            made for.

    Raises:
        InputError: Bands are missing and none may stand in; the message says what is there and what is wanted.
    """
    radar = all(standard_name(name) in POLARISATIONS for name in wanted)
    described = any(standard_name(text) for text in source.band_names)
    names = band_names(source.band_names)
    places = [_place_of(standard_name(name) or name, names) for name in wanted]
    file = source.path.name
    if all(place is not None for place in places):
        chosen = tuple(source.indexes[place] for place in places if place is not None)
        taken = ", ".join(str(names[place]) for place in places if place is not None)
        return Selection(chosen, () if described else (f"{file} does not name its bands: taken for {taken}.",))
    if not described and (source.count == len(wanted) or (radar and source.count > len(wanted))):
        order = "in order" if source.count == len(wanted) else f"the first of {source.count}"
        note = f"{file} does not name its bands: taken {order} for {', '.join(wanted)}."
        return Selection(source.indexes[: len(wanted)], (note,))
    if radar and described:
        others = [_place_of(_SAME_KIND[str(standard_name(name))], names) for name in wanted]
        pairs = [first if first is not None else second for first, second in zip(places, others, strict=True)]
        if all(place is not None for place in pairs):
            found = ", ".join(str(names[place]) for place in pairs if place is not None)
            note = f"{file} lacks {', '.join(wanted)}: {found} is used in its place."
            return Selection(tuple(source.indexes[place] for place in pairs if place is not None), (note,))
    if substitute:
        first = tuple(source.indexes[i % source.count] for i in range(len(wanted)))
        note = f"{file} lacks {', '.join(wanted)}: its first bands are used, so scores are a guess."
        return Selection(first, (note,))
    there = ", ".join(name or text or f"band {i} (unnamed)" for i, name, text in _listed(source, names))
    raise InputError(
        f"{file} has {there}; the model asks for {', '.join(wanted)}.",
        "Name the bands in the file's band descriptions, or choose a model for these bands.",
    )


def detect_radiometry(raster: Raster, dtype: str, modality: Modality | None = None) -> Radiometry:
    """Return what kind of numbers a raster holds.

    Args:
        raster: A sample of the whole file.
        dtype: Data type of the file.
        modality: Kind of sensor, when known: radar power and reflectance share the range from 0 to 1.
    """
    if dtype.startswith("complex"):
        return "complex"
    if dtype == "uint8":
        return "uint8"
    values = raster.data[:, raster.valid]
    if values.size == 0:
        return "unknown"
    low, high = np.percentile(values, (0.5, 99.5))
    if (values < 0).mean() > _DB_NEGATIVE_SHARE:
        return "db" if _DB_RANGE[0] < low and high < _DB_RANGE[1] else "unknown"
    if high <= 0:
        return "unknown"
    radar = modality == "sar" or (modality is None and raster.data.shape[0] <= 2)
    if not radar:
        return "reflectance"
    return "intensity" if high <= _REFLECTANCE_MAX else "amplitude"


def detect_modality(source: RasterSource, sample: Raster) -> Modality | None:
    """Return the kind of sensor of a file, None when it cannot be told.

    Names and complex numbers decide, then values in dB, then what the file's description says of its sensor, then the
    number of bands, then speckle.

    Args:
        source: The file, opened with all its bands.
        sample: A decimated sample of it.

    Raises:
        InputError: The file is damaged.
    """
    names = {name for text in source.band_names if (name := standard_name(text))}
    if source.complex or names & set(POLARISATIONS) or detect_radiometry(sample, source.dtype) == "db":
        return "sar"
    if _RADAR_WORDS.search(source.tags.get("TIFFTAG_IMAGEDESCRIPTION", "")):
        return "sar"
    if names or source.count >= 3:
        return "optical"
    return "sar" if _speckled(source) else None


def to_unit(
    values: NDArray[np.floating[Any]] | NDArray[np.uint8], radiometry: Radiometry, unit: Unit
) -> NDArray[np.float32]:
    """Return values in a model's unit, NaN where there is no measurement.

    Reflectance is not rescaled and radar amplitude not calibrated: a constant factor (10,000) or offset (in dB) goes
    with the stretch by whole-scene percentiles that follows.

    Args:
        values: Values as stored, magnitude for complex files, any shape.
        radiometry: What they are.
        unit: What the model asks for.
    """
    if unit != "db" or radiometry not in ("amplitude", "intensity", "complex"):
        return values.astype(np.float32)
    positive = np.where(values > 0, values, np.nan).astype(np.float32)
    factor = 10 if radiometry == "intensity" else 20
    return np.asarray(factor * np.log10(positive), dtype=np.float32)


@dataclass(frozen=True)
class SceneStretch:
    """From stored values to [0, 1], the same for every window of a scene.

    Attributes:
        radiometry: What the stored values are.
        unit: Unit in which the stretch is linear.
        low: Value of each band that becomes 0.
        high: Value of each band that becomes 1.
    """

    radiometry: Radiometry
    unit: Unit
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def measure(
        cls,
        source: RasterSource,
        unit: Unit,
        percentiles: tuple[float, float] = (0.5, 99.5),
        level: Level | None = None,
        max_pixels: int = 1_000_000,
    ) -> Self:
        """Measure the stretch on a regular sample of the whole file. 8-bit display values are taken as value / 255.

        Args:
            source: The file, opened with the bands of the model.
            unit: Unit that the model asks for.
            percentiles: Percentiles of the measured values that become 0 and 1.
            level: Reference level to shift the scene to.
            max_pixels: Size of the sample.

        Raises:
            InputError: The file is damaged or holds no measurement.
        """
        if source.dtype == "uint8" and level is None:
            return cls("uint8", unit, (0.0,) * source.count, (255.0,) * source.count)
        sample = source.read_decimated(max_pixels)
        radiometry = detect_radiometry(sample, source.dtype, _MODALITY_OF_UNIT.get(unit))
        values = to_unit(sample.data[:, sample.valid], radiometry, unit)
        measured = [band[np.isfinite(band)] for band in values]
        if not all(band.size for band in measured):
            raise InputError(f"{source.path} holds no measurement.", "Choose another file.")
        return cls.of_values(measured, radiometry, unit, percentiles, level)

    @classmethod
    def of_values(
        cls,
        bands: Sequence[NDArray[np.floating[Any]] | NDArray[np.uint8]],
        radiometry: Radiometry,
        unit: Unit,
        percentiles: tuple[float, float] = (0.5, 99.5),
        level: Level | None = None,
    ) -> Self:
        """Return the stretch of a scene whose values are at hand, cut into tiles or not.

        Args:
            bands: Measured values of each band in ``unit``, of any one shape; 8-bit display values as they are.
            radiometry: What the stored values are.
            unit: Unit that the model asks for.
            percentiles: Percentiles that become 0 and 1, but for 8-bit display values.
            level: Reference level to shift the scene to.
        """
        limits = []
        for band in bands:
            low, high = (0.0, 255.0) if radiometry == "uint8" else np.percentile(band, percentiles)
            if level is not None:
                span = high - low
                low = np.percentile(band, level.percentile) - level.value * span
                high = low + span
            limits.append((float(low), float(high)))
        lows, highs = zip(*limits, strict=True)
        return cls(radiometry, unit, lows, highs)

    def apply(self, values: NDArray[np.floating[Any]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return stretched values in [0, 1], 0 without a measurement, shape (band, y, x), float32.

        Args:
            values: Values as stored, shape (band, y, x).
        """
        low = np.asarray(self.low, np.float32)[:, None, None]
        span = np.asarray(self.high, np.float32)[:, None, None] - low
        flat = span <= 0  # A constant band tells nothing; it becomes 0.
        scaled = (to_unit(values, self.radiometry, self.unit) - low) / np.where(flat, np.float32(1), span)
        return np.where(flat, np.float32(0), np.nan_to_num(np.clip(scaled, 0, 1))).astype(np.float32)

    def measured(self, values: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Return where a value can be a measurement, shape (y, x): radar power of exactly 0 is the fill of an edge.

        Args:
            values: Values as stored, shape (band, y, x).
        """
        if self.radiometry in ("amplitude", "intensity", "complex"):
            return np.asarray((values > 0).any(axis=0))
        return np.ones(values.shape[1:], dtype=np.bool_)

    def to_dict(self) -> dict[str, Any]:
        """Return the stretch as JSON values, for a manifest."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the stretch that :meth:`to_dict` wrote."""
        return cls(values["radiometry"], values["unit"], tuple(values["low"]), tuple(values["high"]))


class PairStretch(NamedTuple):
    """The stretches of both images of one scene."""

    pre: SceneStretch
    post: SceneStretch


def _standard_token(token: str) -> str | None:
    if token in POLARISATIONS:
        return token
    if match := re.fullmatch(r"B(?:AND)?0?(\d{1,2}A?)", token):
        name = f"B{match[1]}"
        return name if name in SENTINEL2_L1C else None
    return next((name for name, aliases in _ALIASES.items() if token in aliases), None)


def _place_of(name: str, names: Sequence[str | None]) -> int | None:
    return names.index(name) if name in names else None


def _listed(source: RasterSource, names: Sequence[str | None]) -> list[tuple[int, str | None, str | None]]:
    return list(zip(source.indexes, names, source.band_names, strict=True))


def _speckled(source: RasterSource) -> bool:
    """Whether even the smoothest places of the file's centre vary like speckle does."""
    side_y, side_x = min(_SPECKLE_PIXELS, source.grid.height), min(_SPECKLE_PIXELS, source.grid.width)
    window = Window((source.grid.height - side_y) // 2, (source.grid.width - side_x) // 2, side_y, side_x)
    raster = source.read(window)
    image = raster.data[0].astype(np.float64)
    mean = uniform_filter(image, _SPECKLE_BOX)
    spread = np.sqrt(np.maximum(uniform_filter(image**2, _SPECKLE_BOX) - mean**2, 0))
    inside = raster.valid & (mean > 0)
    return bool(inside.any() and np.quantile((spread[inside] / mean[inside]), 0.1) > _SPECKLE_CV)
