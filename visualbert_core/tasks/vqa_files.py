"""VQA v2's files: questions, annotations and complementary pairs under their official names, read into columns.

Layouts: https://visualqa.org/download.html and the official reader (github.com/GT-Vision-Lab/VQA at a013f004), which
takes two files as one split whatever they say of themselves. Here files that contradict each other, or that are of
another split than their names say, are refused: they have a score, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from visualbert_core.errors import AnnotationError
from visualbert_core.io.documents import brief
from visualbert_core.metrics.accuracy import AnswerTable
from visualbert_core.tasks.reading import read_list, typed, untyped

_SUBTYPES = ("val2014", "train2014", "test2015", "test-dev2015", "test2014")  # test2014 is of the first version

Groups = dict[str, tuple[str, ...]]

# The official files (https://visualqa.org/download.html), of which what is not named here is not read. Questions and
# annotations are lists under "questions" and "annotations", beside keys such as those of `_heads`. The file of pairs is
# a list of [question_id, question_id].


class QuestionRecord(Struct):
    """One of a file's "questions"."""

    question_id: int
    image_id: int  # COCO's number
    question: str


class Annotator(Struct):
    """One of the ten answers to a question; the official records have "answer_confidence", too."""

    answer: str
    answer_id: Any = None  # 1 to 10


class AnnotationRecord(Struct):
    """One of a file's "annotations"."""

    question_id: int
    answers: list[Annotator]
    answer_type: str  # "yes/no", "number" or "other"
    question_type: str  # the words that the question begins with
    image_id: int | float | str | None = None  # compared only, so files of one's own may lack it
    multiple_choice_answer: str | UnsetType = UNSET  # the commonest answer


@dataclass(frozen=True)
class Questions:
    """Columns, one row a question, in file order."""

    subset: Any  # what the file calls it, where it does
    rows: dict[str, int]  # example_id → row
    image_ids: list[str]
    texts: list[str]
    images: dict[Any, str]  # the number of an image → its id, one string object an image


@dataclass(frozen=True)
class Labels:
    """Columns, one row a question, in the order of the questions."""

    answers: AnswerTable
    common: list[str]
    groups: list[Groups]  # one "answer type" and one "question type"
    order: list[str]  # the example ids in the order of the annotations
    pairs: list[tuple[str, str]]  # example ids; empty where the file is not there


def read_questions(path: Path, subset: str) -> Questions:
    """Read the questions of the images of `subset`. Raises AnnotationError."""
    head, elements = read_list(path, "questions")
    _check_head(path, head, subset)
    questions = Questions(head.get("data_subtype"), {}, [], [], {})
    folder, images = subset.replace("-dev", ""), questions.images
    texts: dict[str, str] = {}  # and one a wording: complementary pairs share theirs
    for record, _ in typed(path, "questions", elements, QuestionRecord):
        example_id, image_id, text = str(record.question_id), record.image_id, record.question
        if example_id in questions.rows:
            raise _twice(path, example_id)
        if image_id not in images:
            images[image_id] = f"COCO_{folder}_{image_id:012d}"
        questions.rows[example_id] = len(questions.rows)
        questions.image_ids.append(images[image_id])
        questions.texts.append(texts.setdefault(text, text))
    if not questions.rows:
        raise AnnotationError(f"{path}: 'questions' is empty; download it again")
    return questions


def _check_head(path: Path, head: Mapping[str, Any], subset: str) -> None:
    """Refuse a file that says that it is of another split, of other images, or of multiple choice. What no official
    file says is somebody's own."""
    for key, (own, others) in _heads(subset).items():
        if head.get(key) in others:
            raise AnnotationError(
                f"{path}: {key!r} is {head[key]!r}, in a file that is to be {own!r}; put the files of one split "
                "together under their own names"
            )


def _check_subsets(path: Path, judged: object, questions_path: Path, asked: object) -> None:
    """Refuse annotations that name another split of somebody's own than the questions do. An official name passes: a
    part of an official split may have a name of its own in one of its files only."""
    if judged != asked and not any(name is None or name in _SUBTYPES for name in (judged, asked)):
        raise AnnotationError(
            f"{path}: 'data_subtype' is {brief(judged)}, in {questions_path.name} it is {brief(asked)}; put the files "
            "of one split together"
        )


def _heads(subset: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Key → what the file should say, and what official files of another kind say there."""
    own = {subset, subset.replace("-dev", "")}  # test-dev's images are those of test
    return {
        "data_subtype": (subset, tuple(name for name in _SUBTYPES if name not in own)),
        "data_type": ("mscoco", ("abstract_v002",)),
        "task_type": ("Open-Ended", ("Multiple-Choice",)),
    }


def read_annotations(path: Path, questions_path: Path, questions: Questions, labels: Labels, subset: str) -> None:
    """Fill the rows of `labels`: each question must have exactly one annotation, in any order. Raises
    AnnotationError."""
    rows = questions.rows
    answers: dict[str, str] = {}  # one string object a commonest answer
    groups: dict[tuple[str, str], Groups] = {}  # one dictionary a combination
    head, elements = read_list(path, "annotations")
    _check_head(path, head, subset)
    _check_subsets(path, head.get("data_subtype"), questions_path, questions.subset)
    for record, element in typed(path, "annotations", elements, AnnotationRecord):
        example_id = str(record.question_id)
        row = rows.get(example_id)
        if row is None:
            raise not_in(path, example_id, questions_path)
        if labels.groups[row]:
            raise _twice(path, example_id)
        if not record.answers:
            raise AnnotationError(f"{path} question_id {example_id}: no answers; this is not the official format")
        said = [annotator.answer for annotator in record.answers]
        if not labels.answers.take_ten(row, said, [annotator.answer_id for annotator in record.answers]):
            labels.answers[row] = untyped(element, str(path))["answers"]  # VQAEval compares whole records
        if questions.images.get(record.image_id) is not questions.image_ids[row]:
            where = f"{path} question_id {example_id}"
            _refuse_image(record.image_id, questions.image_ids[row], where, questions_path)
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
            raise not_in(questions_path, example_id, path)


def _refuse_image(given: object, image: str, where: str, questions_path: Path) -> None:
    """Say where the two files disagree on the image of a question; an annotation that names none says nothing."""
    asked = int(image.rpartition("_")[2])
    if given is not None and str(given) != str(asked):
        raise AnnotationError(
            f"{where}: 'image_id' is {given!r}, in {questions_path.name} it is {asked}; take both from one release"
        )


def read_pairs(path: Path, questions_path: Path, rows: Mapping[str, int]) -> list[tuple[str, str]]:
    """Read the pairs in file order, each once. All their questions must be there, in a slice of the benchmark, too: a
    pair that is silently left out would change the score."""
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for index, (ids, _) in enumerate(typed(path, None, read_list(path)[1], list[int])):
        if len(ids) != 2 or ids[0] == ids[1]:
            where = f"{path} [{index}]"
            raise AnnotationError(f"{where}: {ids} is not a pair of questions; this is not the official format")
        for question_id in ids:
            if str(question_id) not in rows:
                raise not_in(path, question_id, questions_path)
        first, second = map(str, ids)
        pairs.setdefault(frozenset((first, second)), (first, second))
    return list(pairs.values())


def not_in(path: Path, question_id: object, other: Path) -> AnnotationError:
    """Say that a question of one file is not in the other."""
    return AnnotationError(
        f"{path}: question_id {question_id} is not in {other.name}; take both files from one release, or cut both"
    )


def _twice(path: Path, question_id: object) -> AnnotationError:
    return AnnotationError(f"{path}: question_id {question_id} occurs twice; remove one of its records")
