"""Curves over the steps of a training, as the page plots them.

Owns the scales of all plots with an axis, and the places of the marks: x in percent of the width, y in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

HEIGHT = 170
_TOP, _BOTTOM = 12, 24  # pixels; the numbers of the steps, or the names of the nights, are under the plot
_STEPS = 3  # parts of the axis of steps: longer numbers do not fit on a phone

Point = tuple[int, float]
"""(step, value)"""


@dataclass(frozen=True)
class Line:
    """What a plot shows under one name. With `marks`, every point has one."""

    name: str
    points: Sequence[Point]
    marks: bool = False


@dataclass(frozen=True)
class DrawnLine:
    """A line with its places."""

    name: str
    values: Sequence[float]
    places: Sequence[tuple[float, float]]
    marks: bool


@dataclass(frozen=True)
class Plot:
    """A plot of one or several lines over the same steps."""

    title: str
    note: str
    steps: int
    lines: Sequence[DrawnLine]
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
        DrawnLine(
            line.name,
            [value for _, value in line.points],
            [(100 * number / steps, height(value, low, high)) for number, value in line.points],
            line.marks or len(line.points) == 1,  # a line of one point cannot be seen
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
