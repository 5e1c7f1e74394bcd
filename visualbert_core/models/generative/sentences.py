"""Joins the words of a benchmark, which splits punctuation and endings off, to a text as people write it."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NO_SPACE_BEFORE = re.compile(r" ([.,?!;:]|n't\b|['’](?:s|t|re|m|ll|ve|d)\b)")
_SPLIT_ENDING = re.compile(r" (['’]) (s|t|re|m|ll|ve|d)\b")  # VCR splits some endings twice: Casey ' s


def sentence(words: Iterable[str]) -> str:
    """Return the words as one text: "Casey 's hat ." becomes "Casey's hat."."""
    return _NO_SPACE_BEFORE.sub(r"\1", _SPLIT_ENDING.sub(r"\1\2", " ".join(words)))
