"""The score table in the terminal: the same lines as the page, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from visualbert_core.report import ReportCell, ReportInfo
from visualbert_core.report.scores import SYNTHETIC, Estimate, label, percent, reason, score_lines


def print_table(info: ReportInfo, cells: Sequence[ReportCell], console: Console) -> None:
    """Print a row a metric. A cell without a score has one row, and its reason in full under the table."""
    table = Table(title=Text(info.title, "bold"), caption=SYNTHETIC if info.synthetic else None, box=box.SIMPLE_HEAD)
    table.add_column("task")
    table.add_column("metric")
    for name in ("score [95 %]", "n", "chance", "wrong image"):
        table.add_column(name, justify="right", no_wrap=True)
    # Every text is a Text: titles and reasons may hold what rich would take for its own markup.
    reasons = []
    for cell in cells:
        lines = score_lines(cell, info.synthetic)
        for index, line in enumerate(lines):
            style = "bold" if line.headline else ""
            table.add_row(
                Text(cell.title if index == 0 else "", "bold"),
                Text(label(line.metric), style),
                _estimate(line.own, style),
                f"{line.units:,}",
                percent(line.chance),
                _estimate(line.wrong_image, ""),
                end_section=index == len(lines) - 1,
            )
        if not lines:
            table.add_row(Text(cell.title, "bold"), "", Text("no score", "bold red"), end_section=True)
            reasons.append(Text(f"{cell.title}: no score: {reason(cell)}", "red"))
    console.print(table, *reasons, sep="\n")


def _estimate(estimate: Estimate | None, style: str) -> Text:
    if estimate is None:
        return Text("no score", "dim")
    return Text.assemble((f"{estimate.value:.1f}", style), (f" {estimate.interval:>13}", "dim"))
