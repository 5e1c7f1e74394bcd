"""Pickles of NumPy arrays from untrusted files, read without running code that they name.

Owns the list of the names that such a pickle may use: those of arrays, dictionaries, strings and numbers. Published
weights and features of other projects are such files. The method is the one of "Restricting Globals" in the
documentation of Python's pickle module.
"""

from __future__ import annotations

import codecs
import pickle
from collections import OrderedDict
from typing import IO, Any

import numpy as np

BROKEN = (
    *(pickle.UnpicklingError, EOFError, ImportError, AttributeError, IndexError, KeyError, TypeError, ValueError),
    *(MemoryError, OverflowError, RecursionError),
)
"""The errors that a truncated or damaged pickle may raise while it is read."""


def load_arrays(file: IO[bytes], encoding: str = "ASCII") -> Any:
    """Return the content of a pickle. `encoding` is for strings that Python 2 wrote; latin1 where these hold arrays.

    Raise UnpicklingError naming a class or function that is not part of an array, and any error of BROKEN.
    """
    return _Arrays(file, encoding=encoding).load()


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy.core.", "numpy._core."), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays of numbers are read")
        return known


def _latin1(text: str, encoding: str) -> bytes:
    """Encode text as bytes. Pickles below protocol 3 store bytes as a call of _codecs.encode with latin1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return codecs.latin_1_encode(text)[0]


# The functions come from what NumPy itself writes into a pickle, because their modules are private and have moved.
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy._core.multiarray", "scalar"): np.float32(1).__reduce__()[0],
    ("numpy._core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
}
