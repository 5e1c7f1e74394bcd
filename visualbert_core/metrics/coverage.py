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
        kinds = (("missing", self.missing), ("duplicate", self.duplicate), ("unknown", self.unknown))
        faults = [f"{len(ids):,} {kind} ({_first(ids)})" for kind, ids in kinds if ids]
        return f"{self.predicted:,} predictions for {self.expected:,} examples: " + ("; ".join(faults) or "complete")


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
    return ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
