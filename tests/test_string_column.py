"""A column of strings that are read in place gives the same strings as a list."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visualbert_core.corpus.string_column import StringColumn

TEXTS = st.lists(st.text(max_size=5), max_size=20)


@settings(deadline=None)
@given(TEXTS, st.integers(0, 5), st.sampled_from([pa.string(), pa.large_string()]))
def test_an_arrow_column_is_its_strings(texts: list[str], first: int, kind: pa.DataType) -> None:
    """The column equals the list for both of Arrow's string types, for a whole array, a slice and a slice of a
    slice."""
    strings = StringColumn.of(pa.array(texts, kind)[first:])
    assert list(strings) == texts[first:]
    assert len(strings) == len(texts[first:])
    assert list(strings[1:3]) == texts[first:][1:3]
    assert list(strings[1:][::-1][:2]) == texts[first:][1:][::-1][:2]
    with pytest.raises(IndexError):
        strings[len(strings)]


@settings(deadline=None)
@given(st.sets(st.text(max_size=3)), st.text(max_size=3))
def test_ascending_strings_are_found(texts: set[str], other: str) -> None:
    """Python and Arrow sort text alike, so a search finds every string in a sorted column and no missing one."""
    column = pa.array(texts, pa.string())
    strings = StringColumn.of(column.sort())
    assert [strings.find(text) for text in sorted(texts)] == list(range(len(texts)))
    assert (strings.find(other) is None) == (other not in texts)
