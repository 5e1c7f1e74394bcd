"""The headline metric of a cell over its nights, as the page plots it and lists it in a table.

Owns the scale and the places of the marks: x in percent of the width, y in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from visualbert_core.comparison.history import Row
from visualbert_core.report.curves import scale, ticks
from visualbert_core.report.scores import label
from visualbert_core.tasks import Task

NIGHTS = 60
"""The most nights that a plot shows: the last ones."""

HEIGHT = 170
_TOP, _BOTTOM = 12, 24  # pixels; the names of the nights are under the plot
_NAMES = 4  # names of nights under the axis: more dates do not fit on a phone


@dataclass(frozen=True)
class TrendNight:
    """One night of the plot."""

    row: Row
    score: float
    interval: tuple[float, float] | None
    x: float
    y: float
    reach: tuple[float, float] | None
    """y of the two ends of the interval."""
    named: bool
    """Whether its name is written under the axis."""
    differs: Sequence[str] | None
    """The ingredients in which it differs from the night before; None for the first."""


@dataclass(frozen=True)
class Trend:
    """The plot of a cell."""

    metric: str
    """The metric's name for users."""
    ticks: Sequence[tuple[float, float]]
    """(value, y) of each line of the scale."""
    nights: Sequence[TrendNight]
    height: int = HEIGHT


def trend(rows: Sequence[Row], task: Task | None) -> Trend:
    """Return the plot of a cell's nights. `rows` has at least one."""
    rows = rows[-NIGHTS:]
    metric = rows[-1].headline
    rows = [row for row in rows if metric in row.scores]
    intervals = [_interval(row, metric) for row in rows]
    ends = [end for interval in intervals if interval for end in interval]
    low, high, step = scale([row.scores[metric] for row in rows] + ends, least=0.4)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    every = max(1, ceil(len(rows) / _NAMES))
    nights = [
        TrendNight(
            row=row,
            score=row.scores[metric],
            interval=interval,
            x=100 * (index + 0.5) / len(rows),
            y=y(row.scores[metric]),
            reach=(y(interval[0]), y(interval[1])) if interval else None,
            named=(len(rows) - 1 - index) % every == 0,
            differs=_differs(rows[index - 1], row) if index else None,
        )
        for index, (row, interval) in enumerate(zip(rows, intervals, strict=True))
    ]
    return Trend(label(metric, task), [(tick, y(tick)) for tick in ticks(low, high, step)], nights)


def _interval(row: Row, metric: str) -> tuple[float, float] | None:
    low, high = row.intervals[metric]
    return None if low is None or high is None else (low, high)


def _differs(before: Row, row: Row) -> list[str]:
    """Return the ingredients that differ. A row of an older version may lack an ingredient, which says nothing."""
    both = before.ingredients.keys() & row.ingredients.keys()
    return [name for name in row.ingredients if name in both and before.ingredients[name] != row.ingredients[name]]
