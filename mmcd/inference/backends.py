"""The engines that run a network, all behind one call: normalised arrays in, logits and distance out.

torch runs every card on every device. ONNX Runtime and OpenVINO run exports of a card on the processor, need no torch
and are faster there. Each runs at one fixed input shape at a time: it is compiled for the shape of the first block and
kept, so that the bytes of a score do not depend on how a scene is cut.
"""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mmcd.errors import ConfigError
from mmcd.inference.exported import ExportedModel, require_installed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mmcd.models.devices import Device, Precision

Array = NDArray[np.float32]
Side = Literal["pre", "post"]
OUTPUTS = ("logit", "distance", "building")
"""Names of the outputs of an export, the last one only where the network has it."""

HALO = 128
"""Pixels read around a block for a network that does not say how far it sees, such as a fusion UNet.

Its reach exceeds that: a score near the border of two blocks then rests on what lies within 128 px beyond it. As the
blocks lie on the scene's own grid, its bytes still depend on nothing but the scene.
"""


class Outputs(NamedTuple):
    """What a network says of a pair of aligned blocks.

    Attributes:
        logit: Logit of change, shape (H, W).
        distance: ``1 - cosine`` in [0, 2], shape (H, W); 0 of a network without embeddings.
        building: Logit of any class but the first, shape (H, W): of a building where the first is the background.
            None for a head that only knows change.
    """

    logit: Array
    distance: Array
    building: Array | None = None


class TorchAnswer(NamedTuple):
    """What a network in torch says of a pair of aligned blocks.

    Attributes:
        outputs: What every engine says.
        classes: Likeliest class, shape (H, W), uint8; None where it was not asked for.
        vectors: Unit vectors of both branches at the cells that were asked for, shape (2, N, D), float16; else None.
    """

    outputs: Outputs
    classes: NDArray[np.uint8] | None = None
    vectors: NDArray[np.float16] | None = None


_Run = Callable[[Array, Array], Outputs]


@dataclass(frozen=True)
class Arithmetic:
    """Where and how the numbers were computed; part of the manifest, because bytes are repeatable only within it.

    Attributes:
        device: ``cpu``, ``cuda`` ...
        dtype: ``float32``, ``bfloat16`` or ``int8``.
        threads: Threads of one operation.
        backend: Engine and its version.
        export: Hash of the exported file; None for torch, which runs the weights of the card.
    """

    device: str
    dtype: str
    threads: int
    backend: str
    export: str | None = None


class Backend(Protocol):
    """A network that is ready to run.

    Attributes:
        halo: Pixels of context around a block; those of a network with a computed reach change nothing beyond it.
        arithmetic: Where and how it computes.
        has_classes: Whether its answers have a ``building``.
    """

    @property
    def halo(self) -> int:
        """Pixels of context around a block."""

    @property
    def arithmetic(self) -> Arithmetic:
        """Where and how it computes."""

    @property
    def has_classes(self) -> bool:
        """Whether its answers have a ``building``."""

    def run(self, pre: Array, post: Array) -> Outputs:
        """Compare two aligned blocks.

        Args:
            pre: Normalised image before, shape (bands, H, W), H and W multiples of 16.
            post: Normalised image after, shape (bands, H, W).
        """


class TorchBackend:
    """torch, in bfloat16 where it is native.

    Args:
        model: Two-image network; called with normalised inputs. Without a ``halo`` of its own it gets `HALO`.
        device: Device to run on.
        precision: Arithmetic to run in.

    Attributes:
        model: The network on its device.
        has_embeddings: Whether `embed` works.
        embedding_dim: Length of the vectors that a pass over both images makes; 0 of a network that makes none.
    """

    def __init__(self, model: "nn.Module", device: "Device" = "auto", precision: "Precision" = "auto") -> None:
        import torch

        from mmcd.models.devices import choose_device, choose_precision

        self.halo = int(getattr(model, "halo", HALO))
        self.has_embeddings = callable(getattr(model, "embed", None))
        self.embedding_dim = int(getattr(model, "embedding_dim", 0)) if self.has_embeddings else 0
        self.has_classes = int(getattr(model, "classes", 1)) > 1
        self._device = choose_device(device)
        self._dtype = choose_precision(precision, self._device)
        self.model = model.eval().to(self._device).to(memory_format=torch.channels_last)

    @property
    def arithmetic(self) -> Arithmetic:
        """Device, dtype and thread count of torch now."""
        import torch

        dtype = str(self._dtype).removeprefix("torch.")
        return Arithmetic(str(self._device), dtype, torch.get_num_threads(), f"torch {torch.__version__}")

    def run(self, pre: Array, post: Array) -> Outputs:
        """Compare two aligned blocks, see `Backend.run`."""
        return self.compare(pre, post).outputs

    def compare(
        self, pre: Array, post: Array, classify: bool = False, cells: NDArray[np.integer] | None = None
    ) -> TorchAnswer:
        """Compare two aligned blocks, see `Backend.run`, and say more of them in the same pass.

        Args:
            pre: Normalised image before, shape (bands, H, W), H and W multiples of 16.
            post: Normalised image after, shape (bands, H, W).
            classify: Also return the likeliest class of a head of several.
            cells: Row and column at stride 8 of the regions whose vectors are returned too, shape (N, 2).

        Raises:
            ConfigError: Vectors are asked of a network without embeddings.
        """
        import torch

        from mmcd.inference.answers import answers_of
        from mmcd.models.siamese import change_logit

        with torch.inference_mode(), self._autocast():
            output = self.model(self._tensor(pre), self._tensor(post))
            found = answers_of(self.model, output)
            answers, likeliest = [found.logit, found.distance], None
            if found.classes is not None:
                answers.append(change_logit(found.classes, 1))
                likeliest = found.classes[0].argmax(dim=0).to(torch.uint8).cpu().numpy() if classify else None
            vectors = None if cells is None else self._picked(output, cells)
        outputs = Outputs(*(answer[0, 0].float().cpu().numpy() for answer in answers))
        return TorchAnswer(outputs, likeliest, vectors)

    def _picked(self, output: object, cells: NDArray[np.integer]) -> NDArray[np.float16]:
        """Return the vectors of both branches at some cells, shape (2, N, D)."""
        import torch

        from mmcd.models.siamese import SiameseOutput

        if not isinstance(output, SiameseOutput):
            raise ConfigError("This model has no embeddings.", "Choose a pseudo-siamese model.")
        rows, cols = torch.from_numpy(np.ascontiguousarray(cells.T)).to(self._device)
        both = [vectors[0, :, rows, cols].T for vectors in (output.pre_embedding, output.post_embedding)]
        return np.asarray(torch.stack(both).half().cpu().numpy())

    def embed(self, image: Array, side: Side) -> Array:
        """Return the unit vectors of the regions of one image.

        Args:
            image: Normalised image, shape (bands, H, W), H and W multiples of 16.
            side: Whether it is the image before or after.

        Returns:
            Vectors of the regions of 16 px whose top left corner is at multiples of 8 px, shape (D, H/8, W/8).

        Raises:
            ConfigError: The network has no embeddings.
        """
        import torch

        if not self.has_embeddings:
            raise ConfigError("This model has no embeddings.", "Choose a pseudo-siamese model.")

        with torch.inference_mode(), self._autocast():
            vectors: Array = self.model.embed(self._tensor(image), side)[0].float().cpu().numpy()  # type: ignore[operator]
        return vectors

    def _autocast(self) -> "torch.autocast":
        import torch

        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _tensor(self, values: Array) -> "Tensor":
        import torch

        return torch.from_numpy(values[None]).to(self._device).contiguous(memory_format=torch.channels_last)


class _ExportBackend(ABC):
    """What both runtimes share: a verified file, compiled for the shape of the last block.

    Args:
        export: What to run.

    Raises:
        ConfigError: The runtime is not installed.
        ModelError: A file is missing or was changed.
    """

    runtime: str

    def __init__(self, export: ExportedModel) -> None:
        require_installed(export.backend)
        export.verify()
        self.halo = export.halo
        self.has_classes = export.has_classes
        self._path = export.path
        dtype = "int8" if export.precision == "int8" else "float32"
        named = f"{self.runtime} {version(self.runtime)}"
        self.arithmetic = Arithmetic("cpu", dtype, _threads(), named, export.sha256)
        self._compiled: tuple[tuple[int, ...], _Run] | None = None

    @property
    def _outputs(self) -> tuple[str, ...]:
        """Names of the outputs to ask for."""
        return OUTPUTS if self.has_classes else OUTPUTS[:2]

    def run(self, pre: Array, post: Array) -> Outputs:
        """Compare two aligned blocks, see `Backend.run`; a block of another shape compiles the network anew."""
        shape = (*pre.shape, *post.shape)
        if self._compiled is None or self._compiled[0] != shape:
            self._compiled = shape, self._compile(self._path, pre.shape, post.shape)
        return self._compiled[1](pre[None], post[None])

    @abstractmethod
    def _compile(self, path: Path, pre: tuple[int, ...], post: tuple[int, ...]) -> _Run:
        """Return the network for images of two shapes (bands, H, W)."""


class OnnxBackend(_ExportBackend):
    """ONNX Runtime on the processor."""

    runtime = "onnxruntime"

    def _compile(self, path: Path, pre: tuple[int, ...], post: tuple[int, ...]) -> _Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.arithmetic.threads, 1
        options.log_severity_level = 3  # it warns of every constant that it folds
        for axis, size in zip(("height", "width"), pre[1:], strict=True):
            options.add_free_dimension_override_by_name(axis, size)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def run(pre: Array, post: Array) -> Outputs:
            answers = session.run(self._outputs, {"pre": pre, "post": post})
            return Outputs(*(answer[0, 0] for answer in answers))

        return run


class OpenVinoBackend(_ExportBackend):
    """OpenVINO on the processor. What an int8 export leaves in floating point runs in float32."""

    runtime = "openvino"

    def _compile(self, path: Path, pre: tuple[int, ...], post: tuple[int, ...]) -> _Run:
        openvino = import_openvino()
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({"pre": [1, *pre], "post": [1, *post]})
        options = {
            "INFERENCE_NUM_THREADS": self.arithmetic.threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
        }
        compiled = core.compile_model(model, "CPU", options)

        def run(pre: Array, post: Array) -> Outputs:
            answers = compiled({"pre": pre, "post": post})
            return Outputs(*(answers[name][0, 0] for name in self._outputs))

        return run


def import_openvino() -> Any:
    """Return the module ``openvino``.

    Importing it sends a usage report to its maker unless its telemetry package is absent, so that is made to look
    absent in this process; mmcd reports nothing to anyone.

    Raises:
        ConfigError: It is not installed.
    """
    require_installed("openvino")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def open_export(export: ExportedModel) -> Backend:
    """Return an export in its runtime.

    Raises:
        ConfigError: The runtime is not installed.
        ModelError: A file is missing or was changed.
    """
    return OpenVinoBackend(export) if export.backend == "openvino" else OnnxBackend(export)


def _threads() -> int:
    """Return the threads to use: ``OMP_NUM_THREADS`` as torch obeys it, else one for each processor we may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
