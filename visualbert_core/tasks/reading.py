"""Reads annotation files for the tasks: text, JSON and JSON Lines as typed records, with one-line errors.

Every error names the file, the record in it (a line, an index or an id), what is wrong, and what to do.

msgspec decodes and validates in one step, into structs that document the official formats. It does not name the line of
a fault, and it refuses some text that Python's `json` writes, such as NaN. So `json` reads a refused text a second
time, slowly. This second reading decides: it gives the record or the error.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import mmap
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from visualbert_core.errors import AnnotationError, ConfigError
from visualbert_core.io.documents import brief
from visualbert_core.printable import printable
from visualbert_core.tasks.formats import HEAD, not_text

T = TypeVar("T")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # An escape in JSON may give one, but UTF-8 cannot encode it.
_JSON_NAMES = {str: "a string", int: "a whole number", float: "a number", list: "a list", dict: "an object"}
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the errors that msgspec raises
_CHUNK = 1 << 16  # bytes


def choose(what: str, name: str | None, options: Collection[str]) -> str:
    """Return `name`, or the first option where it is None. Raises ConfigError where `name` is not an option."""
    if name is None:
        return next(iter(options))
    if name in options:
        return name
    raise ConfigError(f"unknown {what} {name!r}; known: {', '.join(options)}")


def check_same(where: str, key: str, here: object, first: str, there: object, of: str) -> None:
    """Raise AnnotationError where two records of one thing disagree.

    `of` names the thing. `here` is the value of `key` in this record, and `there` its value in the record `first`.
    """
    if here != there:
        raise AnnotationError(
            f"{where}: {key!r} is {brief(here)}, but in {first} it is {brief(there)}; records of {of} must agree: "
            "download the file again, or correct one of them"
        )


def read_text(path: Path) -> str:
    """Return the text of a whole UTF-8 file, with "\\n" for every line end. Raises AnnotationError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    _refuse_other_formats(path, data)
    try:
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error.start) from None


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if found := not_text(head[:HEAD]):
        raise AnnotationError(f"{path}: {found}")


def _unreadable(path: Path, error: OSError) -> AnnotationError:
    if isinstance(error, FileNotFoundError):
        lacking = path if path.parent.is_dir() else path.parent
        return AnnotationError(
            f"{lacking}: not found; the annotations folder must hold the benchmark's official files by their names"
        )
    return AnnotationError(f"{path}: cannot be read ({error.strerror}); download it again")


def _not_utf8(path: Path, byte: int) -> AnnotationError:
    return AnnotationError(f"{path}: cannot be read (not UTF-8 at byte {byte}); download it again")


def _parse(text: str, where: str, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        reason = "a byte order mark: save it without" if text.startswith("\ufeff") else error.msg
        raise AnnotationError(f"{where}: not JSON at {at} ({reason}); truncated? download it again") from None
    except (ValueError, RecursionError):  # Python limits the digits of an integer and the depth of nested lists.
        raise AnnotationError(
            f"{where}: a number is too long, or lists are too deep; this is not the official format"
        ) from None


def field(record: dict[str, Any], key: str, kind: type[T], where: str) -> T:
    """Return `record[key]`. Raises AnnotationError where it is missing or has another JSON type than `kind`."""
    if key not in checked(record, dict, where):
        raise AnnotationError(f"{where}: no {key!r}; this is not the official format")
    return checked(record[key], kind, where, key)


def checked(value: Any, kind: type[T], where: str, key: str | None = None) -> T:
    """Return `value`. Raises AnnotationError where it has another JSON type than `kind`."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):  # In Python, a bool is an int.
        subject = f"{key!r} is" if key else "is"
        raise AnnotationError(
            f"{where}: {subject} {type(value).__name__}, not {_JSON_NAMES[kind]}; this is not the official format"
        )
    if isinstance(value, str) and not value.isascii() and _LONE_SURROGATE.search(value):
        raise AnnotationError(f"{where}: {value!a} holds half a character (a lone surrogate); correct the record")
    return value


def family(record: Any) -> dict[str, tuple[str, ...]]:
    """Return the breakdown by "family", a key that generated annotations have and official annotations lack."""
    return {} if record.family is UNSET else {"family": (record.family,)}


# ---------------------------------------------------------------------------------------------------------------------
# typed records


def read_lines(path: Path, kind: type[T]) -> Iterator[tuple[str, T]]:
    """Yield (where, record) of each line of a file with one JSON object per line. Blank lines are skipped.

    Raises AnnotationError that names the line.
    """
    decode = msgspec.json.Decoder(kind).decode
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                record = decode(line)
            except _REFUSED:
                record = _second_look(_parse(line, where), kind, where, lambda at, _, name: f"{at} ({name})")
            yield where, record


def read_by_id(path: Path, kind: type[T]) -> dict[str, T]:
    """Read id → record from JSON Lines, or from a .csv file whose first line names the columns.

    The first field of a record is its id. Raises AnnotationError where an id occurs twice, or the file has no record.
    """
    key = msgspec.structs.fields(kind)[0].name  # type: ignore[arg-type]
    found: dict[str, T] = {}
    for where, record in _read_csv(path, kind) if path.suffix == ".csv" else read_lines(path, kind):
        name = str(getattr(record, key))
        if name in found:
            raise AnnotationError(f"{where}: {key} {printable(name[:40])} occurs twice; remove one of its records")
        found[name] = record
    if not found:
        raise AnnotationError(f"{path}: no records; download it again")
    return found


def _read_csv(path: Path, kind: type[T]) -> Iterator[tuple[str, T]]:
    """Yield (where, record) of each row below the header. Text such as "3" is read as a number where one is declared.

    Raises AnnotationError that names the line.
    """
    rows = csv.DictReader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""), strict=True)
    try:
        for row in rows:
            where = f"{path} line {rows.line_num}"
            if None in row or None in row.values():
                raise AnnotationError(
                    f"{where}: the row does not have {len(rows.fieldnames or ())} cells like the header; correct it"
                )
            yield where, msgspec.convert(row, kind, strict=False)
    except csv.Error as error:
        raise AnnotationError(f"{path} line {rows.reader.line_num}: not CSV ({error}); write the file again") from None
    except msgspec.ValidationError as error:
        raise AnnotationError(f"{where}: {error}; correct the row or the header") from None


def read_list(path: Path, key: str | None = None) -> tuple[dict[str, Any], list[Any]]:
    """Return the other keys of a file's JSON object, and the elements of its list under `key`.

    Where `key` is None, the file is a list. `typed` decodes the elements. An element is a piece of the file, which is
    mapped into memory and not copied. Where msgspec refuses the file, an element is a Python object. Raises
    AnnotationError for a malformed file, and where a key of the object occurs twice.
    """
    data = _content(path)
    decode = msgspec.json.decode
    pairs: list[tuple[str, Any]] = []
    try:
        if key is None:
            return {}, decode(data, type=list[Raw])
        for one, value in decode(data, type=dict[_Name, Raw], dec_hook=lambda kind, text: kind(text)).items():
            pairs.append((one.text, decode(value, type=list[Raw] if one.text == key else Any)))
    except _REFUSED:
        text = str(data, "utf-8")
        # Most files that come here are large and cut short. This pass keeps no objects, so it needs little memory.
        _parse(text, str(path), lambda _: None)

        def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
            pairs[:] = found  # The outermost object comes last, so its pairs stay, with equal keys.
            return dict(found)

        parsed = _parse(text, str(path), keep)
        if key is None:
            return {}, checked(parsed, list, str(path))
        checked(parsed, dict, str(path))
    head: dict[str, Any] = {}
    for name, value in pairs:
        if name in head:
            raise AnnotationError(f"{path}: the key {name!r} occurs twice; this is not the official format")
        head[name] = value
    elements = field(head, key, list, str(path))
    del head[key]
    return head, elements


def typed(path: Path, key: str | None, elements: Iterable[Any], kind: type[T]) -> Iterator[tuple[T, Any]]:
    """Yield (record, element) for each of the elements that `read_list` returned for `key`.

    Raises AnnotationError. It names a record by its first field, or by its index where the first field is wrong.
    """
    decode = msgspec.json.Decoder(kind).decode
    for index, element in enumerate(elements):
        try:
            record = decode(element if isinstance(element, Raw) else b"")
        except _REFUSED:
            where = f"{path} {key or ''}[{index}]"
            record = _second_look(untyped(element, where), kind, where, lambda _, first, name: f"{path} {first} {name}")
        yield record, element


def untyped(element: Any, where: str) -> Any:
    """Return an element of `read_list` with all its fields, as Python's `json` reads it."""
    return _parse(str(element, "utf-8"), where) if isinstance(element, Raw) else element


class _Name:
    """Holds a key of a JSON object. It equals only itself, so a dictionary keeps two keys of the same text."""

    def __init__(self, text: str) -> None:
        self.text = text


def _content(path: Path) -> bytes | mmap.mmap:
    """Return the bytes of a UTF-8 file, mapped into memory where possible. Raises AnnotationError."""
    try:
        with path.open("rb") as file:
            try:
                data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # A pipe and an empty file cannot be mapped.
                data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from None
    _refuse_other_formats(path, data[:HEAD])
    # Checking in chunks keeps memory small: a large file is never held as one string.
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(data), _CHUNK):
            decoder.decode(data[at : at + _CHUNK], final=at + _CHUNK >= len(data))
    except UnicodeDecodeError as error:
        raise _not_utf8(path, at - len(decoder.getstate()[0]) + error.start) from None
    return data


def _second_look(value: Any, kind: type[T], where: str, named: Callable[[str, str, str], str]) -> T:
    """Return the record of a text that msgspec refused.

    `named(where, field, value)` returns a better `where` once the first field is known. Raises AnnotationError. Its
    words are msgspec's only where `_explain` finds no fault.
    """
    _explain(value, kind, where, None, named)
    try:
        return msgspec.convert(value, kind)
    except UnicodeEncodeError:  # `_explain` checks the values, so the lone surrogate is in a key.
        raise AnnotationError(f"{where}: a key holds half a character (a lone surrogate); correct the record") from None
    except msgspec.ValidationError as error:
        raise AnnotationError(f"{where}: {error}; this is not the official format") from None


def _explain(
    value: Any, kind: Any, where: str, key: str | None, named: Callable[[str, str, str], str] | None = None
) -> None:
    """Raise AnnotationError for the first part of `value` that does not fit the declaration `kind`, if there is one."""
    if kind is Any:
        return
    options = [option for option in get_args(kind) if option is not UnsetType]
    if get_origin(kind) is UnionType and len(options) > 1:
        fitting = next((option for option in options if isinstance(value, _json_type(option))), options[0])
        _explain(value, fitting, f"{where} {key}" if key else where, None)
    elif get_origin(kind) is UnionType:
        _explain(value, options[0], where, key)
    elif _json_type(kind) is list:
        for item in checked(value, list, where, key):
            _explain(item, options[0], where, key)
    elif _json_type(kind) is dict:
        for declared in msgspec.structs.fields(kind):
            if declared.required or declared.name in checked(value, dict, where):
                _explain(field(value, declared.name, object, where), declared.type, where, declared.name)
                if named is not None:
                    where, named = named(where, declared.name, printable(str(value[declared.name])[:40])), None
    else:
        checked(value, kind, where, key)


def _json_type(kind: Any) -> type:
    """Return the Python type that `json` gives for a declared type: list for a tuple, dict for a struct."""
    origin = get_origin(kind) or kind
    return list if origin is tuple else dict if issubclass(origin, Struct) else origin
