"""Decides whether a score may be printed: every expected example has exactly one prediction, and nothing else has one.

The official programs are less strict, and they differ. VQAEval fails with an assertion where an example is missing, but
takes the last of two predictions. NLVR2's metrics.py prints a remark and exits with 0. MDETR's evaluator takes the
first of two predictions. R2C's program trusts the order of rows. Here one rule holds for all benchmarks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

_SHOWN = 5
_WIDTH = 60


@dataclass(frozen=True)
class Lenient:
    """How an official program treats ids that occur twice, and ids that it does not know, where it prints no error."""

    duplicate: Literal["first", "last", "refuse"]
    unknown: Literal["ignore", "refuse"]


@dataclass(frozen=True)
class Coverage:
    """How predictions cover the expected examples.

    Missing ids are in the order of the examples. Duplicate and unknown ids are in the order of the predictions.
    """

    expected: int  # number of examples
    predicted: int  # number of predictions, with duplicate and unknown ones
    missing: tuple[str, ...]  # ids of examples without a prediction
    duplicate: tuple[str, ...]  # ids of examples with more than one prediction
    unknown: tuple[str, ...]  # ids of predictions without an example

    @property
    def complete(self) -> bool:
        """Return whether a score may be printed."""
        return not (self.missing or self.duplicate or self.unknown)

    def message(self) -> str:
        """Return one line with the counts, and with the first ids of each fault."""
        faults = [f"{len(ids):,} {kind} ({_first(ids)})" for kind, ids in self._faults().items() if ids]
        return f"{self.predicted:,} predictions for {self.expected:,} examples: " + ("; ".join(faults) or "complete")

    def counts(self) -> dict[str, int]:
        """Return the five numbers, for scores.json."""
        return {"expected": self.expected, "predicted": self.predicted} | {k: len(v) for k, v in self._faults().items()}

    def table(self) -> str:
        """Return five lines, each with a number, and with the first ids where it counts a fault."""
        ids = {kind: _first(ids) for kind, ids in self._faults().items()}
        return "\n".join(f"{kind:>10} {n:>10,}  {ids.get(kind, '')}".rstrip() for kind, n in self.counts().items())

    def _faults(self) -> dict[str, tuple[str, ...]]:
        return {"missing": self.missing, "duplicate": self.duplicate, "unknown": self.unknown}


def check_coverage(expected: Collection[str], predicted: Iterable[str]) -> Coverage:
    """Compare the example ids of a split, which are unique, with the ids of predictions, which may be any."""
    counts = Counter(predicted)
    known = expected if isinstance(expected, (set, frozenset, dict)) else set(expected)
    return Coverage(
        expected=len(expected),
        predicted=counts.total(),
        missing=tuple(example_id for example_id in expected if example_id not in counts),
        duplicate=tuple(example_id for example_id, count in counts.items() if count > 1 and example_id in known),
        unknown=tuple(example_id for example_id in counts if example_id not in known),
    )


def _first(ids: tuple[str, ...]) -> str:
    return ", ".join(map(_printable, ids[:_SHOWN])) + (", …" if len(ids) > _SHOWN else "")


def _printable(example_id: str) -> str:
    """Return an id so that it fits on a line. It comes from a file, so it may be empty, hold line breaks or be long."""
    text = example_id if example_id and example_id.isprintable() else repr(example_id)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
