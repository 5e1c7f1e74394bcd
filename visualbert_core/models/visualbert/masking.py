"""Masked words and pairs of captions, as VisualBERT's authors prepared them for pre-training.

Program: `random_word` and `InputExample` of github.com/uclanlp/visualbert at 2a9e8bd58a20, after BERT (Devlin et al.
2019). The draws come in the order of the authors' code, so that golden draws give golden masks. Regions are never
masked, and neither are [CLS] and [SEP].
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Literal

INGREDIENT = "training"

MASKED, TO_MASK, DRAWN = 0.15, 0.8, 0.9
"""A piece is predicted where its draw is below the first number. The draw, divided by that number, then decides: below
the second the piece becomes [MASK], below the third a piece drawn from the vocabulary. Otherwise it stays as it is."""
_LEAST = 32
"""The authors' cut leaves at least so many pieces of the first text."""


def mask_pieces(
    pieces: Sequence[int], draws: random.Random, mask: int, vocab_size: int, never: Collection[int] = ()
) -> tuple[list[int], dict[int, int]]:
    """Return the pieces with some of them replaced, and the place → piece of those that are to be predicted.

    A replacement is drawn from the whole vocabulary, special pieces included. There is no rule for whole words. Pieces
    in `never` stay, and take no draw.
    """
    shown, hidden = list(pieces), {}
    for place, piece in enumerate(pieces):
        if piece in never:
            continue
        draw = draws.random()
        if draw >= MASKED:
            continue
        hidden[place] = piece
        if draw / MASKED < TO_MASK:
            shown[place] = mask
        elif draw / MASKED < DRAWN:
            shown[place] = draws.randrange(vocab_size)
    return shown, hidden


def cut_pair(
    first: Sequence[int], second: Sequence[int], room: int, how: Literal["longer-first", "authors"]
) -> tuple[list[int], list[int]]:
    """Cut two texts so that together they have at most `room` pieces.

    "longer-first" takes pieces from the end of the longer text, from the second where both are equally long. "authors"
    cuts the front of both texts and, by a slip of a sign, takes more than it needs: 90 + 90 pieces leave 62 + 7.
    """
    first, second = list(first), list(second)
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    if how == "authors":
        lost = min(-(-excess // 2), max(len(first) - _LEAST, 0))
        return first[lost:], second[excess + lost :]
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second
