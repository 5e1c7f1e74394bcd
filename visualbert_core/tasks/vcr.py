"""VCR: choose one of four answers (Q→A), then one of four rationales for the right answer (QA→R).

Paper: Zellers et al. 2019, arXiv:1811.10830. File: {split}.jsonl. Official program: `eval_q2ar.py` of
github.com/rowanz/r2c at 77813d9e. Every record gives two examples; the rationale's context is the question followed by
the *right* answer, whatever was answered, and Q→AR counts the records where both are right. The test set has no public
labels, so only train and val can be opened. Boxes are no business of this file: they belong to the features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.schema import MultipleChoice, Prediction, Score, Token
from visualbert_core.tasks.reading import checked, choose, family, field, read_json_lines, strings

SPLITS = ("val", "train")
CHOICES = 4

PAPER_TABLE = "VisualBERT, arXiv:1908.03557, table 2"
PAPER = {
    "val": {"q_to_a": 70.8, "qa_to_r": 73.2, "q_to_ar": 52.2},
    "test": {"q_to_a": 71.6, "qa_to_r": 73.2, "q_to_ar": 52.4},
}

Tokens = tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    image_id: str
    objects: tuple[str, ...]
    question: Tokens
    answers: tuple[Tokens, ...]
    rationales: tuple[Tokens, ...]
    answer_label: int
    rationale_label: int
    groups: dict[str, tuple[str, ...]]


class VcrTask:
    """One split of VCR. Answers are the index of a choice; scores are per record, under its annot_id."""

    name = "vcr"
    protocol = "VCR official (r2c eval_q2ar; rationales given the right answer)"
    headline = "q_to_ar"

    def __init__(self, annotations: Path, split: str) -> None:
        """`annotations` is the folder of {split}.jsonl. Raises ConfigError (split), AnnotationError (file)."""
        self.split = choose("VCR split", split, SPLITS)
        self._path = Path(annotations) / f"{split}.jsonl"
        self._items = _read(self._path)

    def examples(self) -> Iterator[MultipleChoice]:
        """Records in file order, "<annot_id>/answer" before "<annot_id>/rationale"."""
        for annot_id, item in self._items.items():
            image_ids, mentioned = (item.image_id,), _mentioned(item)
            context = item.question
            yield MultipleChoice(f"{annot_id}/answer", image_ids, item.objects, context, item.answers, mentioned)
            context = item.question + item.answers[item.answer_label]
            yield MultipleChoice(f"{annot_id}/rationale", image_ids, item.objects, context, item.rationales, mentioned)

    def expected(self) -> dict[str, str]:
        """Both example ids of every record → image id."""
        return {
            f"{annot_id}/{part}": item.image_id
            for annot_id, item in self._items.items()
            for part in ("answer", "rationale")
        }

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Every record's q_to_a, qa_to_r and q_to_ar. Raises InputError if an answer is not 0, 1, 2 or 3."""
        for annot_id, item in self._items.items():
            right = _chosen(predictions[f"{annot_id}/answer"]) == item.answer_label
            reasoned = _chosen(predictions[f"{annot_id}/rationale"]) == item.rationale_label
            for metric, value in (("q_to_a", right), ("qa_to_r", reasoned), ("q_to_ar", right and reasoned)):
                yield Score(annot_id, metric, float(value), item.image_id, item.groups)

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """One of four, twice."""
        return {"q_to_a": 100 / CHOICES, "qa_to_r": 100 / CHOICES, "q_to_ar": 100 / CHOICES**2}

    def gold(self, example_id: str) -> int:
        """The index of the right choice."""
        annot_id, _, part = example_id.rpartition("/")
        item = self._items[annot_id]
        return item.answer_label if part == "answer" else item.rationale_label

    def annotation_files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self._path,)


def _chosen(prediction: Prediction) -> int:
    answer = prediction.answer
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < CHOICES:
        raise InputError(f"prediction of {prediction.example_id}: answer {answer!r} is not 0, 1, 2 or 3")
    return answer


def _mentioned(item: _Item) -> tuple[int, ...]:
    """Objects tagged anywhere in the record, ascending; "everyone" means all persons (R2C's rule). Without any: all
    persons; without persons: all objects."""
    persons = {index for index, name in enumerate(item.objects) if name == "person"}
    found: set[int] = set()
    for tokens in (item.question, *item.answers, *item.rationales):
        for token in tokens:
            if isinstance(token, tuple):
                found.update(token)
            elif token.lower() in ("everyone", "everyones"):
                found |= persons
    return tuple(sorted(found or persons or range(len(item.objects))))


def _read(path: Path) -> dict[str, _Item]:
    items: dict[str, _Item] = {}
    for where, record in read_json_lines(path):
        annot_id = field(record, "annot_id", str, where)
        if annot_id in items:
            raise AnnotationError(f"{where}: annot_id {annot_id} occurs twice; remove one of its lines")
        items[annot_id] = _item(record, f"{where} ({annot_id})")
    if not items:
        raise AnnotationError(f"{path}: no records; download it again")
    return items


def _item(record: dict[str, Any], where: str) -> _Item:
    objects = strings(record, "objects", where)
    return _Item(
        # The name holds dots ("….avi@12.jpg" is one image): only the last suffix goes.
        image_id=PurePosixPath(field(record, "img_fn", str, where)).stem,
        objects=objects,
        question=_tokens(field(record, "question", list, where), len(objects), f"{where} question"),
        answers=_choices(record, "answer_choices", len(objects), where),
        rationales=_choices(record, "rationale_choices", len(objects), where),
        answer_label=_label(record, "answer_label", where),
        rationale_label=_label(record, "rationale_label", where),
        groups=family(record, where),
    )


def _choices(record: dict[str, Any], key: str, num_objects: int, where: str) -> tuple[Tokens, ...]:
    choices = field(record, key, list, where)
    if len(choices) != CHOICES:
        raise AnnotationError(f"{where}: {key!r} has {len(choices)} choices, not {CHOICES}; download the file again")
    return tuple(_tokens(checked(choice, list, where, key), num_objects, f"{where} {key}") for choice in choices)


def _tokens(raw: list[Any], num_objects: int, where: str) -> Tokens:
    """Words stay; a list of object indices, each in [0, num_objects), becomes a tuple."""
    tokens: list[Token] = []
    for token in raw:
        if isinstance(token, str):
            tokens.append(token)
            continue
        indices = tuple(checked(index, int, where) for index in checked(token, list, where))
        if any(not 0 <= index < num_objects for index in indices):
            raise AnnotationError(
                f"{where}: tag {token} is out of range for {num_objects} objects (from 0); correct the record"
            )
        tokens.append(indices)
    return tuple(tokens)


def _label(record: dict[str, Any], key: str, where: str) -> int:
    label = field(record, key, int, where)
    if not 0 <= label < CHOICES:
        raise AnnotationError(f"{where}: {key!r} is {label}, not 0, 1, 2 or 3; correct the record")
    return label
