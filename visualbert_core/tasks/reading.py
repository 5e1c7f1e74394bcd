"""How the task files read: text, JSON and JSON Lines, checked fields, and the one-line errors that bad files end in.

Every error names the file, the record in it (a line or an id), what is wrong, and what to do.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Collection, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from visualbert_core.errors import AnnotationError, ConfigError
from visualbert_core.tasks.formats import HEAD, not_text

T = TypeVar("T")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may escape one, no file can hold it
_JSON_NAMES = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


def choose(what: str, name: str | None, options: Collection[str]) -> str:
    """`name` if it is one of `options`, the first of them for None, else a ConfigError that names them all."""
    if name is None:
        return next(iter(options))
    if name in options:
        return name
    raise ConfigError(f"unknown {what} {name!r}; known: {', '.join(options)}")


def read_text(path: Path) -> str:
    """A UTF-8 file as a whole."""
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
            f"{lacking}: not found; the annotations folder must hold the benchmark's official files under their names"
        )
    return AnnotationError(f"{path}: cannot be read ({error.strerror}); download it again")


def _not_utf8(path: Path, byte: int) -> AnnotationError:
    return AnnotationError(f"{path}: cannot be read (not UTF-8 at byte {byte}); download it again")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    return _parse(read_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file that holds one JSON object a line; yields (where, object). Blank lines are skipped."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield where, _parse(line, where)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise AnnotationError(f"{where}: not JSON at {at} ({error.msg}); truncated? download it again") from None
    except (ValueError, RecursionError):  # integers of thousands of digits, thousands of brackets
        raise AnnotationError(
            f"{where}: a number too long or lists too deep; this is not the official format"
        ) from None
    return checked(parsed, dict, where)


def field(record: dict[str, Any], key: str, kind: type[T], where: str) -> T:
    """`record[key]`, which must be there and of that JSON type."""
    if key not in checked(record, dict, where):
        raise AnnotationError(f"{where}: no {key!r}; this is not the official format")
    return checked(record[key], kind, where, key)


def checked(value: Any, kind: type[T], where: str, key: str | None = None) -> T:
    """`value`, which must be of that JSON type."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        subject = f"{key!r} is" if key else "is"
        raise AnnotationError(
            f"{where}: {subject} {type(value).__name__}, not {_JSON_NAMES[kind]}; this is not the official format"
        )
    if isinstance(value, str) and not value.isascii() and _LONE_SURROGATE.search(value):
        raise AnnotationError(f"{where}: {value!a} is half a character; correct the record")
    return value


def strings(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """`record[key]`, which must be a list of strings."""
    return tuple(checked(item, str, where, key) for item in field(record, key, list, where))


def family(record: dict[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """The breakdown by "family", an extra key that generated annotations carry and official ones do not."""
    return {"family": (field(record, "family", str, where),)} if "family" in record else {}


# ---------------------------------------------------------------------------------------------------------------------
# files too large to hold

CHUNK = 1 << 20  # bytes read at a time

_SPACE = " \t\n\r"
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
_HALF = re.compile(r"\\u[dD]")  # an escape that may write a lone surrogate
_LONGEST_WORD = 16  # characters: an error so close to the end of what is held may be a word cut in two, as -Infinity


def stream_fields(
    path: Path, key: str | None, head: dict[str, Any] | None = None, **kinds: type
) -> Iterator[tuple[dict[str, Any], tuple[Any, ...]]]:
    """(record, its fields of these two or more names and JSON types) for each record of the list under `key`.

    At the end `head`, if given, holds the strings that the object has beside the list.
    Raises AnnotationError as `stream_list` does, or naming a record by its first field, where that is wrong by its
    index.
    """
    get, types = itemgetter(*kinds), tuple(kinds.values())
    for index, record in stream_list(path, key, head=head):
        try:
            values = get(record)
        except (KeyError, TypeError):
            values = ()
        if tuple(map(type, values)) != types:  # one comparison for millions of good records; now slowly
            where = f"{path} {key or ''}[{index}]"
            values = ()
            for name, kind in kinds.items():
                values += (field(record, name, kind, where),)
                where = f"{path} {next(iter(kinds))} {values[0]}"
        yield record, values


def stream_list(
    path: Path, key: str | None = None, chunk: int = CHUNK, head: dict[str, Any] | None = None
) -> Iterator[tuple[int, Any]]:
    """(index, element) of the list under `key` of a file that holds one JSON object; without a key, of its one list.

    Holds a chunk and one element at a time (and, in passing, each of the object's other values, of which strings go
    into `head`). The whole file is
    judged, what follows the list too, so an error may come after the last element; a key of the object may come once.
    Within an element JSON is as Python reads it: of two equal keys the last counts, and NaN is a float.
    Raises AnnotationError.
    """
    try:
        with path.open("rb") as file:
            _refuse_other_formats(path, file.peek(HEAD))
            cursor = _Cursor(path, file, chunk)
            yield from _elements(cursor, None) if key is None else _elements_under(cursor, key, head)
            cursor.finish()
    except OSError as error:
        raise _unreadable(path, error) from None


def _elements_under(cursor: _Cursor, key: str, head: dict[str, Any] | None) -> Iterator[tuple[int, Any]]:
    if cursor.peek() != "{":
        checked(cursor.value(), dict, str(cursor.path))
    names: set[str] = set()
    for _ in cursor.items("{", "}"):
        if cursor.peek() != '"':
            raise cursor.error("Expecting property name enclosed in double quotes")
        name = cursor.value()
        if name in names:
            raise AnnotationError(f"{cursor.path}: {name!r} occurs twice; this is not the official format")
        names.add(name)
        cursor.take(":")
        if name == key:
            yield from _elements(cursor, key)
        else:
            value = cursor.value()
            if head is not None and isinstance(value, str):
                head[name] = value
    if key not in names:
        raise AnnotationError(f"{cursor.path}: no {key!r}; this is not the official format")


def _elements(cursor: _Cursor, key: str | None) -> Iterator[tuple[int, Any]]:
    if cursor.peek() != "[":
        checked(cursor.value(), list, str(cursor.path), key)
    index = 0
    for _ in cursor.items("[", "]"):
        for value in cursor.values_held():
            yield index, value
            index += 1
        cursor.element = f" {key or ''}[{index}]"
        yield index, cursor.value()
        index += 1
    cursor.element = ""


class _Cursor:
    """A place in a JSON file of which only the text from there to the end of the last chunk read is held."""

    def __init__(self, path: Path, file: BinaryIO, chunk: int) -> None:
        self.path = path
        self.element = ""  # which one an error is in, " questions[3]"
        self._file, self._chunk = file, chunk
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._escapes = False  # whether the text held may hold half a character, which only an escape can write
        self._bytes, self._line, self._column = 0, 1, 1  # bytes read; where the text held begins
        if self.peek() == "\ufeff":
            raise self.error("a byte order mark: save it without")

    def peek(self) -> str:
        """The next character that is no white space, "" at the end of the file."""
        while True:
            mark = self._text[self._at : self._at + 1]
            if mark and mark not in _SPACE:
                return mark
            if mark:
                self._at += 1
            elif self._ended:
                return ""
            else:
                self._read()

    def take(self, mark: str) -> None:
        """Pass the next character, which must be `mark`."""
        if self.peek() != mark:
            raise self.error(f"Expecting {mark!r} delimiter")
        self._at += 1

    def items(self, opening: str, closing: str) -> Iterator[None]:
        """Stand before each item of a list or an object in turn; the caller must read it."""
        self.take(opening)
        more = self.peek() != closing
        while more:
            self.peek()
            yield
            more = self.peek() == ","
            self._at += more
        self.take(closing)

    def values_held(self) -> Iterator[Any]:
        """Read values with the commas that follow them, as far as the text held goes; may be none. For speed alone."""
        while not self._escapes:
            try:
                value, end = self._decode(self._text, self._at)
            except (ValueError, RecursionError):  # cut or wrong, `value` will tell
                return
            comma = _COMMA.match(self._text, end)
            if not comma:
                return
            self._at = comma.end()
            yield value

    def value(self) -> Any:
        """Read the value at the cursor or behind white space, whatever it is."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not self._may_be_cut(error.pos):
                    raise self.error(error.msg, error.pos) from None
            except RecursionError:
                raise self.error("nested too deeply") from None
            except ValueError:  # Python refuses to read integers of thousands of digits
                raise self.error("a number is too long") from None
            else:
                if end + len("e-") < len(self._text) or self._ended:  # else a number may go on
                    self._refuse_halves(value)
                    self._at = end
                    return value
            self._read()

    def _refuse_halves(self, value: Any) -> None:
        try:
            halved = self._escapes and _LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False))
        except RecursionError:  # it could just be read, but not be written
            raise self.error("nested too deeply") from None
        if halved:
            raise AnnotationError(f"{self.path}{self.element}: half a character; correct the record")

    def finish(self) -> None:
        """Nothing may follow."""
        if self.peek():
            raise self.error("Extra data")

    def error(self, reason: str, at: int | None = None) -> AnnotationError:
        """At the cursor, or at that position of the text."""
        where = "line {} column {}".format(*self._place(self._at if at is None else at))
        return AnnotationError(
            f"{self.path}{self.element}: not JSON at {where} ({reason}); truncated? download it again"
        )

    def _may_be_cut(self, position: int) -> bool:
        """Whether an error there can come of the text's end: a string without its end is reported at its beginning."""
        return position >= len(self._text) - _LONGEST_WORD or self._text[position] == '"'

    def _read(self) -> None:
        """Forget what is passed and read on: ever more, so that a value longer than a chunk is tried few times only."""
        data = self._file.read(max(self._chunk, 2 * (len(self._text) - self._at)))
        self._line, self._column = self._place(self._at)
        pending = len(self._utf8.getstate()[0])
        try:
            text = self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, self._bytes - pending + error.start) from None
        self._text, self._at = self._text[self._at :] + text, 0
        self._escapes = "\\" in self._text and bool(_HALF.search(self._text))
        self._bytes += len(data)
        self._ended = not data

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column in the file, from 1."""
        newline = self._text.rfind("\n", 0, position)
        if newline < 0:
            return self._line, self._column + position
        return self._line + self._text.count("\n", 0, position), position - newline
