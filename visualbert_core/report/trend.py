"""The headline metric of a cell over its nights, as the page plots it and lists it in a table.

Owns the scale and the places of the marks: x in percent of the width, y in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from visualbert_core.comparison.history import Row
from visualbert_core.report.curves import HEIGHT, height, scale, ticks
from visualbert_core.report.scores import label
from visualbert_core.tasks import Task

NIGHTS = 60
"""The most nights that a plot shows: the last ones."""

_NAMES = 4  # names of nights under the axis: more dates do not fit on a phone


def trend(rows: Sequence[Row], task: Task | None) -> dict[str, Any]:
    """Return the plot of a cell's nights. `rows` has at least one."""
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
