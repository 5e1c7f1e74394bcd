"""Plots with an axis: the curves over the steps of a training, and the trend of a metric over the nights.

Owns their scales, and the places of the marks: x in percent of the width, y in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from typing import Any

from visualbert_core.comparison.history import Row
from visualbert_core.report.scores import label
from visualbert_core.tasks import Task

NIGHTS = 60
"""The most nights that a plot shows: the last ones."""

HEIGHT = 170
_TOP, _BOTTOM = 12, 24  # pixels; the numbers of the steps, or the names of the nights, are under the plot
_NAMES = 4  # names of nights under the axis: more dates do not fit on a phone
_STEPS = 3  # parts of the axis of steps: longer numbers do not fit on a phone

Point = tuple[int, float]
"""(step, value)"""


@dataclass(frozen=True)
class Line:
    """What a plot shows under one name. With `marks`, every point has one. `plot` adds the places of the points."""

    name: str
    points: Sequence[Point]
    marks: bool = False
    places: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Plot:
    """A plot of one or several lines over the same steps."""

    title: str
    note: str
    steps: int
    lines: Sequence[Line]
    values: Sequence[tuple[str, float]]
    """(value, y) of each line of the scale."""
    numbers: Sequence[tuple[str, float]]
    """(step, x) of each number under the plot."""
    height: int = HEIGHT


def plot(title: str, note: str, lines: Sequence[Line], steps: int) -> Plot | None:
    """Return a plot over `steps` steps; None where no line has a point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    low, high, step = scale([value for line in lines for _, value in line.points])
    drawn = [
        replace(
            line,
            places=[(100 * number / steps, height(value, low, high)) for number, value in line.points],
            marks=line.marks or len(line.points) == 1,  # a line of one point cannot be seen
        )
        for line in lines
    ]
    numbers = [tick for tick in ticks(*scale([0, steps], parts=_STEPS)) if tick <= steps and tick == int(tick)]
    return Plot(
        title,
        note,
        steps,
        drawn,
        [(f"{tick:,g}", height(tick, low, high)) for tick in ticks(low, high, step)],
        [(f"{tick:,.0f}", 100 * tick / steps) for tick in numbers],
    )


def trend(rows: Sequence[Row], task: Task | None) -> dict[str, Any]:
    """Return the plot of a cell's headline metric over its nights. `rows` has at least one."""
    rows = rows[-NIGHTS:]
    metric = rows[-1].headline
    rows = [row for row in rows if metric in row.scores]
    intervals = [_interval(row, metric) for row in rows]
    ends = [end for interval in intervals for end in interval]
    low, high, step = scale([row.scores[metric] for row in rows] + ends, least=0.4)
    every = max(1, ceil(len(rows) / _NAMES))
    nights = [
        {
            "row": row,
            "score": row.scores[metric],
            "interval": interval,
            "x": 100 * (index + 0.5) / len(rows),
            "y": height(row.scores[metric], low, high),
            "reach": [height(end, low, high) for end in interval],
            "named": (len(rows) - 1 - index) % every == 0,  # whether its name is written under the axis
            "differs": _differs(rows[index - 1], row) if index else None,
        }
        for index, (row, interval) in enumerate(zip(rows, intervals, strict=True))
    ]
    return {
        "metric": label(metric, task),
        "ticks": [(tick, height(tick, low, high)) for tick in ticks(low, high, step)],
        "nights": nights,
        "height": HEIGHT,
    }


def _interval(row: Row, metric: str) -> tuple[float, ...]:
    """Return the two ends of the interval; nothing for a single image, which gives no interval."""
    return tuple(end for end in row.intervals[metric] if end is not None)


def _differs(before: Row, row: Row) -> list[str]:
    """Return the ingredients that differ. A row of an older version may lack an ingredient, which says nothing."""
    both = before.ingredients.keys() & row.ingredients.keys()
    return [name for name in row.ingredients if name in both and before.ingredients[name] != row.ingredients[name]]


def scale(values: Sequence[float], parts: int = 4, least: float = 0.0) -> tuple[float, float, float]:
    """Return round ends around the values, and the step between lines: 1, 2 or 5 times a power of ten.

    There are about `parts` steps, and they are as for a range of at least `least`.
    """
    low, high = min(values), max(values)
    rough = max(high - low, least) / parts or abs(high) / parts or 1.0
    power = 10.0 ** floor(log10(rough))
    # 5 × 1e-06 is a little less than 5e-06 in binary.
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)
    bottom, top = floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step
    return bottom, top if top > bottom else bottom + step, step


def height(value: float, low: float, high: float) -> float:
    """Return the y of a value on a scale from `low` to `high`."""
    return _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def ticks(low: float, high: float, step: float) -> list[float]:
    """Return the values of the lines of a scale."""
    return [low + step * index for index in range(round((high - low) / step) + 1)]
