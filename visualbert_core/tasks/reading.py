"""Reads the files of a benchmark for the tasks: text, JSON and JSON Lines as typed records, with one-line errors.

Every error names the file, the record in it (a line or a number), what is wrong, and what to do. It is an
AnnotationError for annotations and an InputError for predictions.

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
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct

from visualbert_core.errors import AnnotationError, ConfigError, InputError
from visualbert_core.io.documents import brief
from visualbert_core.printable import printable
from visualbert_core.tasks.formats import HEAD, not_text

T = TypeVar("T")

_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the errors that msgspec raises
_CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class _Files:
    """What the errors about one kind of files are and advise."""

    error: type[InputError]
    missing: str
    damaged: str
    another: str


_ANNOTATIONS = _Files(
    AnnotationError,
    "the annotations folder must hold the benchmark's official files by their names",
    "download it again",
    "this is not the official format",
)
_PREDICTIONS = _Files(
    InputError,
    "name the file of predictions",
    "name the file of predictions, or write it again",
    "write the leaderboard's format",
)


def choose(what: str, name: str | None, options: Collection[str]) -> str:
    """Return `name`, or the first option where it is None. Raises ConfigError where `name` is not an option."""
    if name is None:
        return next(iter(options))
    if name in options:
        return name
    raise ConfigError(f"unknown {what} {name!r}; known: {', '.join(options)}")


# ---------------------------------------------------------------------------------------------------------------------
# checks of annotations


def check_same(where: str, key: str, here: object, first: str, there: object, of: str) -> None:
    """Raise AnnotationError where two records of one thing disagree.

    `of` names the thing. `here` is the value of `key` in this record, and `there` its value in the record `first`.
    """
    if here != there:
        raise AnnotationError(
            f"{where}: {key!r} is {brief(here)}, but in {first} it is {brief(there)}; records of {of} must agree: "
            "download the file again, or correct one of them"
        )


def check_split(where: str, key: str, found: str, own: str, official: Collection[str]) -> None:
    """Raise AnnotationError where the id or field `key` names another official split than `own`.

    A name that no official split has belongs to the user's own set, so it passes.
    """
    if found != own and found in official:
        raise AnnotationError(
            f"{where}: {key} is of the split {found!r}, but the file should be {own!r}; put the files of one split "
            "together"
        )


def family(record: Any) -> dict[str, tuple[str, ...]]:
    """Return the breakdown by "family", a key that generated annotations have and official annotations lack."""
    return {} if record.family is UNSET else {"family": (record.family,)}


# ---------------------------------------------------------------------------------------------------------------------
# text


def read_text(path: Path) -> str:
    """Return the text of a whole UTF-8 file of annotations, with "\\n" for every line end. Raises AnnotationError."""
    return _text(path, _ANNOTATIONS, "utf-8").replace("\r\n", "\n").replace("\r", "\n")


def submission_text(path: Path, keep_mark: bool = False) -> str:
    """Return the text of a whole UTF-8 file of predictions; line ends stay as they are. Raises InputError.

    A byte order mark is dropped, because spreadsheets write one. With `keep_mark`, it stays.
    """
    return _text(path, _PREDICTIONS, "utf-8" if keep_mark else "utf-8-sig")


def _text(path: Path, files: _Files, encoding: str) -> str:
    with _one_line(path, files):
        data = path.read_bytes()
        _refuse_other_formats(path, data, files)
        return data.decode(encoding)


@contextmanager
def _one_line(path: Path, files: _Files) -> Iterator[None]:
    """Turn an error of reading or decoding a file into one line."""
    try:
        yield
    except FileNotFoundError:
        lacking = path if path.parent.is_dir() else path.parent
        raise files.error(f"{lacking}: not found; {files.missing}") from None
    except OSError as error:
        raise files.error(f"{path}: cannot be read ({error.strerror}); {files.damaged}") from None
    except UnicodeDecodeError as error:
        raise files.error(f"{path}: cannot be read (not UTF-8 at byte {error.start}); {files.damaged}") from None


def _refuse_other_formats(path: Path, data: bytes | mmap.mmap, files: _Files) -> None:
    if found := not_text(data[:HEAD]):
        raise files.error(f"{path}: {found}")


# ---------------------------------------------------------------------------------------------------------------------
# typed records


def submission_records(path: Path, kind: type[T]) -> list[T]:
    """Return the records of the JSON list in a file of predictions. Raises InputError."""
    text = submission_text(path)
    try:
        return msgspec.json.decode(text, type=list[kind])  # type: ignore[valid-type]
    except _REFUSED:
        records = _parse(text, str(path), _PREDICTIONS)
    if not isinstance(records, list):
        raise InputError(f"{path}: {type(records).__name__}, not a list of records; write the leaderboard's format")
    named = ((f"{path} record {number}", record) for number, record in enumerate(records, start=1))
    return [_second_look(record, kind, where, _PREDICTIONS) for where, record in named]


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
                record = _second_look(_parse(line, where), kind, where)
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
    """Yield (where, record) of each row. Text such as "3" is read as a number where a number is declared."""
    for where, row in _rows(path, read_text(path).removeprefix("\ufeff"), _ANNOTATIONS):
        try:
            yield where, msgspec.convert(row, kind, strict=False)
        except msgspec.ValidationError as error:
            raise AnnotationError(f"{where}: {error}; correct the row or the header") from None


def submission_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (where, column → text) of each row of a CSV file of predictions. Blank lines are skipped.

    Raises InputError, also where the first line does not name each of the columns once, in any order.
    """
    return _rows(path, submission_text(path), _PREDICTIONS, columns)


def _rows(
    path: Path, text: str, files: _Files, columns: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header, wanted = Counter(rows.fieldnames or ()), Counter(columns)
        if columns is not None and (odd := (wanted - header) + (header - wanted)):
            column = next(iter(odd))
            fault = "not known" if column not in wanted else "there twice" if header[column] else "missing"
            raise files.error(
                f"{path} line 1: column {column!r} is {fault}; the first line must name {len(columns)} columns: "
                f"{', '.join(list(columns)[:3])}, …"
            )
        for row in rows:
            where = f"{path} line {rows.line_num}"
            if None in row or None in row.values():
                raise files.error(f"{where}: the row does not have {len(header)} cells like the header; correct it")
            yield where, row
    except csv.Error as error:
        raise files.error(f"{path} line {rows.reader.line_num}: not CSV ({error}); write the file again") from None


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
        _parse(text, str(path), hook=lambda _: None)

        def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
            pairs[:] = found  # The outermost object comes last, so its pairs stay, with equal keys.
            return dict(found)

        parsed = _parse(text, str(path), hook=keep)
        if key is None and isinstance(parsed, list):
            return {}, parsed
        if key is None or not isinstance(parsed, dict):
            wanted = "a list" if key is None else "an object"
            raise AnnotationError(f"{path}: JSON, but not {wanted}; this is not the official format") from None
    head: dict[str, Any] = {}
    for name, value in pairs:
        if name in head:
            raise AnnotationError(f"{path}: the key {name!r} occurs twice; this is not the official format")
        head[name] = value
    elements = head.pop(key, None)
    if not isinstance(elements, list):
        raise AnnotationError(f"{path}: no list {key!r}; this is not the official format")
    return head, elements


def typed(path: Path, key: str | None, elements: Iterable[Any], kind: type[T]) -> Iterator[tuple[T, Any]]:
    """Yield (record, element) for each of the elements that `read_list` returned for `key`.

    Raises AnnotationError that names the record by its index and, where it is known, its first field.
    """
    decode = msgspec.json.Decoder(kind).decode
    for index, element in enumerate(elements):
        try:
            record = decode(element if isinstance(element, Raw) else b"")
        except _REFUSED:
            where = f"{path} {key or ''}[{index}]"
            record = _second_look(untyped(element, where), kind, where)
        yield record, element


def untyped(element: Any, where: str) -> Any:
    """Return an element of `read_list` with all its fields, as Python's `json` reads it."""
    return _parse(str(element, "utf-8"), where) if isinstance(element, Raw) else element


class _Name:
    """Holds a key of a JSON object. It equals only itself, so a dictionary keeps two keys of the same text."""

    def __init__(self, text: str) -> None:
        self.text = text


def _content(path: Path) -> bytes | mmap.mmap:
    """Return the bytes of a UTF-8 file of annotations, mapped into memory where possible. Raises AnnotationError."""
    with _one_line(path, _ANNOTATIONS):
        with path.open("rb") as file:
            try:
                data: bytes | mmap.mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # A pipe and an empty file cannot be mapped.
                data = file.read()
        _refuse_other_formats(path, data, _ANNOTATIONS)
        # Checking in chunks keeps memory small: a large file is never held as one string.
        decoder = codecs.getincrementaldecoder("utf-8")()
        for at in range(0, len(data), _CHUNK):
            try:
                decoder.decode(data[at : at + _CHUNK], final=at + _CHUNK >= len(data))
            except UnicodeDecodeError as error:
                error.start += at - len(decoder.getstate()[0])
                raise
    return data


def _parse(
    text: str,
    where: str,
    files: _Files = _ANNOTATIONS,
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    try:
        return json.loads(text, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        reason = "a byte order mark: save it without" if text.startswith("\ufeff") else error.msg
        raise files.error(f"{where}: not JSON at {at} ({reason}); truncated? {files.damaged}") from None
    except (ValueError, RecursionError):  # Python limits the digits of an integer and the depth of nested lists.
        raise files.error(f"{where}: a number is too long, or lists are too deep; {files.another}") from None


def _second_look(value: Any, kind: type[T], where: str, files: _Files = _ANNOTATIONS) -> T:
    """Return the record of a text that msgspec refused. An error names the first field, if it is right."""
    try:
        record = msgspec.convert(value, kind)
        msgspec.json.encode(record)
        return record
    except UnicodeEncodeError:  # An escape in JSON may give half a character, which UTF-8 cannot encode.
        fault = "a text holds half a character (a lone surrogate); correct the record"
    except msgspec.ValidationError as error:
        fault = f"{error}; {files.another}"
    if isinstance(kind, type) and issubclass(kind, Struct) and isinstance(value, dict):
        first = msgspec.structs.fields(kind)[0]
        try:
            name = str(msgspec.convert(value[first.name], first.type))
            where += f" ({first.name} {printable(name[:40])})"
        except (KeyError, msgspec.ValidationError, UnicodeEncodeError):
            pass  # The first field is not right either.
    raise files.error(f"{where}: {fault}")
