"""Owns NLVR2: a model decides whether a sentence is true of a pair of photographs, left and right.

Paper: Suhr et al. 2019, arXiv:1811.00491. Official programs: `metrics.py`, and for the breakdowns `filter_data.py` and
`compute_category_accuracy.py`, of github.com/lil-lab/nlvr (nlvr2/, at 18924841).

The file {split}.json holds JSON *Lines*. The subset balanced-dev lies in balanced/balanced_dev.json, or in
balanced_dev.json directly in the folder; the other subsets follow the same rule. annotated_dev_examples.txt is
optional: it gives the linguistic phenomena of 800 dev sentences.

An identifier reads split-set-pair-sentence. The pairs of a set consist of the same eight photographs. A sentence is
asked about up to four pairs of its set. Consistency is the share of sentences that are judged right on all their pairs.
All labels are public; the labels of test2 (Test-U) have been public since 2022.

metrics.py is silent about four faults that are errors here. It takes the last of two predictions, ignores unknown ids,
and counts any text except true and false as wrong. Where predictions are missing, it prints a remark and no score, and
exits with 0.
"""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from msgspec import UNSET, Struct, UnsetType

from visualbert_core.errors import AnnotationError, InputError
from visualbert_core.metrics.coverage import Lenient
from visualbert_core.schema import JudgedAnswer, Prediction, Score, Statement
from visualbert_core.tasks.base import TRUTH_VALUES, Task
from visualbert_core.tasks.reading import check_same, check_split, family, read_lines, read_text, submission_text
from visualbert_core.tasks.shown import Published

SUBSETS = ("balanced-dev", "unbalanced-dev", "balanced-test1", "unbalanced-test1")
SPLITS = ("dev", "test1", "test2", "train", *SUBSETS)
SIZES = {
    "dev": 6_982,
    "test1": 6_967,
    "test2": 6_970,
    "train": 86_373,
    "balanced-dev": 2_300,
    "unbalanced-dev": 3_562,
    "balanced-test1": 2_316,
    "unbalanced-test1": 3_536,
}
"""Split → the number of its statements, counted in the official files (github.com/lil-lab/nlvr at 18924841).

The file of train was not available. Its number is the paper's total of 107,292 minus dev, test1 and test2.
"""
PHENOMENA = "annotated_dev_examples.txt"

_IDENTIFIER = re.compile(r"(?P<set>\w+-\d+)-(?P<pair>\d+)-(?P<sentence>\d+)", re.ASCII)


class Record(Struct):
    """Holds a line of the official file (github.com/lil-lab/nlvr, nlvr2/data). Other keys of the line are not read."""

    identifier: str
    label: str
    sentence: str
    left_url: str | UnsetType = UNSET  # A user's own files may lack both URLs, but not only one of them.
    right_url: str | UnsetType = UNSET
    family: str | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class _Item:
    set_id: str  # "dev-850"
    sentence_id: str  # "dev-850-0": the set and the sentence, without the pair
    image_ids: tuple[str, str]
    text: str
    label: str
    urls: tuple[str, str] | None  # of the left and the right photograph; equal URLs mean the same pair
    groups: dict[str, tuple[str, ...]]


def _published() -> Iterator[Published]:
    """Yield the published numbers. A paper's test-P is the split test1 here."""
    source = "VisualBERT, arXiv:1908.03557, table 3"
    for split, percent in (
        ("dev", {"accuracy": 67.4}),
        ("test1", {"accuracy": 67.0}),
        ("test2", {"accuracy": 67.3, "consistency": 26.9}),
    ):
        yield Published("VisualBERT", split, percent, source, "official")
    vilt, released = "ViLT, arXiv:2102.03334, table 2", "EVAL.md of github.com/dandelin/ViLT at 762fd39"
    for network, dev, test, source, note in (
        ("ViLT-B/32", 75.70, 76.13, vilt, "mean of three"),
        ("ViLT-B/32, 100k steps", 74.41, 74.57, vilt, ""),
        ("ViLT-B/32, released", 75.65, 76.52, released, "moves with the batch"),
    ):
        for split, value in (("dev", dev), ("test1", test)):
            yield Published(network, split, {"accuracy": value}, source, "official", note=note)
    for network, value in (("PaliGemma 224", 90.02), ("PaliGemma 448", 88.93)):
        page, note = "PaliGemma's project page", "fine-tuned on train and dev"
        # The page names its split "test" and no more, so the number stands beside no run.
        yield Published(network, "test", {"accuracy": value}, page, "official", "answer en {}", note)


class Nlvr2Task(Task):
    """Represents one split of NLVR2. An answer is "True" or "False".

    Intervals are clustered by set, because the pairs of a set share photographs. dev has a breakdown by "phenomenon",
    and whole splits have a breakdown by "balance". The latter holds the accuracy only, because the pairs of one
    sentence may differ in balance. Open a subset for its consistency: it is then over the pairs in the subset, as in
    metrics.py. The default of `official`, fractions without rounding, is what metrics.py prints.
    """

    name, title = "nlvr2", "NLVR2"
    form = Statement
    splits = SPLITS
    metrics = ("accuracy", "consistency")
    protocols: ClassVar = {"official": "NLVR2 official (metrics.py)"}
    sizes: ClassVar = {"statements": SIZES}
    guess = "a fair coin"
    published = tuple(_published())
    submission_name = "submission.csv"
    lenient = Lenient(duplicate="last", unknown="ignore")

    def read(self) -> None:
        """Read the file of the split. For a split of dev, read the file of the phenomena too, where it exists."""
        phenomena = self.folder / PHENOMENA
        known = self.split.endswith("dev") and phenomena.exists()
        self.files = (_path(self.folder, self.split), *([phenomena] if known else []))
        self._items = _read(self.files[0], _phenomena(phenomena) if known else {}, self.split.rpartition("-")[2])
        self._balance = {} if self.split in SUBSETS else _balance(self._items)
        self.compare_size(statements=len(self._items))

    def examples(self) -> Iterator[Statement]:
        """Yield the statements in file order. The `example_id` is the identifier."""
        for identifier, item in self._items.items():
            yield Statement(identifier, item.image_ids, item.text)

    def score(self, predictions: Mapping[str, Prediction]) -> Iterator[Score]:
        """Yield the accuracy of every statement, then the consistency of every sentence of a set.

        The case of an answer does not matter, as in the official program. Raises InputError for any other answer; the
        official program silently counts such an answer as wrong.
        """
        sentences: dict[str, _Item] = {}
        consistent: dict[str, bool] = {}
        for identifier, item in self._items.items():
            right = _truth(predictions[identifier]) == item.label
            groups = item.groups | self._balance.get(identifier, {})
            yield Score(identifier, "accuracy", float(right), item.set_id, groups, _judged(predictions[identifier]))
            sentences.setdefault(item.sentence_id, item)
            consistent[item.sentence_id] = consistent.get(item.sentence_id, True) and right
        for sentence_id, item in sentences.items():
            yield Score(sentence_id, "consistency", float(consistent[sentence_id]), item.set_id, item.groups)

    def chance(self, predictions: Mapping[str, Prediction]) -> dict[str, float]:
        """Return the percent that a fair coin gets. A sentence with n pairs is consistent with probability 0.5 ** n."""
        sizes = Counter(item.sentence_id for item in self._items.values()).values()
        return {"accuracy": 50.0, "consistency": 100 * sum(0.5**size for size in sizes) / len(sizes)}

    def gold(self, example_id: str) -> str:
        return self._items[example_id].label

    def submission(self, predictions: Mapping[str, Prediction]) -> bytes:
        """Return one line "identifier,True" or "identifier,False" per statement, without a header."""
        return "".join(f"{name},{_truth(predictions[name])}\n" for name in self._items).encode()

    def read_submission(self, path: Path, lenient: bool = False) -> list[Prediction]:
        """Read the CSV file of a system. The `scores` of each prediction are ().

        With `lenient`, the file is read as metrics.py reads it. Further columns are ignored, an unknown label counts as
        the wrong label, and a byte order mark is a part of the first id. Raises InputError that names the file and the
        line.
        """
        lines = io.StringIO(submission_text(path, keep_mark=lenient), newline=None)
        return [self._answered(line, f"{path} line {number}", lenient) for number, line in enumerate(lines, start=1)]

    def _answered(self, line: str, where: str, lenient: bool) -> Prediction:
        identifier, *rest = line.strip().split(",")
        if not rest or (len(rest) > 1 and not lenient):
            raise InputError(f"{where}: {len(rest) + 1} columns; write identifier,True or identifier,False")
        item, label = self._items.get(identifier), rest[0].capitalize()
        if label not in TRUTH_VALUES:
            if not lenient:
                raise InputError(f"{where} ({identifier[:40]!r}): {rest[0][:40]!r} is neither 'True' nor 'False'")
            label = self.worst(identifier) if item else rest[0]
        return Prediction(identifier, item.image_ids[0] if item else "", label, ())


def _truth(prediction: Prediction) -> str:
    answer = prediction.answer
    if not isinstance(answer, str) or answer.capitalize() not in TRUTH_VALUES:
        raise InputError(f"prediction of {prediction.example_id}: answer {answer!r} is neither 'True' nor 'False'")
    return answer.capitalize()


def _judged(prediction: Prediction) -> JudgedAnswer:
    scores = prediction.scores
    sure = scores[_truth(prediction) == "True"] if scores else None
    return JudgedAnswer(prediction.example_id, prediction.answer, sure)


def _path(folder: Path, split: str) -> Path:
    """Return the file of a split: a subset's file may lie directly in the folder or in the subfolder of its kind."""
    kind, _, whole = split.rpartition("-")
    path = folder / (f"{kind}_{whole}.json" if kind else f"{split}.json")
    return path if not kind or path.exists() else folder / kind / path.name


def _phenomena(path: Path) -> dict[str, tuple[str, ...]]:
    """Read sentence → its phenomena. A block is a sentence and lines "* phenomenon" below it; empty lines end it."""
    found: dict[str, tuple[str, ...]] = {}
    sentence = ""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line:
            sentence = ""
        elif not sentence:
            if line in found:
                raise AnnotationError(f"{path} line {number}: this sentence occurs twice; remove one of its blocks")
            sentence = line
            found[sentence] = ()
        elif line.startswith("* "):
            found[sentence] += (line[2:],)
        else:
            raise AnnotationError(f"{path} line {number}: neither an empty line nor '* phenomenon'; download it again")
    return found


def _balance(items: Mapping[str, _Item]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return identifier → its group by the rule of filter_data.py; nothing where a record has no URLs.

    A pair of photographs that occurs once is "neither". A pair that occurs more often is "balanced" if it has both
    labels, and otherwise "unbalanced".
    """
    labels: defaultdict[tuple[str, str] | None, list[str]] = defaultdict(list)
    for item in items.values():
        labels[item.urls].append(item.label)
    if None in labels:
        return {}
    names = {
        urls: "neither" if len(every) == 1 else "balanced" if len(set(every)) > 1 else "unbalanced"
        for urls, every in labels.items()
    }
    return {identifier: {"balance": (names[item.urls],)} for identifier, item in items.items()}


def _read(path: Path, phenomena: Mapping[str, tuple[str, ...]], split: str) -> dict[str, _Item]:
    items: dict[str, _Item] = {}
    firsts: dict[str, str] = {}  # sentence_id → its first identifier
    for where, record in read_lines(path, Record):
        identifier, text, left, right = record.identifier, record.sentence, record.left_url, record.right_url
        check_split(where, f"identifier {identifier[:40]}", identifier.partition("-")[0], split, SIZES)
        if identifier in items:
            raise AnnotationError(f"{where}: identifier {identifier} occurs twice; remove one of its lines")
        parts = _IDENTIFIER.fullmatch(identifier)
        if parts is None:
            raise AnnotationError(
                f"{where}: identifier {identifier[:40]!r} is not split-set-pair-sentence; correct the record"
            )
        where = f"{where} ({identifier})"
        if record.label not in TRUTH_VALUES:
            raise AnnotationError(f"{where}: 'label' is {record.label!r}, not 'True' or 'False'; correct the record")
        if (left is UNSET) != (right is UNSET):
            raise AnnotationError(f"{where}: no {'left_url' if left is UNSET else 'right_url'!r}; give both or none")
        pair = f"{parts['set']}-{parts['pair']}"
        items[identifier] = item = _Item(
            set_id=parts["set"],
            sentence_id=f"{parts['set']}-{parts['sentence']}",
            image_ids=(f"{pair}-img0", f"{pair}-img1"),
            text=text,
            label=record.label,
            urls=None if left is UNSET or right is UNSET else (left, right),
            groups=family(record) | ({"phenomenon": phenomena[text]} if text in phenomena else {}),
        )
        first = firsts.setdefault(item.sentence_id, identifier)
        check_same(where, "sentence", text, first, items[first].text, f"the sentence {item.sentence_id}")
    if not items:
        raise AnnotationError(f"{path}: no records; download it again")
    return items
