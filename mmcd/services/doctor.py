"""Is this installation complete: versions, devices, weights, the map's assets, disk and memory.

Every question is answered by trying the thing, in isolation, so that one broken library does not hide the rest.
"""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from mmcd import __version__
from mmcd.cards import Card, list_cards, verify_weights
from mmcd.errors import MmcdError, StorageError
from mmcd.inference.exported import INSTALL, RUNTIMES, installed, list_exports
from mmcd.paths import sample_data_dir, weights_dir, workspace
from mmcd.services.assets import ASSETS, missing_assets
from mmcd.trunk_cards import list_trunks

Status = Literal["ok", "warn", "fail"]

REINSTALL = "Run `pip install -r requirements.txt`, or `make app` in a checkout."
"""The step that brings back any missing or broken library."""

REQUIRED = (
    "streamlit",
    "streamlit-folium",
    "folium",
    "leafmap",
    "plotly",
    "rio-cogeo",
    "rio-tiler",
    "geopandas",
    "pystac",
    "lightning",
    "tensorboard",
    "mlflow",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
)
"""Distributions whose version is worth a line; rasterio and torch are proven by use instead."""

LOW_DISK = 2 * 1024**3
"""Free bytes below which a warning is due: one 10,000² run writes a score, a mask and their temporary copies."""

LOW_MEMORY = 4 * 1024**3
"""Physical bytes below which a warning is due: a run takes up to 1.5 GB, the app and the worker 1 GB each."""


@dataclass(frozen=True)
class Diagnosis:
    """One answer.

    Attributes:
        subject: What was looked at.
        status: ``ok``, ``warn`` (works, but less or slower) or ``fail`` (something does not work).
        found: What was found.
        action: How to get what is missing; empty when nothing is.
    """

    subject: str
    status: Status
    found: str
    action: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All answers, in the order in which they are worth reading."""

    lines: tuple[Diagnosis, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed; warnings are allowed."""
        return all(line.status != "fail" for line in self.lines)

    def text(self) -> str:
        """Return one line an answer, and below each fault the step that mends it."""
        width = max(len(line.subject) for line in self.lines)
        rows = []
        for line in self.lines:
            rows.append(f"{line.status:<4}  {line.subject:<{width}}  {line.found}")
            if line.action:
                rows.append(f"{'':<{width + 8}}{line.action}")
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values: ``healthy``, and ``lines`` with the fields of each answer."""
        return {"healthy": self.healthy, "lines": [asdict(line) for line in self.lines]}


def diagnose() -> DoctorReport:
    """Look at everything mmcd needs on this machine. Takes some seconds, most of them to load torch."""
    checks: tuple[Callable[[], Iterator[Diagnosis]], ...] = (
        _interpreter,
        _gdal,
        _torch_pair,
        _distributions,
        _devices,
        _backends,
        _weights,
        _samples,
        _workspace,
        _memory,
    )
    return DoctorReport(tuple(line for check in checks for line in check()))


def _interpreter() -> Iterator[Diagnosis]:
    yield Diagnosis("mmcd", "ok", __version__)
    yield Diagnosis("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _gdal() -> Iterator[Diagnosis]:
    try:
        rasterio = import_module("rasterio")
    except (ImportError, OSError) as error:
        yield Diagnosis("rasterio", "fail", f"does not load: {error}", f"{REINSTALL} On Debian: apt install libexpat1.")
        return
    yield Diagnosis("rasterio", "ok", f"{rasterio.__version__}, GDAL {rasterio.__gdal_version__}")


def _torch_pair() -> Iterator[Diagnosis]:
    # torchvision declares only a lower bound on torch, and a pair from two builds fails at the first custom operator.
    try:
        torch, torchvision = import_module("torch"), import_module("torchvision")
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        yield Diagnosis("torch and torchvision", "fail", f"do not work as a pair: {reason}", REINSTALL)
        return
    found = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    if kept == [0]:
        yield Diagnosis("torch and torchvision", "ok", found)
    else:
        yield Diagnosis("torch and torchvision", "fail", f"{found} keep boxes {kept} instead of [0]", REINSTALL)


def _distributions() -> Iterator[Diagnosis]:
    for name in REQUIRED:
        try:
            yield Diagnosis(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Diagnosis(name, "fail", "is not installed", REINSTALL)


def _devices() -> Iterator[Diagnosis]:
    try:
        torch = import_module("torch")
        devices = import_module("mmcd.models.devices")
    except (ImportError, OSError):
        return  # said by _torch_pair
    chosen = devices.choose_device("auto")
    dtype = str(devices.choose_precision("auto", chosen)).removeprefix("torch.")
    yield Diagnosis("processor", "ok", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if chosen.type == "cuda":
        yield Diagnosis("device", "ok", f"cuda: {torch.cuda.get_device_name(chosen)}, arithmetic {dtype}")
    elif chosen.type == "cpu" and shutil.which("nvidia-smi"):
        action = "Update the NVIDIA driver to one that serves this torch build."
        yield Diagnosis("device", "warn", f"cpu, arithmetic {dtype}, although an NVIDIA driver is here", action)
    else:
        yield Diagnosis("device", "ok", f"{chosen.type}, arithmetic {dtype}")


def _backends() -> Iterator[Diagnosis]:
    for backend, distribution in RUNTIMES.items():
        if installed(backend):
            yield Diagnosis(f"backend {backend}", "ok", f"{distribution} {metadata.version(distribution)}")
        else:
            yield Diagnosis(f"backend {backend}", "ok", "not installed; it would be faster on a processor", INSTALL)


def _weights() -> Iterator[Diagnosis]:
    try:
        cards = list_cards()
    except MmcdError as error:
        yield Diagnosis("weights", "fail", error.message, error.hint)
        return
    if not cards:
        yield Diagnosis("weights", "fail", f"{weights_dir()} holds no model card", "Clone or install mmcd again.")
    for path, card in cards:
        try:
            weights = verify_weights(path, card)
        except MmcdError as error:
            yield Diagnosis(f"weights {card.name}", "fail", error.message, error.hint)
        else:
            size = weights.stat().st_size / 1e6
            found = f"version {card.version}, {size:.1f} MB, hash verified{_exports(card)}"
            yield Diagnosis(f"weights {card.name}", "ok", found)
    yield from _trunks()


def _trunks() -> Iterator[Diagnosis]:
    try:
        trunks = list_trunks()
    except StorageError:
        return  # said once, by the line about the workspace
    except MmcdError as error:
        yield Diagnosis("trunks", "fail", error.message, error.hint)
        return
    for path, card in trunks:
        try:
            weights = verify_weights(path, card)
        except MmcdError as error:
            yield Diagnosis(f"trunk {card.name}", "fail", error.message, error.hint)
        else:
            size = weights.stat().st_size / 1e6
            found = f"version {card.version}, {card.trunk} by {card.method}, {size:.1f} MB, hash verified"
            yield Diagnosis(f"trunk {card.name}", "ok", found)


def _exports(card: Card) -> str:
    """Return for which engines a model was exported, in words; nothing where the workspace cannot be made."""
    try:
        return "".join(f", exported for {made.backend} {made.precision}" for made in list_exports(card))
    except StorageError:
        return ""  # said once, by the line about the workspace


def _samples() -> Iterator[Diagnosis]:
    catalog = sample_data_dir() / "catalog.json"
    if catalog.is_file():
        yield Diagnosis("sample scenes", "ok", str(catalog))
    else:
        yield Diagnosis("sample scenes", "warn", f"{catalog} is missing", "Clone or install mmcd again.")


def _workspace() -> Iterator[Diagnosis]:
    try:
        folder = workspace()
    except MmcdError as error:
        yield Diagnosis("workspace", "fail", error.message, error.hint)
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Diagnosis("workspace", "ok", f"{folder} can be written")
    except OSError as error:
        action = "Set MMCD_WORKSPACE to a folder you can write."
        yield Diagnosis("workspace", "fail", f"{folder} cannot be written: {error.strerror}", action)
    yield _free_disk(folder)
    yield _assets(folder / "assets")


def _free_disk(folder: Path) -> Diagnosis:
    free = shutil.disk_usage(folder).free
    found = f"{free / 1024**3:,.1f} GiB free"
    if free < LOW_DISK:
        return Diagnosis("disk", "warn", found, "Free some space, or set MMCD_WORKSPACE to a larger disk.")
    return Diagnosis("disk", "ok", found)


def _assets(folder: Path) -> Diagnosis:
    missing = missing_assets(folder)
    if not missing:
        return Diagnosis("map assets", "ok", f"{len(ASSETS)} files in {folder}, hashes verified")
    found = f"{len(missing)} of {len(ASSETS)} are missing in {folder}: maps load them from the internet"
    return Diagnosis("map assets", "warn", found, "Run `mmcd assets` once while online.")


def _memory() -> Iterator[Diagnosis]:
    if sys.platform == "win32":
        return  # the standard library has no answer there
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{total / 1024**3:,.1f} GiB"
    if total < LOW_MEMORY:
        yield Diagnosis("memory", "warn", found, "Close other programs before a run; a run takes up to 1.5 GB.")
    else:
        yield Diagnosis("memory", "ok", found)
