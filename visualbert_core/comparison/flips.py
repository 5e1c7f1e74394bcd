"""The examples on which two runs differ: which units got worse or better, and how sure the model was each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visualbert_core.evaluation.units import UnitScores
from visualbert_core.schema import Prediction

Predictions = Mapping[str, Prediction]


@dataclass(frozen=True)
class Flip:
    """One unit before and after. `change` is that of the confidence in the right thing: a confidence counts as it is
    where the unit was right and against it where it was wrong, so that sure-and-right to sure-and-wrong is -2."""

    unit_id: str
    example_id: str
    part: int | None
    """Of a grounding which phrase."""
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
    """Units of a metric whose value fell or rose: how many, and the first of them, largest change of confidence
    first."""

    worse_count: int
    better_count: int
    worse: tuple[Flip, ...]
    better: tuple[Flip, ...]


def changed_answers(before: Predictions, after: Predictions) -> list[str]:
    """Ids of the examples that both runs answer, and differently."""
    return [name for name, p in after.items() if name in before and before[name].answer != p.answer]


def flips(before: UnitScores, after: UnitScores, shown: int) -> Flips | None:
    """The units of a metric that flipped, `before` and `after` being the same ones in the same order; None for metrics
    that judge no single answer, such as NLVR2's consistency."""
    if not any(after.judged):
        return None
    moved = np.round(after.values - before.values, 9)
    found = [_flip(before, after, row) for row in np.flatnonzero(moved).tolist()]
    found.sort(key=lambda flip: (-abs(flip.change), flip.unit_id))
    worse = [flip for flip in found if flip.value_after < flip.value_before]
    better = [flip for flip in found if flip.value_after > flip.value_before]
    return Flips(len(worse), len(better), tuple(worse[:shown]), tuple(better[:shown]))


def _flip(before: UnitScores, after: UnitScores, row: int) -> Flip:
    first, second = before.judged[row], after.judged[row]
    assert first is not None
    assert second is not None
    values = float(before.values[row]), float(after.values[row])
    return Flip(
        unit_id=after.unit_ids[row],
        example_id=second.example_id,
        part=second.part,
        value_before=values[0],
        value_after=values[1],
        answer_before=first.answer,
        answer_after=second.answer,
        confidence_before=first.confidence,
        confidence_after=second.confidence,
        change=_sureness(second.confidence, values[1]) - _sureness(first.confidence, values[0]),
    )


def _sureness(confidence: float | None, value: float) -> float:
    """From -1, sure and wrong, to 1, sure and right; an answer without a confidence counts as sure."""
    return (1.0 if confidence is None else confidence) * (2 * value - 1)


def _short(answer: Any) -> str:
    return "no box" if answer is None else str(answer)[:40]


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f", sure {confidence:.2f}"
