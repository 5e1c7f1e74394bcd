"""VQA v2's soft accuracy: the normaliser, the leave-one-out score of one question and of many, the official rounding.

The paper is Antol et al. 2015, arXiv:1505.00468; for v2 it is Goyal et al. 2017, arXiv:1612.00837. The official program
is `VQAEval` in github.com/GT-Vision-Lab/VQA at a013f004, with its rule since 2021-03-11. This file reproduces its
mistakes, too, and is tested against its output under Python 2.7. Other programs score differently: many always
normalise, which adds four points on a real slice of VQA v2. One thing is not reproduced: Python 2 lower-cases a few
non-Latin letters differently (final sigma, dotted capital I).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property, lru_cache
from itertools import count
from typing import Any

import numpy as np

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MARKS = frozenset(PUNCTUATION)
ARTICLES = ("a", "an", "the")
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
# The official table maps a contraction that lacks one apostrophe to the full contraction. Its entry for "somebody'd" is
# the wrong way round.
CONTRACTIONS = {form[:i] + form[i + 1 :]: form for form in _CONTRACTED.split() for i, c in enumerate(form) if c == "'"}
CONTRACTIONS["somebody'd"] = "somebodyd"

_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)  # in Python 2, \d matches ASCII digits only
# The official pattern is `(?!<=\d)(\.)(?!\d)`. Its first group is a misprint that excludes nothing, so a period after a
# digit is removed, too.
_PERIOD = re.compile(r"\.(?!\d)", re.ASCII)
_TEN = 10  # annotators of a question
_PERIODS_REMOVED = 32  # the official call passes re.UNICODE, which is 32, in the place of `count`


def clean(answer: str) -> str:
    """Replace line breaks and tabs by spaces, and strip the ends. Every answer is cleaned, normalised or not."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """Apply the official `processPunctuation`, then `processDigitArticle`: "The two-tone cats." → "2 tone cats"."""
    text = answer
    if not _MARKS.isdisjoint(answer):
        # The official conditions look at the answer as given. One "1,000" anywhere deletes every mark, instead of
        # replacing it by a space.
        comma_in_number = _COMMA_IN_NUMBER.search(answer)
        for mark in PUNCTUATION:
            vanishes = comma_in_number or mark + " " in answer or " " + mark in answer
            text = text.replace(mark, "" if vanishes else " ")
    text = _PERIOD.sub("", text, count=_PERIODS_REMOVED)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, annotators: Sequence[Mapping[str, Any]], always_normalise: bool = False) -> float:
    """Return the score in [0, 1] of one answer to one question.

    `annotators` are the records of one or more annotators, usually ten: {"answer": str, …}. For each annotator, count
    the matching answers of the *other* annotators, and take min(1, matches / 3). The score is the mean of these.
    Answers are normalised only where annotators differ, or, as in other programs, with `always_normalise`.
    """
    answer = clean(answer)
    records = [{**record, "answer": clean(record["answer"])} for record in annotators]
    # Where all annotators agree, the official program normalises nothing: "Yes" does not match ten times "yes".
    if always_normalise or len({record["answer"] for record in records}) > 1:
        answer = normalise(answer)
        records = [{**record, "answer": normalise(record["answer"])} for record in records]
    matches = [record for record in records if record["answer"] == answer]
    # In the official program, the others are all records that differ from this one. Without an answer_id, annotators
    # with the same answer have equal records, so all of them are left out together.
    return _sum([_share(len(matches) - matches.count(record)) for record in records]) / len(records)


def _share(matches: int) -> float:
    return min(1.0, matches / 3)


class AnswerTable:
    """The annotators' answers to `rows` questions. It scores one answer to each question at once.

    Official questions have ten records with different answer_ids. Such records are stored as ten int32 codes, 40 bytes
    instead of about 4 kB. They are scored in NumPy, with the additions of `soft_accuracy` in the same order, so that
    the floats are equal to the last bit. All other records are kept unchanged and scored by `soft_accuracy` itself.
    """

    def __init__(self, rows: int, always_normalise: bool = False) -> None:
        self._always_normalise = always_normalise
        self._codes = array("i", bytes(4 * _TEN * rows))  # [rows × 10]: code of each annotator's cleaned answer
        self._code_of = _Codes()
        self._others: dict[int, list[dict[str, Any]]] = {}  # row → records; the codes of such a row mean nothing

    def __setitem__(self, row: int, annotators: list[dict[str, Any]]) -> None:
        """Set the records of a row, one or more."""
        answers = [record["answer"] for record in annotators]
        if not self.take_ten(row, answers, [record.get("answer_id") for record in annotators]):
            self._others[row] = annotators

    def take_ten(self, row: int, answers: list[str], answer_ids: list[Any]) -> bool:
        """Set a row from answers and ids alone. Return False where the ids are not ten different ones.

        In that case the row must be set with its records.
        """
        code_of = self._code_of
        codes = [code_of[answer] for answer in answers]
        try:
            told_apart = len(answer_ids) == _TEN == len(set(answer_ids))
        except TypeError:  # an id is a list or an object, which a set cannot hold
            told_apart = False
        if told_apart:
            self._codes[row * _TEN : (row + 1) * _TEN] = array("i", codes)
        return told_apart

    def __getitem__(self, row: int) -> list[dict[str, Any]]:
        """Return records that score like those that were set."""
        if row in self._others:
            return self._others[row]
        codes = self._codes[row * _TEN : (row + 1) * _TEN]
        return [{"answer": self._code_of.answers[code], "answer_id": i} for i, code in enumerate(codes, start=1)]

    def values(self, answers: Sequence[str], always_normalise: bool | None = None) -> np.ndarray:
        """Return the `soft_accuracy` of one answer to each question, in the order of the rows: float64 [rows].

        `always_normalise` replaces the rule of this table.
        """
        always = self._always_normalise if always_normalise is None else always_normalise
        given = np.frombuffer(self._codes, np.int32).reshape(-1, _TEN)  # [rows, 10]: codes of cleaned answers
        as_given = np.zeros(len(given), bool)  # rows whose answers are compared without being normalised
        if not always:
            as_given = (given == given[:, :1]).all(axis=1)
        normal_of: dict[str, int] = {}
        normal = [normal_of.setdefault(normalise(answer), len(normal_of)) for answer in self._code_of.answers]

        said_of = {answer: place for place, answer in enumerate(dict.fromkeys(answers))}
        codes = np.array([self._code_pair(answer, normal_of) for answer in said_of], np.int32).reshape(-1, 2)
        # [rows, 2]: codes of the cleaned and of the normalised answer
        said = codes[np.fromiter(map(said_of.__getitem__, answers), np.int32)]
        in_normal_form = np.array(normal, np.int32)[given]
        values = _leave_one_out(np.where(as_given[:, None], given == said[:, :1], in_normal_form == said[:, 1:]))
        for row in self._others:
            values[row] = soft_accuracy(answers[row], self[row], always)
        return values

    def best(self, row: int) -> str:
        """Return an annotator's answer with the highest score that the question allows."""
        answers: list[str] = [record["answer"] for record in self[row]]
        if row in self._others:
            return max(answers, key=lambda answer: soft_accuracy(answer, self[row], self._always_normalise))
        forms = [normalise(answer) for answer in answers]
        return max(answers, key=lambda answer: forms.count(normalise(answer)))

    @cached_property
    def unmatched_answer(self) -> str:
        """Return a string that matches no annotator of any question, normalised or not."""
        taken = {*self._code_of.answers, *map(normalise, self._code_of.answers)}
        return next(answer for answer in ("wrong" * n for n in count(1)) if answer not in taken)

    def _code_pair(self, answer: str, normal_of: Mapping[str, int]) -> tuple[int, int]:
        """Return the codes of the cleaned and of the normalised answer; -1 where no annotator gave it."""
        answer = clean(answer)
        return self._code_of.get(answer, -1), normal_of.get(normalise(answer), -1)


class _Codes(dict[str, int]):
    """Answer → code of its cleaned form. Codes count up in order of appearance; `answers[code]` is the cleaned form."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[str] = []

    def __missing__(self, answer: str) -> int:
        cleaned = clean(answer)
        code = self.setdefault(cleaned, len(self.answers))
        if code == len(self.answers):
            self.answers.append(cleaned)
        self[answer] = code
        return code


def _leave_one_out(matches: np.ndarray) -> np.ndarray:
    """Return the score of each row, float64 [rows], from the annotators that match, bool [rows, 10].

    An annotator contributes the share of the matches among the other nine.
    """
    shares = np.array([_share(count) for count in range(_TEN + 1)])
    count = matches.sum(axis=1)
    of_matching, of_others = shares[np.maximum(count - 1, 0)], shares[count]
    totals = np.zeros(len(matches))
    # Annotators are added one by one, as `_sum` does. NumPy's own sum may add in another order, and so round otherwise.
    for matching in matches.T:
        totals += np.where(matching, of_matching, of_others)
    return totals / _TEN


def official_percent(values: Iterable[float]) -> float:
    """Return the mean of values in [0, 1] as VQAEval prints it: percent with two decimals.

    Halves are rounded away from zero, as in Python 2: 1/32 gives 3.13, where Python 3 prints 3.12.
    """
    values = list(values)
    percent = 100 * _sum(values) / len(values)
    return float(Decimal(percent).quantize(Decimal("0.01"), ROUND_HALF_UP))


def _sum(values: Sequence[float]) -> float:
    """Add from left to right, as the official program does.

    From Python 3.12 on, `sum` compensates rounding errors. A half could then be rounded to the other side.
    """
    total = 0.0
    for value in values:
        total += value
    return total
