"""The score table in the terminal, through rich: the same lines as the page has. It fits into 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from visualbert_core.evaluation.score import against_person, how_answered
from visualbert_core.printable import printable
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.scores import (
    SYNTHETIC,
    Estimate,
    ScoreLine,
    percent,
    reason,
    score_lines,
    scores_of,
    warnings,
)

_WIDTHS = {"metric": 14, "score [95 %]": 19, "n": 8, "chance": 7}
_WRONG_IMAGE = {"wrong image": 19}
_BOTH = {"wrong image": 11, "no image": 8}
"""Two baselines have no room for their intervals."""


def print_table(info: ReportInfo, cells: Sequence[ReportCell], console: Console) -> None:
    """Print a line for each cell, and under it a row for each metric, or why there is no score.

    The column of a baseline is there only if a cell has that baseline.
    """
    console.print(_text(info.title, "bold underline"))
    if info.synthetic:
        console.print(Text(SYNTHETIC, "yellow"))
    both, wrong = any(cell.no_image for cell in cells), any(cell.baseline for cell in cells)
    widths = _WIDTHS | (_BOTH if both else _WRONG_IMAGE if wrong else {})
    console.print("", _indented(_table(widths, [list(widths)], "dim")), sep="\n")
    for cell in cells:
        lines = score_lines(cell)
        rows = [_row(line, cell, widths) for line in lines]
        below = [_table(widths, rows) if lines else _text(f"no score: {reason(cell)}", "red")]
        document = scores_of(cell.run) or {}
        said = (*_others(lines), *against_person(document, cell.task.metric_labels if cell.task else {}))
        below += [_text(line, "dim") for line in (*said, *how_answered(document))]
        warned = [_indented(_text(f"WARNING: {warning}", "red")) for warning in warnings(cell, info.synthetic)]
        console.print("", _text(cell.title, "bold"), *warned, *map(_indented, below), sep="\n")


def _text(text: str, style: str) -> Text:
    """Return styled text. A title may hold what looks like rich's markup, or characters that a terminal obeys."""
    return Text(printable(text), style)


def _indented(block: Table | Text) -> Padding:
    return Padding(block, (0, 0, 0, 2), expand=False)


def _table(widths: Mapping[str, int], rows: Iterable[Sequence[str | Text]], style: str = "") -> Table:
    """Return a table of these columns. Widths are fixed, so that the tables of all cells line up."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 0, 0, 2), style=style)
    for name, width in widths.items():
        table.add_column(width=width, justify="left" if name == "metric" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _row(line: ScoreLine, cell: ReportCell, widths: Mapping[str, int]) -> list[str | Text]:
    style = "bold" if line.headline else ""
    intervals = widths.get("wrong image") == _WRONG_IMAGE["wrong image"]
    places: dict[str, str | Text] = {
        "metric": _text(line.label, style),
        "score [95 %]": _estimate(line.own, True, style),
        "n": f"{line.units:,}",
        "chance": percent(line.chance),
        "wrong image": _estimate(line.wrong_image, intervals),
        "no image": _estimate(line.no_image, False) if cell.store is None else Text("regions", "dim"),
    }
    return [places[name] for name in widths]


def _estimate(estimate: Estimate | None, interval: bool, style: str = "") -> Text:
    if estimate is None:
        return Text("no score", "dim")
    reach = f" {estimate.interval:>13}" if interval else ""
    return Text.assemble((f"{estimate.value:.1f}", style), (reach, "dim"))


def _others(lines: Iterable[ScoreLine]) -> Iterator[str]:
    """Yield the scores under other protocols: there is no room for them in the row of the metric."""
    for line in lines:
        for protocol, value in line.others:
            yield f"{line.label} {line.own.value:.1f}, and {value:.1f} under the protocol {protocol}"
