"""Typed records hold what json.loads reads, in the fast reading and in the second one; every fault is one line."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Struct, UnsetType

from visualbert_core.errors import AnnotationError
from visualbert_core.tasks.reading import read_lines, read_list, typed, untyped

SMALL = """ {"info": {"a]": [1, -2.5e3, "x\\"}"]}, "n": 12 ,
 "list" : [ {"a": "\\u00e9é😀\\ud83d\\ude00\\\\"}, 345, -0.5E-1,true , null, "", [], {},
  "]}", [[1], {"b": 7}] ] , "end": -1} """


class Part(Struct):
    text: str


class Whole(Struct):
    id: int
    text: str
    parts: list[Part] = []
    tokens: tuple[tuple[int, ...] | str, ...] = ()
    extra: str | UnsetType = UNSET


def read(path: Path, key: str | None) -> list[Any]:
    return [untyped(element, str(path)) for element in read_list(path, key)[1]]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(elements=st.lists(VALUES, max_size=6), indent=st.none() | st.integers(0, 2), ascii=st.booleans())
def test_any_list_is_read_as_json_reads_it(memory: Path, elements: list[Any], indent: int | None, ascii: bool) -> None:
    """Any values are read as json.loads reads them: with or without line breaks, with NaN and infinity, at the top or
    under a key."""
    path = memory / "any.json"
    path.write_text(json.dumps(elements, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    assert repr(read(path, None)) == repr(elements)  # compares text, because NaN is not equal to itself
    path.write_text(json.dumps({"before": 1, "list": elements, "x": [{}]}, indent=indent, ensure_ascii=ascii), "utf-8")
    assert repr(read(path, "list")) == repr(elements)
    assert read_list(path, "list")[0] == {"before": 1, "x": [{}]}


RECORDS = [
    ({"id": 1, "text": "é", "more": [{}]}, Whole(1, "é")),
    (
        {"id": 1 << 70, "text": "", "parts": [{"text": "a", "n": 1}], "tokens": ["a", [1, 2], []], "extra": "x"},
        Whole(1 << 70, "", [Part("a")], ("a", (1, 2), ()), "x"),
    ),
]


@pytest.mark.parametrize("more", ["1", "NaN", '"\\ud800"'])
@pytest.mark.parametrize(("record", "expected"), RECORDS)
def test_both_looks_give_the_same_record(tmp_path: Path, record: dict[str, Any], expected: Whole, more: str) -> None:
    """A record that msgspec refuses for a field outside the declaration reads the same, and the last of two equal keys
    counts."""
    path = tmp_path / "records.json"
    text = f'{{"beside": {more}, "id": null, {json.dumps(record)[1:]}'
    for key, whole in ((None, f"[{text}]"), ("list", f'{{"list": [{text}], "beside": {more}}}')):
        path.write_text(whole)
        assert [found for found, _ in typed(path, key, read_list(path, key)[1], Whole)] == [expected]
    path.write_text(f"\n{text}\r\n \n")
    assert list(read_lines(path, Whole)) == [(f"{path} line 2", expected)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"list": [1, 2', "not JSON at line 1 column 15 .*delimiter"),
        (b'{"list": [1, 2]', "not JSON at line 1 column 16 .*delimiter"),
        (b'{"list": [1, 2]} x', "not JSON at line 1 column 18 .Extra data"),
        (b'{"list": [1, 2]}{}', "Extra data"),
        (b'{"list": [1,]}', "not JSON at line 1 column "),
        (b'{"list": [1 2]}', "not JSON at line 1 column 13 .*delimiter"),
        (b'{"list": [1],}', "not JSON at line 1 column "),
        (b'{"list": [1], 2: 3}', "Expecting property name"),
        (b'{"list"; [1]}', "Expecting ':' delimiter"),
        (b'{"list": [1,\n\n {"a": tru}]}', "not JSON at line 3 column 8 "),
        (b'{"list": ["a\nb"]}', "not JSON at line 1 column 13 .Invalid control character"),
        (b'{"list": ["abc]}', "Unterminated string"),
        (b'{"list": [' + b"1" * 5000 + b"]}", "a number is too long"),
        (b'{"list": [' + b"[" * 200_000, "lists are too deep"),
        (b'{"list": [' + b'{"a":' * 200_000, "lists are too deep"),
        (b'{"list": [], "list": [1]}', "'list' occurs twice"),
        (b'{"a": 1, "a": 2, "list": []}', "'a' occurs twice"),
        (b'{"a": NaN, "a": 2, "list": []}', "'a' occurs twice"),
        (b'{"lists": []}', "no list 'list'"),
        (b"{}", "no list 'list'"),
        (b'{"list": {"a": 1}}', "no list 'list'"),
        (b"[1]", "JSON, but not an object"),
        (b"", "not JSON at line 1 column 1 "),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"list": ["ok", "\xff"]}', "not UTF-8 at byte 17"),
        (b'{"list": ["' + "é".encode() * (1 << 20) + b'", "\xff"]}', f"not UTF-8 at byte {11 + (2 << 20) + 4}"),
        ('{"list": ["é'.encode()[:-1], "not UTF-8 at byte 11"),
        (b"\xff\xfe{\x00", "UTF-16 text: save it as UTF-8"),
    ],
)
def test_broken_json_is_one_line_that_says_where(tmp_path: Path, text: bytes, message: str) -> None:
    """Truncation, garbage and text on which Python's reader raises other exceptions are one line that says where."""
    path = tmp_path / "broken.json"
    path.write_bytes(text)
    with pytest.raises(AnnotationError, match=f"broken.json.*{message}") as caught:
        read(path, "list")
    assert "\n" not in str(caught.value)


def test_any_truncation_is_an_error(memory: Path) -> None:
    """No prefix of a file is read as the whole file."""
    path, whole = memory / "cut.json", SMALL.strip().encode()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(AnnotationError):
            read(path, "list")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": True, "text": ""}, "@: Expected `int`, got `bool` - at `$.id`"),
        ({"id": 5.0, "text": ""}, "@: Expected `int`, got `float` - at `$.id`"),
        ({"text": ""}, "@: Object missing required field `id`"),
        ("id", "@: Expected `object`, got `str`"),
        ({"id": 5}, "#: Object missing required field `text`"),
        ({"id": 5, "text": None}, "#: Expected `str`, got `null` - at `$.text`"),
        ({"id": 5, "text": "\ud800"}, "#: a text holds half a character"),
        ({"id": 5, "text": "", "\ud800": 1}, "#: a text holds half a character"),
        ({"id": 5, "text": "", "parts": {}}, "#: Expected `array`, got `object` - at `$.parts`"),
        ({"id": 5, "text": "", "parts": [3]}, "#: Expected `object`, got `int` - at `$.parts[0]`"),
        ({"id": 5, "text": "", "parts": [{}]}, "#: Object missing required field `text` - at `$.parts[0]`"),
        ({"id": 5, "text": "", "tokens": [3]}, "#: Expected `str | array`, got `int` - at `$.tokens[0]`"),
        ({"id": 5, "text": "", "tokens": [["a"]]}, "#: Expected `int`, got `str` - at `$.tokens[0][0]`"),
        ({"id": 5, "text": "", "extra": None}, "#: Expected `str`, got `null` - at `$.extra`"),
    ],
)
def test_fields_are_checked(tmp_path: Path, record: Any, message: str) -> None:
    """A wrong field is an error that names its record: by line or index, and by the first field where that is right."""
    path = tmp_path / "records.json"
    good = '{"id": 4, "text": ""}'
    for text, place, read_all in (
        (f"[{good}, {json.dumps(record)}]", "json [1]", lambda: list(typed(path, None, read_list(path)[1], Whole))),
        (f"{good}\n{json.dumps(record)}", "json line 2", lambda: list(read_lines(path, Whole))),
    ):
        path.write_text(text)
        with pytest.raises(AnnotationError) as caught:
            read_all()
        assert message.replace("@", place).replace("#", f"{place} (id 5)") in str(caught.value)


def peak_memory(work: Any) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_file_is_not_held(tmp_path: Path) -> None:
    """Reading a file of ten megabytes needs less than one megabyte of memory."""
    path = tmp_path / "large.json"
    path.write_text(json.dumps({"list": [{"id": 1, "text": "x" * 1000}] * 10_000}))
    assert path.stat().st_size > 9e6

    def count() -> None:
        assert sum(1 for _ in typed(path, "list", read_list(path, "list")[1], Whole)) == 10_000

    assert peak_memory(count) < 1e6


def test_a_large_file_cut_short_is_not_held_as_objects(tmp_path: Path) -> None:
    """Reading a large truncated file again needs less than four times the memory of its text, because a broken
    download must not fill memory."""
    path = tmp_path / "cut.json"
    path.write_text(json.dumps({"list": [{"id": 1}] * 200_000})[:-2])

    def refused() -> None:
        with pytest.raises(AnnotationError, match="not JSON at line 1 column 2"):
            read(path, "list")

    assert peak_memory(refused) < 4 * path.stat().st_size


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """A pipe such as a shell's <(...) is read, although it cannot be mapped into memory."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("[1, 2]",))
    writer.start()
    assert read(path, None) == [1, 2]
    writer.join()
