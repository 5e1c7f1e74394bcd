"""VQA v2's soft accuracy: the normaliser, the leave-one-out score of one question, and the official rounding.

Paper: Antol et al. 2015, arXiv:1505.00468; v2: Goyal et al. 2017, arXiv:1612.00837. Official program: `VQAEval` in
github.com/GT-Vision-Lab/VQA at a013f004 (its rule since 2021-03-11), reproduced slips included and tested against its
own output under Python 2.7. Scorers differ: normalising always, as many do, is worth four points on a real slice.
Not reproduced: Python 2's lower-casing of a few non-Latin letters (final sigma, dotted capital I).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Any

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
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
_PERIODS_REMOVED = 32  # the official call passes re.UNICODE (32) where `sub` takes its count


def clean(answer: str) -> str:
    """Line breaks and tabs to spaces, ends stripped: what every answer undergoes, normalised or not."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """`processPunctuation`, then `processDigitArticle`: "The two-tone cats." → "2 tone cats"."""
    text = answer
    for mark in PUNCTUATION:
        # Judged on the answer as given: one 1,000 anywhere makes every mark vanish instead of becoming a space.
        vanishes = mark + " " in answer or " " + mark in answer or _COMMA_IN_NUMBER.search(answer)
        text = text.replace(mark, "" if vanishes else " ")
    text = _PERIOD.sub("", text, count=_PERIODS_REMOVED)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(answer: str, annotators: Sequence[Mapping[str, Any]]) -> float:
    """Credit in [0, 1] of one answer against the annotators' records ({"answer": str, …}, at least one, usually ten).

    For each annotator, min(1, matches among the *others* / 3); their mean. Normalised only where annotators differ.
    """
    answer = clean(answer)
    records = [{**record, "answer": clean(record["answer"])} for record in annotators]
    if len({record["answer"] for record in records}) > 1:
        answer = normalise(answer)
        records = [{**record, "answer": normalise(record["answer"])} for record in records]
    matches = [record for record in records if record["answer"] == answer]
    # "The others" are the records that differ from this one: annotators without an answer_id can leave out each other.
    return _mean([min(1.0, (len(matches) - matches.count(record)) / 3) for record in records])


def official_percent(values: Iterable[float]) -> float:
    """The mean of values in [0, 1] as VQAEval prints it: percent, two decimals, halves away from zero (1/32 → 3.13)."""
    values = list(values)
    percent = 100 * _sum(values) / len(values)
    return float(Decimal(percent).quantize(Decimal("0.01"), ROUND_HALF_UP))


def _mean(values: Sequence[float]) -> float:
    return _sum(values) / len(values)


def _sum(values: Sequence[float]) -> float:
    """Left to right. From Python 3.12 on `sum` compensates rounding errors: a half could fall to the other side."""
    total = 0.0
    for value in values:
        total += value
    return total
