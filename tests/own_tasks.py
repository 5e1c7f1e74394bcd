"""Benchmarks from outside the package, one for each form of example. The open question is left out, because
examples/own_task.py shows it.

Each class is what a user would write for a plain file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from msgspec import Struct

from visualbert_core.metrics.recall import overlaps, recall
from visualbert_core.schema import Grounding, JudgedAnswer, MultipleChoice, Phrase, Prediction, Score, Statement
from visualbert_core.tasks import Task
from visualbert_core.tasks.predicted_boxes import ranked_boxes
from visualbert_core.tasks.reading import read_by_id


def open_questions(vqa: Path, folder: Path) -> Path:
    """Write the synthetic data's VQA questions as the file that examples/own_task.py reads, and return its folder."""
    questions = json.loads((vqa / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    annotations = json.loads((vqa / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    answers = {record["question_id"]: record["multiple_choice_answer"] for record in annotations}
    records = [
        {
            "id": str(record["question_id"]),
            "image": f"COCO_val2014_{record['image_id']:012d}",
            "question": record["question"],
            "answer": answers[record["question_id"]],
        }
        for record in questions
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "val.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


class Choice(Struct):
    id: str
    image: str
    question: str
    choices: list[str]
    answer: int


class Choices(Task):
    """Multiple choice without objects, as in A-OKVQA."""

    form = MultipleChoice
    splits = ("val",)
    metrics = ("choice accuracy",)
    protocols: ClassVar = {"own": "the right one of the choices"}

    def read(self) -> None:
        self.records = read_by_id(self.files[0], Choice)

    def examples(self) -> Iterator[MultipleChoice]:
        for name, record in self.records.items():
            choices = tuple(tuple(choice.split()) for choice in record.choices)
            yield MultipleChoice(name, (record.image,), (), tuple(record.question.split()), choices, ())

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        for example in self.examples():
            judged = self.judged(example, predictions[example.example_id])
            right = float(judged.answer == self.gold(example.example_id))
            yield Score(example.example_id, "choice accuracy", right, example.image_ids[0], judged=judged)

    def gold(self, example_id: str) -> int:
        return self.records[example_id].answer


class Pair(Struct):
    id: str
    left: str
    right: str
    sentence: str
    true: bool


class Pairs(Task):
    """A statement about two images, read from a .csv file."""

    form = Statement
    splits = ("val",)
    metrics = ("truth",)
    protocols: ClassVar = {"own": "true or false"}

    def read(self) -> None:
        self.files = (self.folder / f"{self.split}.csv",)
        self.records = read_by_id(self.files[0], Pair)

    def examples(self) -> Iterator[Statement]:
        for name, record in self.records.items():
            yield Statement(name, (record.left, record.right), record.sentence)

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        for example in self.examples():
            judged = self.judged(example, predictions[example.example_id])
            right = float(judged.answer == self.gold(example.example_id))
            yield Score(example.example_id, "truth", right, example.image_ids[0], judged=judged)

    def gold(self, example_id: str) -> str:
        return str(self.records[example_id].true)


class Reference(Struct):
    id: str
    image: str
    words: str
    box: list[float]  # left, top, right, bottom in pixels


class References(Task):
    """A referring expression and its box, as in RefCOCO."""

    form = Grounding
    splits = ("val",)
    metrics = ("found",)
    protocols: ClassVar = {"own": "IoU ≥ 0.5 of the first box"}

    def read(self) -> None:
        self.records = read_by_id(self.files[0], Reference)

    def examples(self) -> Iterator[Grounding]:
        for name, record in self.records.items():
            words = tuple(record.words.split())
            yield Grounding(name, (record.image,), words, (Phrase(0, len(words), record.words),))

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        for name, record in self.records.items():
            given = predictions[name]
            (ranked,) = ranked_boxes(given.answer, 1, f"prediction of {name}")
            first = ranked[0].tolist() if len(ranked) else None
            judged = JudgedAnswer(name, first, given.scores[0] if given.scores else None, 0)
            yield Score(
                name, "found", recall(overlaps(ranked, np.array(self.gold(name)[0])), 1), record.image, judged=judged
            )

    def gold(self, example_id: str) -> list[list[list[float]]]:
        return [[self.records[example_id].box]]
