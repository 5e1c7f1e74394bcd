"""The contract that every benchmark keeps.

A task file is read top to bottom: `examples()` asks, `score()` judges, `scoring.summarize()` adds up, the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from visualbert_core.metrics.coverage import Lenient
from visualbert_core.schema import Example, Prediction, Score


class Task(Protocol):
    """One benchmark split, opened.

    Where a split has no public labels, the members that need them (`score`, `chance`, `gold`, `best`, `worst`) raise
    ConfigError; one can still ask a model, and write and read submissions.
    """

    name: str
    split: str
    form: type[Example]
    """The form of its examples, which says which models can answer them."""
    labelled: bool
    """Whether the split's labels are public, so that predictions can be scored here."""
    protocol: str
    """Name of the metric's protocol and of the official program it is tested against; where the annotations are not the
    official split, it says so."""
    subset: str | None
    """The line that must be said where the annotations are not the whole official split; None where they are."""
    protocol_key: str
    """Its short name, as `--protocol` takes it: a key of the task file's PROTOCOLS, whose first is the default."""
    headline: str
    """The metric a single-number summary shows."""
    submission_name: str
    """File name of a submission."""
    lenient: Lenient
    """What the official program does where coverage is refused here."""

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

    def best(self, example_id: str) -> Any:
        """An answer that gets the highest possible value of every metric."""

    def worst(self, example_id: str) -> Any:
        """An answer that gets the lowest possible value of every metric."""

    def official(self, scores: Sequence[Score]) -> dict[str, Any]:
        """The scores under the official program's own names, in its own form and rounding."""

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """The leaderboard's file, in the split's order: equal predictions give equal bytes.

        Raises InputError where the predictions do not hold all that the leaderboard asks.
        """

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """A file in that format, of any system, in file order; duplicates and unknown ids (with image id "") stay.

        `lenient` accepts as a record what the official program accepts in silence. Raises InputError naming the file
        and the record.
        """

    def image_sizes(self) -> Mapping[str, tuple[int, int]]:
        """image id → the (width, height) that its annotations are for; empty where they do not tell."""

    def annotation_files(self) -> tuple[Path, ...]:
        """The files that were read; their digest identifies the annotations."""
