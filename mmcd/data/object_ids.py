"""A program that turns an array of pickled strings into one of plain ones: ``python object_ids.py SOURCE TARGET``.

Metadata of the reference system hold image ids as pickled objects, and a pickle can run anything. It is therefore read
in a process of its own, by an unpickler that knows nothing but arrays and strings. Imports numpy alone, so that it runs
without the package.
"""

import pickle
import sys
from typing import Any

import numpy as np

_ALLOWED = {
    (module, name)
    for module, names in {
        "numpy": ("ndarray", "dtype"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
    }.items()
    for name in names
}


class ArrayUnpickler(pickle.Unpickler):
    """Builds arrays of strings, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a name of the list.

        Raises:
            UnpicklingError: It is another one.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which ids do not need")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def convert(source: str, target: str) -> None:
    """Read an object array of strings and write it as fixed-width unicode.

    Raises:
        ValueError: The file holds anything else.
    """
    with open(source, "rb") as file:  # noqa: PTH123 - a program of its own
        version = np.lib.format.read_magic(file)
        if version not in {(1, 0), (2, 0)}:
            raise ValueError(f"npy version {version} is not known")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        header(file)
        values = ArrayUnpickler(file).load()
    if not isinstance(values, np.ndarray) or values.ndim != 1 or not all(isinstance(value, str) for value in values):
        raise ValueError("it is not a list of strings")
    with open(target, "wb") as file:  # noqa: PTH123
        np.save(file, values.astype(np.str_), allow_pickle=False)


if __name__ == "__main__":
    try:
        convert(*sys.argv[1:3])
    except Exception as error:  # noqa: BLE001 - whatever a foreign file does is one line to the caller
        sys.exit(f"{type(error).__name__}: {error}"[:300])
