"""VQA v2's soft accuracy: the normaliser, the leave-one-out score of one question and of many, the official rounding.

Paper: Antol et al. 2015, arXiv:1505.00468; v2: Goyal et al. 2017, arXiv:1612.00837. Official program: `VQAEval` in
github.com/GT-Vision-Lab/VQA at a013f004 (its rule since 2021-03-11), reproduced slips included and tested against its
own output under Python 2.7. Scorers differ: normalising always, as many do, is worth four points on a real slice.
Not reproduced: Python 2's lower-casing of a few non-Latin letters (final sigma, dotted capital I).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
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
# The official table restores one missing apostrophe, wherever it is missing, and has one entry the wrong way round.
CONTRACTIONS = {form[:i] + form[i + 1 :]: form for form in _CONTRACTED.split() for i, c in enumerate(form) if c == "'"}
CONTRACTIONS["somebody'd"] = "somebodyd"

_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)  # Python 2's \d knows ASCII digits only
_PERIOD = re.compile(r"\.(?!\d)", re.ASCII)
_TEN = 10  # annotators of a question
_PERIODS_REMOVED = 32  # the official call passes re.UNICODE (32) where `sub` takes its count


def clean(answer: str) -> str:
    """Line breaks and tabs to spaces, ends stripped: what every answer undergoes, normalised or not."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """`processPunctuation`, then `processDigitArticle`: "The two-tone cats." → "2 tone cats"."""
    text = answer
    if not _MARKS.isdisjoint(answer):
        # Judged on the answer as given: one 1,000 anywhere makes every mark vanish instead of becoming a space.
        comma_in_number = _COMMA_IN_NUMBER.search(answer)
        for mark in PUNCTUATION:
            vanishes = comma_in_number or mark + " " in answer or " " + mark in answer
            text = text.replace(mark, "" if vanishes else " ")
    text = _PERIOD.sub("", text, count=_PERIODS_REMOVED)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, annotators: Sequence[Mapping[str, Any]], always_normalise: bool = False) -> float:
    """Credit in [0, 1] of one answer against the annotators' records ({"answer": str, …}, at least one, usually ten).

    For each annotator, min(1, matches among the *others* / 3); their mean. Normalised only where annotators differ, or,
    as other scorers do, `always_normalise`.
    """
    answer = clean(answer)
    records = [{**record, "answer": clean(record["answer"])} for record in annotators]
    if always_normalise or len({record["answer"] for record in records}) > 1:
        answer = normalise(answer)
        records = [{**record, "answer": normalise(record["answer"])} for record in records]
    matches = [record for record in records if record["answer"] == answer]
    # "The others" are the records that differ from this one: annotators without an answer_id can leave out each other.
    return _sum([_share(len(matches) - matches.count(record)) for record in records]) / len(records)


def _share(matches: int) -> float:
    return min(1.0, matches / 3)


class AnswerTable:
    """The annotators' answers to `rows` questions, set row by row, and `soft_accuracy` of an answer to each at once.

    Ten records told apart by their answer_id, as all official ones are, shrink to ten int32 codes (40 bytes instead of
    some 4 kB) and are scored in NumPy, with the same additions in the same order: the same floats to the last bit. Any
    other records are kept as they are and go through `soft_accuracy` itself.
    """

    def __init__(self, rows: int, always_normalise: bool = False) -> None:
        self._always_normalise = always_normalise
        self._codes = array("i", bytes(4 * _TEN * rows))  # [rows × 10]: each annotator's answer, cleaned
        self._code_of = _Codes()
        self._others: dict[int, list[dict[str, Any]]] = {}  # row → records; its codes are a placeholder

    def __setitem__(self, row: int, annotators: list[dict[str, Any]]) -> None:
        """Raises AttributeError, KeyError or TypeError if a record is no object with an "answer" that is a string,
        ValueError if there is none."""
        if not annotators:
            raise ValueError("a question needs an annotator")
        answers = [record["answer"] for record in annotators]
        if not self.take_ten(row, answers, [record.get("answer_id") for record in annotators]):
            self._others[row] = annotators

    def take_ten(self, row: int, answers: list[str], answer_ids: list[Any]) -> bool:
        """Set a row without its records; False where the ids do not tell ten annotators apart: records are needed."""
        code_of = self._code_of
        codes = [code_of[answer] for answer in answers]
        try:
            told_apart = len(answer_ids) == _TEN == len(set(answer_ids))
        except TypeError:  # one is a list or an object
            told_apart = False
        if told_apart:
            self._codes[row * _TEN : (row + 1) * _TEN] = array("i", codes)
        return told_apart

    def __getitem__(self, row: int) -> list[dict[str, Any]]:
        """Records that score as those that were set."""
        if row in self._others:
            return self._others[row]
        codes = self._codes[row * _TEN : (row + 1) * _TEN]
        return [{"answer": self._code_of.answers[code], "answer_id": i} for i, code in enumerate(codes, start=1)]

    def value(self, row: int, answer: str) -> float:
        """`soft_accuracy` of an answer to the question of that row."""
        return soft_accuracy(answer, self[row], self._always_normalise)

    def values(self, answers: Sequence[str]) -> np.ndarray:
        """`soft_accuracy` of one answer a row, in the order of the rows. float64 [rows]."""
        given = np.frombuffer(self._codes, np.int32).reshape(-1, _TEN)  # [rows, 10]: codes of cleaned answers
        as_given = np.zeros(len(given), bool)
        if not self._always_normalise:
            as_given = (given == given[:, :1]).all(axis=1)
        normal_of: dict[str, int] = {}
        normal = [normal_of.setdefault(normalise(answer), len(normal_of)) for answer in self._code_of.answers]

        said_of = {answer: place for place, answer in enumerate(dict.fromkeys(answers))}
        codes = np.array([self._code_pair(answer, normal_of) for answer in said_of], np.int32).reshape(-1, 2)
        said = codes[np.fromiter(map(said_of.__getitem__, answers), np.int32)]  # [rows, 2]: cleaned, normal form
        in_normal_form = np.array(normal, np.int32)[given]
        values = _leave_one_out(np.where(as_given[:, None], given == said[:, :1], in_normal_form == said[:, 1:]))
        for row in self._others:
            values[row] = self.value(row, answers[row])
        return values

    def best(self, row: int) -> str:
        """An annotator's answer that no other answer to that question beats."""
        answers: list[str] = [record["answer"] for record in self[row]]
        if row in self._others:
            return max(answers, key=lambda answer: self.value(row, answer))
        if len(set(answers)) == 1:
            return answers[0]
        forms = [normalise(answer) for answer in answers]
        return max(answers, key=lambda answer: forms.count(normalise(answer)))

    def nobodys(self) -> str:
        """A string that matches no annotator of any question, normalised or not."""
        taken = {*self._code_of.answers, *map(normalise, self._code_of.answers)}
        return next(answer for answer in ("wrong" * n for n in count(1)) if answer not in taken)

    def _code_pair(self, answer: str, normal_of: Mapping[str, int]) -> tuple[int, int]:
        """Codes of the cleaned and of the normal form; -1 is nobody's answer."""
        answer = clean(answer)
        return self._code_of.get(answer, -1), normal_of.get(normalise(answer), -1)


class _Codes(dict[str, int]):
    """Answer → code of its cleaned form, handed out in order of appearance; `answers[code]` leads back."""

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
    """bool [rows, 10] → float64 [rows]: each annotator is worth the share of the matches among the other nine."""
    shares = np.array([_share(count) for count in range(_TEN + 1)])
    count = matches.sum(axis=1)
    of_matching, of_others = shares[np.maximum(count - 1, 0)], shares[count]
    totals = np.zeros(len(matches))
    for matching in matches.T:
        totals += np.where(matching, of_matching, of_others)
    return totals / _TEN


def official_percent(values: Iterable[float]) -> float:
    """The mean of values in [0, 1] as VQAEval prints it: percent, two decimals, halves away from zero (1/32 → 3.13)."""
    values = list(values)
    percent = 100 * _sum(values) / len(values)
    return float(Decimal(percent).quantize(Decimal("0.01"), ROUND_HALF_UP))


def _sum(values: Sequence[float]) -> float:
    """Left to right. From Python 3.12 on `sum` compensates rounding errors: a half could fall to the other side."""
    total = 0.0
    for value in values:
        total += value
    return total
