"""Owns several splits of one benchmark as one set of examples to learn, such as `train+val`.

The authors of VisualBERT learn train2014 and val2014 together before they ask the test server of VQA. Nothing is scored
here: a validation needs one split, with its official score.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from visualbert_core.errors import AnnotationError
from visualbert_core.schema import Example, NamedRegions, Target
from visualbert_core.tasks.base import Task

INGREDIENT = "training"

PLUS = "+"


class JoinedSplits:
    """Represents the examples of several splits, in the order of the splits.

    Each method about an example returns what the task of the example's split returns.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Take open splits of one benchmark. Raises AnnotationError where two splits hold the same example_id."""
        self.form = tasks[0].form
        self.benchmark = type(tasks[0])
        self._tasks = tuple(tasks)
        self._task_of: dict[str, Task] = {}
        for task in tasks:
            for example in task.lessons():
                if example.example_id in self._task_of:
                    first = self._task_of[example.example_id].split
                    raise AnnotationError(
                        f"{task.files[0]}: example {example.example_id!r} is in {first} and in {task.split}: learn one "
                        "of them"
                    )
                self._task_of[example.example_id] = task

    def annotation_files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(path for task in self._tasks for path in task.annotation_files()))

    def lessons(self) -> Iterator[Example]:
        for task in self._tasks:
            yield from task.lessons()

    def target(self, example: Example, boxes: Sequence[np.ndarray]) -> Target:
        return self._task_of[example.example_id].target(example, boxes)

    def told(self, example: Example, draws: random.Random) -> Target:
        return self._task_of[example.example_id].told(example, draws)

    def drawn(self, example: Example, draws: random.Random) -> Example:
        return self._task_of[example.example_id].drawn(example, draws)

    def named_regions(self, example: Example, boxes: Sequence[np.ndarray]) -> NamedRegions:
        return self._task_of[example.example_id].named_regions(example, boxes)
