"""The verdict of a night in words, first thing on the page: what got worse, by how much, how surely, because of what.

Also owns what a gate adds to a page's input, and how points and p are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from visualbert_core.comparison.attribution import Cause
from visualbert_core.comparison.compare import Change, Comparison
from visualbert_core.comparison.gate import Check, Gate
from visualbert_core.comparison.history import Row
from visualbert_core.report import ReportCell
from visualbert_core.report.markup import Html, join, tag
from visualbert_core.report.scores import label

SIGNS = {"pass": "✓", "fail": "✗", "cannot tell": "?"}
CLASSES = {"pass": "right", "fail": "wrong", "cannot tell": "partly"}

_ORDER = ("fail", "cannot tell", "pass")
_HEADINGS = {
    "pass": "Pass: nothing got worse",
    "fail": "Fail: it got worse",
    "cannot tell": "Cannot tell whether it got worse",
}


@dataclass(frozen=True)
class CellNight:
    """What a night with a gate knows of a cell: its name in gate and history, and how it changed; None where it was
    compared with nothing. `rows` are its nights up to this one, first night first."""

    name: str
    comparison: Comparison | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class GatedNight:
    """A verdict, and what led to it of each cell of the page, in the page's order."""

    gate: Gate
    cells: tuple[CellNight, ...]


def verdict(night: GatedNight, cells: Sequence[ReportCell]) -> Html:
    """The section. A cell of which nothing changed is no more than its name."""
    gate = night.gate
    sign = tag("span", SIGNS[gate.verdict], class_="sign", aria_hidden="true")
    parts = [tag("h2", sign, _HEADINGS[gate.verdict]), tag("p", _count(gate), class_="about")]
    parts += [tag("p", tag("strong", "✗ out of bounds: ", class_="wrong"), line) for line in gate.missed]
    stories = []
    unchanged = []
    for number, (each, cell) in enumerate(zip(night.cells, cells, strict=True), start=1):
        checks = [check for check in gate.checks if check.watched.cell == each.name]
        title = tag("a", cell.title, href=f"#cell-{number}")
        if each.comparison and not each.comparison.causes and all(check.verdict == "pass" for check in checks):
            unchanged.append(title)
        else:
            stories.append((_ORDER.index(gate.cell_verdict(each.name)), _story(title, checks, each.comparison)))
    # What failed comes first.
    parts += [story for _, story in sorted(stories, key=lambda story: story[0])]
    if unchanged:
        names = join([piece for title in unchanged for piece in (", ", title)][1:])
        parts.append(tag("p", tag("strong", "✓ no answer changed: ", class_="right"), names))
    return tag("section", *parts, _watched(night, cells), id="verdict", class_=CLASSES[gate.verdict])


def _count(gate: Gate) -> str:
    """ "Night 2026-02-05: of 4 watched metrics 3 fail, 1 cannot tell"."""
    verdicts = [check.verdict for check in gate.checks]
    each = ", ".join(f"{verdicts.count(name)} {name}" for name in _ORDER if name in verdicts)
    return f"Night {gate.night}: of {len(verdicts)} watched metric{'s' * (len(verdicts) != 1)} {each}"


def points(value: float) -> str:
    """ "−1.25", with a true minus."""
    return f"{value:+.2f}".replace("-", "−")


def reach(change: Change) -> str:
    """ "[−2.50, +0.10]", or nothing for a single image."""
    if change.low is None or change.high is None:
        return ""
    return f"[{points(change.low)}, {points(change.high)}]"


def p_value(p: float) -> str:
    """ "< 0.0001" or "0.0312"."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def named(verdict: str) -> Html:
    """A verdict with its sign, not by colour alone."""
    return tag("strong", f"{SIGNS[verdict]} {verdict}", class_=CLASSES[verdict])


def _story(title: Html, checks: Sequence[Check], comparison: Comparison | None) -> Html:
    lines = [tag("li", *_finding(check)) for check in checks]
    if comparison is not None:
        lines.append(tag("li", *_answers(comparison)))
        lines += [tag("li", *_because(cause)) for cause in comparison.causes]
        lines += [tag("li", "⚠ ", warning) for warning in comparison.warnings]
    return tag("div", tag("h3", title), tag("ul", *lines), class_="story")


def _finding(check: Check) -> Iterator[str]:
    yield from (named(check.verdict), f": {label(check.watched.metric)}")
    change = check.change
    if change is None:
        yield f": {check.reason}"
        return
    yield from (" ", tag("b", f"{points(change.difference)} points"), f" {reach(change)}")
    yield f", from {change.before:.2f} to {change.after:.2f} since night {check.watched.compared_with}; "
    yield f"p {_corrected(check)}. "
    if check.verdict == "cannot tell":
        escaping = "A drop of any size" if check.visible is None else f"A drop of {check.visible:.2f} points"
        yield f"{escaping} might have escaped, and {check.watched.drop:g} matters."
    elif check.visible is not None and check.verdict == "pass":
        yield f"A drop of {check.visible:.2f} points would have shown."


def _corrected(check: Check) -> str:
    return "–" if check.p_holm is None else p_value(check.p_holm)


def _answers(comparison: Comparison) -> Iterator[str]:
    yield f"{comparison.answers_changed:,} of {comparison.examples:,} answers changed"
    for metric, found in comparison.flips.items():
        of = f" by {label(metric)}" if len(comparison.flips) > 1 else ""
        yield f"; {found.worse_count:,} got worse, {found.better_count:,} better{of}"


def _because(cause: Cause) -> Iterator[str]:
    yield from ("Because of ", tag("b", " and ".join(cause.ingredients)))
    yield ": an unknown part" if cause.points is None else f": {points(cause.points)} points"
    yield f" ({cause.how})"
    if cause.lines:
        yield tag("ul", *(tag("li", tag("code", line)) for line in cause.lines[:_LINES]), class_="differs")
    if len(cause.lines) > _LINES:
        yield tag("p", f"and {len(cause.lines) - _LINES} more, under provenance", class_="note")


_LINES = 6


def _watched(night: GatedNight, cells: Sequence[ReportCell]) -> Html:
    """Every watched metric in a row: the numbers behind the words."""
    titles = {each.name: cell.title for each, cell in zip(night.cells, cells, strict=True)}
    names = ("cell", "metric", "verdict", "before", "now", "points", "p (Holm)", "would have shown", "matters", "since")
    rows = [tag("tr", *_row(check, titles)) for check in night.gate.checks]
    caption = "p is that of no drop, corrected for all watched metrics of the night; points with 95 % intervals"
    table = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in names))),
        tag("tbody", *rows),
    )
    return tag("details", tag("summary", "What the gate watched"), scrolling("what the gate watched", table))


def _row(check: Check, titles: dict[str, str]) -> Iterator[Html]:
    change, watched = check.change, check.watched
    yield tag("th", titles.get(watched.cell, watched.cell), scope="row")
    yield tag("td", label(watched.metric))
    yield tag("td", named(check.verdict))
    numbers = ["–"] * 4
    if change is not None:
        moved = f"{points(change.difference)} {reach(change)}"
        numbers = [f"{change.before:.2f}", f"{change.after:.2f}", moved, _corrected(check)]
    numbers += ["–" if check.visible is None else f"{check.visible:.2f}", f"{watched.drop:g}"]
    yield from (tag("td", text) for text in [*numbers, watched.compared_with or "–"])


def scrolling(name: str, table: Html) -> Html:
    """A table that is wider than a phone scrolls by itself, by keyboard too."""
    return tag("div", table, class_="scrolling", tabindex="0", role="region", aria_label=name)
