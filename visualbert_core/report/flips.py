"""The examples on which two runs differ: which units got worse or better, and how sure the model was each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visualbert_core.evaluation.units import Units
from visualbert_core.report.examples import EXAMPLE_OF
from visualbert_core.schema import Prediction

Predictions = Mapping[str, Prediction]


@dataclass(frozen=True)
class Flip:
    """One unit before and after. `change` is that of the confidence in the right thing: a confidence counts as it is
    where the unit was right and against it where it was wrong, so that sure-and-right to sure-and-wrong is -2."""

    unit_id: str
    example_id: str
    image_id: str
    value_before: float
    value_after: float
    answer_before: Any
    answer_after: Any
    confidence_before: float
    confidence_after: float
    change: float

    def __str__(self) -> str:
        return (
            f"{self.unit_id}: {_short(self.answer_before)} ({self.value_before:.2f}, sure {self.confidence_before:.2f})"
            f" → {_short(self.answer_after)} ({self.value_after:.2f}, sure {self.confidence_after:.2f})"
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


def flips(
    task: str, metric: str, one: Units, other: Units, before: Predictions, after: Predictions, shown: int
) -> Flips | None:
    """The units of a metric that flipped, of those that both runs have; None for metrics that are not about a single
    answer, such as NLVR2's consistency."""
    if metric not in EXAMPLE_OF:
        return None
    moved = np.round(other.values - one.values, 9)
    rows: list[int] = np.flatnonzero(moved).tolist()
    found = [_flip(task, metric, one, other, before, after, row) for row in rows]
    found.sort(key=lambda flip: (-abs(flip.change), flip.unit_id))
    worse = [flip for flip in found if flip.value_after < flip.value_before]
    better = [flip for flip in found if flip.value_after > flip.value_before]
    return Flips(len(worse), len(better), tuple(worse[:shown]), tuple(better[:shown]))


def _flip(task: str, metric: str, one: Units, other: Units, before: Predictions, after: Predictions, row: int) -> Flip:
    unit_id = other.unit_ids[row]
    example_id = EXAMPLE_OF[metric](unit_id)
    part = int(unit_id.rpartition("/")[2]) if task == "flickr30k_entities" else 0
    first, second = (_said(task, run[example_id], part) for run in (before, after))
    values = float(one.values[row]), float(other.values[row])
    return Flip(
        unit_id=unit_id,
        example_id=example_id,
        image_id=after[example_id].image_id,
        value_before=values[0],
        value_after=values[1],
        answer_before=first[0],
        answer_after=second[0],
        confidence_before=first[1],
        confidence_after=second[1],
        change=second[1] * (2 * values[1] - 1) - first[1] * (2 * values[0] - 1),
    )


def _said(task: str, prediction: Prediction, part: int) -> tuple[Any, float]:
    """The answer, of a grounding the first choice for one phrase, and the confidence behind it."""
    answer, scores = prediction.answer, prediction.scores
    if task == "flickr30k_entities":
        return (answer[part] or [None])[0], scores[part]
    if task == "vcr":
        return answer, scores[answer]
    if task == "nlvr2":
        return answer, scores[answer.capitalize() == "True"]
    return answer, scores[0]


def _short(answer: Any) -> str:
    return "no box" if answer is None else str(answer)[:40]
