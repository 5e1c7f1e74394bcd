"""Pickles of NumPy arrays from files that nobody vouches for, read without running what they say.

Owns the list of what such a pickle may name: the parts of arrays, dictionaries, strings and numbers. Published weights
and other projects' features come as such files.
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
"""What a cut or garbled pickle may raise while it is read."""


def load_arrays(file: IO[bytes], encoding: str = "ASCII") -> Any:
    """What a pickle holds. `encoding` is that of strings that Python 2 wrote: latin1 where arrays are among them.

    Raises UnpicklingError naming anything that the file asks for and that is no part of an array, and any of BROKEN.
    """
    return _Arrays(file, encoding=encoding).load()


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy.core.", "numpy._core."), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays of numbers are read")
        return known


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles below protocol 3 spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return codecs.latin_1_encode(text)[0]


# NumPy's own functions, had from what it would write: their modules are private and have moved.
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy._core.multiarray", "scalar"): np.float32(1).__reduce__()[0],
    ("numpy._core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
}
