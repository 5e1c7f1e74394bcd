"""The report: one HTML page in one file, which needs no network and no other file to be read.

Owns what stands where: of a night with a gate first its verdict; then the score table, the flips, the trend, and a
section a cell with its breakdowns, examples and provenance. The page says nothing that is not in its input, so equal
runs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from visualbert_core import __version__
from visualbert_core.comparison.compare import Change
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.gallery import flip_gallery
from visualbert_core.report.markup import Html, join, tag
from visualbert_core.report.plots import head, legend, plot
from visualbert_core.report.scores import (
    SYNTHETIC,
    Estimate,
    ScoreLine,
    has_wrong_image,
    label,
    percent,
    reason,
    score_lines,
    scores_of,
    warnings,
)
from visualbert_core.report.script import ALLOWED, SCRIPT
from visualbert_core.report.sections import about, plural, section
from visualbert_core.report.style import STYLE
from visualbert_core.report.trend import legend as trend_legend
from visualbert_core.report.trend import trend
from visualbert_core.report.verdict import SIGNS, CellNight, GatedNight, points, reach, verdict
from visualbert_core.shards import publish
from visualbert_core.tasks import PAPERS

# Annotations are not ours: should markup ever slip through, the browser still runs and loads nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(path: Path, info: ReportInfo, cells: Sequence[ReportCell], night: GatedNight | None = None) -> None:
    """Render the page and publish it at `path`, whole or not at all."""
    # JSON may hold half a character ("\\ud800"), which UTF-8 cannot.
    publish(path, render(info, cells, night).encode(errors="replace"))


def render(info: ReportInfo, cells: Sequence[ReportCell], night: GatedNight | None = None) -> str:
    """The page. Cells come in the order given; one without a score says so and why. `night` is what a gate adds."""
    nights: Sequence[CellNight | None] = night.cells if night else [None] * len(cells)
    flips = flip_gallery(cells, night.cells) if night else Html()
    sections = (
        section(number, info, cell, each) for number, (cell, each) in enumerate(zip(cells, nights, strict=True), 1)
    )
    main = [_scores(info, cells, night), flips, _trends(cells, night) if night else "", *sections]
    body = tag("body", _header(info, cells, night, bool(flips)), tag("main", *main), _footer(bool(flips)))
    return f"<!doctype html>\n{tag('html', _head(info, night, bool(flips)), body, lang='en')}\n"


def _head(info: ReportInfo, night: GatedNight | None, script: bool) -> Html:
    sign = f"{SIGNS[night.gate.verdict]} " if night else ""
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY + f"; script-src {ALLOWED}" * script),
        tag("title", sign + info.title),
        tag("style", Html(STYLE)),
    )


def _header(info: ReportInfo, cells: Sequence[ReportCell], night: GatedNight | None, flips: bool) -> Html:
    lacking = sum(scores_of(cell.run) is None for cell in cells)
    counts = f"{plural(len(cells), 'evaluation')}, {len(cells) - lacking} with a score"
    status = [counts] + ([", ", tag("strong", f"{lacking} without", class_="wrong")] if lacking else [])
    banner = tag("p", tag("strong", "Read this first. "), SYNTHETIC, class_="banner", role="note")
    parts = [_theme(), tag("h1", info.title), tag("p", *status, class_="status"), banner if info.synthetic else ""]
    return tag("header", *parts, *([verdict(night, cells), _contents(cells, flips)] if night else []))


def _theme() -> Html:
    """Needs no script: the style sheet asks which of the three is chosen."""
    choices = (
        tag("label", tag("input", type="radio", name="theme", id=f"theme-{name}", checked=name == "system"), name)
        for name in ("system", "light", "dark")
    )
    return tag("fieldset", tag("legend", "Theme"), *choices, class_="theme")


def _contents(cells: Sequence[ReportCell], flips: bool) -> Html:
    places = {"#scores": "Scores"} | ({"#flips": "Flips"} if flips else {}) | {"#trend": "Trend"}
    places |= {f"#cell-{number}": cell.title for number, cell in enumerate(cells, start=1)}
    links = (tag("li", tag("a", text, href=place)) for place, text in places.items())
    return tag("nav", tag("ul", *links), aria_label="on this page")


def _footer(script: bool) -> Html:
    runs = "loads nothing, and runs nothing but the filter of the flips" if script else "loads and runs nothing"
    text = f"visualbert_core {__version__}. This page is complete in itself: it {runs}."
    return join([tag("footer", text), tag("script", Html(SCRIPT)) if script else ""])


def _trends(cells: Sequence[ReportCell], night: GatedNight) -> Html:
    """A plot a cell that ever had a score."""
    figures = [
        trend(tag("a", cell.title, href=f"#cell-{number}"), each.rows)
        for number, (cell, each) in enumerate(zip(cells, night.cells, strict=True), start=1)
        if each.rows
    ]
    if not figures:
        return Html()
    note = tag("p", "Headline scores in percent, with 95 % intervals, night by night.", class_="note")
    body = tag("div", *figures, class_="trends")
    return tag("section", tag("h2", "Trend"), note, trend_legend(), body, id="trend")


# ---------------------------------------------------------------------------------------------------------------------
# the score table


def _scores(info: ReportInfo, cells: Sequence[ReportCell], night: GatedNight | None) -> Html:
    shown = {"earlier": bool(night), "wrong image": has_wrong_image(cells), "paper": not info.synthetic}
    names = ("metric", "score", "earlier", "wrong image", "chance", "paper", "n")
    columns = [name for name in names if shown.get(name, True)]
    nights: Sequence[CellNight | None] = night.cells if night else [None] * len(cells)
    bodies = (
        _rows(number, cell, each, columns, warnings(cell, info.synthetic))
        for number, (cell, each) in enumerate(zip(cells, nights, strict=True), start=1)
    )
    caption = tag("caption", "Scores in percent, with 95 % intervals")
    table = tag("table", caption, head(columns), *bodies, class_="scores")
    parts = [table, legend(bool(night), shown["wrong image"]), _reading(cells, columns)]
    return tag("section", tag("h2", "Scores"), *parts, id="scores")


def _rows(number: int, cell: ReportCell, night: CellNight | None, columns: Sequence[str], said: Sequence[str]) -> Html:
    """A cell: its name and what it is over the width of the table, then a row a metric, or why there is none."""
    width = len(columns) + 1
    title = tag("a", cell.title, href=f"#cell-{number}")
    what = tag("span", " · ".join(about(cell)), class_="about")
    name = tag("tr", tag("th", title, " ", what, scope="rowgroup", colspan=width), class_="name")
    rows = [
        tag("tr", *_cells(line, columns, night), class_="headline" if line.headline else None)
        for line in score_lines(cell)
    ]
    missing = tag(
        "tr", tag("td", tag("strong", "✗ no score: "), cell.places.hide(reason(cell)), colspan=width, class_="none")
    )
    lines = map(cell.places.hide, said)
    warned = [tag("tr", tag("td", tag("strong", "⚠ "), line, colspan=width, class_="none")) for line in lines]
    return tag("tbody", name, *warned, *(rows or [missing]))


def _cells(line: ScoreLine, columns: Sequence[str], night: CellNight | None) -> Iterator[Html]:
    change = night.comparison.metrics.get(line.metric) if night and night.comparison else None
    contents = {
        "score": (_estimate(line.own), "score"),
        "earlier": (_earlier(change), "earlier"),
        "wrong image": (_estimate(line.wrong_image), "other"),
        "chance": (percent(line.chance), None),
        "paper": (percent(line.paper), None),
        "n": (f"{line.units:,}", None),
    }
    yield tag("th", label(line.metric), scope="row", class_="metric")
    for name in columns[1:]:
        content, kind = contents[name]
        yield tag("td", content, class_=kind, data_label=name)
    yield tag("td", plot(line.own, line.wrong_image, line.chance, change.before if change else None), class_="plot")


def _estimate(estimate: Estimate | None) -> Html:
    if estimate is None:
        return tag("span", "no score", class_="interval")
    return join([tag("b", percent(estimate.value)), " ", tag("span", estimate.interval, class_="interval")])


def _earlier(change: Change | None) -> Html:
    """What it was, and by how many points it moved since."""
    if change is None:
        return tag("span", "–")
    text = f"{points(change.difference)} {reach(change)}" if change.images_changed else "unchanged"
    moved = tag("span", text, class_="interval")
    return join([tag("b", percent(change.before)), " ", moved])


def _reading(cells: Sequence[ReportCell], columns: Sequence[str]) -> Html:
    """What the columns mean."""
    tables = sorted({PAPERS[scores["task"]].table for cell in cells if (scores := scores_of(cell.run))})
    terms = {
        "score": "Mean over n units under the benchmark's official protocol. Intervals treat units of one image as "
        "dependent. The metric in bold is the benchmark's main one.",
        "earlier": "The last night that did not fail, under tonight's annotations, and the points gained or lost since "
        "with the 95 % interval of the paired difference: surer than the two scores' own intervals.",
        "wrong image": "The same model and questions over the regions of another image of the split. What it still "
        "gets right was not read off the picture.",
        "chance": "What guessing gets: for VQA the commonest answer of each question type, for Flickr30K Entities the "
        "same candidate boxes in random order.",
        "paper": f"Published for the same benchmark and split, where it was: {'; '.join(tables)}.",
    }
    pairs = (join([tag("dt", term), tag("dd", text)]) for term, text in terms.items() if term in columns)
    return tag("details", tag("summary", "What the columns mean"), tag("dl", *pairs))
