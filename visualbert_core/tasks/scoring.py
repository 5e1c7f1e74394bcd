"""Turns predictions into numbers, in the same way for every benchmark: coverage, units, metrics and their intervals.

A metric is a mean over units, or a function of sums over units (`metrics.sums`). Its interval is clustered by image,
because the questions about one image are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum, nan

import numpy as np

from visualbert_core.errors import CoverageError
from visualbert_core.metrics.coverage import check_coverage
from visualbert_core.metrics.statistics import clustered_mean, interval
from visualbert_core.metrics.sums import is_settled, linear_shares, value_of_sums
from visualbert_core.schema import Prediction, Score
from visualbert_core.tasks.base import Task

PERCENT = 100.0
"""What the value 1 is shown as, for a metric that `Task.scales` does not name."""


@dataclass(frozen=True)
class Metric:
    """Holds a metric over n units, and its 95 % interval clustered by image; all are in percent or in its scale."""

    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Summary:
    """Summarises a set of scores.

    `metrics` keeps the order in which the task yields the metrics. `breakdown` is kind of group → group → metric →
    (percent, number of units), with kinds and groups sorted. A unit in several groups of a kind counts in every group.
    """

    metrics: dict[str, Metric]
    breakdown: dict[str, dict[str, dict[str, tuple[float, int]]]]


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


def summarize(scores: Iterable[Score], scales: Mapping[str, float] | None = None) -> Summary:
    """Return every metric with its interval, and every metric in every group. `scales` is that of the task."""
    shown = scales or {}
    by_metric: defaultdict[str, list[Score]] = defaultdict(list)
    by_group: defaultdict[tuple[str, str, str], list[Score]] = defaultdict(list)
    for score in scores:
        by_metric[score.metric].append(score)
        for kind, groups in score.groups.items():
            for group in groups:
                by_group[kind, group, score.metric].append(score)
    breakdown: dict[str, dict[str, dict[str, tuple[float, int]]]] = {}
    for (kind, group, metric), units in sorted(by_group.items(), key=lambda item: item[0][:2]):
        share = (_value(units, shown.get(metric, PERCENT)), len(units))
        breakdown.setdefault(kind, {}).setdefault(group, {})[metric] = share
    metrics = {name: _metric(name, units, shown.get(name, PERCENT)) for name, units in by_metric.items()}
    return Summary(metrics, breakdown)


def _value(units: Sequence[Score], scale: float) -> float:
    if units[0].counts is None:
        return scale * fsum(unit.value for unit in units) / len(units)
    return scale * value_of_sums(*_counts(units))


def _metric(name: str, units: Sequence[Score], scale: float) -> Metric:
    clusters = [unit.cluster for unit in units]
    if units[0].counts is None:
        mean = clustered_mean([unit.value for unit in units], clusters)
        low, high = interval(mean)
        return Metric(name, scale * mean.value, scale * low, scale * high, mean.n)
    counts = _counts(units)
    value = value_of_sums(*counts)
    # Official programs add 1e-9 to what they divide by, so a full score is a hair below 1.
    full = 1.0 if value > 1 - 1e-6 else value
    mean = replace(clustered_mean(linear_shares(*counts).tolist(), clusters), value=full)
    low, high = interval(mean) if is_settled(value) else (nan, nan)
    return Metric(name, scale * value, scale * low, scale * high, mean.n)


def _counts(units: Sequence[Score]) -> tuple[str, np.ndarray]:
    """Return the function of a metric, and the counts of its units: float64 [n, k]."""
    found = [unit.counts for unit in units if unit.counts is not None]
    return found[0].function, np.array([each.values for each in found])
