"""Turns predictions into numbers, in the same way for every benchmark: coverage, units, means and their intervals.

The interval of a mean is clustered by image, because the questions about one image are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum

from visualbert_core.errors import CoverageError
from visualbert_core.metrics.coverage import check_coverage
from visualbert_core.metrics.statistics import clustered_mean, interval
from visualbert_core.schema import Prediction, Score
from visualbert_core.tasks.base import Task


@dataclass(frozen=True)
class Metric:
    """Holds the mean of a metric over n units, and its 95 % interval clustered by image; all three are in percent."""

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
    return list(task.score({row.example_id: row for row in rows}))


def summarize(scores: Iterable[Score]) -> Summary:
    """Return every metric with its interval, and every metric in every group."""
    by_metric: defaultdict[str, list[Score]] = defaultdict(list)
    by_group: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for score in scores:
        by_metric[score.metric].append(score)
        for kind, groups in score.groups.items():
            for group in groups:
                by_group[kind, group, score.metric].append(score.value)
    breakdown: dict[str, dict[str, dict[str, tuple[float, int]]]] = {}
    for (kind, group, metric), values in sorted(by_group.items(), key=lambda item: item[0][:2]):
        share = (100 * fsum(values) / len(values), len(values))
        breakdown.setdefault(kind, {}).setdefault(group, {})[metric] = share
    return Summary({name: _metric(name, units) for name, units in by_metric.items()}, breakdown)


def _metric(name: str, units: list[Score]) -> Metric:
    mean = clustered_mean([unit.value for unit in units], [unit.cluster for unit in units])
    low, high = interval(mean)
    return Metric(name, 100 * mean.value, 100 * low, 100 * high, mean.n)
