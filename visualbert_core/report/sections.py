"""A section a cell: what failed, how its groups did, what it cost, examples, and what its run is made of."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from visualbert_core.comparison.compare import Change, Comparison
from visualbert_core.comparison.history import Timing
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.examples import gallery
from visualbert_core.report.markup import Html, join, tag
from visualbert_core.report.places import Places
from visualbert_core.report.plots import head, plot
from visualbert_core.report.scores import Estimate, in_order, label, percent, reason, scores_of
from visualbert_core.report.verdict import CellNight, p_value, points
from visualbert_core.schema import Failure

_SHOWN = 5  # failures at once
_LISTED = 200  # failures at most
_OPEN_ROWS = 12  # longer breakdowns are folded
_SURE = 0.05  # p of a group's change, corrected for all groups, from which on it is marked


def section(number: int, info: ReportInfo, cell: ReportCell, night: CellNight | None) -> Html:
    """All that is not in the score table."""
    parts = [tag("h2", cell.title), tag("p", " · ".join(about(cell)), class_="about")]
    if scores_of(cell.run) is None or cell.error:
        heading = "" if scores_of(cell.run) else "✗ No score: "
        parts.append(tag("p", tag("strong", heading), cell.places.hide(reason(cell)), class_="error"))
    comparison = night.comparison if night else None
    parts += [_failures(cell), _changes(comparison) if comparison else _breakdowns(cell)]
    parts += [_cost(info, cell, night) if night else Html(), _examples(info, cell)]
    parts += [_provenance(cell, cell.run, comparison)] if cell.run else []
    return tag("section", *parts, id=f"cell-{number}")


def about(cell: ReportCell) -> Iterator[str]:
    """How it is scored, and how much of it was predicted."""
    if cell.run is None:
        return
    yield cell.run.record["provenance"]["protocol"]
    coverage = cell.run.record.get("coverage")
    if coverage:
        faults = (f"{coverage[kind]:,} {kind}" for kind in ("missing", "duplicate", "unknown") if coverage[kind])
        yield ", ".join([f"{coverage['predicted']:,} of {coverage['expected']:,} predicted", *faults])


def _failures(cell: ReportCell) -> Html:
    """Images without features, and examples without a prediction."""
    lists = []
    if cell.store and (quarantined := cell.store.failures()):
        lists.append(_failure_list("image in quarantine", quarantined, len(quarantined), cell.places))
    if cell.run and (failed := cell.run.record.get("failed")):
        # The record keeps the first of them; how many there are stands in its coverage.
        missing = cell.run.record["coverage"]["missing"]
        lists.append(
            _failure_list("example without a prediction", [Failure(**row) for row in failed], missing, cell.places)
        )
    return join(lists)


def _failure_list(what: str, failures: Sequence[Failure], total: int, places: Places) -> Html:
    noun, _, rest = what.partition(" ")
    lines = [tag("li", tag("code", f.item_id), f" {f.stage}: {places.hide(f.message)}") for f in failures[:_LISTED]]
    shown = tag("ul", *lines[:_SHOWN])
    if folded := lines[_SHOWN:]:
        shown = join([shown, tag("details", tag("summary", f"{len(folded):,} more"), tag("ul", *folded))])
    if total > len(lines):
        shown = join([shown, tag("p", f"and {total - len(lines):,} more")])
    return tag("div", tag("strong", f"{plural(total, noun)} {rest}"), shown, class_="quarantine")


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
        picture = tag("td", plot(Estimate(value, None, None), wrong, None), class_="plot")
        numbers = (tag("td", text) for text in (percent(value), percent(other), f"{units:,}"))
        rows.append(tag("tr", tag("th", group, scope="row"), *numbers, picture))
    caption = tag("caption", f"{label(metric)} by {kind}")
    return tag("table", caption, head([kind, "score", "wrong image", "n"]), tag("tbody", *rows))


def _changes(comparison: Comparison) -> Html:
    """The same tables with before and now, groups that fell most first; a group that moved surely is marked."""
    shown: list[Html] = []
    folded: list[Html] = []
    for kind, groups in comparison.groups.items():
        for metric in in_order({metric for changes in groups.values() for metric in changes}, comparison.headline):
            rows = [(name, changes[metric]) for name, changes in groups.items() if metric in changes]
            rows.sort(key=lambda row: (row[1].difference, row[0]))
            at_once = metric == comparison.headline and len(rows) <= _OPEN_ROWS
            (shown if at_once else folded).append(_change_table(kind, metric, rows))
    if not shown and not folded:
        return Html()
    more = tag("details", tag("summary", "More breakdowns"), tag("div", *folded, class_="breakdowns compared"))
    note = (
        "Groups that fell most come first. ▼ and ▲ mark those that moved surely: p under 0.05, corrected for all "
        "groups of the metric. The ring is the earlier night, the dot tonight."
    )
    parts = [tag("h3", "Breakdown"), tag("p", note, class_="note"), tag("div", *shown, class_="breakdowns compared")]
    return join([*parts, more if folded else ""])


def _change_table(kind: str, metric: str, rows: Sequence[tuple[str, Change]]) -> Html:
    names = [kind, "before", "now", "points", "p (Holm)", "n"]
    body = (tag("tr", *_change_row(name, change)) for name, change in rows)
    return tag("table", tag("caption", f"{label(metric)} by {kind}"), head(names), tag("tbody", *body))


def _change_row(name: str, change: Change) -> Iterator[Html]:
    yield tag("th", name, scope="row")
    yield from (tag("td", percent(value)) for value in (change.before, change.after))
    moved: list[str] = [points(change.difference)]
    p = change.p if change.p_holm is None else change.p_holm
    if p < _SURE:
        mark, word, kind = ("▼", "surely worse", "wrong") if change.difference < 0 else ("▲", "surely better", "right")
        moved = [tag("span", mark, role="img", aria_label=word, title=word, class_=kind), " ", *moved]
    yield tag("td", *moved)
    yield from (tag("td", text) for text in (p_value(p), f"{change.n:,}"))
    yield tag("td", plot(Estimate(change.after, None, None), None, None, change.before), class_="plot")


def _cost(info: ReportInfo, cell: ReportCell, night: CellNight) -> Html:
    """Seconds, items and price of tonight; nothing where the cell has no score and so no place in the history. Cells of
    one corpus share its extraction, which stands with each of them."""
    if scores_of(cell.run) is None or cell.store is None or not night.rows:
        return Html()
    row, manifest = night.rows[-1], cell.store.manifest
    size = sum(shard.part.size for shard in manifest.shards)
    lines = {
        "extraction": _took(row.extraction, "image", "all features were there already"),
        "evaluation": _took(row.evaluation, "example", "all predictions were there already"),
        "features": f"{_bytes(size)} on disk for {plural(manifest.rows, 'image')} of {row.corpus}",
    }
    timings = (row.extraction, row.evaluation)
    gpu_seconds = sum(timing.gpus * timing.seconds for timing in timings if timing is not None)
    if info.gpu_hour is not None and gpu_seconds:
        lines["price"] = (
            f"{gpu_seconds / 3600 * info.gpu_hour:,.2f}, at {info.gpu_hour:g} for a GPU-hour, extraction included"
        )
    pairs = (join([tag("dt", name), tag("dd", text)]) for name, text in lines.items())
    return join([tag("h3", "Cost"), tag("dl", *pairs, class_="cost")])


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def _took(timing: Timing | None, noun: str, nothing: str) -> str:
    if timing is None:
        return "not timed"
    if not timing.items:
        return f"{nothing} ({timing.seconds:,.1f} s to see it)"
    rate = timing.items / max(timing.seconds, 0.001)  # they are kept to the millisecond
    took = f"{plural(timing.items, noun)} in {timing.seconds:,.1f} s, {rate:,.1f} a second"
    return took + (f", {timing.gpus * timing.seconds:,.1f} GPU-seconds" if timing.gpus else "")


def _examples(info: ReportInfo, cell: ReportCell) -> Html:
    try:
        shown = gallery(cell, info.examples)
    except VisualBertCoreError as error:
        return tag("p", f"No examples: {cell.places.hide(str(error))}", class_="error")
    return join([tag("h3", "Examples"), shown]) if shown else shown


# ---------------------------------------------------------------------------------------------------------------------
# provenance


def _provenance(cell: ReportCell, run: Run, comparison: Comparison | None) -> Html:
    pairs = [("run folder", str(run.folder))] + ([("wrong image", str(cell.baseline.folder))] if cell.baseline else [])
    pairs += _leaves(run.record["provenance"])
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", cell.places.hide(text))) for name, text in pairs]
    table = tag("table", tag("caption", "What this run is made of"), tag("tbody", *rows), class_="provenance")
    commands = "\n".join(_command(cell, each) for each in (run, cell.baseline) if each)
    again = (
        "To run it again, with your folders in place of the words in capitals and of … (a finished run is only "
        "checked: delete its folder to compute it anew):"
    )
    differs = _differs(comparison, cell.places) if comparison else Html()
    return tag(
        "details", tag("summary", "Provenance"), differs, table, tag("p", again), tag("pre", tag("code", commands))
    )


def _differs(comparison: Comparison, places: Places) -> Html:
    """Every recorded ingredient that is not that of the run compared with."""
    before = places.hide(comparison.before["folder"])
    if not comparison.differs:
        return tag("p", "Made of the same as ", tag("code", before), ": nothing that is recorded differs.")
    pairs = (
        join([tag("dt", name), tag("dd", tag("ul", *(tag("li", tag("code", line)) for line in lines)))])
        for name, lines in comparison.differs.items()
    )
    return join([tag("p", "Differs from ", tag("code", before), " in"), tag("dl", *pairs, class_="differs")])


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, leaf in sorted(value.items()):
        if isinstance(leaf, Mapping):
            yield from _leaves(leaf, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", leaf if isinstance(leaf, str) else json.dumps(leaf)


def _command(cell: ReportCell, run: Run) -> str:
    """The line that made the run, with words for the folders of this machine."""
    spec, hide = run.record["spec"], cell.places.hide
    options = {
        "task": spec["task"],
        "split": spec["split"],
        "annotations": hide(str(cell.task.annotation_files()[0].parent)) if cell.task else "ANNOTATIONS",
        **_read(cell, run),
        "model": f"MODELS/{spec['model']}",
        "out": hide(str(run.folder.parent)),
        "visual": spec["visual"],
        "batch-size": spec["batch_size"],
        "shard-size": spec["shard_size"],
        "precision": spec["precision"],
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--feature-space", spec["feature_space"]] if "feature_space" in spec else []
    return shlex.join(["visualbert", "evaluate", *words, *["--foreign-features"] * spec["foreign_features"]])


def _read(cell: ReportCell, run: Run) -> dict[str, str]:
    """What the model read: a feature store or a corpus of images."""
    if "images" in run.record["provenance"]:
        return {"images": "IMAGES"}
    return {"features": cell.places.hide(str(cell.store.folder)) if cell.store else "FEATURES"}


def plural(count: int, noun: str) -> str:
    """ "1 image", "1,200 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
