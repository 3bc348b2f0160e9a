"""Turn a network into a file for ONNX Runtime or OpenVINO, in single precision or quantised to 8 bit."""

import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmcd.cards import Card
from mmcd.errors import ModelError, StorageError
from mmcd.geo.cog import atomic_path
from mmcd.inference.answers import answers_of, changed_from
from mmcd.inference.backends import OUTPUTS, import_openvino
from mmcd.inference.exported import ExportBackend, ExportPrecision, require_installed
from mmcd.progress import Progress, silent

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Normalised images before and after, each (bands, H, W)."""

_OPSET = 17
"""Version of ONNX's operators: an old one, because the network needs none of the newer."""

_TRACE_SIDE = 64
_CLOSED = ("swin_t", "convnext_tiny", "cross_attention")
_AXES = {2: "height", 3: "width"}
_INPUTS = ("pre", "post")


class _Answers(nn.Module):
    """The network reduced to what scores and the evidence of buildings are made of, see `OUTPUTS`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pre: Tensor, post: Tensor) -> tuple[Tensor, ...]:
        found = answers_of(self.model, self.model(pre, post))
        if found.classes is None:
            return found.logit, found.distance
        classes = found.classes
        return _logit_from(classes, changed_from(self.model)), found.distance, _logit_from(classes, 1)


def _logit_from(classes: Tensor, first: int) -> Tensor:
    """Return `mmcd.models.siamese.change_logit` in operators that every runtime knows.

    OpenVINO overlooks the axis of ONNX's ReduceLogSumExp in this version and sums over the whole image.
    """
    return _log_sum_exp(classes[:, first:]) - _log_sum_exp(classes[:, :first])


def _log_sum_exp(values: Tensor) -> Tensor:
    largest = values.amax(dim=1, keepdim=True)
    return largest + (values - largest).exp().sum(dim=1, keepdim=True).log()


def convert(
    model: nn.Module,
    card: Card,
    backend: ExportBackend,
    precision: ExportPrecision,
    path: Path,
    samples: Sequence[Pair] = (),
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Write a network for one runtime; height and width stay open, multiples of 16.

    A fusion UNet is written with ResNet trunks and without attention: what the others compute depends on the size of
    the image in ways that a graph of open height and width cannot hold.

    For 8 bit, weights and activations of the convolutions are quantised after training: the ranges of the activations
    are those met on the samples, weights have one scale a channel, and biases are corrected for the mean error
    (Nagel et al., ICCV 2019, as NNCF does it). What is no convolution, sum or pooling stays in floating point.

    Args:
        model: Two-image network.
        card: Its card.
        backend: Runtime to write for.
        precision: ``fp32`` or ``int8``.
        path: ONNX file; for OpenVINO the ``.xml`` beside which the weights lie as ``.bin``.
        samples: Inputs to measure ranges on, only for ``int8``.
        progress: Told of the samples done; may raise to stop.

    Returns:
        The files that were written, the one to open first.

    Raises:
        ConfigError: The extra ``fast`` is not installed.
        ModelError: The network cannot be written with open height and width.
        StorageError: The files cannot be written.
    """
    require_installed("onnx")
    refuse_closed(card)
    graph = _to_onnx(model, len(card.pre.bands), len(card.post.bands))
    if backend == "onnx":
        return _write_onnx(graph, precision, path, samples, progress)
    return _write_openvino(graph, precision, path, samples, progress)


def refuse_closed(card: Card) -> None:
    """Refuse a network whose graph holds for one size of the image alone.

    Raises:
        ModelError: It is one.
    """
    if card.architecture != "fusion_unet":
        return
    parts = [card.settings.get(name) for name in ("trunk", "post_trunk", "fusion")]
    closed = [part for part in parts if part in _CLOSED]
    if closed:
        raise ModelError(
            f"{card.name} cannot be exported: {closed[0]} does not take images of any size in a graph.",
            "Run it with --backend torch.",
        )


def _to_onnx(model: nn.Module, pre_bands: int, post_bands: int) -> bytes:
    """Return the serialised ONNX graph."""
    outputs = OUTPUTS if getattr(model, "classes", 1) > 1 else OUTPUTS[:2]
    inputs = tuple(torch.zeros(1, bands, _TRACE_SIDE, _TRACE_SIDE) for bands in (pre_bands, post_bands))
    with TemporaryDirectory(prefix="mmcd-") as folder, warnings.catch_warnings(), torch.inference_mode():
        path = Path(folder) / "network.onnx"
        # It announces the exporter that follows it, which needs one more package for the same graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Answers(model).eval(),
            inputs,
            path,
            input_names=_INPUTS,
            output_names=outputs,
            dynamic_axes=dict.fromkeys(_INPUTS + outputs, _AXES),
            opset_version=_OPSET,
            dynamo=False,
        )
        return path.read_bytes()


def _write_onnx(
    graph: bytes, precision: ExportPrecision, path: Path, samples: Sequence[Pair], progress: Progress
) -> tuple[Path, ...]:
    import onnx

    network = onnx.load_model_from_string(graph)
    if precision == "int8":
        network = _quantised(network, samples, progress)
    with atomic_path(path) as temporary:
        temporary.write_bytes(network.SerializeToString())
    return (path,)


def _write_openvino(
    graph: bytes, precision: ExportPrecision, path: Path, samples: Sequence[Pair], progress: Progress
) -> tuple[Path, ...]:
    openvino = import_openvino()
    network = openvino.Core().read_model(graph)
    if precision == "int8":
        network = _quantised(network, samples, progress)
    weights = path.with_suffix(".bin")
    with atomic_path(path) as temporary, atomic_path(weights) as temporary_weights:
        try:
            openvino.serialize(network, temporary, temporary_weights)
        except RuntimeError as error:  # it has no exception of its own for a full disk
            raise StorageError(
                f"{path} cannot be written: the disk may be full ({error}).",
                "Free some space or choose another folder.",
            ) from error
    return path, weights


def _quantised(network: Any, samples: Sequence[Pair], progress: Progress) -> Any:
    """Return a network quantised by NNCF, which takes those of ONNX and OpenVINO alike."""
    import_openvino()  # first, so that neither reports its use
    with redirect_stdout(io.StringIO()):  # it draws progress bars of its own, where results belong
        import nncf

        nncf.set_log_level(logging.ERROR)
        rounds = count()

        def prepared(sample: Pair) -> dict[str, NDArray[np.float32]]:
            progress("calibrate", next(rounds) % len(samples), len(samples))
            return {"pre": sample[0][None], "post": sample[1][None]}

        return nncf.quantize(
            network,
            nncf.Dataset(samples, prepared),
            subset_size=len(samples),
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric; asymmetric ranges cost the flood model 0.5 % of AP
        )
