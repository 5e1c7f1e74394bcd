"""Generates the VCR items and Flickr30K Entities captions about scenes.

In VCR the text refers to objects by their number. The text alone should not give the answer away. So the four choices
are four objects, four colours, or two sizes times two colours. A rationale is about objects that the answer does not
mention. In a caption, each phrase fits exactly the things that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from visualbert_core.schema import Token
from visualbert_core.synthetic.language import (
    DIRECTIONS,
    NUMBERS,
    PATTERNS,
    Description,
    any_description,
    describe,
    extreme,
    unique_description,
)
from visualbert_core.synthetic.scenes import COLORS, RADII, Things

Rng = np.random.Generator
_TRIES = 60

# ---------------------------------------------------------------------------------------------------------------------
# VCR


@dataclass(frozen=True)
class VcrItem:
    """One question with four answers and four rationales.

    Token lists mix words with objects `(i,)`, counted from 0. A label is the index of the right choice.
    """

    question: tuple[Token, ...]
    answers: tuple[tuple[Token, ...], ...]
    answer_label: int
    rationales: tuple[tuple[Token, ...], ...]
    rationale_label: int
    family: str


CHOICES = 4


def vcr_item(rng: Rng, things: Things) -> VcrItem:
    """Return one item about a scene of at least three things."""
    for _ in range(_TRIES * 10):
        family = str(rng.choice(list(_VCR)))
        if len(things) < CHOICES and family not in ("look", "color"):  # four objects are the choices of the others
            continue
        if (asked := _VCR[family](rng, things)) is not None:
            question, answers, label, told = asked
            return VcrItem(question, answers, label, *_rationales(rng, things, told), family)
    raise AssertionError("no item found, although the color of a thing can always be asked")


Asked = tuple[tuple[Token, ...], tuple[tuple[Token, ...], ...], int, set[int]]
"""(question, answers, index of the right answer, objects that the right answer is about)."""


def _look(rng: Rng, things: Things) -> Asked:
    """Ask how one object looks: two sizes times two colours, so that no choice stands out in the text."""
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
    """Ask which of four objects has a colour that only one of the four has."""
    candidates = _four(rng, things)
    if sum(things[i].color == things[candidates[0]].color for i in candidates) > 1:
        return None
    return _objects(rng, ("Which", "one", "is", things[candidates[0]].color, "?"), candidates)


def _farthest(rng: Rng, things: Things) -> Asked | None:
    direction = str(rng.choice(list(DIRECTIONS)))
    candidates = _four(rng, things)
    first = extreme(things, candidates, direction)
    if first is None:
        return None
    candidates.sort(key=lambda i: i != first)
    return _objects(rng, ("Which", "one", "is", direction, "?"), candidates)


def _odd_size(rng: Rng, things: Things) -> Asked | None:
    candidates = _four(rng, things)
    sizes = [things[i].size for i in candidates]
    if sizes.count(sizes[0]) > 1:
        return None
    return _objects(rng, ("Which", "one", "has", "a", "size", "of", "its", "own", "?"), candidates)


def _four(rng: Rng, things: Things) -> list[int]:
    return [int(i) for i in rng.choice(len(things), size=CHOICES, replace=False)]


def _objects(rng: Rng, question: tuple[Token, ...], candidates: Sequence[int]) -> Asked:
    """Return a question with objects as choices. The first of `candidates` is the right one."""
    return _shuffled(rng, question, [((i,), ".") for i in candidates], 0, {candidates[0]})


def _shuffled(
    rng: Rng, question: tuple[Token, ...], answers: Sequence[tuple[Token, ...]], right: int, told: set[int]
) -> Asked:
    order = [int(i) for i in rng.permutation(len(answers))]
    return question, tuple(answers[i] for i in order), order.index(right), told


def _rationales(rng: Rng, things: Things, told: set[int]) -> tuple[tuple[tuple[Token, ...], ...], int]:
    """Return four rationales about objects that the answer does not mention, and the index of the right one.

    They combine the true and the false size of one object with the true and a false colour of one object.
    """
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
    """The words of a phrase, the indices of the things that it names, and its kind."""

    words: str
    things: tuple[int, ...]
    kind: str

    def __str__(self) -> str:
        return self.words


Caption = tuple[str | CaptionPhrase, ...]
"""The words and phrases of a caption, in order."""


def caption(rng: Rng, things: Things) -> Caption:
    """Return one caption with one to three phrases. Each phrase fits exactly the things that it names."""
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
    """Return a caption about one of two things of the same look: the one on a named side of a third thing."""
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
