"""NLVR2: is a sentence true of a pair of photographs, left and right?

Paper: Suhr et al. 2019, arXiv:1811.00491. File: {split}.json, which holds JSON *Lines*. Official program: `metrics.py`
of github.com/lil-lab/nlvr (nlvr2/eval, at 18924841). An identifier reads split-set-pair-sentence: the pairs of one set
are made of the same eight photographs, and one sentence is asked of up to four of them. Consistency is the share of
sentences that are right on every pair they are asked of.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.schema import Prediction, Score, Statement
from visualbert_core.tasks.reading import choose, family, field, read_json_lines

SPLITS = ("dev", "test1", "test2", "train")
LABELS = ("True", "False")

PAPER_TABLE = "VisualBERT, arXiv:1908.03557, table 3"
PAPER = {"dev": {"accuracy": 67.4}, "test1": {"accuracy": 67.0}, "test2": {"accuracy": 67.3, "consistency": 26.9}}

_IDENTIFIER = re.compile(r"(?P<set>[^-]+-\d+)-(?P<pair>\d+)-(?P<sentence>\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Item:
    set_id: str  # "dev-850"
    sentence_id: str  # "dev-850-0": the set and its sentence, with the pair left out
    image_ids: tuple[str, str]
    text: str
    label: str
    groups: dict[str, tuple[str, ...]]


class Nlvr2Task:
    """One split of NLVR2. Answers are "True" or "False". Intervals cluster by set: its pairs share photographs."""

    name = "nlvr2"
    protocol = "NLVR2 official (metrics.py)"
    headline = "accuracy"

    def __init__(self, annotations: Path, split: str) -> None:
        """`annotations` is the folder of {split}.json. Raises ConfigError (split), AnnotationError (file)."""
        self.split = choose("NLVR2 split", split, SPLITS)
        self._path = Path(annotations) / f"{split}.json"
        self._items = _read(self._path)

    def examples(self) -> Iterator[Statement]:
        """Statements in file order; `example_id` is the identifier."""
        for identifier, item in self._items.items():
            yield Statement(identifier, item.image_ids, item.text)

    def expected(self) -> dict[str, str]:
        """identifier → left image id."""
        return {identifier: item.image_ids[0] for identifier, item in self._items.items()}

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """The accuracy of every statement, then the consistency of every sentence of a set.

        Upper or lower case is the same, as in the official program. Any other answer, which that program counts as
        wrong without a word, is an InputError.
        """
        sentences: dict[str, _Item] = {}
        consistent: dict[str, bool] = {}
        for identifier, item in self._items.items():
            right = _truth(predictions[identifier]) == item.label
            yield Score(identifier, "accuracy", float(right), item.set_id, item.groups)
            sentences.setdefault(item.sentence_id, item)
            consistent[item.sentence_id] = consistent.get(item.sentence_id, True) and right
        for sentence_id, item in sentences.items():
            yield Score(sentence_id, "consistency", float(consistent[sentence_id]), item.set_id, item.groups)

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """A fair coin for every statement: a sentence asked of n pairs is consistent with probability 0.5 ** n."""
        sizes = Counter(item.sentence_id for item in self._items.values()).values()
        return {"accuracy": 50.0, "consistency": 100 * sum(0.5**size for size in sizes) / len(sizes)}

    def gold(self, example_id: str) -> str:
        """The label: "True" or "False"."""
        return self._items[example_id].label

    def annotation_files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self._path,)


def _truth(prediction: Prediction) -> str:
    answer = prediction.answer
    if not isinstance(answer, str) or answer.capitalize() not in LABELS:
        raise InputError(f"prediction of {prediction.example_id}: answer {answer!r} is neither 'True' nor 'False'")
    return answer.capitalize()


def _read(path: Path) -> dict[str, _Item]:
    items: dict[str, _Item] = {}
    for where, record in read_json_lines(path):
        identifier = field(record, "identifier", str, where)
        if identifier in items:
            raise AnnotationError(f"{where}: identifier {identifier} occurs twice; remove one of its lines")
        items[identifier] = _item(identifier, record, f"{where} ({identifier})")
    if not items:
        raise AnnotationError(f"{path}: no records; download it again")
    return items


def _item(identifier: str, record: dict[str, Any], where: str) -> _Item:
    parts = _IDENTIFIER.fullmatch(identifier)
    if parts is None:
        raise AnnotationError(f"{where}: the identifier is not split-set-pair-sentence; correct the record")
    label = field(record, "label", str, where)
    if label not in LABELS:
        raise AnnotationError(f"{where}: 'label' is {label!r}, not 'True' or 'False'; correct the record")
    pair = f"{parts['set']}-{parts['pair']}"
    return _Item(
        set_id=parts["set"],
        sentence_id=f"{parts['set']}-{parts['sentence']}",
        image_ids=(f"{pair}-img0", f"{pair}-img1"),
        text=field(record, "sentence", str, where),
        label=label,
        groups=family(record, where),
    )
