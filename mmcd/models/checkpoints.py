"""Checkpoints of reference system 0: ``.pth`` files of weights, optimizer and figures, in its own key layout.

Nothing in such a file is trusted: torch reads it with ``weights_only=True``. Files whose figures are scalars of numpy,
or that hold states of a trainer, which that refuses, are rewritten by `mmcd.models.plain_checkpoint` in a process of
its own.
"""

import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmcd.errors import ModelError
from mmcd.models import plain_checkpoint
from mmcd.models.encoders import TrunkName
from mmcd.models.siamese import ContextSiamese

_WEIGHTS = "model_state_dict"
_FIGURES = ("epoch", "val_loss", "val_acc")
_SHOWN = 3
_SECONDS = 600
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)
"""What torch raises for a file that is damaged, or none of its own."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, but for the state of its optimizer.

    Attributes:
        path: The file.
        weights: Tensors by name.
        figures: Epoch, validation loss and accuracy, those that the file has.
    """

    path: Path
    weights: dict[str, Tensor]
    figures: dict[str, float]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or a bare dictionary of weights.

    Raises:
        ModelError: The file is missing, damaged, asks for objects that no weights need, or holds no weights.
    """
    values = read_plain(path)
    weights = values.get(_WEIGHTS, values) if isinstance(values, dict) else None
    if not isinstance(weights, dict) or not weights or not all(_is_tensor(*item) for item in weights.items()):
        raise ModelError(
            f"{path} holds no weights by name.", f"A checkpoint has a dictionary {_WEIGHTS!r}, or is one itself."
        )
    figures = {name: values[name] for name in _FIGURES if isinstance(values.get(name), int | float)}
    return Checkpoint(path, weights, figures)


def read_plain(path: Path) -> Any:
    """Return what a file of torch's holds, as long as it is made of tensors, numbers, texts and containers.

    Scalars of numpy are read too, in a process of its own, and what belongs to PyTorch Lightning is left out there.

    Raises:
        ModelError: The file is missing, damaged or asks for other objects.
    """
    if not path.is_file():
        raise ModelError(f"{path} is not a file.", "Give the path of a checkpoint, such as best_model.pth.")
    try:
        return _load(path)
    except _UNREADABLE as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is not None and wanted[1].startswith(plain_checkpoint.READABLE):
            return _rewritten(path)
        raise _refused(path, wanted[1] if wanted else None, error) from error


def context_siamese(checkpoint: Checkpoint) -> ContextSiamese:
    """Return the network that the weights belong to, in evaluation mode.

    Trunk, bands and length of the embeddings are read off the tensors.

    Raises:
        ModelError: Not every tensor of the network is there in its shape, or others are left over.
    """
    weights = checkpoint.weights
    try:
        bands = [weights[f"{side}_encoder.conv1.weight"].shape[1] for side in ("optical", "sar")]
        embedding_dim = weights["optical_projector.layer2.0.weight"].shape[0]
    except (LookupError, AttributeError) as error:
        first = ", ".join(list(weights)[:_SHOWN])
        raise ModelError(
            f"{checkpoint.path} is no checkpoint of the patch network: it holds {first} and no {error}.",
            "Give a checkpoint of reference system 0, such as best_model.pth.",
        ) from error
    deeper = "optical_encoder.layer1.2.conv1.weight" in weights  # three blocks where ResNet-18 has two
    trunk: TrunkName = "resnet34" if deeper else "resnet18"
    with torch.device("meta"):  # random values of 43 million weights would only be overwritten
        network = ContextSiamese(bands[0], bands[1], trunk, embedding_dim)
    _check_names(checkpoint, network.state_dict())
    network.load_state_dict(weights, assign=True)
    return network.float().eval()


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _rewritten(path: Path) -> Any:
    """Read a file through the program that turns numpy's scalars into plain numbers and leaves out a trainer's."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "plain.pth"
        command = [sys.executable, "-I", str(Path(plain_checkpoint.__file__)), str(path.resolve()), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise _refused(path, None, error) from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"its reader left with {done.returncode}"])[-1]
            raise _refused(path, None, ValueError(reason))
        return _load(target)


def _check_names(checkpoint: Checkpoint, wanted: dict[str, Tensor]) -> None:
    """Refuse weights that are not exactly those of a network."""
    weights = checkpoint.weights
    shared = wanted.keys() & weights.keys()
    faults = {
        "missing": wanted.keys() - weights.keys(),
        "not expected": weights.keys() - wanted.keys(),
        "of another shape": {name for name in shared if weights[name].shape != wanted[name].shape},
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names)
        raise ModelError(
            f"{checkpoint.path} does not match the patch network: {listed}.",
            "It belongs to another network or was cut: give a whole checkpoint of reference system 0.",
        )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")


def _is_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _refused(path: Path, wanted: str | None, error: Exception) -> ModelError:
    if wanted is not None:
        return ModelError(f"{path} asks for {wanted}, which weights do not need.", "Do not use this file.")
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    if "weights_only" in reason:  # torch advises to read it without that guard, which would run what it contains
        reason = "it is no checkpoint, or holds more than tensors and plain values"
    return ModelError(f"{path} cannot be read: {reason[:200]}.", "Fetch or write the checkpoint again.")
