"""Owns the benchmarks: a task reads official files, gives examples, and computes the official score.

Each benchmark has one file. `base` holds the contract and the parts that most benchmarks share. `registry` finds a
benchmark by its name. `scoring` summarises the scores of every benchmark. `reading` reads annotation files.
"""

from visualbert_core.tasks.base import Paper, Task
from visualbert_core.tasks.registry import TASKS, find_task, open_task
from visualbert_core.tasks.scoring import Metric, Summary, judge, summarize

__all__ = [
    "TASKS",
    "Metric",
    "Paper",
    "Summary",
    "Task",
    "find_task",
    "judge",
    "open_task",
    "summarize",
]

INGREDIENT = "scores"
