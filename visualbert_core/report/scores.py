"""Run folders → lines of scores, the same for the page and the terminal.

Owns what stands beside a score: its interval, the number of units, what guessing gets, what the same model gets when
it is shown another image, and what the paper reports. Also the words that are the same everywhere: names of metrics,
and why there is no score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from visualbert_core.evaluation.run_folder import Run
from visualbert_core.report import ReportCell
from visualbert_core.tasks import Task

SYNTHETIC = (
    "Synthetic scenes and tiny weights trained by us: these scores say that the pipeline works, "
    "not how good VisualBERT is on the real sets."
)


@dataclass(frozen=True)
class Estimate:
    """A score in percent with its 95 % interval, which a single image does not give."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """ "[81.2, 87.4]"."""
        return "[no interval]" if self.low is None or self.high is None else f"[{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class ScoreLine:
    """One metric of one cell, with everything that it has to be read beside."""

    metric: str
    label: str
    """The metric's name for people."""
    headline: bool
    own: Estimate
    wrong_image: Estimate | None
    chance: float | None
    paper: float | None
    """Of the same benchmark and split: never to be shown beside synthetic data."""
    units: int


def score_lines(cell: ReportCell) -> list[ScoreLine]:
    """A line a metric, the headline first; none where the cell has no score."""
    own, wrong = scores_of(cell.run), scores_of(cell.baseline)
    if own is None:
        return []
    paper = cell.task.paper.percent.get(own["split"], {}) if cell.task and "subset" not in own else {}
    return [
        ScoreLine(
            metric=metric,
            label=label(metric, cell.task),
            headline=metric == own["headline"],
            own=_estimate(own, metric),
            wrong_image=_estimate(wrong, metric) if wrong else None,
            chance=own["chance"].get(metric),
            paper=paper.get(metric),
            units=own["units"][metric],
        )
        for metric in in_order(own["scores"], own["headline"])
    ]


def has_wrong_image(cells: Iterable[ReportCell]) -> bool:
    """Whether some cell was also evaluated over the regions of other images."""
    return any(cell.baseline is not None for cell in cells)


def scores_of(run: Run | None) -> dict[str, Any] | None:
    """The scores document of a complete run."""
    return None if run is None else run.scores


def warnings(cell: ReportCell, synthetic: bool = False) -> list[str]:
    """What has to be said with a cell's scores: annotations that are not the official split (but for synthetic ones,
    which nobody takes for it), features of another space than the checkpoint's, worse than chance."""
    if cell.run is None:
        return []
    document = cell.run.scores or cell.run.record
    subset = [document["subset"]] if "subset" in document and not synthetic else []
    return [*subset, *document["warnings"]]


def in_order(metrics: Iterable[str], headline: str) -> list[str]:
    """The headline, then the others by name and number: recall@1, recall@5, recall@10."""
    return sorted(metrics, key=lambda metric: (metric != headline, _natural(metric)))


def label(metric: str, task: Task | None) -> str:
    """Return a metric's name for people."""
    return metric if task is None else task.metric_labels.get(metric, metric)


def papers(cells: Iterable[ReportCell]) -> list[str]:
    """Return where the papers' numbers of these cells stand."""
    return sorted({cell.task.paper.table for cell in cells if cell.task and cell.run and cell.run.scores} - {""})


def guesses(cells: Iterable[ReportCell]) -> list[str]:
    """Return how guessing is done, a phrase for each benchmark that says so."""
    tasks = [cell.task for cell in cells if cell.task and cell.task.guess]
    return list(dict.fromkeys(f"for {task.title} {task.guess}" for task in tasks))


def percent(value: float | None) -> str:
    """ "84.3", or a dash where there is nothing to say."""
    return "–" if value is None else f"{value:.1f}"


def reason(cell: ReportCell) -> str:
    """Why a cell has no score."""
    return cell.error or "there is no complete run"


def _estimate(scores: dict[str, Any], metric: str) -> Estimate:
    low, high = scores["intervals"][metric]
    return Estimate(scores["scores"][metric], low, high)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
