"""Models that were exported for ONNX Runtime or OpenVINO: what they are, where they lie, and which of them to take.

The workspace keeps one record an export; the files themselves may lie anywhere. A record belongs to the weights with
one hash, so new weights never meet an old export. Nothing here needs torch or one of the runtimes.
"""

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from mmcd.cards import Card, file_sha256
from mmcd.config import Config
from mmcd.errors import ConfigError, ModelError
from mmcd.geo.cog import atomic_path
from mmcd.paths import workspace_folder

log = logging.getLogger(__name__)

ExportBackend = Literal["onnx", "openvino"]
BackendChoice = Literal["auto", "torch", "onnx", "openvino"]
ExportPrecision = Literal["int8", "fp32"]

FASTEST_FIRST: tuple[ExportBackend, ...] = ("openvino", "onnx")
"""Order in which ``auto`` looks for an int8 export: the same graph takes ONNX Runtime half as long again or more."""

INSTALL = "Install it with `pip install 'mmcd[fast]'`, in a checkout with `pip install -e '.[fast]'`."
"""The step that brings the runtimes."""

RUNTIMES: dict[ExportBackend, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Distribution that runs each kind of export."""


class ExportedModel(Config):
    """The record of one export.

    Attributes:
        model: Name of the card.
        version: Version of the weights.
        weights_sha256: Hash of the weight file that was exported.
        settings: Constructor arguments of the network.
        backend: Runtime that it is for.
        precision: Arithmetic of the convolutions.
        files: Hash of each file by its absolute path; the first is the one that a runtime opens.
        halo: Pixels of context around a block, as the network has it.
        has_classes: Whether it has a third output, which says where the buildings of a head of several classes are.
        calibration: What the ranges of the 8-bit values were measured on; empty in single precision.
        agreement: Difference in probability from torch on the first of those images: ``mean`` and ``max``.
        versions: Versions of the libraries that made it.
        created: When, ISO 8601 in UTC.
    """

    model: str
    version: str
    weights_sha256: str
    settings: dict[str, Any]
    backend: ExportBackend
    precision: ExportPrecision
    files: dict[str, str]
    halo: int
    has_classes: bool = False
    calibration: dict[str, Any] = Field(default_factory=dict)
    agreement: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str

    @property
    def path(self) -> Path:
        """The file that a runtime opens."""
        return Path(next(iter(self.files)))

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def sha256(self) -> str:
        """Hash over all files."""
        return hashlib.sha256("".join(self.files.values()).encode()).hexdigest()

    @property
    def present(self) -> bool:
        """Whether all files are where they were written."""
        return all(Path(name).is_file() for name in self.files)

    @property
    def again(self) -> str:
        """The step that makes it anew."""
        command = f"mmcd weights export {self.model} --backend {self.backend} --precision {self.precision}"
        return f"Export it again: `{command}`."

    def verify(self) -> None:
        """Compare the files with their hashes.

        Raises:
            ModelError: A file is missing or was changed.
        """
        for name, sha256 in self.files.items():
            path = Path(name)
            if not path.is_file() or file_sha256(path) != sha256:
                state = "was changed" if path.is_file() else "is missing"
                raise ModelError(f"The exported file {path} {state}.", self.again)


def export_path(card: Card, backend: ExportBackend, precision: ExportPrecision) -> Path:
    """Return where an export lies in the workspace when no other place is asked for."""
    suffix = ".xml" if backend == "openvino" else ".onnx"
    return _record_path(card, backend, precision).with_suffix(suffix)


def save_record(card: Card, record: ExportedModel) -> None:
    """Note an export in the workspace; an earlier one of the same kind is forgotten.

    Raises:
        StorageError: The workspace cannot be written.
    """
    with atomic_path(_record_path(card, record.backend, record.precision)) as temporary:
        temporary.write_text(json.dumps(record.model_dump(mode="json"), indent=2))


def list_exports(card: Card) -> tuple[ExportedModel, ...]:
    """Return the exports of a card's weights whose files are here."""
    return tuple(sorted(_records(card), key=lambda record: (record.backend, record.precision)))


def installed(backend: ExportBackend) -> bool:
    """Return whether a runtime is installed, without loading it."""
    return find_spec(RUNTIMES[backend]) is not None


def require_installed(backend: ExportBackend) -> None:
    """Raise when a runtime is missing.

    Raises:
        ConfigError: It is; the message says how to get it.
    """
    if not installed(backend):
        raise ConfigError(f"The backend {backend} needs {RUNTIMES[backend]}, which is not installed.", INSTALL)


def choose_export(
    card: Card, backend: BackendChoice = "auto", device: str = "auto", precision: str = "auto"
) -> ExportedModel | None:
    """Return the export that a run uses, None where torch is to run the card.

    ``auto`` takes an int8 export, OpenVINO's before ONNX Runtime's, when one was made, its files are as they were
    written, its runtime is installed, the run is on the processor and no precision is asked for. An export that was
    calibrated on stand-in bands may differ from torch where it matters, and one that lacks the classes of a model that
    marks buildings says nothing of them, so these are taken only when they are named. In single precision the runtimes
    gain little over torch, so those exports are taken only when they are named.

    Args:
        card: Card of the model.
        backend: What was asked for.
        device: Device that was asked for; exports run on the processor alone.
        precision: Arithmetic that was asked for; of a named backend ``auto`` prefers int8.

    Raises:
        ConfigError: The named backend is not installed or cannot do what is asked.
        ModelError: Nothing was exported for the named backend, or what was lacks the classes of a model that marks
            buildings and OpenVINO, which cannot do without, is to run it.
    """
    if backend == "torch":
        return None
    made = {(record.backend, record.precision): record for record in list_exports(card)}
    if backend == "auto":
        if precision != "auto" or device not in ("auto", "cpu"):
            return None
        ready = [made[name, "int8"] for name in FASTEST_FIRST if (name, "int8") in made and installed(name)]
        if not ready or (device == "auto" and _accelerated()):
            return None
        return next((record for record in ready if _taken_unasked(record, card)), None)
    if device not in ("auto", "cpu"):
        raise ConfigError(f"The backend {backend} runs on the processor, not on {device}.", "Use --backend torch.")
    if precision == "bf16":
        raise ConfigError(f"The backend {backend} runs in int8 or fp32, not in bf16.", "Use --backend torch.")
    require_installed(backend)
    wanted: tuple[ExportPrecision, ...] = ("fp32",) if precision == "fp32" else ("int8", "fp32")
    for kind in wanted:
        if (backend, kind) in made:
            return _with_classes(made[backend, kind], card)
    option = " --precision fp32" if precision == "fp32" else ""
    raise ModelError(
        f"{card.name} {card.version} was not exported for {backend}{' in fp32' if option else ''}.",
        f"Export it once: `mmcd weights export {card.name} --backend {backend}{option}`.",
    )


def _with_classes(record: ExportedModel, card: Card) -> ExportedModel:
    """Return an export that was asked for.

    Raises:
        ModelError: It lacks the classes of a model that marks buildings, and OpenVINO cannot run it without.
    """
    if card.marks_buildings and not record.has_classes and record.backend == "openvino":
        raise ModelError(
            f"The export {record.path} does not say where buildings are and cannot run in OpenVINO.", record.again
        )
    return record


def _taken_unasked(record: ExportedModel, card: Card) -> bool:
    """Return whether an export is sound enough to run without being named; the log says why it is not."""
    if record.calibration.get("stand_in"):
        log.info("%s was calibrated on stand-in bands and runs only when it is named", record.path)
        return False
    if card.marks_buildings and not record.has_classes:
        log.info("%s does not say where buildings are and runs only when it is named", record.path)
        return False
    try:
        record.verify()
    except ModelError as error:
        log.warning("%s %s It is left out.", error.message, error.hint)
        return False
    return True


def _records(card: Card) -> Iterator[ExportedModel]:
    for path in workspace_folder("exports").glob("*.json"):
        try:
            record = ExportedModel.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            log.warning("%s is not the record of an export and is left out: %s", path, str(error).splitlines()[0])
            continue
        same = record.weights_sha256 == card.sha256 and record.settings == card.settings
        if same and record.present:
            yield record


def _record_path(card: Card, backend: ExportBackend, precision: ExportPrecision) -> Path:
    return workspace_folder("exports") / f"{card.name}-{card.sha256[:12]}-{backend}-{precision}.json"


def _accelerated() -> bool:
    """Return whether torch would use a graphics processor; torch is loaded only where there is a sign of one."""
    if sys.platform != "darwin" and shutil.which("nvidia-smi") is None and not Path("/dev/kfd").exists():
        return False
    from mmcd.models.devices import choose_device

    return choose_device("auto").type != "cpu"
