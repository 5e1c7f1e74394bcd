"""Generates the VQA questions and NLVR2 sentences about scenes, for training and for the validation files.

The text alone should give no answer away. So an NLVR2 sentence is kept only if it is true for two of its four pairs, as
in NLVR2 (Suhr et al. 2019, arXiv:1811.00491), and yes/no questions are balanced. Two VQA families compare two named
things (`is the`, `are the`). They are hard for the small model, so they have small weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from visualbert_core.synthetic.language import (
    DIRECTIONS,
    NUMBERS,
    PATTERNS,
    Description,
    any_description,
    extreme,
    unique_description,
)
from visualbert_core.synthetic.scenes import COLORS, RADII, SHAPES, Things

Rng = np.random.Generator
_TRIES = 60

# ---------------------------------------------------------------------------------------------------------------------
# VQA


@dataclass(frozen=True)
class VqaItem:
    """A question, its answer, and their types as the official annotations name them."""

    question: str
    answer: str
    question_type: str
    answer_type: str


ANSWERS = ("<unk>", "yes", "no", *COLORS, *SHAPES, *RADII, *(str(n) for n in range(7)))
"""The answers of the synthetic VQA checkpoint. As in the published checkpoint, index 0 is never answered."""


def vqa_item(rng: Rng, things: Things) -> VqaItem:
    """Return one question about a scene, of a family drawn by its weight."""
    families = list(_VQA)
    weights = np.array([weight for _, weight in _VQA.values()])
    for _ in range(_TRIES):
        family = families[rng.choice(len(families), p=weights / weights.sum())]
        item = _VQA[family][0](rng, things)
        if item is not None:
            return item
    raise AssertionError("no question found, although counting is always possible")


def _attribute(name: str, patterns: tuple[str, ...]) -> Callable[[Rng, Things], VqaItem | None]:
    def ask(rng: Rng, things: Things) -> VqaItem | None:
        index = int(rng.integers(len(things)))
        reference = unique_description(rng, things, index, patterns)
        if reference is None:
            return None
        kind = f"what {name} is the"
        return VqaItem(f"What {name} is the {reference.words()}?", getattr(things[index], name), kind, "other")

    return ask


def _extreme_attribute(name: str) -> Callable[[Rng, Things], VqaItem | None]:
    def ask(rng: Rng, things: Things) -> VqaItem | None:
        direction = str(rng.choice(list(DIRECTIONS)))
        index = extreme(things, range(len(things)), direction)
        if index is None:
            return None
        kind = f"what is the {name} of the"
        question = f"What is the {name} of the {direction} thing?"
        return VqaItem(question, getattr(things[index], name), kind, "other")

    return ask


def _exists(rng: Rng, things: Things) -> VqaItem | None:
    wanted = bool(rng.random() < 0.5)  # the answer is drawn first, so that yes and no are equally common
    for _ in range(_TRIES):
        description = any_description(rng, things)
        if rng.random() < 0.3:
            description = Description(color=str(rng.choice(list(COLORS))), shape=str(rng.choice(SHAPES)))
        if bool(description.find(things)) == wanted:
            return VqaItem(f"Is there a {description.words()}?", _yes(wanted), "is there a", "yes/no")
    return None


def _count(rng: Rng, things: Things) -> VqaItem:
    description = any_description(rng, things)
    if rng.random() < 0.15:
        description = Description()
    count = len(description.find(things))
    return VqaItem(f"How many {description.words(plural=True)} are there?", str(count), "how many", "number")


def _beside(rng: Rng, things: Things) -> VqaItem | None:
    """Ask whether one thing is left of, right of, above or below a second one. None if they are nearly level."""
    pair = _two_references(rng, things)
    if pair is None:
        return None
    (a, first), (b, second) = pair
    axis = int(rng.integers(2))
    distance = things[a].center[axis] - things[b].center[axis]
    if abs(distance) < 8:
        return None
    relation = (("left of", "right of"), ("above", "below"))[axis]
    said = int(rng.integers(2))
    question = f"Is the {first.words()} {relation[said]} the {second.words()}?"
    return VqaItem(question, _yes((distance < 0) == (said == 0)), "is the", "yes/no")


def _same(rng: Rng, things: Things) -> VqaItem | None:
    """Ask whether two things share colour, shape or size."""
    name, patterns = (("color", ("shape",)), ("shape", ("color",)), ("size", ("shape", "color")))[rng.integers(3)]
    wanted = bool(rng.random() < 0.5)
    for _ in range(_TRIES):
        pair = _two_references(rng, things, patterns)
        if pair is None:
            return None
        (a, first), (b, second) = pair
        if (getattr(things[a], name) == getattr(things[b], name)) == wanted:
            question = f"Are the {first.words()} and the {second.words()} the same {name}?"
            return VqaItem(question, _yes(wanted), "are the", "yes/no")
    return None


def _two_references(
    rng: Rng, things: Things, patterns: Sequence[str] = PATTERNS
) -> tuple[tuple[int, Description], tuple[int, Description]] | None:
    a, b = (int(i) for i in rng.choice(len(things), size=2, replace=False))
    first, second = (unique_description(rng, things, i, patterns) for i in (a, b))
    return None if first is None or second is None else ((a, first), (b, second))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


_VQA: dict[str, tuple[Callable[[Rng, Things], VqaItem | None], float]] = {
    "color": (_attribute("color", ("shape", "size shape")), 0.15),
    "shape": (_attribute("shape", ("color", "size color")), 0.15),
    "size": (_attribute("size", ("shape", "color", "color shape")), 0.12),
    "exists": (_exists, 0.18),
    "count": (_count, 0.16),
    "extreme color": (_extreme_attribute("color"), 0.08),
    "extreme shape": (_extreme_attribute("shape"), 0.08),
    "beside": (_beside, 0.04),
    "same": (_same, 0.04),
}

# ---------------------------------------------------------------------------------------------------------------------
# NLVR2

PAIRS = 4
"""The number of image pairs that share a sentence, as in the sets of NLVR2."""


@dataclass(frozen=True)
class Nlvr2Item:
    """A sentence and whether it is true, for each pair of a set."""

    sentence: str
    labels: tuple[bool, ...]  # one per pair
    family: str


Claim = tuple[str, Callable[[Things, Things], bool]]


def nlvr2_item(rng: Rng, pairs: Sequence[tuple[Things, Things]]) -> Nlvr2Item | None:
    """Return a sentence that is true for exactly half of the pairs; None if none was found."""
    family = str(rng.choice(list(_NLVR2)))
    everything = [thing for left, right in pairs for thing in (*left, *right)]
    for _ in range(_TRIES):
        sentence, holds = _NLVR2[family](rng, any_description(rng, everything))
        labels = tuple(holds(left, right) for left, right in pairs)
        if 2 * sum(labels) == len(labels):
            return Nlvr2Item(sentence, labels, family)
    return None


def nlvr2_items(rng: Rng, pairs: Sequence[tuple[Things, Things]], count: int) -> Iterator[Nlvr2Item]:
    """Yield `count` sentences about the same pairs. Try until there are so many."""
    while count:
        if (item := nlvr2_item(rng, pairs)) is not None:
            count -= 1
            yield item


def _side(rng: Rng, it: Description) -> Claim:
    side = int(rng.integers(2))
    return f"The {('left', 'right')[side]} image contains a {it.words()}.", lambda *p: bool(it.find(p[side]))


def _both(rng: Rng, it: Description) -> Claim:
    return f"Both images contain a {it.words()}.", lambda a, b: bool(it.find(a)) and bool(it.find(b))


def _neither(rng: Rng, it: Description) -> Claim:
    return f"Neither image contains a {it.words()}.", lambda a, b: not it.find(a) and not it.find(b)


def _exactly_one(rng: Rng, it: Description) -> Claim:
    return f"Exactly one image contains a {it.words()}.", lambda a, b: bool(it.find(a)) != bool(it.find(b))


def _number(rng: Rng, it: Description) -> Claim:
    side, count = int(rng.integers(2)), int(rng.integers(1, 4))
    words = f"{NUMBERS[count]} {it.words(plural=count > 1)}"
    sentence = f"There {'is' if count == 1 else 'are'} exactly {words} in the {('left', 'right')[side]} image."
    return sentence, lambda *p: len(it.find(p[side])) == count


def _total(rng: Rng, it: Description) -> Claim:
    count = int(rng.integers(1, 5))
    words = f"{NUMBERS[count]} {it.words(plural=count > 1)}"
    sentence = f"There {'is' if count == 1 else 'are'} exactly {words} in total."
    return sentence, lambda a, b: len(it.find(a)) + len(it.find(b)) == count


def _more(rng: Rng, it: Description) -> Claim:
    more = bool(rng.integers(2))
    it = Description() if rng.random() < 0.2 else it
    sentence = (
        f"There are {'more' if more else 'fewer'} {it.words(plural=True)} in the left image than in the right image."
    )
    return sentence, lambda a, b: len(it.find(a)) != len(it.find(b)) and (len(it.find(a)) > len(it.find(b))) == more


_NLVR2: dict[str, Callable[[Rng, Description], Claim]] = {
    "side": _side,
    "both": _both,
    "neither": _neither,
    "exactly one": _exactly_one,
    "number": _number,
    "total": _total,
    "more": _more,
}
