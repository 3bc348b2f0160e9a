"""The ingest check: what is found in a pair of images, and what will be done about it. Bad files never raise."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmcd.cards import Modality
from mmcd.errors import InputError
from mmcd.geo.grid import Grid, common_grid, overlap, same_crs
from mmcd.geo.raster import Georeference, Raster, RasterSource
from mmcd.geo.registration import Offset, measure_offset
from mmcd.geo.sensors import Radiometry, band_names, detect_modality, detect_radiometry

Severity = Literal["refuse", "warn", "note"]
Subject = Literal["pre", "post", "pair", "label", "footprints"]

_SAMPLE = 1_000_000  # Pixels of the sample that statistics are taken from; every pixel of the file is read once.
_LEAST_OVERLAP = 0.05
_FEW_OVERLAP = 0.5
_GSD_RATIO = 4.0  # One pixel against sixteen: nothing the fine image shows can be seen in the coarse one.
_MISSING_SHARE = 0.01
_SATURATED_SHARE = 0.02
_OFFSET_PX = 1.0
_OFFSET_CONFIDENCE = 0.4
_SAME_GSD = 1.05

_WORDS: dict[Radiometry, str] = {
    "uint8": "8-bit display values",
    "reflectance": "reflectance",
    "db": "backscatter in dB",
    "amplitude": "radar amplitude",
    "intensity": "radar intensity",
    "complex": "complex radar samples",
    "unknown": "values in an unknown unit",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: ``refuse`` stops the analysis, ``warn`` asks for a look, ``note`` is a fact.
        subject: The file it is about, or the pair.
        code: Short name that stays the same between versions.
        message: What was found, one sentence.
        action: What will be done about it, or what the user can do; may be empty.
    """

    severity: Severity
    subject: Subject
    code: str
    message: str
    action: str = ""


@dataclass(frozen=True)
class ImageFacts:
    """What one file is.

    Attributes:
        grid: Its own grid.
        georeference: Where the grid comes from.
        bands: Names of the bands, None for one without a name.
        described: Whether the file itself names its bands.
        dtype: Data type of the file.
        radiometry: What the values are.
        modality: Kind of sensor; None when it cannot be told.
        low: 0.5th percentile of the measured values, all bands.
        high: 99.5th percentile of the measured values, all bands.
        missing_share: Share of pixels without a measurement, in [0, 1].
        nodata: The file's nodata value.
        constant_bands: Numbers of bands that hold one value only.
        saturated_bands: Numbers of bands with more than 2 % of their pixels at the largest value.
        taken: Day in the file's own tags.
    """

    grid: Grid
    georeference: Georeference
    bands: tuple[str | None, ...]
    described: bool
    dtype: str
    radiometry: Radiometry
    modality: Modality | None
    low: float
    high: float
    missing_share: float
    nodata: float | None
    constant_bands: tuple[int, ...]
    saturated_bands: tuple[int, ...]
    taken: date | None


@dataclass(frozen=True)
class CheckReport:
    """Everything that was found in a pair.

    Attributes:
        findings: Refusals first, then warnings, then notes.
        pre: Facts about the image before; None when it cannot be read.
        post: Facts about the image after; None when it cannot be read.
        grid: Grid on which the pair would be analysed without a model; None when it is refused.
        offset: Measured offset between the two; None when it is refused.
    """

    findings: tuple[Finding, ...]
    pre: ImageFacts | None = None
    post: ImageFacts | None = None
    grid: Grid | None = None
    offset: Offset | None = None

    @property
    def refused(self) -> bool:
        """Whether the pair cannot be analysed."""
        return any(finding.severity == "refuse" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "refused": self.refused,
            "findings": [asdict(finding) for finding in self.findings],
            "pre": _facts_dict(self.pre),
            "post": _facts_dict(self.post),
            "grid": _grid_dict(self.grid) if self.grid else None,
            "offset": asdict(self.offset) if self.offset else None,
        }


def check_pair(pre: Path, post: Path, pre_date: date | None = None, post_date: date | None = None) -> CheckReport:
    """Check two images before they are analysed. Every pixel of both files is read once.

    Args:
        pre: Image before.
        post: Image after.
        pre_date: Day of the image before; else the day in the file's tags, if any.
        post_date: Day of the image after; likewise.
    """
    findings: list[Finding] = []
    before = _inspect(pre, "pre", findings)
    after = _inspect(post, "post", findings)
    grid, offset = None, None
    if before and after:
        findings += _about_dates(pre_date or before.taken, post_date or after.taken)
        findings += _about_swap(before, after)
        if pre.resolve() == post.resolve():
            action = "Nothing can have changed: give two files."
            findings.append(Finding("warn", "pair", "same_file", "Both images are the same file.", action))
        findings += _about_place(before.grid, after.grid)
    if before and after and not any(finding.severity == "refuse" for finding in findings):
        try:
            grid = common_grid(before.grid, after.grid)
            findings += _about_resampling(before.grid, after.grid, grid)
            offset = measure_offset(pre, post)
            findings.append(_about_offset(offset, after.modality))
        except InputError as error:
            findings.append(Finding("refuse", "pair", "no_common_grid", error.message, error.hint))
    order = {"refuse": 0, "warn": 1, "note": 2}
    return CheckReport(tuple(sorted(findings, key=lambda f: order[f.severity])), before, after, grid, offset)


def _inspect(path: Path, subject: Subject, findings: list[Finding]) -> ImageFacts | None:
    code = "missing" if not path.exists() else "empty" if path.is_file() and not path.stat().st_size else "not_raster"
    try:
        with RasterSource(path) as source:
            code = "damaged"
            sample = source.read_decimated(_SAMPLE)
            if not sample.valid.any():
                message = f"{path} holds no measurement: every pixel is nodata, NaN or masked."
                findings.append(Finding("refuse", subject, "no_measurement", message, "Choose another file."))
                return None
            facts = _facts(source, sample)
        code = "unknown_crs"
        findings += list(_about_image(facts, subject, path.name))
    except InputError as error:
        findings.append(Finding("refuse", subject, code, error.message, error.hint))
        return None
    return facts


def _facts(source: RasterSource, sample: Raster) -> ImageFacts:
    values = sample.data[:, sample.valid]
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    modality = detect_modality(source, sample)
    return ImageFacts(
        grid=source.grid,
        georeference=source.georeference,
        bands=band_names(source.band_names),
        described=any(source.band_names),
        dtype=source.dtype,
        radiometry=detect_radiometry(sample, source.dtype, modality),
        modality=modality,
        low=low,
        high=high,
        missing_share=_missing_share(source, sample),
        nodata=None if source.nodata is None or np.isnan(source.nodata) else source.nodata,
        constant_bands=tuple(i for i, band in zip(source.indexes, values, strict=True) if band.min() == band.max()),
        saturated_bands=tuple(i for i, band in zip(source.indexes, values, strict=True) if _saturated(band)),
        taken=_day_in_tags(source.tags),
    )


def _missing_share(source: RasterSource, sample: Raster) -> float:
    """The corners around a warped file are not its fault."""
    return 0.0 if source.georeference == "gcps" else float(1 - sample.valid.mean())


def _saturated(band: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    top = band.max()
    return bool(top > band.min() and (band == top).mean() > _SATURATED_SHARE)


def _day_in_tags(tags: dict[str, str]) -> date | None:
    text = tags.get("ACQUISITIONDATETIME") or tags.get("TIFFTAG_DATETIME") or ""
    try:
        return date.fromisoformat(text[:10].replace(":", "-"))
    except ValueError:
        return None


def _about_image(facts: ImageFacts, subject: Subject, name: str) -> Iterator[Finding]:
    grid = facts.grid
    gsd = f"{grid.gsd:.3g} m" if grid.gsd is not None else "GSD unknown"
    size = f"{grid.width:,} × {grid.height:,} px, {_band_words(facts)}, {facts.dtype}, {gsd}"
    yield Finding("note", subject, "facts", f"{name}: {size}, {_crs_words(grid.crs)}.")
    values = f"{_WORDS[facts.radiometry]}, mostly {facts.low:.4g} to {facts.high:.4g}"
    nodata = "no nodata value" if facts.nodata is None else f"nodata {facts.nodata:g}"
    yield Finding("note", subject, "values", f"Values are taken for {values}; {nodata}.")
    yield from _about_georeference(facts, subject)
    yield from _about_values(facts, subject)


def _about_georeference(facts: ImageFacts, subject: Subject) -> Iterator[Finding]:
    if facts.georeference == "none":
        message = "The file has no georeference."
        yield Finding("warn", subject, "no_crs", message, "The pair is compared pixel by pixel; areas are in pixels.")
    elif facts.georeference == "gcps":
        message = "The file has only ground control points."
        action = "It is warped by their polynomial to the UTM zone; hills move the image against its true place."
        yield Finding("warn", subject, "only_gcps", message, action)
    elif facts.grid.gsd is None:
        message = "The unit of the file's CRS is not known."
        yield Finding("warn", subject, "unknown_unit", message, "The analysis goes on; areas are in pixels.")


def _about_values(facts: ImageFacts, subject: Subject) -> Iterator[Finding]:
    if facts.radiometry == "unknown":
        action = "The stretch by percentiles is used as it is; look at the result with care."
        yield Finding("warn", subject, "unknown_values", "The unit of the values is not known.", action)
    if facts.radiometry == "complex":
        yield Finding("warn", subject, "complex", "The file holds complex samples.", "Their magnitude is used.")
    if not facts.described:
        yield Finding(
            "note",
            subject,
            "unnamed_bands",
            "The file does not name its bands.",
            "They are taken by their number or in a model's order; the result says so.",
        )
    if facts.missing_share > 0:
        severity: Severity = "warn" if facts.missing_share > _MISSING_SHARE else "note"
        message = f"{facts.missing_share:.1%} of the pixels are nodata, NaN or masked."
        yield Finding(severity, subject, "missing_values", message, "They are not assessed.")
    for code, bands, words in (
        ("constant_band", facts.constant_bands, "one value only"),
        (
            "saturated_band",
            facts.saturated_bands,
            f"more than {_SATURATED_SHARE:.0%} of the pixels at its largest value",
        ),
    ):
        if bands:
            listed = f"Band {bands[0]} has" if len(bands) == 1 else f"Bands {', '.join(map(str, bands))} have"
            action = "No change can be seen there; look at the file."
            yield Finding("warn", subject, code, f"{listed} {words}.", action)


def _about_dates(pre: date | None, post: date | None) -> Iterator[Finding]:
    if pre is None or post is None:
        return
    days = (post - pre).days
    if days < 0:
        message = f"The image before is {-days:,} days younger ({pre}) than the image after ({post})."
        yield Finding("warn", "pair", "dates_reversed", message, "Exchange the two, or correct the dates.")
    else:
        yield Finding("note", "pair", "dates", f"{days:,} days lie between the two images ({pre}, {post}).")


def _about_swap(pre: ImageFacts, post: ImageFacts) -> Iterator[Finding]:
    """Radar first and an optical image second, by names, units and speckle; else by the number of bands alone."""
    radar_first = pre.modality == "sar" or (pre.modality is None and len(pre.bands) <= 2)
    if radar_first and post.modality == "optical":
        message = f"Before looks like radar ({_band_words(pre)}) and after like an optical image ({_band_words(post)})."
        yield Finding("warn", "pair", "swapped", message, "Exchange the two, unless this is meant.")
    elif pre.modality == post.modality == "optical":
        message = "Both images are optical."
        action = "A model of two optical images is used; where none is for them, the nearest one with a warning."
        yield Finding("note", "pair", "both_optical", message, action)


def _about_place(pre: Grid, post: Grid) -> Iterator[Finding]:
    if pre.crs is None or post.crs is None:
        if pre.shape != post.shape:
            message = (
                f"Without a georeference on both images their sizes must agree: {pre.width} × {pre.height} and "
                f"{post.width} × {post.height} px."
            )
            yield Finding("refuse", "pair", "size_mismatch", message, "Georeference both, or cut them to one size.")
        else:
            message = "The pair is analysed in pixel space."
            yield Finding("warn", "pair", "pixel_space", message, "Every output says so; areas are in pixels.")
        return
    try:
        share = overlap(pre, post)
    except InputError as error:
        yield Finding("refuse", "pair", "no_common_crs", error.message, error.hint)
        return
    message = f"The images share {share:.0%} of the smaller one."
    if share < _LEAST_OVERLAP:
        action = "Give two images of one place, and check their CRS."
        yield Finding("refuse", "pair", "overlap", f"The images share {share:.1%} of the smaller one.", action)
    else:
        severity: Severity = "warn" if share < _FEW_OVERLAP else "note"
        yield Finding(severity, "pair", "overlap", message, "Only what both show is analysed.")


def _about_resampling(pre: Grid, post: Grid, grid: Grid) -> Iterator[Finding]:
    if pre.crs and post.crs and not same_crs(pre.crs, post.crs):
        message = f"The images have different CRS: {_crs_words(pre.crs)} and {_crs_words(post.crs)}."
        yield Finding("note", "pair", "different_crs", message, f"Both are read in {_crs_words(grid.crs)}.")
    if pre.gsd and post.gsd:
        ratio = max(pre.gsd, post.gsd) / min(pre.gsd, post.gsd)
        message = f"GSD is {pre.gsd:.3g} m before and {post.gsd:.3g} m after, a ratio of {ratio:.1f}."
        finer = "averaged" if pre.gsd < post.gsd else "interpolated"
        action = f"Before is {finer} to the grid of after." if ratio > _SAME_GSD else ""
        yield Finding("warn" if ratio > _GSD_RATIO else "note", "pair", "gsd_ratio", message, action)
    gsd = f" of {grid.gsd:.3g} m in {_crs_words(grid.crs)}" if grid.gsd is not None else ""
    yield Finding("note", "pair", "grid", f"The score will have {grid.width:,} × {grid.height:,} px{gsd}.")


def _about_offset(offset: Offset, post: Modality | None) -> Finding:
    if offset.confidence < _OFFSET_CONFIDENCE:
        message = f"No offset between the images could be measured (confidence {offset.confidence:.2f})."
        return Finding("note", "pair", "offset", message, "Compare both by eye at a road or a shore.")
    size = float(np.hypot(offset.dx_px, offset.dy_px))
    metres = ""
    if offset.dx_m is not None and offset.dy_m is not None:
        metres = f" ({offset.dx_m:+.1f} m east, {offset.dy_m:+.1f} m north)"
    message = f"Before lies {size:.1f} px off after{metres}, confidence {offset.confidence:.2f}."
    if size > _OFFSET_PX:
        leans = "Radar leans buildings and hills towards the sensor"
        if post == "optical":
            leans = "Another viewing angle leans tall buildings"
        action = (
            f"It is not corrected. {leans}, which counts here: co-register the images if roads and shores are off too."
        )
        return Finding("warn", "pair", "offset", message, action)
    return Finding("note", "pair", "offset", message)


def _band_words(facts: ImageFacts) -> str:
    count = f"{len(facts.bands)} band{'s' if len(facts.bands) > 1 else ''}"
    if not facts.described:
        known = all(facts.bands)
        return f"{count} without names{', perhaps ' + ', '.join(map(str, facts.bands)) if known else ''}"
    return f"{count} ({', '.join(band or 'unknown' for band in facts.bands)})"


def _crs_words(crs: str | None) -> str:
    if crs is None:
        return "no CRS"
    return crs if len(crs) <= 20 else f"a CRS of its own ({crs[:30]}…)"


def _grid_dict(grid: Grid) -> dict[str, Any]:
    return {
        "crs": grid.crs,
        "transform": list(grid.transform)[:6],
        "height": grid.height,
        "width": grid.width,
        "gsd": grid.gsd,
    }


def _facts_dict(facts: ImageFacts | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    values = asdict(facts)
    return {**values, "grid": _grid_dict(facts.grid), "taken": facts.taken.isoformat() if facts.taken else None}
