"""What the four benchmarks ask about scenes. One generator a benchmark, used for training and for the validation files.

Guessing from the text alone is made useless where that is possible: an NLVR2 sentence is kept only if it is true of two
of its four pairs, VCR's four choices are either four objects or a two-by-two grid of attributes, and yes/no questions
are balanced. Two families are known to be hard for the small model and kept in small number: comparing two named
things (VQA `is the`, `are the`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from visualbert_core.schema import Token
from visualbert_core.world.language import (
    DIRECTIONS,
    NUMBERS,
    PATTERNS,
    Description,
    any_description,
    describe,
    extreme,
    unique_description,
)
from visualbert_core.world.scenes import COLORS, RADII, SHAPES, Things

Rng = np.random.Generator
_TRIES = 60

# ---------------------------------------------------------------------------------------------------------------------
# VQA


@dataclass(frozen=True)
class VqaItem:
    question: str
    answer: str
    question_type: str
    answer_type: str


ANSWERS = ("<unk>", "yes", "no", *COLORS, *SHAPES, *RADII, *(str(n) for n in range(7)))
"""The answer list of the world's VQA checkpoint; as in the published one, index 0 is never answered."""


def vqa_item(rng: Rng, things: Things) -> VqaItem:
    """One question about a scene."""
    families = list(_VQA)
    weights = np.array([weight for _, weight in _VQA.values()])
    for _ in range(_TRIES):
        family = families[rng.choice(len(families), p=weights / weights.sum())]
        item = _VQA[family][0](rng, things)
        if item is not None:
            return item
    raise AssertionError("counting is always possible")


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
    wanted = bool(rng.random() < 0.5)
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
"""Pairs that share a sentence, as in NLVR2's sets."""


@dataclass(frozen=True)
class Nlvr2Item:
    sentence: str
    labels: tuple[bool, ...]  # one per pair
    family: str


Claim = tuple[str, Callable[[Things, Things], bool]]


def nlvr2_item(rng: Rng, pairs: Sequence[tuple[Things, Things]]) -> Nlvr2Item | None:
    """A sentence that is true of exactly half of the pairs; None if none was found."""
    family = str(rng.choice(list(_NLVR2)))
    everything = [thing for left, right in pairs for thing in (*left, *right)]
    for _ in range(_TRIES):
        sentence, holds = _NLVR2[family](rng, any_description(rng, everything))
        labels = tuple(holds(left, right) for left, right in pairs)
        if 2 * sum(labels) == len(labels):
            return Nlvr2Item(sentence, labels, family)
    return None


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

# ---------------------------------------------------------------------------------------------------------------------
# VCR


@dataclass(frozen=True)
class VcrItem:
    """Token lists mix words with objects `(i,)`, 0-based; labels index the choices."""

    question: tuple[Token, ...]
    answers: tuple[tuple[Token, ...], ...]
    answer_label: int
    rationales: tuple[tuple[Token, ...], ...]
    rationale_label: int
    family: str


CHOICES = 4


def vcr_item(rng: Rng, things: Things) -> VcrItem:
    """One item about a scene of at least three things."""
    for _ in range(_TRIES * 10):
        family = str(rng.choice(list(_VCR)))
        asked = _VCR[family](rng, things)
        if asked is None:
            continue
        question, answers, label, told = asked
        rationales, rationale_label = _rationales(rng, things, told)
        return VcrItem(question, answers, label, rationales, rationale_label, family)
    raise AssertionError("the color of a thing can always be asked")


Asked = tuple[tuple[Token, ...], tuple[tuple[Token, ...], ...], int, set[int]]


def _look(rng: Rng, things: Things) -> Asked:
    """Four looks of one object: two sizes by two colours, so that no choice stands out in the text."""
    target = int(rng.integers(len(things)))
    other = str(rng.choice([c for c in COLORS if c != things[target].color]))
    looks = [(size, color) for size in RADII for color in (things[target].color, other)]
    answers = [((target,), "is", size, "and", color, ".") for size, color in looks]
    right = looks.index((things[target].size, things[target].color))
    return _shuffled(rng, ("What", "does", (target,), "look", "like", "?"), answers, right, {target})


def _color(rng: Rng, things: Things) -> Asked:
    target = int(rng.integers(len(things)))
    others = rng.choice([c for c in COLORS if c != things[target].color], size=CHOICES - 1, replace=False)
    answers = [((target,), "is", str(color), ".") for color in (things[target].color, *others)]
    return _shuffled(rng, ("What", "color", "is", (target,), "?"), answers, 0, {target})


def _which(rng: Rng, things: Things) -> Asked | None:
    """Which of four objects has a colour that only one of them has?"""
    if len(things) < CHOICES:
        return None
    candidates = [int(i) for i in rng.choice(len(things), size=CHOICES, replace=False)]
    if sum(things[i].color == things[candidates[0]].color for i in candidates) > 1:
        return None
    return _objects(rng, ("Which", "one", "is", things[candidates[0]].color, "?"), candidates)


def _farthest(rng: Rng, things: Things) -> Asked | None:
    if len(things) < CHOICES:
        return None
    direction = str(rng.choice(list(DIRECTIONS)))
    candidates = [int(i) for i in rng.choice(len(things), size=CHOICES, replace=False)]
    first = extreme(things, candidates, direction)
    if first is None:
        return None
    candidates.sort(key=lambda i: i != first)
    return _objects(rng, ("Which", "one", "is", direction, "?"), candidates)


def _odd_size(rng: Rng, things: Things) -> Asked | None:
    if len(things) < CHOICES:
        return None
    candidates = [int(i) for i in rng.choice(len(things), size=CHOICES, replace=False)]
    sizes = [things[i].size for i in candidates]
    if sizes.count(sizes[0]) > 1:
        return None
    return _objects(rng, ("Which", "one", "has", "a", "size", "of", "its", "own", "?"), candidates)


def _objects(rng: Rng, question: tuple[Token, ...], candidates: Sequence[int]) -> Asked:
    """Objects as choices; the first of `candidates` is the right one."""
    return _shuffled(rng, question, [((i,), ".") for i in candidates], 0, {candidates[0]})


def _shuffled(
    rng: Rng, question: tuple[Token, ...], answers: Sequence[tuple[Token, ...]], right: int, told: set[int]
) -> Asked:
    order = [int(i) for i in rng.permutation(len(answers))]
    return question, tuple(answers[i] for i in order), order.index(right), told


def _rationales(rng: Rng, things: Things, told: set[int]) -> tuple[tuple[tuple[Token, ...], ...], int]:
    """Evidence about objects that the answer tells nothing of: a true and a false size by a true and a false colour."""
    free = [i for i in range(len(things)) if i not in told]
    sized, colored = int(rng.choice(free)), int(rng.choice(free))
    other = str(rng.choice([c for c in COLORS if c != things[colored].color]))
    grid = [(size, color) for size in RADII for color in (things[colored].color, other)]
    texts: list[tuple[Token, ...]] = [
        ("I", "see", "that", (sized,), "is", size, "and", (colored,), "is", color, ".") for size, color in grid
    ]
    order = [int(i) for i in rng.permutation(CHOICES)]
    right = grid.index((things[sized].size, things[colored].color))
    return tuple(texts[i] for i in order), order.index(right)


_VCR: dict[str, Callable[[Rng, Things], Asked | None]] = {
    "look": _look,
    "color": _color,
    "which": _which,
    "farthest": _farthest,
    "odd size": _odd_size,
}

# ---------------------------------------------------------------------------------------------------------------------
# Flickr30K Entities


@dataclass(frozen=True)
class CaptionPhrase:
    words: str
    things: tuple[int, ...]
    kind: str


Caption = tuple[str | CaptionPhrase, ...]
"""Words and phrases in order."""


def caption(rng: Rng, things: Things) -> Caption:
    """One caption with one to three phrases, each fitting exactly the things it names."""
    for _ in range(_TRIES):
        made = _CAPTIONS[rng.integers(len(_CAPTIONS))](rng, things)
        texts = [part.words for part in made or () if isinstance(part, CaptionPhrase)]
        if made and len(set(texts)) == len(texts):
            return made
    return (CaptionPhrase("all the things", tuple(range(len(things))), "several"), "on a plain scene")


def _list_caption(rng: Rng, things: Things) -> Caption | None:
    chosen = [int(i) for i in rng.permutation(len(things))[: rng.integers(2, 4)]]
    references = [unique_description(rng, things, i, PATTERNS) for i in chosen]
    parts: list[str | CaptionPhrase] = []
    for index, reference in zip(chosen, references, strict=True):
        if reference is None:
            return None
        parts += ["and"] if parts else []
        parts.append(CaptionPhrase(f"a {reference.words()}", (index,), "single"))
    return (*parts, ".")


def _several_caption(rng: Rng, things: Things) -> Caption | None:
    description = any_description(rng, things)
    found = description.find(things)
    if len(found) < 2:
        return None
    return ("I see", CaptionPhrase(f"{NUMBERS[len(found)]} {description.words(plural=True)}", tuple(found), "several"))


def _extreme_caption(rng: Rng, things: Things) -> Caption | None:
    direction = str(rng.choice(list(DIRECTIONS)))
    description = describe(things[int(rng.integers(len(things)))], str(rng.choice(["shape", "color"])))
    description = Description() if rng.random() < 0.4 else description
    index = extreme(things, description.find(things), direction)
    if index is None:
        return None
    return ("look at", CaptionPhrase(f"the {direction} {description.words()}", (index,), "extreme"), ".")


def _beside_caption(rng: Rng, things: Things) -> Caption | None:
    """Two things of one look; the caption means the one on the named side of a third."""
    anchor = int(rng.integers(len(things)))
    reference = unique_description(rng, things, anchor, PATTERNS)
    twins = describe(things[int(rng.integers(len(things)))], str(rng.choice(["shape", "color"])))
    if reference is None or twins.matches(things[anchor]):
        return None
    left = [i for i in twins.find(things) if things[i].center[0] < things[anchor].center[0] - 8]
    right = [i for i in twins.find(things) if things[i].center[0] > things[anchor].center[0] + 8]
    if len(left) != 1 or len(right) != 1 or len(twins.find(things)) != 2:
        return None
    side = int(rng.integers(2))
    target = CaptionPhrase(f"the {twins.words()}", ((left, right)[side][0],), "beside")
    beside = CaptionPhrase(f"the {reference.words()}", (anchor,), "single")
    return (target, f"{('left', 'right')[side]} of", beside, ".")


_CAPTIONS: tuple[Callable[[Rng, Things], Caption | None], ...] = (
    _list_caption,
    _list_caption,
    _list_caption,
    _several_caption,
    _extreme_caption,
    _beside_caption,
)
