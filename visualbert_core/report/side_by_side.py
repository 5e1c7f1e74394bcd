"""Models side by side: for each benchmark and split with several models, every model and its difference to the first.

The difference is the paired one of `comparison.compare`, over the same units and clustered by image. So a model that
reads regions is compared with a model that reads pixels, question by question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from visualbert_core.comparison.compare import compare
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.report import ReportCell
from visualbert_core.report.scores import label, reason, score_lines, scores_of


def side_by_side(cells: Sequence[ReportCell]) -> list[dict[str, Any]]:
    """Return a table for each benchmark and split that several cells evaluate, in the order of the cells."""
    groups: dict[tuple[str, str], list[tuple[int, ReportCell]]] = {}
    for number, cell in enumerate(cells, start=1):
        if cell.task is not None:
            groups.setdefault((cell.task.name, cell.task.split), []).append((number, cell))
    return [table for group in groups.values() if len(group) > 1 for table in _table(group)]


def _table(group: Sequence[tuple[int, ReportCell]]) -> Iterator[dict[str, Any]]:
    """Yield the table, or nothing where no cell has a score."""
    scored = (cell for _, cell in group if scores_of(cell.run) is not None)
    if (cell := next(scored, None)) and cell.run and cell.task:
        yield {
            "title": f"{cell.task.title} {cell.task.split}",
            "metric": label(cell.task.headline, cell.task),
            "protocol": cell.task.protocol,
            "first": cell.run.record["spec"]["model"],  # the others are compared with this model
            "rows": [_row(number, each, cell.run) for number, each in group],
        }


def _row(number: int, cell: ReportCell, first: Run) -> dict[str, Any]:
    """Return one model. Without a score, its `line` is None. `reason` says why there is no score or no difference."""
    record, generated = cell.run.record if cell.run else {}, (scores_of(cell.run) or {}).get("generated", {})
    headline = next((line for line in score_lines(cell) if line.headline), None)
    change, why = None, reason(cell) if headline is None else ""
    if headline is not None and cell.run is not None and cell.run.folder != first.folder:
        try:
            change = compare(first, cell.run, shown=0).metrics.get(headline.metric)
        except VisualBertCoreError as error:
            why = str(error)
    return {
        "number": number,  # of the cell on the page
        "model": record["spec"]["model"] if record else cell.title,
        "network": record.get("network", ""),
        "answering": record.get("answering", ""),
        "line": headline,
        # In percent of the texts. A caption always holds an answer.
        "unparsed": 100 * generated["unparsed"] / generated["texts"] if "unparsed" in generated else None,
        "seconds": cell.timing.seconds / cell.timing.items if cell.timing and cell.timing.items else None,
        "change": change,
        "reason": cell.places.hide(why),
    }
