"""Owns VCR: a model chooses one of four answers (Q→A), then one of four rationales for the right answer (QA→R).

Paper: Zellers et al. 2019, arXiv:1811.10830. File: {split}.jsonl. Official programs: `eval_q2ar.py` for the score and
`eval_for_leaderboard.py` for the submission, github.com/rowanz/r2c at 77813d9e.

A labelled record gives two examples. The context of the rationale is the question followed by the *right* answer, also
where the model chose another answer. Q→AR counts the records where both choices are right. The test set has no public
labels. There, each record gives four examples for the rationale, one after each answer, because the organisers score
the block of the right answer. Boxes are not read here; they belong to the features.

eval_q2ar.py takes two arrays and pairs their rows with the records by order, without ids. That form is not offered
here, because a shuffled array would get a score too. The program is not lenient in any way: it asserts the counts. So
`lenient` changes nothing here.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from math import fsum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, cast

from msgspec import UNSET, Meta, Struct, UnsetType

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.schema import JudgedAnswer, MultipleChoice, Prediction, Score, Token
from visualbert_core.tasks.base import Task
from visualbert_core.tasks.reading import check_same, check_split, family, read_lines, submission_rows
from visualbert_core.tasks.shown import Published

SPLITS = ("val", "train", "test")
SIZES = {"val": 26_534, "train": 212_923, "test": 25_263}
"""Split → the number of its records, as the paper gives them.

The files were not available for a count, so these numbers are less certain than the numbers of other benchmarks.
"""
CHOICES = 4
PRINTED = {"q_to_a": "Answer acc", "qa_to_r": "Rationale acc", "q_to_ar": "Joint acc"}
"""Metric → the name that eval_q2ar.py prints for it."""
PARTS = {"answer": "Q → A", "rationale": "QA → R"}
"""Part of a record → its name in reports."""

BLOCKS = {"answer": "answer"} | {f"rationale/{i}": f"rationale_conditioned_on_a{i}" for i in range(CHOICES)}
"""Last part of an example's id → the name, without its number, of the four submission columns with its scores."""
COLUMNS = ("annot_id", *(f"{block}_{i}" for block in BLOCKS.values() for i in range(CHOICES)))
"""The columns of the submission, in order."""

Tokens = tuple[Token, ...]
Choices = tuple[Tokens, Tokens, Tokens, Tokens]
Label = Annotated[int, Meta(ge=0, lt=CHOICES)]

# The official file is described at https://visualcommonsense.com/download. Keys that are not named here are not read.


class Record(Struct):
    """Holds a line of the file."""

    annot_id: str
    img_fn: str  # path below the image folder
    objects: tuple[str, ...]  # the class of each object
    question: Tokens
    answer_choices: Choices
    rationale_choices: Choices
    img_id: Any = None  # A user's own files may lack this key and the next.
    metadata_fn: Any = None
    family: str | UnsetType = UNSET

    @property
    def image_id(self) -> str:
        """Return the name of the image. It may hold dots, such as "….avi@12.jpg"; only the last suffix is dropped."""
        return PurePosixPath(self.img_fn).stem


class LabelledRecord(Record, kw_only=True):
    """Holds a line of train or val."""

    answer_label: Label
    rationale_label: Label


def _published() -> Iterator[Published]:
    source = "VisualBERT, arXiv:1908.03557, table 2"
    for split, values in (("val", (70.8, 73.2, 52.2)), ("test", (71.6, 73.2, 52.4))):
        yield Published("VisualBERT", split, _three(*values), source, "official")
    # The page does not say how these are asked, so they stand beside no run.
    source, asked, note = "README of ASMv2", "as its authors ask", "fine-tuned"
    yield Published("GPT4RoI-7B", "val", _three(87.4, 89.6, 78.6), source, "official", asked, note)
    yield Published("ASMv2", "val", _three(88.4, 89.9, 79.4), source, "official", asked, note)
    yield Published("GPT4RoI-13B", "test", {"q_to_ar": 81.6}, "page of GPT4RoI", "official", asked, note)


def _three(*values: float) -> dict[str, float]:
    return dict(zip(("q_to_a", "qa_to_r", "q_to_ar"), values, strict=True))


class VcrTask(Task):
    """Represents one split of VCR. An answer is the index of a choice. A unit is a record, named by its annot_id."""

    name, title = "vcr", "VCR"
    form = MultipleChoice
    splits, unlabelled = SPLITS, ("test",)
    metrics = ("q_to_ar", "q_to_a", "qa_to_r")
    parts: ClassVar = {"answer": "q_to_a", "rationale": "qa_to_r"}
    metric_labels: ClassVar = {"q_to_a": PARTS["answer"], "qa_to_r": PARTS["rationale"], "q_to_ar": "Q → AR"}
    protocols: ClassVar = {"official": "VCR official (r2c eval_q2ar; rationales given the right answer)"}
    sizes: ClassVar = {"records": SIZES}
    guess = "one of the four choices at random"
    published = tuple(_published())
    submission_name = "submission.csv"

    def read(self) -> None:
        self._items = _read(self.files[0], self.split, self.labelled)
        self._parts = ("answer", "rationale") if self.labelled else tuple(BLOCKS)
        self.compare_size(records=len(self._items))

    def examples(self) -> Iterator[MultipleChoice]:
        """Yield the examples of each record in file order.

        A labelled record gives "<annot_id>/answer" and "<annot_id>/rationale"; the context of the latter ends with the
        right answer. An unlabelled record gives "<annot_id>/answer" and "<annot_id>/rationale/0" to "/3"; the context
        of rationale i ends with answer i.
        """
        for annot_id, item in self._items.items():
            image_ids, mentioned = (item.image_id,), _mentioned(item)
            given = {"answer": (item.question, item.answer_choices)}
            if isinstance(item, LabelledRecord):
                right = item.answer_choices[item.answer_label]
                given["rationale"] = (item.question + right, item.rationale_choices)
            else:
                for index, answer in enumerate(item.answer_choices):
                    given[f"rationale/{index}"] = (item.question + answer, item.rationale_choices)
            for part, (context, choices) in given.items():
                label = PARTS[part.partition("/")[0]]
                yield MultipleChoice(f"{annot_id}/{part}", image_ids, item.objects, context, choices, mentioned, label)

    def expected(self) -> dict[str, str]:
        image_ids = {annot_id: item.image_id for annot_id, item in self._items.items()}
        return {f"{annot_id}/{part}": image_id for annot_id, image_id in image_ids.items() for part in self._parts}

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Yield q_to_a, qa_to_r and q_to_ar of every record.

        Raises InputError where an answer is not 0, 1, 2 or 3, ConfigError on an unlabelled split.
        """
        for annot_id, item in self._judged.items():
            answer, rationale = (_judged(predictions[f"{annot_id}/{part}"]) for part in ("answer", "rationale"))
            right, reasoned = answer.answer == item.answer_label, rationale.answer == item.rationale_label
            image_id, groups = item.image_id, family(item)
            values = (right, answer), (reasoned, rationale), (right and reasoned, None)
            for metric, (value, judged) in zip(PRINTED, values, strict=True):
                yield Score(annot_id, metric, float(value), image_id, groups, judged)

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the percent that random choices among four get. Raises ConfigError on an unlabelled split."""
        self.need_labels()
        return {"q_to_a": 100 / CHOICES, "qa_to_r": 100 / CHOICES, "q_to_ar": 100 / CHOICES**2}

    def gold(self, example_id: str) -> int:
        annot_id, _, part = example_id.rpartition("/")
        item = self._judged[annot_id]
        return item.answer_label if part == "answer" else item.rationale_label

    @property
    def _judged(self) -> dict[str, LabelledRecord]:
        self.need_labels()
        return cast(dict[str, LabelledRecord], self._items)

    def official(self, scores: Sequence[Score]) -> dict[str, float]:
        """Return what eval_q2ar.py prints: "Answer acc", "Rationale acc" and "Joint acc" with three decimals."""
        values = {metric: [score.value for score in scores if score.metric == metric] for metric in PRINTED}
        return {name: float(f"{fsum(values[metric]) / len(values[metric]):.3f}") for metric, name in PRINTED.items()}

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """Return the leaderboard's CSV, with one row per record in the order of the split.

        A row holds the record's id and the `scores` of five predictions: "<annot_id>/answer" and
        "<annot_id>/rationale/0" to "/3", the examples of an unlabelled split. Raises InputError where one of these
        predictions is missing, or where its scores are not four finite numbers.
        """
        file = io.StringIO(newline="")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for annot_id in self._items:
            blocks = (_four_scores(predictions, f"{annot_id}/{part}") for part in BLOCKS)
            writer.writerow([annot_id, *(score for block in blocks for score in block)])
        return file.getvalue().encode()

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """Read the predictions of a leaderboard's CSV, whose columns may stand in any order.

        The answer is the choice with the highest score, and the lowest index wins a tie. A row gives the predictions
        of its record. On a labelled split, the rationale comes from the block of the right answer, as on the
        leaderboard. A row of an unknown id has no right answer, so it gives only "<annot_id>/answer". `lenient` changes
        nothing. Raises InputError that names the file and the line.
        """
        found: list[Prediction] = []
        for where, row in submission_rows(path, COLUMNS):
            annot_id, item = row["annot_id"], self._items.get(row["annot_id"])
            if not annot_id or not annot_id.isprintable():
                raise InputError(f"{where}: annot_id {annot_id!r} is not the id of a record; correct it")
            if item is None:
                blocks = {"answer": BLOCKS["answer"]}
            elif isinstance(item, LabelledRecord):
                blocks = {"answer": BLOCKS["answer"], "rationale": BLOCKS[f"rationale/{item.answer_label}"]}
            else:
                blocks = BLOCKS
            numbers = {column: _number(row[column], f"{where} ({annot_id}) {column}") for column in COLUMNS[1:]}
            for part, block in blocks.items():
                scores = tuple(numbers[f"{block}_{i}"] for i in range(CHOICES))
                answer = max(range(CHOICES), key=scores.__getitem__)
                found.append(Prediction(f"{annot_id}/{part}", item.image_id if item else "", answer, scores))
        return found


def _four_scores(predictions: Mapping[str, Prediction], example_id: str) -> tuple[float, ...]:
    if example_id not in predictions:
        raise InputError(
            f"no prediction of {example_id}; "
            "predict the answer, and the rationale for each of the four answers, before writing a submission"
        )
    scores = tuple(predictions[example_id].scores)
    if len(scores) != CHOICES or not all(map(math.isfinite, scores)):
        raise InputError(f"prediction of {example_id}: scores {list(scores)} are not {CHOICES} finite numbers")
    return scores


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {text!r} is not a finite number; correct the row")
    return number


def _judged(prediction: Prediction) -> JudgedAnswer:
    answer, scores = prediction.answer, prediction.scores
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < CHOICES:
        raise InputError(f"prediction of {prediction.example_id}: answer {answer!r} is not 0, 1, 2 or 3")
    return JudgedAnswer(prediction.example_id, answer, scores[answer] if scores else None)


def _mentioned(item: Record) -> tuple[int, ...]:
    """Return the indices of the objects that a tag anywhere in the record mentions, in ascending order.

    By R2C's rules, "everyone" mentions all persons, and a record without a mention mentions all persons. A record
    without persons then mentions all objects.
    """
    persons = {index for index, name in enumerate(item.objects) if name == "person"}
    found: set[int] = set()
    for tokens in (item.question, *item.answer_choices, *item.rationale_choices):
        for token in tokens:
            if isinstance(token, tuple):
                found.update(token)
            elif token.lower() in ("everyone", "everyones"):
                found |= persons
    return tuple(sorted(found or persons or range(len(item.objects))))


def _read(path: Path, split: str, labelled: bool) -> dict[str, Record]:
    items: dict[str, Record] = {}
    firsts: dict[tuple[str, str], Record] = {}  # (key, its value) → the first record with that image
    for where, record in read_lines(path, LabelledRecord if labelled else Record):
        annot_id, img_fn = record.annot_id, record.img_fn
        if not annot_id or not annot_id.isprintable():
            raise AnnotationError(f"{where}: annot_id {annot_id!r} is not an id; correct the record")
        if annot_id in items:
            raise AnnotationError(f"{where}: annot_id {annot_id} occurs twice; remove one of its lines")
        items[annot_id] = record
        named, image = f"{where} ({annot_id})", PurePosixPath(img_fn)
        if not image.name or image.is_absolute() or ".." in image.parts or not img_fn.isprintable():
            raise AnnotationError(
                f"{named}: 'img_fn' is {img_fn!r}, not a file below the image folder; correct the record"
            )
        _check_tags(record, named)
        for key in ("annot_id", "img_id"):
            if isinstance(name := getattr(record, key), str):
                check_split(where, f"{key} {name[:40]}", name.partition("-")[0], split, SIZES)
        for key in ("img_fn", "img_id"):
            if isinstance(name := getattr(record, key), str):
                _check_image(record, firsts.setdefault((key, name), record), named, name)
    if not items:
        raise AnnotationError(f"{path}: no records; download it again")
    return items


def _check_image(record: Record, first: Record, where: str, image: str) -> None:
    """Raise AnnotationError where a record and the first record of its image disagree about the image."""
    of = f"the image {image[:80]}"
    for key in ("img_fn", "img_id", "metadata_fn"):
        here, there = getattr(record, key), getattr(first, key)
        if None not in (here, there):
            check_same(where, key, here, first.annot_id, there, of)
    if record.objects != first.objects:
        for index, (here, there) in enumerate(zip_longest(record.objects, first.objects)):
            check_same(where, f"objects[{index}]", here, first.annot_id, there, of)


def _check_tags(record: Record, where: str) -> None:
    """Raise AnnotationError where a tag is not the index of an object."""
    num_objects = len(record.objects)
    for key in ("question", "answer_choices", "rationale_choices"):
        tokens = getattr(record, key)
        for token in tokens if key == "question" else chain.from_iterable(tokens):
            if isinstance(token, tuple) and any(not 0 <= index < num_objects for index in token):
                raise AnnotationError(
                    f"{where} {key}: tag {list(token)} is out of range for {num_objects} objects (from 0); correct the "
                    "record"
                )
