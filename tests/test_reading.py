"""Streaming JSON: it reads what json.loads reads, wherever a chunk ends, and in little memory; the rest is one line."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visualbert_core.errors import AnnotationError
from visualbert_core.tasks.reading import stream_fields, stream_list

SMALL = """ {"info": {"a]": [1, -2.5e3, "x\\"}"]}, "n": 12 ,
 "list" : [ {"a": "\\u00e9é😀\\ud83d\\ude00\\\\"}, 345, -0.5E-1,true , null, "", [], {},
  "]}", [[1], {"b": NaN}] ] , "end": -Infinity} """


def read(path: Path, key: str | None, chunk: int = 1 << 20) -> list[Any]:
    pairs = list(stream_list(path, key, chunk))
    assert [index for index, _ in pairs] == list(range(len(pairs)))
    return [element for _, element in pairs]


def test_a_chunk_may_end_anywhere(tmp_path: Path) -> None:
    """Every chunk size from one byte on gives what json.loads gives: within escapes, numbers, words and characters."""
    path = tmp_path / "small.json"
    path.write_text(SMALL, encoding="utf-8")
    expected = repr(json.loads(SMALL)["list"])
    for chunk in range(1, len(SMALL.encode()) + 1):
        assert repr(read(path, "list", chunk)) == expected, chunk


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(elements=st.lists(VALUES, max_size=6), chunk=st.integers(1, 40), indent=st.none() | st.integers(0, 2))
def test_any_list_is_read_as_json_reads_it(memory: Path, elements: list[Any], chunk: int, indent: int | None) -> None:
    """Any values, with or without line breaks, at the top or under a key."""
    path = memory / "any.json"
    path.write_text(json.dumps(elements, indent=indent), encoding="utf-8")
    assert read(path, None, chunk) == elements
    path.write_text(json.dumps({"before": elements, "list": elements}, indent=indent, ensure_ascii=False), "utf-8")
    assert read(path, "list", chunk) == elements


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"list": [1, 2', "not JSON at line 1 column 15 .*delimiter"),
        (b'{"list": [1, 2]', "not JSON at line 1 column 16 .*delimiter"),
        (b'{"list": [1, 2]} x', "not JSON at line 1 column 18 .Extra data"),
        (b'{"list": [1, 2]}{}', "Extra data"),
        (b'{"list": [1,]}', r"list\[1\]: not JSON at line 1 column 13 "),
        (b'{"list": [1 2]}', "not JSON at line 1 column 13 .*delimiter"),
        (b'{"list": [1],}', "not JSON at line 1 column 14 .Expecting property name"),
        (b'{"list": [1], 2: 3}', "Expecting property name"),
        (b'{"list"; [1]}', "Expecting ':' delimiter"),
        (b'{"list": [1,\n\n {"a": tru}]}', r"list\[1\]: not JSON at line 3 column 8 "),
        (b'{"list": ["a\nb"]}', r"list\[0\]: not JSON at line 1 column 13 .Invalid control character"),
        (b'{"list": ["abc]}', "Unterminated string"),
        (b'{"list": [' + b"1" * 5000 + b"]}", r"list\[0\]: .*a number is too long"),
        (b'{"list": [' + b"[" * 200_000, r"list\[0\]: .*nested too deeply"),
        (b'{"list": ["\\ud83d"]}', r"list\[0\]: half a character"),
        (b'{"list": [{"\\uDE00": 1}, 1]}', r"list\[0\]: half a character"),
        (b'{"list": [], "list": [1]}', "'list' occurs twice"),
        (b'{"a": 1, "a": 2, "list": []}', "'a' occurs twice"),
        (b'{"lists": []}', "no 'list'"),
        (b"{}", "no 'list'"),
        (b'{"list": {"a": 1}}', "'list' is dict, not a list"),
        (b"[1]", "is list, not an object"),
        (b"", "not JSON at line 1 column 1 "),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"list": ["ok", "\xff"]}', "not UTF-8 at byte 17"),
        ('{"list": ["é'.encode()[:-1], "not UTF-8 at byte 11"),
        (b"\xff\xfe{\x00", "UTF-16 text: save it as UTF-8"),
    ],
)
def test_broken_json_is_one_line_that_says_where(tmp_path: Path, text: bytes, message: str, chunk: int) -> None:
    """Truncation, garbage, and what Python's reader would stop at with other exceptions, wherever the chunks end."""
    path = tmp_path / "broken.json"
    path.write_bytes(text)
    with pytest.raises(AnnotationError, match=f"broken.json.*{message}") as caught:
        read(path, "list", chunk)
    assert "\n" not in str(caught.value)


def test_any_truncation_is_an_error(memory: Path) -> None:
    """No prefix of a file passes for the file, with any size of chunks."""
    path, whole = memory / "cut.json", SMALL.strip().encode()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for chunk in (1, 16, 1 << 20):
            with pytest.raises(AnnotationError):
                read(path, "list", chunk)


def test_fields_are_checked(tmp_path: Path) -> None:
    """Records come with their fields; a wrong one is named by its index or, once that is known, its first field."""
    path = tmp_path / "records.json"
    path.write_text('[{"id": 5, "text": "é", "more": 1}]', encoding="utf-8")
    assert list(stream_fields(path, None, id=int, text=str)) == [({"id": 5, "text": "é", "more": 1}, (5, "é"))]
    for record, message in (
        ({"id": True, "text": ""}, r"\[0\]: 'id' is bool, not a whole number"),
        ({"id": 5}, "id 5: no 'text'"),
        ({"id": 5, "text": None}, "id 5: 'text' is NoneType, not a string"),
        ("id", r"\[0\]: is str, not an object"),
    ):
        path.write_text(json.dumps([record]))
        with pytest.raises(AnnotationError, match=message):
            list(stream_fields(path, None, id=int, text=str))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten megabytes pass through less than one."""
    path = tmp_path / "large.json"
    path.write_text(json.dumps({"list": [{"text": "x" * 100}] * 80_000}))
    assert path.stat().st_size > 9e6
    tracemalloc.start()
    try:
        count = sum(1 for _ in stream_list(path, "list", chunk=1 << 16))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 80_000
    assert peak < 1e6
