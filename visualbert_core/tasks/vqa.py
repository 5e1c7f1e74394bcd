"""VQA v2: an open question about one image, judged against ten people's answers.

Paper: Goyal et al. 2017, arXiv:1612.00837. Official program: `VQAEval` (github.com/GT-Vision-Lab/VQA at a013f004); its
score of a question lives in `metrics.accuracy`. Files, read under their official names:
v2_OpenEnded_mscoco_*_questions.json; for train and val v2_mscoco_*_annotations.json, the test sets having no public
answers, and v2_mscoco_*_complementary_pairs.json where it is there.

Complementary pairs are questions of the same words whose images, and so whose answers, differ. Their measure is that
of Zhang et al. 2018, arXiv:1802.05766 (eval-acc.py of github.com/Cyanogenoid/vqa-counting at 4042b129): a pair is worth
1 if both answers have full marks, else 0, and belongs to a group if both questions do.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from visualbert_core.errors import AnnotationError, ConfigError, InputError
from visualbert_core.metrics.accuracy import AnswerTable, official_percent
from visualbert_core.metrics.coverage import Lenient
from visualbert_core.schema import Example, JudgedAnswer, Prediction, Question, Score
from visualbert_core.tasks.reading import choose, read_list, typed, untyped
from visualbert_core.tasks.splits import protocol_name, subset_line

SUBSETS = {"val": "val2014", "train": "train2014", "test": "test2015", "test-dev": "test-dev2015"}
LABELLED = ("val", "train")
_SUBTYPES = (*SUBSETS.values(), "test2014")  # what official files call their split; test2014 is of the first version

SIZES = {"val": 214_354, "train": 443_757, "test": 447_793, "test-dev": 107_394}
"""Questions of each split, by visualqa.org; test-dev's less certain, as its file was not at hand to be counted."""
UNITS = "questions"

PROTOCOLS = {
    "official": "VQA v2 official (VQAEval, leave-one-out)",
    "always-normalise": "VQA v2 with both sides always normalised (lmms-eval, leave-one-out)",
}
"""VQAEval normalises where a question's ten answers differ, lmms-eval (vqav2_process_results at 75571cfe) everywhere;
its normaliser differs in one rule, on answers such as "1,,000". MMF (vqa_evalai_accuracy at b0ffc7fb) normalises
everywhere as well, but drops commas and question marks and splits off 's beforehand, which is not offered here."""

METRICS = ("accuracy", "pair_accuracy")
METRIC_LABELS: dict[str, str] = {}
"""metric → its name for people, where that is another one."""

PAPER_TABLE = "VisualBERT, arXiv:1908.03557, table 1"
PAPER = {"test-dev": {"accuracy": 70.80}, "test-std": {"accuracy": 71.00}}

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


class ResultRecord(Struct):
    """One record of the list that EvalAI takes."""

    question_id: int
    answer: str


@dataclass(frozen=True)
class _Questions:
    """Columns, one row a question, in file order."""

    rows: dict[str, int]  # example_id → row
    image_ids: list[str]
    texts: list[str]
    images: dict[Any, str]  # the number of an image → its id, one string object an image


@dataclass(frozen=True)
class _Labels:
    """Columns, one row a question, in the order of the questions."""

    answers: AnswerTable
    common: list[str]
    groups: list[Groups]  # one "answer type" and one "question type"
    order: list[str]  # the example ids in the order of the annotations
    pairs: list[tuple[str, str]]  # example ids; empty where the file is not there


class VqaTask:
    """One split of VQA v2. Answers are strings; the score is the soft accuracy of each question.

    The files are mapped into memory and read into columns. Opening train's 443,757 questions (made-up files of 392 MB,
    100,000 different answers) takes four seconds on one core, and 290 MB at most beside the mapped file.
    """

    form: type[Example] = Question

    name = "vqa"
    headline = "accuracy"
    submission_name = "submission.json"
    lenient = Lenient(duplicate="last", unknown="refuse")

    def __init__(self, annotations: Path, split: str, protocol: str | None = None) -> None:
        """`annotations` is the folder of the official files.

        Raises ConfigError (split, protocol), AnnotationError (files).
        """
        self.split = split
        subset = SUBSETS[choose("VQA split", split, SUBSETS)]
        self.protocol_key = choose("VQA protocol", protocol, PROTOCOLS)
        self.labelled = split in LABELLED
        folder = Path(annotations)
        self._folder = folder
        self._files = [_questions_file(folder, split)]
        if self.labelled:
            self._files.append(folder / f"v2_mscoco_{subset}_annotations.json")
            pairs = folder / f"v2_mscoco_{subset}_complementary_pairs.json"
            self._files += [pairs] if pairs.exists() else []
        self._questions = _read_questions(self._files[0], subset)
        count = len(self._questions.rows)
        self.subset = subset_line(split, UNITS, count, SIZES)
        self.protocol = protocol_name(PROTOCOLS[self.protocol_key], UNITS, count, self.subset)
        self._labels = self._read_labels(subset) if self.labelled else None

    def examples(self) -> Iterator[Question]:
        """Questions in file order; `example_id` is the question_id as a string."""
        columns = self._questions
        for example_id, image_id, text in zip(columns.rows, columns.image_ids, columns.texts, strict=True):
            yield Question(example_id, (image_id,), text)

    def expected(self) -> dict[str, str]:
        """question_id → image id."""
        return dict(zip(self._questions.rows, self._questions.image_ids, strict=True))

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """One "accuracy" a question; where the file of pairs is there, one "pair_accuracy" a pair.

        A pair is clustered by the image that it names first. Raises InputError if an answer is not a string.
        """
        labels, questions = self._judged, self._questions
        values = labels.answers.values([_answer(predictions, example_id) for example_id in questions.rows]).tolist()
        columns = zip(questions.rows, values, questions.image_ids, labels.groups, strict=True)
        for example_id, value, image_id, groups in columns:
            given = predictions[example_id]
            judged = JudgedAnswer(example_id, given.answer, given.scores[0] if given.scores else None)
            yield Score(example_id, "accuracy", value, image_id, groups, judged)
        for pair, value in zip(labels.pairs, self._pair_values(values), strict=True):
            first, second = (questions.rows[example_id] for example_id in pair)
            shared = labels.groups[first].items() & labels.groups[second].items()
            yield Score("+".join(pair), "pair_accuracy", value, questions.image_ids[first], dict(sorted(shared)))

    def official(self, scores: Sequence[Score]) -> dict[str, Any]:
        """What VQAEval reports: percent, two decimals, halves away from zero, summed in the annotations' order."""
        by_id = {score.unit_id: score for score in scores if score.metric == "accuracy"}
        ordered = [by_id[example_id] for example_id in self._judged.order if example_id in by_id]
        report: dict[str, Any] = {"overall": official_percent(score.value for score in ordered)}
        for key, kind in (("perQuestionType", "question type"), ("perAnswerType", "answer type")):
            values: defaultdict[str, list[float]] = defaultdict(list)
            for score in ordered:
                values[score.groups[kind][0]].append(score.value)
            report[key] = {group: official_percent(values[group]) for group in sorted(values)}
        return report

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """The blind guesser: every question gets the commonest answer of its question type *on this split*.

        The commonest is counted over `multiple_choice_answer` (where a record lacks it, its commonest raw answer). As
        the gold answers of the split itself are looked at, a guesser trained elsewhere would get a little less.
        """
        labels = self._judged
        types = [groups["question type"][0] for groups in labels.groups]
        by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for question_type, answer in zip(types, labels.common, strict=True):
            by_type[question_type][answer] += 1
        guess = {question_type: answers.most_common(1)[0][0] for question_type, answers in by_type.items()}
        values = labels.answers.values([guess[question_type] for question_type in types]).tolist()
        units = {"accuracy": values, "pair_accuracy": self._pair_values(values)}
        return {metric: 100 * sum(values) / len(values) for metric, values in units.items() if values}

    def gold(self, example_id: str) -> str:
        """The annotators' commonest answer, as the file words it."""
        return self._judged.common[self._questions.rows[example_id]]

    def best(self, example_id: str) -> str:
        """An annotator's answer that no other answer beats."""
        return self._judged.answers.best(self._questions.rows[example_id])

    def worst(self, example_id: str) -> str:
        """A string that no annotator of the split wrote, worth nothing."""
        return self._nobodys_answer

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """EvalAI's file: a JSON list of {"question_id": int, "answer": str} in the order of the questions.

        EvalAI takes one file for test-dev and test-standard, and wants every question of test2015 in it. That of split
        "test-dev" therefore has the questions of test2015, whose file must lie beside, with "" for those not asked.
        Raises InputError where it does not.
        """
        order: Iterable[str] = self._questions.rows
        if self.split == "test-dev":
            order = self._test_questions()
        records = [
            {
                "question_id": int(example_id),
                "answer": _answer(predictions, example_id) if example_id in self._questions.rows else "",
            }
            for example_id in order
        ]
        return json.dumps(records).encode()

    def _test_questions(self) -> dict[str, int]:
        path = _questions_file(self._folder, "test")
        if not path.exists():
            raise InputError(
                f"no submission of test-dev alone: EvalAI wants all {SIZES['test']:,} questions of test2015 in its "
                f"test-dev phase, too; run the split test and submit that, or put {path.name} into {self._folder} and "
                "run the same line again"
            )
        whole, asked = _read_questions(path, SUBSETS["test"]), self._questions
        for (example_id, row), text in zip(asked.rows.items(), asked.texts, strict=True):
            there = whole.rows.get(example_id)
            if there is None:
                raise _not_in(self._files[0], example_id, path)
            if (whole.image_ids[there], whole.texts[there]) != (asked.image_ids[row], text):
                raise AnnotationError(
                    f"{self._files[0]}: question_id {example_id} has another image or other words than in {path.name}; "
                    "take both files from one release"
                )
        if self.subset is None and len(whole.rows) != SIZES["test"]:
            raise InputError(
                f"no submission: EvalAI wants all {SIZES['test']:,} questions of test2015, {path} has "
                f"{len(whole.rows):,}; download it again and run the same line again"
            )
        return whole.rows

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """Any system's file in that form; further keys of a record are not read.

        VQAEval asserts on an id that is a string and breaks on an answer that is none, so `lenient` changes nothing.
        """
        image_ids = self.expected()
        try:
            return [
                Prediction(example_id := str(record.question_id), image_ids.get(example_id, ""), record.answer, ())
                for record, _ in typed(path, None, read_list(path)[1], ResultRecord)
            ]
        except AnnotationError as error:
            raise InputError(str(error)) from None

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Nothing: no file tells them."""
        return {}

    def annotation_files(self) -> tuple[Path, ...]:
        """Questions; then, if labelled, annotations and, where they are there, complementary pairs."""
        return tuple(self._files)

    @property
    def _judged(self) -> _Labels:
        if self._labels is None:
            raise ConfigError(
                f"{self.name} {self.split}: this split has no public labels, so nothing can be scored here; make a "
                "submission file and hand it in"
            )
        return self._labels

    @cached_property
    def _nobodys_answer(self) -> str:
        return self._judged.answers.nobodys()

    def _pair_values(self, values: Sequence[float]) -> list[float]:
        rows = self._questions.rows
        return [float(values[rows[first]] == values[rows[second]] == 1.0) for first, second in self._judged.pairs]

    def _read_labels(self, subset: str) -> _Labels:
        rows = self._questions.rows
        labels = _Labels(
            AnswerTable(len(rows), always_normalise=self.protocol_key == "always-normalise"),
            common=[""] * len(rows),
            groups=[{}] * len(rows),
            order=[],
            pairs=_read_pairs(self._files[2], self._files[0], rows) if len(self._files) > 2 else [],
        )
        _read_annotations(self._files[1], self._files[0], self._questions, labels, subset)
        return labels


def _answer(predictions: Mapping[str, Prediction], example_id: str) -> str:
    answer = predictions[example_id].answer
    if not isinstance(answer, str):
        raise InputError(f"prediction of question {example_id}: answer {answer!r} is not a string")
    return answer


def _questions_file(folder: Path, split: str) -> Path:
    return folder / f"v2_OpenEnded_mscoco_{SUBSETS[split]}_questions.json"


def _read_questions(path: Path, subset: str) -> _Questions:
    questions = _Questions({}, [], [], {})
    folder, images = subset.replace("-dev", ""), questions.images
    texts: dict[str, str] = {}  # and one a wording: complementary pairs share theirs
    head, elements = read_list(path, "questions")
    _check_head(path, head, subset)
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


def _heads(subset: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Key → what the file should say, and what official files of another kind say there."""
    own = {subset, subset.replace("-dev", "")}  # test-dev's images are those of test
    return {
        "data_subtype": (subset, tuple(name for name in _SUBTYPES if name not in own)),
        "data_type": ("mscoco", ("abstract_v002",)),
        "task_type": ("Open-Ended", ("Multiple-Choice",)),
    }


def _read_annotations(path: Path, questions_path: Path, questions: _Questions, labels: _Labels, subset: str) -> None:
    """Fill the rows of `labels`: each question must have exactly one annotation, in any order."""
    rows = questions.rows
    answers: dict[str, str] = {}  # one string object a commonest answer
    groups: dict[tuple[str, str], Groups] = {}  # one dictionary a combination
    head, elements = read_list(path, "annotations")
    _check_head(path, head, subset)
    for record, element in typed(path, "annotations", elements, AnnotationRecord):
        example_id = str(record.question_id)
        row = rows.get(example_id)
        if row is None:
            raise _not_in(path, example_id, questions_path)
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
            raise _not_in(questions_path, example_id, path)


def _refuse_image(given: object, image: str, where: str, questions_path: Path) -> None:
    """Say where the two files disagree on the image of a question; an annotation that names none says nothing."""
    asked = int(image.rpartition("_")[2])
    if given is not None and str(given) != str(asked):
        raise AnnotationError(
            f"{where}: 'image_id' is {given!r}, in {questions_path.name} it is {asked}; take both from one release"
        )


def _read_pairs(path: Path, questions_path: Path, rows: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs in file order, each once. All their questions must be there, in a slice of the benchmark, too: a pair that
    is silently left out would change the score."""
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for index, (ids, _) in enumerate(typed(path, None, read_list(path)[1], list[int])):
        if len(ids) != 2 or ids[0] == ids[1]:
            where = f"{path} [{index}]"
            raise AnnotationError(f"{where}: {ids} is not a pair of questions; this is not the official format")
        for question_id in ids:
            if str(question_id) not in rows:
                raise _not_in(path, question_id, questions_path)
        first, second = map(str, ids)
        pairs.setdefault(frozenset((first, second)), (first, second))
    return list(pairs.values())


def _not_in(path: Path, question_id: object, other: Path) -> AnnotationError:
    return AnnotationError(
        f"{path}: question_id {question_id} is not in {other.name}; take both files from one release, or cut both"
    )


def _twice(path: Path, question_id: object) -> AnnotationError:
    return AnnotationError(f"{path}: question_id {question_id} occurs twice; remove one of its records")
