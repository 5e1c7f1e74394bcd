"""The benchmarks: official files in, examples out, the official score. The contract, the registry, and the one summary.

A task file is read top to bottom: `examples()` asks, `score()` judges, `summarize()` (here, the same for all) adds up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from visualbert_core.errors import ConfigError, CoverageError
from visualbert_core.metrics.coverage import Lenient, check_coverage
from visualbert_core.metrics.statistics import clustered_mean, interval
from visualbert_core.schema import Example, Prediction, Score
from visualbert_core.tasks import flickr30k_entities, nlvr2, vcr, vqa
from visualbert_core.tasks.reading import choose

INGREDIENT = "scores"


class Task(Protocol):
    """One benchmark split, opened.

    Where a split has no public labels, the members that need them (`score`, `chance`, `gold`, `best`, `worst`) raise
    ConfigError; one can still ask a model, and write and read submissions.
    """

    name: str
    split: str
    labelled: bool
    """Whether the split's labels are public, so that predictions can be scored here."""
    protocol: str
    """Name of the metric's protocol and of the official program it is tested against; where the annotations are not the
    official split, it says so."""
    subset: str | None
    """The line that must be said where the annotations are not the whole official split; None where they are."""
    protocol_key: str
    """Its short name, as `--protocol` takes it: a key of the task file's PROTOCOLS, whose first is the default."""
    headline: str
    """The metric a single-number summary shows."""
    submission_name: str
    """File name of a submission."""
    lenient: Lenient
    """What the official program does where coverage is refused here."""

    def examples(self) -> Iterator[Example]:
        """Every example of the split, in file order. `example_id`s are unique."""

    def expected(self) -> dict[str, str]:
        """example_id → first image id: what a complete set of predictions must cover."""

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Judge a complete set of predictions (coverage is checked before), unit by unit."""

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Percent that guessing gets, per metric, where that is defined."""

    def gold(self, example_id: str) -> Any:
        """The right answer in the form of `Prediction.answer`, for reports."""

    def best(self, example_id: str) -> Any:
        """An answer that gets the highest possible value of every metric."""

    def worst(self, example_id: str) -> Any:
        """An answer that gets the lowest possible value of every metric."""

    def official(self, scores: Sequence[Score]) -> dict[str, Any]:
        """The scores under the official program's own names, in its own form and rounding."""

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """The leaderboard's file, in the split's order: equal predictions give equal bytes.

        Raises InputError where the predictions do not hold all that the leaderboard asks.
        """

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """A file in that format, of any system, in file order; duplicates and unknown ids (with image id "") stay.

        `lenient` accepts as a record what the official program accepts in silence. Raises InputError naming the file
        and the record.
        """

    def image_sizes(self) -> Mapping[str, tuple[int, int]]:
        """image id → the (width, height) that its annotations are for; empty where they do not tell."""

    def annotation_files(self) -> tuple[Path, ...]:
        """The files that were read; their digest identifies the annotations."""


@dataclass(frozen=True)
class Metric:
    """A mean over units in percent, with its 95 % interval clustered by image."""

    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Summary:
    """What a set of scores adds up to.

    `metrics` is in the order in which the task yields them; `breakdown` is kind of group → group → metric →
    (percent, number of units), kinds and groups sorted. A unit in several groups of a kind counts in each.
    """

    metrics: dict[str, Metric]
    breakdown: dict[str, dict[str, dict[str, tuple[float, int]]]]


@dataclass(frozen=True)
class Paper:
    """VisualBERT's published numbers on one benchmark: split → metric → percent, and the table they stand in."""

    table: str
    percent: Mapping[str, Mapping[str, float]]


TASKS: dict[str, Callable[[Path, str, str | None], Task]] = {
    "vqa": vqa.VqaTask,
    "vcr": vcr.VcrTask,
    "nlvr2": nlvr2.Nlvr2Task,
    "flickr30k_entities": flickr30k_entities.Flickr30kEntitiesTask,
}

_FILES: dict[str, ModuleType] = {"vqa": vqa, "vcr": vcr, "nlvr2": nlvr2, "flickr30k_entities": flickr30k_entities}

METRICS = {name: tuple(file.METRICS) for name, file in _FILES.items()}
"""What each benchmark may score; what needs a file that is not there, as VQA's pairs do, is then left out."""

METRIC_LABELS: dict[str, str] = {
    metric: label for file in _FILES.values() for metric, label in file.METRIC_LABELS.items()
}
"""Metric → its name for people, where that is another one."""

PAPERS = {name: Paper(file.PAPER_TABLE, file.PAPER) for name, file in _FILES.items()}


def open_task(name: str, annotations: Path, split: str, protocol: str | None = None) -> Task:
    """Read a split of a benchmark from the folder of its official files, to be scored under a protocol of its own.

    Raises ConfigError for an unknown task, split or protocol, AnnotationError for files that are missing or malformed.
    """
    return TASKS[choose("task", name, TASKS)](annotations, split, protocol)


def paper_numbers(task: Task) -> Mapping[str, float]:
    """Metric → the percent that VisualBERT's paper reports for this split; nothing under another protocol than its, and
    nothing for a part of the split."""
    official = task.subset is None and task.protocol_key == next(iter(_FILES[task.name].PROTOCOLS))
    return PAPERS[task.name].percent.get(task.split, {}) if official else {}


def in_pixels(
    task: Task, predictions: Sequence[Prediction], convention: str | None, believe: bool = False
) -> tuple[list[Prediction], list[str]]:
    """Predictions of a file with their boxes as `score` judges them, and what must be said of them; see
    `Flickr30kEntitiesTask.in_pixels`. Other benchmarks' predictions come back as they are.

    Raises ConfigError for a convention of what has no boxes, InputError where the boxes look like another one.
    """
    if isinstance(task, flickr30k_entities.Flickr30kEntitiesTask):
        return task.in_pixels(predictions, convention, believe)
    if convention is not None:
        raise ConfigError(f"--boxes {convention}: predictions of {task.name} hold no boxes; leave the flag out")
    return list(predictions), []


def judge(task: Task, predictions: Iterable[Prediction]) -> list[Score]:
    """Score predictions that cover the split exactly.

    Raises CoverageError if an example has none or two, or is unknown; InputError if an answer has the wrong form.
    """
    rows = list(predictions)
    coverage = check_coverage(task.expected(), (row.example_id for row in rows))
    if not coverage.complete:
        raise CoverageError(f"{task.name} {task.split}: no score, {coverage.message()}; predict each example once")
    return list(task.score({row.example_id: row for row in rows}))


def summarize(scores: Iterable[Score]) -> Summary:
    """Every metric with its interval, and every metric in every group."""
    by_metric: defaultdict[str, list[Score]] = defaultdict(list)
    by_group: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for score in scores:
        by_metric[score.metric].append(score)
        for kind, groups in score.groups.items():
            for group in groups:
                by_group[kind, group, score.metric].append(score.value)
    breakdown: dict[str, dict[str, dict[str, tuple[float, int]]]] = {}
    for (kind, group, metric), values in sorted(by_group.items(), key=lambda item: item[0][:2]):
        share = (100 * fsum(values) / len(values), len(values))
        breakdown.setdefault(kind, {}).setdefault(group, {})[metric] = share
    return Summary({name: _metric(name, units) for name, units in by_metric.items()}, breakdown)


def _metric(name: str, units: list[Score]) -> Metric:
    mean = clustered_mean([unit.value for unit in units], [unit.cluster for unit in units])
    low, high = interval(mean)
    return Metric(name, 100 * mean.value, 100 * low, 100 * high, mean.n)
