"""Turn run folders into lines of scores, the same for the page and the terminal.

Owns what is shown beside a score: its interval, the number of units, chance, the scores over the wrong image and over
none, the scores under other protocols, and the published number. Also owns the words that are the same in both: names
of metrics, and why there is no score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from visualbert_core.evaluation.run_folder import Run
from visualbert_core.evaluation.score import AS_PERSON, PERSON
from visualbert_core.report import ReportCell
from visualbert_core.tasks import Published, Task

SYNTHETIC = (
    "Synthetic scenes, and tiny weights that we trained: these scores show that the pipeline works, "
    "not how good VisualBERT is on the real sets."
)


@dataclass(frozen=True)
class Estimate:
    """A metric in percent with its 95 % interval. A single image gives no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> str:
        """Write the interval: "[81.2, 87.4]"."""
        return "[no interval]" if self.low is None or self.high is None else f"[{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class ScoreLine:
    """One metric of one cell, with every number that a reader needs beside it."""

    metric: str
    label: str
    """The metric's name for users."""
    headline: bool
    own: Estimate
    wrong_image: Estimate | None
    no_image: Estimate | None
    chance: float | None
    paper: float | None
    """The published number for the same network, split and protocols. Never show it beside synthetic data."""
    units: int
    person: float | None
    """What a person gets."""
    as_person: float | None
    """What the model gets under the conditions of the person, such as one reference less."""
    others: Sequence[tuple[str, float]]
    """(short name of another protocol, percent of the same answers under it)."""


def score_lines(cell: ReportCell) -> list[ScoreLine]:
    """Return a line for each metric, the headline first; no line for a cell without a score."""
    own, wrong, none = scores_of(cell.run), scores_of(cell.baseline), scores_of(cell.no_image)
    if own is None:
        return []
    published, others = _published(cell), own.get("other_protocols", {}).items()
    return [
        ScoreLine(
            metric=metric,
            label=label(metric, cell.task),
            headline=metric == own["headline"],
            own=_estimate(own, metric),
            wrong_image=_estimate(wrong, metric) if wrong else None,
            no_image=_estimate(none, metric) if none else None,
            chance=own["chance"].get(metric),
            paper=published.percent.get(metric) if published else None,
            units=own["units"][metric],
            person=own.get(PERSON, {}).get(metric),
            as_person=own.get(AS_PERSON, {}).get(metric),
            others=[(protocol, values[metric]) for protocol, values in others],
        )
        for metric in in_order(own["scores"], own["headline"])
    ]


def scores_of(run: Run | None) -> dict[str, Any] | None:
    """Return the scores document of a complete run, else None."""
    return None if run is None else run.scores


def warnings(cell: ReportCell, synthetic: bool) -> list[str]:
    """Return the warnings that belong beside the scores of a cell.

    They name annotations that are not the official split, features of another space than the checkpoint's, and scores
    under chance. Synthetic annotations need no such warning: the page says that they are synthetic.
    """
    if cell.run is None:
        return []
    document = cell.run.scores or cell.run.record
    subset = [document["subset"]] if "subset" in document and not synthetic else []
    return [*subset, *document["warnings"]]


def in_order(metrics: Iterable[str], headline: str) -> list[str]:
    """Return the headline, then the others by name and number: recall@1, recall@5, recall@10."""
    return sorted(metrics, key=lambda metric: (metric != headline, _natural(metric)))


def label(metric: str, task: Task | None) -> str:
    """Return a metric's name for users."""
    return metric if task is None else task.metric_labels.get(metric, metric)


def notes(cells: Iterable[ReportCell]) -> dict[str, list[str]]:
    """Return what is written about the columns, each a phrase for each benchmark that says so.

    How chance is computed, who the person is and who judges, the sources of the published numbers, and how far each
    metric goes that is not in percent: "CIDEr-D: up to 1,000".
    """
    cells = list(cells)
    tasks = [cell.task for cell in cells if cell.task]
    scales = [(task, *pair) for task in tasks for pair in task.scales.items()]
    found = {
        "guesses": [f"for {task.title} {task.guess}" for task in tasks if task.guess],
        "persons": [f"for {task.title} {task.person_is}" for task in tasks if task.person_is],
        "papers": sorted(published.source for cell in cells if (published := _published(cell)) is not None),
        "scales": [f"{label(metric, task)}: up to {scale:,.0f}" for task, metric, scale in scales],
    }
    return {name: list(dict.fromkeys(lines)) for name, lines in found.items()}


def percent(value: float | None) -> str:
    """Write percent with one decimal: "84.3"; None is a dash."""
    return "–" if value is None else f"{value:.1f}"


def reason(cell: ReportCell) -> str:
    """Return why a cell has no score."""
    return cell.error or "there is no complete run"


def _published(cell: ReportCell) -> Published | None:
    own = scores_of(cell.run)
    return cell.task.published_for(own) if cell.task and own else None


def _estimate(scores: dict[str, Any], metric: str) -> Estimate:
    low, high = scores["intervals"][metric]
    return Estimate(scores["scores"][metric], low, high)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
