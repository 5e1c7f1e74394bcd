"""Read arrays from NumPy's .npy format and from pickles, without running code that the files name.

Owns the checks on such arrays. `numpy.load(allow_pickle=True)` would call any function that a pickle names, so the
pickled part goes through `io.safe_pickle`.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from visualbert_core.features.importers.sources import MalformedError
from visualbert_core.io.safe_pickle import BROKEN, load_arrays


def npy(data: bytes, name: str) -> Any:
    """Read a .npy file, also one with pickled objects. `name` is for messages. Raise MalformedError."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(file)
        # An array of objects is a pickle behind the header.
        if dtype.hasobject:
            return unpickle(file.read())
        file.seek(0)
        return np.lib.format.read_array(file)
    except (ValueError, EOFError, MemoryError) as error:  # a MalformedError is a ValueError
        raise MalformedError(f"{name}: {error}") from None


def unpickle(data: bytes) -> Any:
    """Read a pickle of arrays, dictionaries, strings and numbers. Raise MalformedError for anything else."""
    try:
        return load_arrays(io.BytesIO(data))
    except BROKEN as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from None


def floats(features: np.ndarray) -> np.ndarray:
    """Return features of any floating-point type as float32.

    Raise MalformedError for integers: they are quantised features, or the bits of another type.
    """
    if features.dtype.kind != "f":
        raise MalformedError(f"features are {features.dtype}, not floating-point numbers")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which `checks.checked` refuses
        return features.astype(np.float32)
