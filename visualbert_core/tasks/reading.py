"""How the task files read: text, JSON and JSON Lines, checked fields, and the one-line errors that bad files end in.

Every error names the file, the record in it (a line or an id), what is wrong, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from visualbert_core.errors import AnnotationError, ConfigError

T = TypeVar("T")

_JSON_NAMES = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


def choose(what: str, name: str, options: Collection[str]) -> str:
    """`name` if it is one of `options`, else a ConfigError that names the nearest and all of them."""
    if name in options:
        return name
    nearest = get_close_matches(name, options, n=1, cutoff=0.0)[0]
    raise ConfigError(f"unknown {what} {name!r}: did you mean {nearest!r}? (known: {', '.join(options)})")


def read_text(path: Path) -> str:
    """A UTF-8 file as a whole."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        lacking = path if path.parent.is_dir() else path.parent
        raise AnnotationError(
            f"{lacking}: not found; the annotations folder must hold the benchmark's official files under their names"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 at byte {error.start}"
        raise AnnotationError(f"{path}: cannot be read ({reason}); download it again") from None


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
    return value


def strings(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """`record[key]`, which must be a list of strings."""
    return tuple(checked(item, str, where, key) for item in field(record, key, list, where))


def family(record: dict[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """The breakdown by "family", an extra key that generated annotations carry and official ones do not."""
    return {"family": (field(record, "family", str, where),)} if "family" in record else {}
