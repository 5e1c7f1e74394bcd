"""Turns predictions into the scores of units, in the same way for every benchmark.

The predictions must cover the split exactly, and a text that holds no answer counts as wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from visualbert_core.errors import CoverageError
from visualbert_core.metrics.coverage import check_coverage
from visualbert_core.schema import Prediction, Score
from visualbert_core.tasks.base import Task


def judge(task: Task, predictions: Iterable[Prediction]) -> list[Score]:
    """Score predictions that cover the split exactly.

    Raises CoverageError where an example has no prediction or two, or where a prediction is of an unknown example.
    Raises InputError where an answer has the wrong form.
    """
    rows = list(predictions)
    coverage = check_coverage(task.expected(), (row.example_id for row in rows))
    if not coverage.complete:
        raise CoverageError(f"{task.name} {task.split}: no score, {coverage.message()}; predict each example once")
    return list(score_units(task, {row.example_id: row for row in rows}))


def score_units(task: Task, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
    """Yield the scores of complete predictions. The answer of a text in which no answer was found counts as wrong.

    Raises InputError where an answer has the wrong form.
    """
    unparsed = {name: row.answer for name, row in predictions.items() if _unparsed(row)}
    for score in task.score(without_unparsed(task, predictions) if unparsed else predictions):
        answer = score.judged
        if answer is None or answer.part is not None or answer.example_id not in unparsed:
            yield score
        else:  # Reports show what the model gave, and not the wrong answer that the task made up.
            yield replace(score, judged=replace(answer, answer=unparsed[answer.example_id]))


def without_unparsed(task: Task, predictions: Mapping[str, Prediction]) -> dict[str, Prediction]:
    """Return the predictions, with the task's worst answer in place of each that was not found in a text."""
    return {name: _worst(task, row) if _unparsed(row) else row for name, row in predictions.items()}


def _unparsed(prediction: Prediction) -> bool:
    return not all(text.parsed for text in prediction.generated)


def _worst(task: Task, prediction: Prediction) -> Prediction:
    worst, texts = task.worst(prediction.example_id), prediction.generated
    if isinstance(worst, list) and len(worst) == len(texts) == len(prediction.answer):  # a text for each phrase
        parts = zip(texts, prediction.answer, worst, strict=True)
        worst = [given if text.parsed else bad for text, given, bad in parts]
    return replace(prediction, answer=worst)
