"""A program that rewrites a checkpoint as tensors and plain values: ``python plain_checkpoint.py SOURCE TARGET``.

Checkpoints of reference system 0 hold means of numpy beside the weights, those of systems 2 and 3 settings and states
of PyTorch Lightning; ``weights_only=True`` knows neither. Such a file is therefore read in a process of its own, by
torch's restricted unpickler with those scalars on its list. What belongs to a trainer is not needed: an empty
dictionary stands in for it, and none of its code is run or even installed. Imports torch and numpy alone, so that it
runs without the package.
"""

import pickle
import re
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar

_NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool")
_ALLOWED: list[Any] = [
    (scalar, "numpy._core.multiarray.scalar"),
    (scalar, "numpy.core.multiarray.scalar"),
    (np.dtype, "numpy.dtype"),
    *(type(np.dtype(name)) for name in _NUMBERS),
]

_TRAINERS = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
    "pl_bolts.",
    "omegaconf.",
    "argparse.Namespace",
    "pathlib.",
)
READABLE = ("numpy.", *_TRAINERS)
"""Beginnings of the names of objects that `convert` can do with."""


class _LeftOut:
    """Stands in for any object of a trainer; made of one, it is an empty dictionary, whatever it was made from."""

    def __new__(cls, *values: Any, **named: Any) -> Any:
        """Return a dictionary of the kind that torch's unpickler lets be filled."""
        return OrderedDict()


def plain(value: Any) -> Any:
    """Return a value with scalars of numpy as Python's numbers, in containers too."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _read(source: str, allowed: list[Any]) -> Any:
    """Read a checkpoint, with a stand-in for each object of a trainer that it turns out to ask for."""
    while True:
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            known = {entry[1] for entry in allowed if isinstance(entry, tuple)}
            if asked is None or asked[1] in known or not asked[1].startswith(_TRAINERS):
                raise
            allowed.append((type(asked[1].rpartition(".")[2], (_LeftOut,), {}), asked[1]))


def convert(source: str, target: str) -> None:
    """Read a checkpoint and write it with plain numbers.

    Raises:
        UnpicklingError: It asks for anything but tensors, containers, texts, numbers and objects of a trainer.
    """
    values = _read(source, list(_ALLOWED))
    torch.save(plain(values), target)


if __name__ == "__main__":
    try:
        convert(*sys.argv[1:3])
    except Exception as error:  # noqa: BLE001 - whatever a foreign file does is one line to the caller
        words = " ".join(str(error).split())
        refused = words.partition("GLOBAL ")[2].split(" ")[0]
        sys.exit(f"it asks for {refused}, which weights do not need" if refused else words[:300])
