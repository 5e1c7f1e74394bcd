"""Strings in a column: one buffer, and where each of them starts, as Arrow keeps them; read where they lie.

As Python objects, ten million ids take most of a GB, in every process anew, a forked one included as soon as it looks
at them. Corpora and stores keep theirs like this.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Self, overload

import numpy as np
import pyarrow as pa


class StringColumn(Sequence[str]):
    """String i is bytes [starts[i], starts[i + 1]) of `letters`, in UTF-8. With an `order`, a permutation or a part of
    one as integers, it is the string that `order` says."""

    def __init__(
        self,
        letters: bytearray | memoryview,
        starts: array[int] | memoryview,
        order: range | np.ndarray | None = None,
    ) -> None:
        self._letters, self._starts = letters, starts
        every = range(len(starts) - 1)
        self._order = order.data if isinstance(order, np.ndarray) else every if order is None else order

    @classmethod
    def of(cls, column: pa.StringArray | pa.LargeStringArray) -> Self:
        """The strings of an Arrow array without nulls."""
        if not len(column):
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
        """The index of a string, where strings ascend; None where it is none of them."""
        index = bisect_left(self, value)
        return index if index < len(self) and self[index] == value else None
