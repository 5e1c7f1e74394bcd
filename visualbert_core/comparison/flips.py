"""Finds the examples on which two runs differ: which units got worse or better, and how confident the model was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visualbert_core.schema import JudgedAnswer, Score


@dataclass(frozen=True)
class Flip:
    """One unit before and after. Its values are in [0, 1], or for CIDEr in [0, 10].

    `change` is the change of the confidence in the right answer. A confidence counts positive if the unit was right and
    negative if it was wrong. So a change from confident and right to confident and wrong is -2. An answer that gets a
    grade, such as a caption, is neither right nor wrong: `change` is then the change of the grade.
    """

    unit_id: str
    example_id: str
    part: int | None
    """The number of the phrase, if the example is a grounding."""
    value_before: float
    value_after: float
    answer_before: Any
    answer_after: Any
    confidence_before: float | None
    confidence_after: float | None
    change: float

    def __str__(self) -> str:
        return (
            f"{self.unit_id}: {_short(self.answer_before)} ({self.value_before:.2f}{_sure(self.confidence_before)})"
            f" → {_short(self.answer_after)} ({self.value_after:.2f}{_sure(self.confidence_after)})"
        )


@dataclass(frozen=True)
class Flips:
    """The units of a metric whose value fell or rose.

    The counts are complete. The lists hold only the units with the largest changes of confidence, largest first.
    """

    worse_count: int
    better_count: int
    worse: tuple[Flip, ...]
    better: tuple[Flip, ...]


def flips(before: Sequence[Score], after: Sequence[Score], shown: int, scale: float | None = None) -> Flips | None:
    """Return the units of a metric that flipped, at most `shown` each way.

    `before` and `after` hold the same units in the same order. `scale` is None for a metric in percent. Return None for
    a metric that judges no single answer, such as the consistency of NLVR2.
    """
    if not any(unit.judged for unit in after):
        return None
    found = [
        _flip(first, second, first.judged, second.judged, scale)
        for first, second in zip(before, after, strict=True)
        # Rounded, so that a difference in the last digits of float64 is not a flip.
        if round(second.value - first.value, 9) and first.judged and second.judged
    ]
    found.sort(key=lambda flip: (-abs(flip.change), flip.unit_id))
    worse = [flip for flip in found if flip.value_after < flip.value_before]
    better = [flip for flip in found if flip.value_after > flip.value_before]
    return Flips(len(worse), len(better), tuple(worse[:shown]), tuple(better[:shown]))


def _flip(before: Score, after: Score, first: JudgedAnswer, second: JudgedAnswer, scale: float | None) -> Flip:
    if scale is None:
        factor, change = 1.0, _sureness(second.confidence, after.value) - _sureness(first.confidence, before.value)
    else:
        factor = scale / 100
        change = factor * (after.value - before.value)
    return Flip(
        unit_id=after.unit_id,
        example_id=second.example_id,
        part=second.part,
        value_before=before.value * factor,
        value_after=after.value * factor,
        answer_before=first.answer,
        answer_after=second.answer,
        confidence_before=first.confidence,
        confidence_after=second.confidence,
        change=change,
    )


def _sureness(confidence: float | None, value: float) -> float:
    """Return the signed confidence, from -1 (sure and wrong) to 1. An answer without a confidence counts as sure."""
    return (1.0 if confidence is None else confidence) * (2 * value - 1)


def _short(answer: Any) -> str:
    return "no box" if answer is None else str(answer)[:40]


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f", sure {confidence:.2f}"
