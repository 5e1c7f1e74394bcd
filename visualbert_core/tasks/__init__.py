"""The benchmarks: official files in, examples out, the official score. One file is one benchmark.

`base` is the contract, `registry` finds a benchmark by its name, `scoring` is the summary that all of them share.
"""

from visualbert_core.tasks.base import Task
from visualbert_core.tasks.registry import (
    METRIC_LABELS,
    METRICS,
    PAPERS,
    TASKS,
    Paper,
    in_pixels,
    open_task,
    paper_numbers,
)
from visualbert_core.tasks.scoring import Metric, Summary, judge, summarize

__all__ = [
    "METRICS",
    "METRIC_LABELS",
    "PAPERS",
    "TASKS",
    "Metric",
    "Paper",
    "Summary",
    "Task",
    "in_pixels",
    "judge",
    "open_task",
    "paper_numbers",
    "summarize",
]

INGREDIENT = "scores"
