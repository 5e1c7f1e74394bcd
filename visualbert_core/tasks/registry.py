"""The registry of benchmarks: finds a task by its name, what it scores and what the paper says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from visualbert_core.errors import ConfigError
from visualbert_core.schema import Prediction
from visualbert_core.tasks import flickr30k_entities, nlvr2, vcr, vqa
from visualbert_core.tasks.base import Task
from visualbert_core.tasks.reading import choose


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
