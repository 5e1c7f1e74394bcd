"""Owns the benchmarks: a task reads official files, gives examples, and computes the official score.

Each benchmark has one file. `base` holds the contract and the parts that most benchmarks share. `registry` finds a
benchmark by its name. `scoring` applies it to predictions. `reading` reads annotation files.
"""

from visualbert_core.metrics.statistics import summarize
from visualbert_core.tasks.base import Task
from visualbert_core.tasks.caption_pairs import CaptionPairs
from visualbert_core.tasks.joined_splits import JoinedSplits
from visualbert_core.tasks.registry import TASKS, find_task, open_lessons, open_task, title_of
from visualbert_core.tasks.scoring import judge, score_units
from visualbert_core.tasks.shown import Published

__all__ = [
    "TASKS",
    "CaptionPairs",
    "JoinedSplits",
    "Published",
    "Task",
    "find_task",
    "judge",
    "open_lessons",
    "open_task",
    "score_units",
    "summarize",
    "title_of",
]

INGREDIENT = "scores"
