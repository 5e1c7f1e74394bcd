"""May a score be printed? Only if every expected example has exactly one prediction and nothing else has one.

No official program is this strict: VQAEval asserts, NLVR2's metrics.py prints a remark and exits 0, MDETR's evaluator
keeps the first of two, R2C's trusts the order of rows. Here there is one rule for all.
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
    """What an official program silently does with ids that occur twice or that it does not know."""

    duplicate: Literal["first", "last", "refuse"]
    unknown: Literal["ignore", "refuse"]


@dataclass(frozen=True)
class Coverage:
    """How a set of predictions covers what is expected; ids in their order of expectation, or of appearance."""

    expected: int  # examples
    predicted: int  # predictions, duplicates and unknown ones included
    missing: tuple[str, ...]
    duplicate: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether a score may be printed."""
        return not (self.missing or self.duplicate or self.unknown)

    def message(self) -> str:
        """One line: counts, and the first ids of each kind."""
        faults = [f"{len(ids):,} {kind} ({_first(ids)})" for kind, ids in self._faults().items() if ids]
        return f"{self.predicted:,} predictions for {self.expected:,} examples: " + ("; ".join(faults) or "complete")

    def counts(self) -> dict[str, int]:
        """The five numbers, for a scores document."""
        return {"expected": self.expected, "predicted": self.predicted} | {k: len(v) for k, v in self._faults().items()}

    def table(self) -> str:
        """Five lines: a number each, and the first ids of each fault."""
        ids = {kind: _first(ids) for kind, ids in self._faults().items()}
        return "\n".join(f"{kind:>10} {n:>10,}  {ids.get(kind, '')}".rstrip() for kind, n in self.counts().items())

    def _faults(self) -> dict[str, tuple[str, ...]]:
        return {"missing": self.missing, "duplicate": self.duplicate, "unknown": self.unknown}


def check_coverage(expected: Collection[str], predicted: Iterable[str]) -> Coverage:
    """Compare the example ids that a split has (unique) with those that were predicted (any)."""
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
    """An id is a file's text: it may be empty, end a line or never end."""
    text = example_id if example_id and example_id.isprintable() else repr(example_id)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
