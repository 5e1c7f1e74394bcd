"""Evaluate on a benchmark of your own: open questions. An answer is right if it equals the gold answer in any case.

File: {split}.jsonl, with {"id", "image", "question", "answer"} on each line. "image" is a file name without ".jpg".

python examples/own_task.py QUESTIONS STORE MODEL RUNS
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from msgspec import Struct

from visualbert_core import EvaluateConfig, Pool, PoolConfig, Task, evaluate
from visualbert_core.schema import Prediction, Question, Score
from visualbert_core.tasks.reading import read_by_id


class Record(Struct):
    """One line of the file. The first field is the id."""

    id: str
    image: str
    question: str
    answer: str


class OpenQuestions(Task):
    """A benchmark of open questions. `visualbert_core.tasks.Task` has the contract and all defaults."""

    form = Question
    splits = ("train", "val", "test")
    metrics = ("exact match",)
    protocols: ClassVar = {"exact": "open questions, exact match in any case"}

    def read(self) -> None:
        self.records = read_by_id(self.files[0], Record)

    def examples(self) -> Iterator[Question]:
        for name, record in self.records.items():
            yield Question(name, (record.image,), record.question)

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        for example in self.examples():
            name, (image,) = example.example_id, example.image_ids
            judged = self.judged(example, predictions[name])
            right = judged.answer.lower() == self.gold(name).lower()
            yield Score(name, "exact match", float(right), cluster=image, judged=judged)

    def gold(self, example_id: str) -> str:
        return self.records[example_id].answer


if __name__ == "__main__":
    questions, features, model, out = map(Path, sys.argv[1:])
    task = "own_task:OpenQuestions"  # module:Class, as for --task
    config = EvaluateConfig(task=task, split="val", annotations=questions, features=features, model=model, out=out)
    with Pool(PoolConfig(inline=True)) as pool:
        run = evaluate(config, pool)
    assert run.scores is not None  # None on splits without public labels
    for metric, value in run.scores["scores"].items():
        low, high = run.scores["intervals"][metric]
        print(f"{metric} {value:.2f} [{low:.2f}, {high:.2f}], n = {run.scores['units'][metric]}")
