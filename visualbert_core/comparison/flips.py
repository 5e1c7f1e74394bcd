"""Finds the examples on which two runs differ: which units got worse or better, and how confident the model was."""

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


def changed_answers(before: Predictions, after: Predictions) -> list[str]:
    """Return the ids of the examples that both runs answer, with different answers."""
    return [name for name, p in after.items() if name in before and before[name].answer != p.answer]


def flips(before: UnitScores, after: UnitScores, shown: int, scale: float | None = None) -> Flips | None:
    """Return the units of a metric that flipped, at most `shown` each way.

    `before` and `after` hold the same units in the same order. `scale` is None for a metric in percent. Return None for
    a metric that judges no single answer, such as the consistency of NLVR2.
    """
    if not any(after.judged):
        return None
    # Rounded, so that a difference in the last digits of float64 is not a flip.
    moved = np.round(after.values - before.values, 9)
    found = [_flip(before, after, row, scale) for row in np.flatnonzero(moved).tolist()]
    found.sort(key=lambda flip: (-abs(flip.change), flip.unit_id))
    worse = [flip for flip in found if flip.value_after < flip.value_before]
    better = [flip for flip in found if flip.value_after > flip.value_before]
    return Flips(len(worse), len(better), tuple(worse[:shown]), tuple(better[:shown]))


def _flip(before: UnitScores, after: UnitScores, row: int, scale: float | None) -> Flip:
    first, second = before.judged[row], after.judged[row]
    assert first is not None
    assert second is not None
    values = float(before.values[row]), float(after.values[row])
    factor = 1.0 if scale is None else scale / 100
    if scale is None:
        change = _sureness(second.confidence, values[1]) - _sureness(first.confidence, values[0])
    else:
        change = factor * (values[1] - values[0])
    return Flip(
        unit_id=after.unit_ids[row],
        example_id=second.example_id,
        part=second.part,
        value_before=values[0] * factor,
        value_after=values[1] * factor,
        answer_before=first.answer,
        answer_after=second.answer,
        confidence_before=first.confidence,
        confidence_after=second.confidence,
        change=change,
    )


def _sureness(confidence: float | None, value: float) -> float:
    """Return the signed confidence: 1 is confident and right, -1 is confident and wrong.

    An answer without a confidence counts as fully confident.
    """
    return (1.0 if confidence is None else confidence) * (2 * value - 1)


def _short(answer: Any) -> str:
    return "no box" if answer is None else str(answer)[:40]


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f", sure {confidence:.2f}"
