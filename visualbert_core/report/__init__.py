"""Turn run folders into what users read: an HTML page (`html`), the same table in the terminal (`terminal`), files for
continuous integration (`ci`), and records in experiment trackers (`trackers`)."""

from visualbert_core.report.page import ReportCell, ReportInfo

__all__ = ["ReportCell", "ReportInfo"]

INGREDIENT = None
