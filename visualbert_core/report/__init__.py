"""Run folders → what a person opens: an HTML page (`html`), and the same table in the terminal (`terminal`)."""

from visualbert_core.report.page import ReportCell, ReportInfo

__all__ = ["ReportCell", "ReportInfo"]

INGREDIENT = None
