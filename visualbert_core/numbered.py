"""Sets of files whose names count them: `train-00000-of-00002.parquet`, with or without a hash before the suffix, as
the Hub has it. Owns the question whether such a set is whole: half of one looks like a smaller corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable

INGREDIENT = "features"

_COUNTED = re.compile(r"(?P<before>.*?)(?P<number>\d+)[-_]of[-_](?P<total>\d+)(?:-[0-9a-f]{8,})?(?P<suffix>\.\w+)")


def missing(name: str, names: Iterable[str]) -> str | None:
    """The first file that lacks in the set of which `name` says that it is one; `names` are the files that there are.

    None where the set is whole, counted from 0 or from 1, and where the name counts nothing."""
    own = _COUNTED.fullmatch(name)
    if own is None or int(own["number"]) > int(own["total"]):
        return None
    kin = [found for found in map(_COUNTED.fullmatch, {name, *names}) if found and _set(found) == _set(own)]
    present, total = {int(found["number"]) for found in kin}, int(own["total"])
    first = 1 if total in present and 0 not in present else 0
    lacking = next((number for number in range(first, first + total) if number not in present), None)
    if lacking is None:
        return None
    return f"{own['before']}{lacking:0{len(own['number'])}}-of-{own['total']}{own['suffix']}"


def _set(name: re.Match[str]) -> tuple[str, int, str]:
    return name["before"], int(name["total"]), name["suffix"].lower()
