"""The report: one HTML page in one file, which needs no network, no script and no other file to be read.

Owns what stands where: above all the score table, then a section a cell with its breakdowns, examples and provenance.
The page says nothing that is not in its input, so equal runs give equal bytes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visualbert_core import __version__
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.run import Run
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.examples import gallery
from visualbert_core.report.markup import Html, join, tag
from visualbert_core.report.scores import (
    SYNTHETIC,
    Estimate,
    ScoreLine,
    in_order,
    label,
    percent,
    reason,
    score_lines,
    scores_of,
    warnings,
)
from visualbert_core.report.style import STYLE
from visualbert_core.schema import Failure
from visualbert_core.shards import publish
from visualbert_core.tasks import PAPERS

_SHOWN = 5  # failures
_OPEN_ROWS = 12  # longer breakdowns are folded
# Annotations are not ours: should markup ever slip through, the browser still runs and loads nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(path: Path, info: ReportInfo, cells: Sequence[ReportCell]) -> None:
    """Render the page and publish it at `path`, whole or not at all."""
    # JSON may hold half a character ("\\ud800"), which UTF-8 cannot.
    publish(path, render(info, cells).encode(errors="replace"))


def render(info: ReportInfo, cells: Sequence[ReportCell]) -> str:
    """The page. Cells come in the order given; one without a score says so and why."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", info.title),
        tag("style", Html(STYLE)),
    )
    sections = (_section(number, info, cell) for number, cell in enumerate(cells, start=1))
    body = tag("body", _header(info, cells), tag("main", _scores(info, cells), *sections), _footer())
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _header(info: ReportInfo, cells: Sequence[ReportCell]) -> Html:
    lacking = sum(scores_of(cell.run) is None for cell in cells)
    counts = f"{_plural(len(cells), 'evaluation')}, {len(cells) - lacking} with a score"
    status = [counts] + ([", ", tag("strong", f"{lacking} without", class_="wrong")] if lacking else [])
    banner = tag("p", tag("strong", "Read this first. "), SYNTHETIC, class_="banner", role="note")
    return tag("header", tag("h1", info.title), tag("p", *status, class_="status"), banner if info.synthetic else "")


def _footer() -> Html:
    return tag("footer", f"visualbert_core {__version__}. This page is complete in itself: it loads and runs nothing.")


# ---------------------------------------------------------------------------------------------------------------------
# the score table


def _scores(info: ReportInfo, cells: Sequence[ReportCell]) -> Html:
    columns = ["metric", "score", "wrong image", "chance", *([] if info.synthetic else ["paper"]), "n"]
    bodies = (_rows(number, info, cell, len(columns) + 1) for number, cell in enumerate(cells, start=1))
    caption = tag("caption", "Scores in percent, with 95 % intervals")
    table = tag("table", caption, _head(columns), *bodies, class_="scores")
    return tag("section", tag("h2", "Scores"), table, _legend(), _reading(info, cells), id="scores")


def _head(columns: Sequence[str]) -> Html:
    """Column names, and over the plots their axis."""
    axis = tag("div", *(tag("span", text) for text in ("0", "50", "100")), class_="axis")
    names = (tag("th", name, scope="col") for name in columns)
    return tag("thead", tag("tr", *names, tag("th", axis, scope="col", aria_label="plot from 0 to 100", class_="plot")))


def _rows(number: int, info: ReportInfo, cell: ReportCell, width: int) -> Html:
    """A cell: its name and what it is over the width of the table, then a row a metric, or why there is none."""
    title = tag("a", cell.title, href=f"#cell-{number}")
    about = tag("span", " · ".join(_about(cell)), class_="about")
    name = tag("tr", tag("th", title, " ", about, scope="rowgroup", colspan=width), class_="name")
    rows = [
        tag("tr", *_cells(line, info.synthetic), class_="headline" if line.headline else None)
        for line in score_lines(cell)
    ]
    missing = tag("tr", tag("td", tag("strong", "✗ no score: "), reason(cell), colspan=width, class_="none"))
    warned = [tag("tr", tag("td", tag("strong", "⚠ "), w, colspan=width, class_="none")) for w in warnings(cell)]
    return tag("tbody", name, *warned, *(rows or [missing]))


def _cells(line: ScoreLine, synthetic: bool) -> Iterator[Html]:
    yield tag("th", label(line.metric), scope="row", class_="metric")
    yield tag("td", _estimate(line.own), class_="score", data_label="score")
    yield tag("td", _estimate(line.wrong_image), class_="other", data_label="wrong image")
    yield tag("td", percent(line.chance), data_label="chance")
    if not synthetic:
        yield tag("td", percent(line.paper), data_label="paper")
    yield tag("td", f"{line.units:,}", data_label="n")
    yield tag("td", _plot(line.own, line.wrong_image, line.chance), class_="plot")


def _about(cell: ReportCell) -> Iterator[str]:
    """How it is scored, and how much of it was predicted."""
    if cell.run is None:
        return
    yield cell.run.record["provenance"]["protocol"]
    coverage = cell.run.record.get("coverage")
    if coverage:
        faults = (f"{coverage[kind]:,} {kind}" for kind in ("missing", "duplicate", "unknown") if coverage[kind])
        yield ", ".join([f"{coverage['predicted']:,} of {coverage['expected']:,} predicted", *faults])


def _estimate(estimate: Estimate | None) -> Html:
    if estimate is None:
        return tag("span", "no score", class_="interval")
    return join([tag("b", percent(estimate.value)), " ", tag("span", estimate.interval, class_="interval")])


def _plot(own: Estimate, other: Estimate | None, chance: float | None) -> Html:
    """A line from 0 to 100: interval and dot (score), diamond (wrong image), tick (chance)."""
    name = f"score {percent(own.value)} {own.interval}"
    name += f", wrong image {percent(other.value if other else None)}, chance {percent(chance)}"
    shapes = [tag("line", x1="0", x2="100%", y1="50%", y2="50%", class_="track")]
    shapes += [tag("line", x1=f"{at}%", x2=f"{at}%", y1="38%", y2="62%", class_="track") for at in (0, 50, 100)]
    if chance is not None:
        shapes.append(tag("line", x1=f"{chance:.2f}%", x2=f"{chance:.2f}%", y1="15%", y2="85%", class_="chance"))
    if own.low is not None and own.high is not None:
        shapes.append(tag("line", x1=f"{own.low:.2f}%", x2=f"{own.high:.2f}%", y1="50%", y2="50%", class_="reach"))
    if other:
        shapes.append(_diamond(other.value))
    shapes.append(tag("circle", cx=f"{own.value:.2f}%", cy="50%", r="4", class_="own"))
    return tag("svg", tag("title", name), *shapes, class_="plot", role="img", aria_label=name)


def _legend() -> Html:
    marks = {
        "score and its 95 % interval": _mark(
            tag("line", x1="0", x2="100%", y1="50%", y2="50%", class_="reach"),
            tag("circle", cx="50%", cy="50%", r="4", class_="own"),
        ),
        "same model, wrong image": _mark(_diamond(50)),
        "chance": _mark(tag("line", x1="50%", x2="50%", y1="15%", y2="85%", class_="chance")),
    }
    return tag("ul", *(tag("li", mark, name) for name, mark in marks.items()), class_="legend")


def _diamond(at: float) -> Html:
    # A path knows no percentages: a nested svg carries it to its place.
    return tag("svg", tag("path", d="M0-5 5 0 0 5-5 0z"), x=f"{at:.2f}%", y="50%", class_="other")


def _mark(*shapes: Html) -> Html:
    return tag("svg", *shapes, class_="plot key", aria_hidden="true")


def _reading(info: ReportInfo, cells: Sequence[ReportCell]) -> Html:
    """What the columns mean."""
    terms = {
        "score": "Mean over n units under the benchmark's official protocol. Intervals treat units of one image as "
        "dependent. The metric in bold is the benchmark's main one.",
        "wrong image": "The same model and questions over the regions of another image of the split. What it still "
        "gets right was not read off the picture.",
        "chance": "What guessing gets: for VQA the commonest answer of each question type, for Flickr30K Entities the "
        "same candidate boxes in random order.",
    }
    if not info.synthetic:
        tables = sorted({PAPERS[scores["task"]].table for cell in cells if (scores := scores_of(cell.run))})
        terms["paper"] = f"Published for the same benchmark and split, where it was: {'; '.join(tables)}."
    pairs = (join([tag("dt", term), tag("dd", text)]) for term, text in terms.items())
    return tag("details", tag("summary", "What the columns mean"), tag("dl", *pairs))


# ---------------------------------------------------------------------------------------------------------------------
# a section a cell


def _section(number: int, info: ReportInfo, cell: ReportCell) -> Html:
    parts = [tag("h2", cell.title), tag("p", " · ".join(_about(cell)), class_="about")]
    if scores_of(cell.run) is None or cell.error:
        heading = "" if scores_of(cell.run) else "✗ No score: "
        parts.append(tag("p", tag("strong", heading), reason(cell), class_="error"))
    parts += [_failures(cell), _breakdowns(cell), _examples(info, cell)]
    parts += [_provenance(cell, cell.run)] if cell.run else []
    return tag("section", *parts, id=f"cell-{number}")


def _failures(cell: ReportCell) -> Html:
    """Images without features, and examples without a prediction."""
    lists = []
    if cell.store and (quarantined := cell.store.failures()):
        lists.append(_failure_list("image in quarantine", quarantined, len(quarantined)))
    if cell.run and (failed := cell.run.record.get("failed")):
        # The record keeps the first of them; how many there are stands in its coverage.
        missing = cell.run.record["coverage"]["missing"]
        lists.append(_failure_list("example without a prediction", [Failure(**row) for row in failed], missing))
    return join(lists)


def _failure_list(what: str, failures: Sequence[Failure], total: int) -> Html:
    noun, _, rest = what.partition(" ")
    shown = [tag("li", tag("code", f.item_id), f" {f.stage}: {f.message}") for f in failures[:_SHOWN]]
    if total > len(shown):
        shown.append(tag("li", f"and {total - len(shown):,} more"))
    return tag("div", tag("strong", f"{_plural(total, noun)} {rest}"), tag("ul", *shown), class_="quarantine")


def _breakdowns(cell: ReportCell) -> Html:
    """A table for each kind of group and metric: short ones of the headline metric at once, the others folded."""
    own, other = scores_of(cell.run), scores_of(cell.baseline)
    if own is None or not own["breakdown"]:
        return Html()
    shown: list[Html] = []
    folded: list[Html] = []
    for kind, groups in own["breakdown"].items():
        others = other["breakdown"].get(kind, {}) if other else {}
        for metric in in_order({metric for values in groups.values() for metric in values}, own["headline"]):
            at_once = metric == own["headline"] and len(groups) <= _OPEN_ROWS
            (shown if at_once else folded).append(_breakdown(kind, metric, groups, others))
    more = tag("details", tag("summary", "More breakdowns"), tag("div", *folded, class_="breakdowns"))
    return join([tag("h3", "Breakdown"), tag("div", *shown, class_="breakdowns"), more if folded else ""])


def _breakdown(kind: str, metric: str, groups: Mapping[str, Any], others: Mapping[str, Any]) -> Html:
    rows = []
    for group, metrics in groups.items():
        if metric not in metrics:
            continue
        value, units = metrics[metric]
        other = others.get(group, {}).get(metric, (None, 0))[0]
        wrong = None if other is None else Estimate(other, None, None)
        plot = tag("td", _plot(Estimate(value, None, None), wrong, None), class_="plot")
        numbers = (tag("td", text) for text in (percent(value), percent(other), f"{units:,}"))
        rows.append(tag("tr", tag("th", group, scope="row"), *numbers, plot))
    caption = tag("caption", f"{label(metric)} by {kind}")
    return tag("table", caption, _head([kind, "score", "wrong image", "n"]), tag("tbody", *rows))


def _examples(info: ReportInfo, cell: ReportCell) -> Html:
    try:
        shown = gallery(cell, info.examples)
    except VisualBertCoreError as error:
        return tag("p", f"No examples: {error}", class_="error")
    return join([tag("h3", "Examples"), shown]) if shown else shown


# ---------------------------------------------------------------------------------------------------------------------
# provenance


def _provenance(cell: ReportCell, run: Run) -> Html:
    rows = [tag("tr", tag("th", "run folder", scope="row"), tag("td", str(run.folder)))]
    if cell.baseline:
        rows.append(tag("tr", tag("th", "wrong image", scope="row"), tag("td", str(cell.baseline.folder))))
    leaves = _leaves(run.record["provenance"])
    rows += [tag("tr", tag("th", name, scope="row"), tag("td", text)) for name, text in leaves]
    table = tag("table", tag("caption", "What this run is made of"), tag("tbody", *rows), class_="provenance")
    commands = "\n".join(_command(cell, each) for each in (run, cell.baseline) if each)
    again = "To run it again (a finished run is only checked: delete its folder to compute it anew):"
    return tag("details", tag("summary", "Provenance"), table, tag("p", again), tag("pre", tag("code", commands)))


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, leaf in sorted(value.items()):
        if isinstance(leaf, Mapping):
            yield from _leaves(leaf, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", leaf if isinstance(leaf, str) else json.dumps(leaf)


def _command(cell: ReportCell, run: Run) -> str:
    """The line that made the run. Its record holds no paths, so that of the checkpoint is left to the reader."""
    spec = run.record["spec"]
    options = {
        "task": spec["task"],
        "split": spec["split"],
        "annotations": cell.task.annotation_files()[0].parent if cell.task else "ANNOTATIONS",
        "features": cell.store.folder if cell.store else "FEATURES",
        "model": f"MODELS/{spec['model']}",
        "out": run.folder.parent,
        "regions": spec["regions"],
        "batch-size": spec["batch_size"],
        "shard-size": spec["shard_size"],
    }
    words = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    return shlex.join(["python", "jobs/evaluate.py", *words])


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
