"""The benchmarks: official files in, examples out, the official score. One file is one benchmark.

`base` is the contract and what most benchmarks share, `registry` finds a benchmark by its name, `scoring` is the
summary that all of them share, `reading` reads their files.
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
