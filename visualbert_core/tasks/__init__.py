"""The benchmarks: official files in, examples out, the official score. The contract, the registry, and the one summary.

A task file is read top to bottom: `examples()` asks, `score()` judges, `summarize()` (here, the same for all) adds up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from visualbert_core.errors import ConfigError
from visualbert_core.schema import Example, Prediction, Score


class Task(Protocol):
    """One benchmark split, opened."""

    name: str
    split: str
    protocol: str
    """Name of the metric's protocol and of the official program it is tested against."""
    headline: str
    """The metric a single-number summary shows."""

    def examples(self) -> Iterator[Example]:
        """Every example of the split, in file order. `example_id`s are unique."""

    def expected(self) -> dict[str, str]:
        """example_id → first image id: what a complete set of predictions must cover."""

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Judge a complete set of predictions (coverage is checked before), unit by unit."""

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Percent that guessing gets, per metric, where that is defined."""

    def gold(self, example_id: str) -> Any:
        """The right answer in the form of `Prediction.answer`, for reports."""

    def annotation_files(self) -> tuple[Path, ...]:
        """The files that were read; their digest identifies the annotations."""


@dataclass(frozen=True)
class Metric:
    """A mean over units in percent, with its 95 % interval clustered by image."""

    name: str
    value: float
    low: float
    high: float
    n: int
