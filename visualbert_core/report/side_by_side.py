"""Models side by side: for each benchmark and split with several models, every model and its difference to the first.

The difference is the paired one of `comparison.compare`, over the same units and clustered by image. So a model that
reads regions is compared with a model that reads pixels, question by question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visualbert_core.comparison.compare import Change, compare
from visualbert_core.comparison.history import Timing
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.report import ReportCell
from visualbert_core.report.scores import ScoreLine, reason, score_lines


@dataclass(frozen=True)
class ModelRow:
    """One model. Without a score, `line` is None and `reason` says why."""

    number: int
    """The number of the cell on the page."""
    model: str
    """The name of the checkpoint folder."""
    network: str
    answering: str
    """How the network is asked; empty where a head answers."""
    line: ScoreLine | None
    unparsed: float | None
    """The percent of its texts that held no answer; None where it writes no text."""
    seconds: float | None
    """Seconds an answer on this night; None where no answer was computed."""
    change: Change | None = None
    """The difference to the first model with a score; None for that model."""
    reason: str = ""
    """Why there is no score or no difference."""


@dataclass(frozen=True)
class SideBySide:
    """The models of one benchmark and split, by the headline metric."""

    title: str
    metric: str
    protocol: str
    first: str
    """The name of the model that the others are compared with."""
    rows: Sequence[ModelRow]


def side_by_side(cells: Sequence[ReportCell]) -> list[SideBySide]:
    """Return a table for each benchmark and split that several cells evaluate, in the order of the cells."""
    groups: dict[tuple[str, str], list[tuple[int, ReportCell]]] = {}
    for number, cell in enumerate(cells, start=1):
        if cell.task is not None:
            groups.setdefault((cell.task.name, cell.task.split), []).append((number, cell))
    tables = (_table(group) for group in groups.values() if len(group) > 1)
    return [table for table in tables if table is not None]


def _table(group: Sequence[tuple[int, ReportCell]]) -> SideBySide | None:
    rows = [_row(number, cell, None) for number, cell in group]
    scored = [cell.run for (_, cell), row in zip(group, rows, strict=True) if row.line is not None]
    task, named = group[0][1].task, [row.line for row in rows if row.line is not None]
    if not named or scored[0] is None or task is None:
        return None
    first = scored[0]
    return SideBySide(
        title=f"{task.title} {task.split}",
        metric=named[0].label,
        protocol=task.protocol,
        first=str(first.record["spec"]["model"]),
        rows=[_row(number, cell, first) for number, cell in group],
    )


def _row(number: int, cell: ReportCell, first: Run | None) -> ModelRow:
    record = cell.run.record if cell.run else {}
    headline = next((line for line in score_lines(cell) if line.headline), None)
    change, why = None, cell.places.hide(reason(cell)) if headline is None else ""
    if headline is not None and cell.run is not None and first is not None and cell.run.folder != first.folder:
        try:
            change = compare(first, cell.run, shown=0).metrics.get(headline.metric)
        except VisualBertCoreError as error:
            why = cell.places.hide(str(error))
    scores = (cell.run.scores if cell.run else None) or {}
    return ModelRow(
        number=number,
        model=record["spec"]["model"] if record else cell.title,
        network=record.get("network", ""),
        answering=record.get("answering", ""),
        line=headline,
        unparsed=_unparsed(scores.get("generated")),
        seconds=_seconds(cell.timing),
        change=change,
        reason=why,
    )


def _unparsed(generated: dict[str, int] | None) -> float | None:
    if generated is None or "unparsed" not in generated:  # a caption always holds an answer
        return None
    return 100 * generated["unparsed"] / generated["texts"]


def _seconds(timing: Timing | None) -> float | None:
    return timing.seconds / timing.items if timing is not None and timing.items else None
