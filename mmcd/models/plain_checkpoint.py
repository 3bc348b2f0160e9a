"""A program that rewrites a checkpoint without scalars of numpy: ``python plain_checkpoint.py SOURCE TARGET``.

Checkpoints of reference system 0 hold means of numpy beside the weights, and ``weights_only=True`` knows no numpy. Such
a file is therefore read in a process of its own, by torch's restricted unpickler with those scalars on its list and
nothing else. Imports torch and numpy alone, so that it runs without the package.
"""

import sys
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


def plain(value: Any) -> Any:
    """Return a value with scalars of numpy as Python's numbers, in containers too."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def convert(source: str, target: str) -> None:
    """Read a checkpoint and write it with plain numbers.

    Raises:
        UnpicklingError: It asks for anything but tensors, containers, texts and numbers.
    """
    with torch.serialization.safe_globals(_ALLOWED):
        values = torch.load(source, map_location="cpu", weights_only=True)
    torch.save(plain(values), target)


if __name__ == "__main__":
    try:
        convert(*sys.argv[1:3])
    except Exception as error:  # noqa: BLE001 - whatever a foreign file does is one line to the caller
        words = " ".join(str(error).split())
        refused = words.partition("GLOBAL ")[2].split(" ")[0]
        sys.exit(f"it asks for {refused}, which weights do not need" if refused else words[:300])
