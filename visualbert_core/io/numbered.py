"""Sets of numbered files, and whether a set is whole: half of a set would look like a smaller corpus.

Three kinds of names are known:
- `train-00000-of-00002.parquet`, with or without a hash before the suffix: the Hugging Face Hub
- `train.tsv.0`: the program `split`, and published features
- `dev-00000.parquet` and `00000.tar`: many programs, such as img2dataset and WebDataset
The first kind says how many files there are. The other kinds show a gap, but not that the last file is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

INGREDIENT = "features"

_OF = re.compile(
    r"(?P<before>.*?)(?P<number>\d+)(?P<of>[-_]of[-_](?P<total>\d+))(?:-[0-9a-f]{8,})?(?P<behind>(?:\.\w+)*)", re.A
)
_LAST = re.compile(r"(?P<before>.+\.[a-z]\w*\.)(?P<number>\d+)(?P<behind>)", re.A | re.I)
_MIDDLE = re.compile(r"(?P<before>(?:.*(?:[_-]|(?<!\d)\.))?)(?P<number>\d+)(?P<behind>\.[a-z]\w*)", re.A | re.I)
_DATE = re.compile(r"(?:.*[._-])?\d{4}-\d\d(?:-\d\d)?\.\w+", re.A)


@dataclass(frozen=True)
class Gap:
    """A set of files that is not whole."""

    first: str
    """The name of the first file that is missing."""
    missing: int
    """How many files are missing."""
    there: tuple[str, ...]
    """The names of the files that are there."""
    says_total: bool
    """Whether the names say how many files there are. If so, even a file that the user names alone is incomplete."""


def counts(name: str) -> bool:
    """Return whether a file of this name may be part of a set."""
    return _parts(name) is not None


def gaps(names: Iterable[str]) -> list[Gap]:
    """Return the sets among these names that are not whole, in the order of their first names."""
    sets: dict[tuple[object, ...], list[re.Match[str]]] = {}
    for name in dict.fromkeys(names):
        if parts := _parts(name):
            total = int(parts["total"]) if parts.re is _OF else None
            sets.setdefault((parts.re, parts["before"], total, parts["behind"].lower()), []).append(parts)
    return [gap for parts in sets.values() if (gap := _gap(parts))]


def _parts(name: str) -> re.Match[str] | None:
    if parts := _OF.fullmatch(name):
        return parts if int(parts["number"]) <= int(parts["total"]) else None
    return None if _DATE.fullmatch(name) else _LAST.fullmatch(name) or _MIDDLE.fullmatch(name)


def _gap(there: Sequence[re.Match[str]]) -> Gap | None:
    numbers = {int(parts["number"]) for parts in there}
    every = _all(there[0], numbers)
    missing = len(every) - len(numbers.intersection(every))
    if not missing:
        return None
    own, width = there[0], min(len(parts["number"]) for parts in there)
    first = next(number for number in count(every.start) if number not in numbers)
    says_total = own.re is _OF
    name = f"{own['before']}{first:0{width}}{own['of'] if says_total else ''}{own['behind']}"
    return Gap(name, missing, tuple(parts.string for parts in there), says_total)


def _all(parts: re.Match[str], numbers: set[int]) -> range:
    """Return the numbers of the whole set, from 0 or 1. Return an empty range where the names may not count files."""
    if parts.re is _OF:
        first = int(0 not in numbers and int(parts["total"]) in numbers)
        return range(first, first + int(parts["total"]))
    if parts.re is _LAST:
        return range(max(numbers) + 1)
    # A single number may mean something else: `_36.tsv` is a number of boxes, `_2014` is a year.
    return range(min(numbers), max(numbers) + 1) if len(numbers) > 1 and min(numbers) < 2 else range(0)
