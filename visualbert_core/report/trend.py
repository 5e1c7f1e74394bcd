"""A cell's headline score over its nights: a plot, drawn by the browser, and the same as a table.

Owns the scale and what a verdict looks like: a dot passed, a cross failed, a ring cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10

from visualbert_core.comparison.history import Row
from visualbert_core.report.markup import Html, join, tag
from visualbert_core.report.scores import label, percent
from visualbert_core.report.verdict import named, points, scrolling

NIGHTS = 60
"""The last so many are shown."""

_HEIGHT, _TOP, _BOTTOM = 170, 12, 24  # pixels; the nights' names stand under the plot
_NAMES = 4  # of nights under the axis: dates on a phone
_SHAPES = {
    "pass": tag("circle", r="4"),
    "fail": tag("path", d="M-5-5 5 5M5-5-5 5"),
    "cannot tell": tag("circle", r="4", class_="open"),
}


def trend(title: Html, rows: Sequence[Row]) -> Html:
    """The figure of a cell; it has at least one night."""
    rows = rows[-NIGHTS:]
    metric = rows[-1].headline
    rows = [row for row in rows if metric in row.scores]
    low, high, step = _scale([value for row in rows for value in _values(row, metric)])

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    ticks = [low + step * index for index in range(round((high - low) / step) + 1)]
    names = [tag("span", f"{tick:g}", style=f"top:{y(tick):.1f}px") for tick in ticks]
    grid = [tag("line", x1="0", x2="100%", y1=f"{y(t):.1f}", y2=f"{y(t):.1f}", class_="track") for t in ticks]
    at = [100 * (index + 0.5) / len(rows) for index in range(len(rows))]
    heights = [y(row.scores[metric]) for row in rows]
    path = [
        tag("line", x1=f"{a:.2f}%", x2=f"{b:.2f}%", y1=f"{c:.1f}", y2=f"{d:.1f}", class_="path")
        for a, b, c, d in zip(at, at[1:], heights, heights[1:], strict=False)
    ]
    reaches = [
        tag("line", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1=f"{y(ends[0]):.1f}", y2=f"{y(ends[1]):.1f}", class_="reach")
        for x, row in zip(at, rows, strict=True)
        if len(ends := _ends(row, metric)) == 2
    ]
    marks = [_mark(x, height, row, metric) for x, height, row in zip(at, heights, rows, strict=True)]
    about = _in_words(rows, metric)
    svg = tag("svg", *grid, *_nights(at, rows), *reaches, *path, *marks, role="img", aria_label=about, height=_HEIGHT)
    return tag(
        "div",
        tag("h3", title, tag("span", f" {label(metric)}", class_="about")),
        tag("div", tag("div", *names, class_="ticks", aria_hidden="true"), svg, class_="trend"),
        tag("details", tag("summary", "As a table"), scrolling(f"{metric} by night", _table(rows, metric))),
    )


def legend() -> Html:
    """What the marks mean."""
    shapes = {"passed": "pass", "failed": "fail", "cannot tell": "cannot tell"}
    keys = [
        tag("li", tag("svg", _placed("50%", "50%", verdict), class_="plot key", aria_hidden="true"), name)
        for name, verdict in shapes.items()
    ]
    return tag("ul", *keys, class_="legend")


def _placed(x: str, y: str, verdict: str) -> Html:
    return tag("svg", _SHAPES[verdict], x=x, y=y, class_=f"night {verdict.replace(' ', '-')}")


def _mark(x: float, height: float, row: Row, metric: str) -> Html:
    said = f"{row.night}: {percent(row.scores[metric])}, {row.verdict}"
    return tag("g", tag("title", said), _placed(f"{x:.2f}%", f"{height:.1f}", row.verdict))


def _nights(at: Sequence[float], rows: Sequence[Row]) -> Iterator[Html]:
    """The names of a few nights, evenly; that of tonight always."""
    step = max(1, ceil(len(rows) / _NAMES))
    for index in range((len(rows) - 1) % step, len(rows), step):
        yield tag("text", rows[index].night, x=f"{at[index]:.2f}%", y=_HEIGHT - 6, text_anchor="middle")


def _ends(row: Row, metric: str) -> list[float]:
    return [value for value in row.intervals[metric] if value is not None]


def _values(row: Row, metric: str) -> list[float]:
    return [row.scores[metric], *_ends(row, metric)]


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Round ends around the values, and the step between them: 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    rough = max(high - low, 0.4) / 4
    power = 10 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    bottom, top = floor(low / step) * step, ceil(high / step) * step
    return bottom, top if top > bottom else bottom + step, step


def _in_words(rows: Sequence[Row], metric: str) -> str:
    scores = [row.scores[metric] for row in rows]
    failed = [row.night for row in rows if row.verdict == "fail"]
    said = f"{label(metric)} over {len(rows)} nights, from {percent(scores[0])} to {percent(scores[-1])}; "
    said += f"lowest {percent(min(scores))}, highest {percent(max(scores))}; "
    return said + (f"failed: {', '.join(failed)}" if failed else "none failed")


def _table(rows: Sequence[Row], metric: str) -> Html:
    names = ("night", "score", "95 % interval", "verdict", "points", "since", "differs in")
    body = [tag("tr", *_row(row, before, metric)) for row, before in zip(rows, [None, *rows], strict=False)]
    heads = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names)))
    return tag("table", heads, tag("tbody", *reversed(body)))


def _row(row: Row, before: Row | None, metric: str) -> Iterator[Html]:
    ends = _ends(row, metric)
    other = [name for name, digest in row.ingredients.items() if before and before.ingredients.get(name) != digest]
    change = row.changes.get(metric)
    yield tag("th", row.night, scope="row")
    yield tag("td", percent(row.scores[metric]))
    yield tag("td", f"[{ends[0]:.1f}, {ends[1]:.1f}]" if len(ends) == 2 else "–")
    yield tag("td", named(row.verdict))
    yield tag("td", points(change[0]) if change else "–")
    yield tag("td", row.compared_with or "–")
    yield tag("td", join([", ".join(other) or ("–" if before is None else "nothing")]))
