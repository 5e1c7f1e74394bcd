"""The score table in the terminal, through rich: the same lines as the page has. It fits into 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from visualbert_core.printable import printable
from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.scores import (
    SYNTHETIC,
    Estimate,
    ScoreLine,
    has_wrong_image,
    percent,
    reason,
    score_lines,
    warnings,
)

_COLUMNS = {"metric": 14, "score [95 %]": 19, "n": 8, "chance": 7, "wrong image": 19}


def print_table(info: ReportInfo, cells: Sequence[ReportCell], console: Console) -> None:
    """Print a line for each cell, and under it a row for each metric, or why there is no score.

    The column of the wrong image is there only if a cell has that baseline.
    """
    console.print(_text(info.title, "bold underline"))
    if info.synthetic:
        console.print(Text(SYNTHETIC, "yellow"))
    columns = [name for name in _COLUMNS if name != "wrong image" or has_wrong_image(cells)]
    console.print("", _indented(_table(columns, [columns], "dim")), sep="\n")
    for cell in cells:
        lines = score_lines(cell)
        below = _table(columns, map(_row, lines)) if lines else _text(f"no score: {reason(cell)}", "red")
        warned = [_indented(_text(f"WARNING: {warning}", "red")) for warning in warnings(cell, info.synthetic)]
        console.print("", _text(cell.title, "bold"), *warned, _indented(below), sep="\n")


def _text(text: str, style: str) -> Text:
    """Return styled text. A title may hold what looks like rich's markup, or characters that a terminal obeys."""
    return Text(printable(text), style)


def _indented(block: Table | Text) -> Padding:
    return Padding(block, (0, 0, 0, 2), expand=False)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], style: str = "") -> Table:
    """Return rows, cut to these columns. Widths are fixed, so that the tables of all cells line up."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 0, 0, 2), style=style)
    for name in columns:
        table.add_column(width=_COLUMNS[name], justify="left" if name == "metric" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row[: len(columns)])
    return table


def _row(line: ScoreLine) -> list[str | Text]:
    style = "bold" if line.headline else ""
    scores = _estimate(line.own, style), f"{line.units:,}", percent(line.chance), _estimate(line.wrong_image)
    return [_text(line.label, style), *scores]


def _estimate(estimate: Estimate | None, style: str = "") -> Text:
    if estimate is None:
        return Text("no score", "dim")
    return Text.assemble((f"{estimate.value:.1f}", style), (f" {estimate.interval:>13}", "dim"))
