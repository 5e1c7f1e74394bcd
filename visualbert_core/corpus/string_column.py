"""A column of strings in one buffer, read in place.

Owns the layout of image ids in memory: the bytes of all strings in a row, and the start of each string, as in Apache
Arrow's string arrays. Corpora and stores keep their ids like this. As Python objects, ten million ids take almost a GB
in every process. A forked process copies that memory as soon as it reads the ids, because reading an object changes its
reference count.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Self, overload

import numpy as np
import pyarrow as pa


class StringColumn(Sequence[str]):
    """A sequence of strings. Without `order`, string i is bytes [starts[i], starts[i + 1]) of `letters`, in UTF-8.

    With `order`, integers that select strings, item i of the sequence is string order[i].
    """

    def __init__(
        self,
        letters: bytearray | memoryview,
        starts: array[int] | memoryview,
        order: range | np.ndarray | None = None,
    ) -> None:
        self._letters, self._starts = letters, starts
        # `.data` is a memory view: its items are Python's integers, which are faster one at a time than NumPy's.
        every = range(len(starts) - 1)
        self._order = order.data if isinstance(order, np.ndarray) else every if order is None else order

    @classmethod
    def of(cls, column: pa.StringArray | pa.LargeStringArray) -> Self:
        """Make a column over the buffers of an Arrow array without nulls, without a copy."""
        if not len(column):  # Arrow may give no buffer of starts for an empty array
            return cls(bytearray(), array("q", [0]))
        _, starts, letters = column.buffers()
        raw = memoryview(starts).cast("B")
        places = raw.cast("q") if pa.types.is_large_string(column.type) else raw.cast("i")
        return cls(memoryview(letters or b""), places[column.offset : column.offset + len(column) + 1])

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> StringColumn: ...
    def __getitem__(self, index: int | slice) -> str | StringColumn:
        at = self._order[index]
        if isinstance(at, int):
            return str(self._letters[self._starts[at] : self._starts[at + 1]], "utf-8")
        return StringColumn(self._letters, self._starts, np.asarray(at))

    def find(self, value: str) -> int | None:
        """Return the index of a string by bisection, or None where it is absent. The strings must ascend."""
        index = bisect_left(self, value)
        return index if index < len(self) and self[index] == value else None
