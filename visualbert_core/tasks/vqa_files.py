"""Reads the files of VQA v2 into columns: questions, annotations and complementary pairs.

Layouts: https://visualqa.org/download.html and the official reader (github.com/GT-Vision-Lab/VQA at a013f004). The
official reader joins any two files, and would score files that do not belong together. So this reader refuses files
that contradict each other, and files of another split than their names say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from visualbert_core.errors import AnnotationError
from visualbert_core.io.documents import brief
from visualbert_core.metrics.accuracy import AnswerTable
from visualbert_core.tasks.reading import read_list, typed, untyped

# test2014 is of the first version of VQA.
_SUBTYPES = ("val2014", "train2014", "test2015", "test-dev2015", "test2014")

# Keys that are not named here are not read.


class QuestionRecord(Struct):
    """Holds an element of the list "questions"."""

    question_id: int
    image_id: int  # the number of the image in COCO
    question: str


class Annotator(Struct):
    """Holds one of the ten answers to a question. The official records also have "answer_confidence"."""

    answer: str
    answer_id: Any = None  # 1 to 10


class AnnotationRecord(Struct):
    """Holds an element of the list "annotations"."""

    question_id: int
    answers: list[Annotator]
    answer_type: str  # "yes/no", "number" or "other"
    question_type: str  # the first words of the question
    image_id: int | float | str | None = None  # It is only compared, so a user's own files may lack it.
    multiple_choice_answer: str | UnsetType = UNSET  # the commonest answer


@dataclass(frozen=True)
class Questions:
    """Holds the questions as columns, with one row per question in file order."""

    subset: Any  # "data_subtype" of the file; None where it has no such key
    rows: dict[str, int]  # example_id → row
    image_ids: list[str]
    texts: list[str]
    images: dict[Any, str]  # The number of an image → its id. All questions about an image share one string object.


@dataclass(frozen=True)
class Labels:
    """Holds the labels as columns, with one row per question in the order of the questions."""

    answers: AnswerTable
    common: list[str]  # the commonest answers
    groups: list[dict[str, tuple[str, ...]]]  # one "answer type" and one "question type"
    order: list[str]  # the example ids in the order of the annotations
    pairs: list[tuple[str, str]]  # example ids; empty where the file of pairs does not exist


def read_questions(path: Path, subset: str) -> Questions:
    """Read the file of questions about the images of `subset`. Raises AnnotationError."""
    head, elements = read_list(path, "questions")
    _check_head(path, head, subset)
    questions = Questions(head.get("data_subtype"), {}, [], [], {})
    folder, images = subset.replace("-dev", ""), questions.images
    texts: dict[str, str] = {}  # Equal questions share one string object, to save memory: pairs have equal questions.
    for record, _ in typed(path, "questions", elements, QuestionRecord):
        example_id, image_id = str(record.question_id), record.image_id
        if example_id in questions.rows:
            raise _twice(path, example_id)
        if image_id not in images:
            images[image_id] = f"COCO_{folder}_{image_id:012d}"  # COCO's file name, without its suffix
        questions.rows[example_id] = len(questions.rows)
        questions.image_ids.append(images[image_id])
        questions.texts.append(texts.setdefault(record.question, record.question))
    if not questions.rows:
        raise AnnotationError(f"{path}: 'questions' is empty; download it again")
    return questions


def _check_head(path: Path, head: Mapping[str, Any], subset: str) -> None:
    """Raise AnnotationError where a file says that it is of another split, of other images, or of multiple choice.

    A value that no official file has belongs to the user's own set, so it passes.
    """
    own = (subset, subset.replace("-dev", ""))  # test-dev shares its images with test, so both names are right.
    for key, right, others in (
        ("data_subtype", subset, [name for name in _SUBTYPES if name not in own]),
        ("data_type", "mscoco", ["abstract_v002"]),
        ("task_type", "Open-Ended", ["Multiple-Choice"]),
    ):
        if head.get(key) in others:
            raise AnnotationError(
                f"{path}: {key!r} is {head[key]!r}, but the file should be {right!r}; put the files of one split "
                "together under their official names"
            )


def read_labels(files: Sequence[Path], questions: Questions, subset: str, always_normalise: bool) -> Labels:
    """Read the annotations and, where `files` names them, the pairs. `files` are those of the task.

    Raises AnnotationError where a question does not have exactly one annotation. Their order does not matter.
    """
    asked, path, *more = files
    rows = questions.rows
    pairs = _read_pairs(more[0], asked, rows) if more else []
    labels = Labels(AnswerTable(len(rows), always_normalise), [""] * len(rows), [{}] * len(rows), [], pairs)
    # Equal values share one object, which saves memory on hundreds of thousands of questions.
    answers: dict[str, str] = {}  # commonest answer → itself
    groups: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}  # (answer type, question type) → the groups
    head, elements = read_list(path, "annotations")
    _check_head(path, head, subset)
    subsets = head.get("data_subtype"), questions.subset
    # A pair with an official name passes: a part of an official split may have a new name in only one of its files.
    if subsets[0] != subsets[1] and not any(name is None or name in _SUBTYPES for name in subsets):
        raise AnnotationError(
            f"{path}: 'data_subtype' is {brief(subsets[0])}, but in {asked.name} it is {brief(subsets[1])}; put the "
            "files of one split together"
        )
    for record, element in typed(path, "annotations", elements, AnnotationRecord):
        example_id = str(record.question_id)
        row = rows.get(example_id)
        if row is None:
            raise not_in(path, example_id, asked)
        if labels.groups[row]:
            raise _twice(path, example_id)
        if not record.answers:
            raise AnnotationError(f"{path} question_id {example_id}: no answers; this is not the official format")
        said = [annotator.answer for annotator in record.answers]
        if not labels.answers.take_ten(row, said, [annotator.answer_id for annotator in record.answers]):
            # VQAEval's leave-one-out compares whole records. Where the ids do not tell the annotators apart, records
            # may be equal, so they are kept with all their keys.
            labels.answers[row] = untyped(element, str(path))["answers"]
        given, image_id = record.image_id, questions.image_ids[row]
        number = int(image_id.rpartition("_")[2])
        if questions.images.get(given) is not image_id and given is not None and str(given) != str(number):
            raise AnnotationError(
                f"{path} question_id {example_id}: 'image_id' is {given!r}, but in {asked.name} it is {number}; take "
                "both from one release"
            )
        common = record.multiple_choice_answer
        if common is UNSET:
            common = Counter(said).most_common(1)[0][0]
        labels.common[row] = answers.setdefault(common, common)
        types = record.answer_type, record.question_type
        if types not in groups:
            groups[types] = {"answer type": types[:1], "question type": types[1:]}
        labels.groups[row] = groups[types]
        labels.order.append(example_id)
    for example_id, row in rows.items():
        if not labels.groups[row]:
            raise not_in(asked, example_id, path)
    return labels


def _read_pairs(path: Path, asked: Path, rows: Mapping[str, int]) -> list[tuple[str, str]]:
    """Read the pairs in file order; each pair is kept once.

    Raises AnnotationError where a question of a pair is missing, also in a slice of the benchmark: leaving out a pair
    silently would change the score.
    """
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for index, (ids, _) in enumerate(typed(path, None, read_list(path)[1], list[int])):
        if len(ids) != 2 or ids[0] == ids[1]:
            raise AnnotationError(f"{path} [{index}]: {ids} is no pair of questions; this is not the official format")
        first, second = map(str, ids)
        for example_id in (first, second):
            if example_id not in rows:
                raise not_in(path, example_id, asked)
        pairs.setdefault(frozenset((first, second)), (first, second))
    return list(pairs.values())


def not_in(path: Path, question_id: str, other: Path) -> AnnotationError:
    """Return the error for a question of one file that the other file lacks."""
    return AnnotationError(
        f"{path}: question_id {question_id} is not in {other.name}; take both files from one release, or cut both"
    )


def _twice(path: Path, question_id: str) -> AnnotationError:
    return AnnotationError(f"{path}: question_id {question_id} occurs twice; remove one of its records")
