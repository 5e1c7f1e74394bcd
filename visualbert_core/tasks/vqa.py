"""VQA v2: an open question about one image, judged against ten people's answers.

Paper: Goyal et al. 2017, arXiv:1612.00837. Files, read under their official names: v2_OpenEnded_mscoco_*_questions.json
and v2_mscoco_*_annotations.json. Official program: `VQAEval` (github.com/GT-Vision-Lab/VQA at a013f004); its score of a
question lives in `metrics.accuracy`. The test sets have no public answers, so only train and val can be opened.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.metrics.accuracy import soft_accuracy
from visualbert_core.schema import Prediction, Question, Score
from visualbert_core.tasks.reading import choose, field, read_json

SUBSETS = {"val": "val2014", "train": "train2014"}

PAPER_TABLE = "VisualBERT, arXiv:1908.03557, table 1"
PAPER = {"test-dev": {"accuracy": 70.80}, "test-std": {"accuracy": 71.00}}


@dataclass(frozen=True, slots=True)
class _Item:
    image_id: str
    text: str
    annotators: list[dict[str, Any]]
    common_answer: str
    groups: dict[str, tuple[str, ...]]  # one "answer type" and one "question type"


class VqaTask:
    """One split of VQA v2. Answers are strings; the score is the soft accuracy of each question."""

    name = "vqa"
    protocol = "VQA v2 official (VQAEval, leave-one-out)"
    headline = "accuracy"

    def __init__(self, annotations: Path, split: str) -> None:
        """`annotations` is the folder of the official files. Raises ConfigError (split), AnnotationError (files)."""
        self.split = split
        subset = SUBSETS[choose("VQA split", split, SUBSETS)]
        self._questions_path = Path(annotations) / f"v2_OpenEnded_mscoco_{subset}_questions.json"
        self._annotations_path = Path(annotations) / f"v2_mscoco_{subset}_annotations.json"
        self._items = _join(self._questions_path, self._annotations_path, subset)

    def examples(self) -> Iterator[Question]:
        """Questions in file order; `example_id` is the question_id as a string."""
        for example_id, item in self._items.items():
            yield Question(example_id, (item.image_id,), item.text)

    def expected(self) -> dict[str, str]:
        """question_id → image id."""
        return {example_id: item.image_id for example_id, item in self._items.items()}

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """One "accuracy" a question. Raises InputError if an answer is not a string."""
        for example_id, item in self._items.items():
            answer = predictions[example_id].answer
            if not isinstance(answer, str):
                raise InputError(f"prediction of question {example_id}: answer {answer!r} is not a string")
            value = soft_accuracy(answer, item.annotators)
            yield Score(example_id, "accuracy", value, item.image_id, item.groups)

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """The blind guesser: every question gets the commonest answer of its question type *on this split*.

        The commonest is counted over `multiple_choice_answer` (where a record lacks it, its commonest raw answer). As
        the gold answers of the split itself are looked at, a guesser trained elsewhere would get a little less.
        """
        by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for item in self._items.values():
            by_type[item.groups["question type"][0]][item.common_answer] += 1
        guess = {question_type: answers.most_common(1)[0][0] for question_type, answers in by_type.items()}
        values = [
            soft_accuracy(guess[item.groups["question type"][0]], item.annotators) for item in self._items.values()
        ]
        return {"accuracy": 100 * sum(values) / len(values)}

    def gold(self, example_id: str) -> str:
        """The annotators' commonest answer, as the file words it."""
        return self._items[example_id].common_answer

    def annotation_files(self) -> tuple[Path, ...]:
        """Questions, annotations."""
        return self._questions_path, self._annotations_path


def _join(questions_path: Path, annotations_path: Path, subset: str) -> dict[str, _Item]:
    """Every question with its annotation, in the order of the questions; each must have the other exactly once."""
    questions = _by_id(questions_path, "questions")
    annotations = _by_id(annotations_path, "annotations")
    for path, ids, others, other_path in (
        (questions_path, questions, annotations, annotations_path),
        (annotations_path, annotations, questions, questions_path),
    ):
        for question_id in ids:
            if question_id not in others:
                raise AnnotationError(
                    f"{path}: question_id {question_id} is not in {other_path.name}; take both files from one release"
                )
    return {
        str(question_id): _item(
            question,
            f"{questions_path} question_id {question_id}",
            annotations[question_id],
            f"{annotations_path} question_id {question_id}",
            subset,
        )
        for question_id, question in questions.items()
    }


def _by_id(path: Path, key: str) -> dict[int, dict[str, Any]]:
    records: dict[int, dict[str, Any]] = {}
    for index, record in enumerate(field(read_json(path), key, list, str(path))):
        question_id = field(record, "question_id", int, f"{path} {key}[{index}]")
        if question_id in records:
            raise AnnotationError(f"{path}: question_id {question_id} occurs twice; remove one of its records")
        records[question_id] = record
    if not records:
        raise AnnotationError(f"{path}: {key!r} is empty; download it again")
    return records


def _item(
    question: dict[str, Any], where: str, annotation: dict[str, Any], annotation_where: str, subset: str
) -> _Item:
    annotators = field(annotation, "answers", list, annotation_where)
    answers = [field(record, "answer", str, annotation_where) for record in annotators]
    if not answers:
        raise AnnotationError(f"{annotation_where}: no answers; this is not the official format")
    if "multiple_choice_answer" in annotation:
        common = field(annotation, "multiple_choice_answer", str, annotation_where)
    else:
        common = Counter(answers).most_common(1)[0][0]
    return _Item(
        image_id=f"COCO_{subset}_{field(question, 'image_id', int, where):012d}",
        text=field(question, "question", str, where),
        annotators=annotators,
        common_answer=common,
        groups={
            "answer type": (field(annotation, "answer_type", str, annotation_where),),
            "question type": (field(annotation, "question_type", str, annotation_where),),
        },
    )
