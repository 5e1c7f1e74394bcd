"""Arrays in files of NumPy's format and in pickles, read without running what they say."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from visualbert_core.features.importers.sources import MalformedError
from visualbert_core.io.safe_pickle import BROKEN, load_arrays


def npy(data: bytes, name: str) -> Any:
    """A .npy file, pickled objects included."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(file)
        if dtype.hasobject:
            return unpickle(file.read())
        file.seek(0)
        return np.lib.format.read_array(file)
    except MalformedError as error:
        raise MalformedError(f"{name}: {error}") from None
    except (ValueError, EOFError, MemoryError) as error:
        raise MalformedError(f"{name}: {error}") from None


def unpickle(data: bytes) -> Any:
    """What a pickle holds: arrays, dictionaries, strings and numbers."""
    try:
        return load_arrays(io.BytesIO(data))
    except BROKEN as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from None


def floats(features: np.ndarray) -> np.ndarray:
    """Features as float32, from any floating-point type: whole numbers are quantised ones, or the bits of others."""
    if features.dtype.kind != "f":
        raise MalformedError(f"features are {features.dtype}, not floating-point numbers")
    with np.errstate(over="ignore"):  # infinity is malformed
        return features.astype(np.float32)
