"""Small plots on one line from 0 to 100, drawn by the browser: score, wrong image, chance, an earlier night.

Owns which mark means what. Places are in percent, so a plot fits any width and its marks keep their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from visualbert_core.report.markup import Html, tag
from visualbert_core.report.scores import Estimate, percent


def head(columns: Sequence[str]) -> Html:
    """Column names, and over the plots their axis."""
    axis = tag("div", *(tag("span", text) for text in ("0", "50", "100")), class_="axis")
    names = (tag("th", name, scope="col") for name in columns)
    return tag("thead", tag("tr", *names, tag("th", axis, scope="col", aria_label="plot from 0 to 100", class_="plot")))


def plot(own: Estimate, other: Estimate | None, chance: float | None, before: float | None = None) -> Html:
    """Interval and dot (score), diamond (wrong image), tick (chance), ring with a line to the dot (earlier night)."""
    name = f"score {percent(own.value)} {own.interval}"
    name += f", wrong image {percent(other.value if other else None)}, chance {percent(chance)}"
    name += "" if before is None else f", earlier {percent(before)}"
    shapes = [_line(0, 100, "track"), *(_tick(at, 38, 62, "track") for at in (0, 50, 100))]
    if chance is not None:
        shapes.append(_tick(chance, 15, 85, "chance"))
    if own.low is not None and own.high is not None:
        shapes.append(_line(own.low, own.high, "reach"))
    if other:
        shapes.append(_diamond(other.value))
    if before is not None:
        shapes += [_line(before, own.value, "moved"), _dot(before, "before")]
    shapes.append(_dot(own.value, "own"))
    return tag("svg", tag("title", name), *shapes, class_="plot", role="img", aria_label=name)


def legend(compared: bool, wrong_image: bool) -> Html:
    """What the marks mean; with `compared` also the ring, with `wrong_image` also the diamond."""
    marks = {"score and its 95 % interval": [_line(0, 100, "reach"), _dot(50, "own")]}
    if wrong_image:
        marks["same model, wrong image"] = [_diamond(50)]
    marks["chance"] = [_tick(50, 15, 85, "chance")]
    if compared:
        marks["earlier night"] = [_line(25, 75, "moved"), _dot(25, "before")]
    return tag("ul", *(tag("li", _key(shapes), name) for name, shapes in marks.items()), class_="legend")


def _line(start: float, stop: float, kind: str) -> Html:
    return tag("line", x1=f"{start:.2f}%", x2=f"{stop:.2f}%", y1="50%", y2="50%", class_=kind)


def _tick(at: float, top: float, bottom: float, kind: str) -> Html:
    return tag("line", x1=f"{at:.2f}%", x2=f"{at:.2f}%", y1=f"{top}%", y2=f"{bottom}%", class_=kind)


def _dot(at: float, kind: str) -> Html:
    return tag("circle", cx=f"{at:.2f}%", cy="50%", r="4", class_=kind)


def _diamond(at: float) -> Html:
    # A path knows no percentages: a nested svg carries it to its place.
    return tag("svg", tag("path", d="M0-5 5 0 0 5-5 0z"), x=f"{at:.2f}%", y="50%", class_="other")


def _key(shapes: Iterable[Html]) -> Html:
    return tag("svg", *shapes, class_="plot key", aria_hidden="true")
