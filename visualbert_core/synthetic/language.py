"""The words about the synthetic scenes: descriptions of things, numbers, directions, and the vocabulary.

A `Description` names some of size, colour and shape ("the small red ball", "a red thing"). It can be matched with the
things of a scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from visualbert_core.synthetic.scenes import COLORS, RADII, SHAPES, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
DIRECTIONS = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}
"""Word → (axis of the centre, sign). The farthest thing has the smallest sign × coordinate."""


@dataclass(frozen=True)
class Description:
    """Some of the attributes of a thing. None allows any value."""

    size: str | None = None
    color: str | None = None
    shape: str | None = None

    def matches(self, thing: Thing) -> bool:
        return (
            self.size in (None, thing.size) and self.color in (None, thing.color) and self.shape in (None, thing.shape)
        )

    def find(self, things: Sequence[Thing]) -> list[int]:
        """Return the indices of the things that the description fits."""
        return [i for i, thing in enumerate(things) if self.matches(thing)]

    def words(self, plural: bool = False) -> str:
        noun = self.shape or "thing"
        if plural:
            noun = {"box": "boxes", "cross": "crosses"}.get(noun, noun + "s")
        return " ".join(word for word in (self.size, self.color, noun) if word)


NOUNS = {Description(shape=shape).words(plural): shape for shape in (None, *SHAPES) for plural in (False, True)}
"""Noun, singular or plural → the shape that it names; None for "thing" and "things"."""


def descriptions(words: Sequence[str]) -> Iterator[tuple[int, int, Description]]:
    """Yield (start, stop, description) for each description in a text that is split on spaces."""
    for place, word in enumerate(words):
        noun = word.rstrip(".,?")
        if noun not in NOUNS:
            continue
        found: dict[str, str] = {}
        start = place
        while start and (name := _attribute(words[start - 1])) and name not in found:
            start -= 1
            found[name] = words[start]
        yield start, place + 1, Description(**found, shape=NOUNS[noun])


def _attribute(word: str) -> str | None:
    return "color" if word in COLORS else "size" if word in RADII else None


PATTERNS = ("shape", "color", "color shape", "size shape", "size color", "size color shape")


def describe(thing: Thing, pattern: str) -> Description:
    """Return the description of a thing that names the attributes in `pattern`."""
    return Description(**{name: getattr(thing, name) for name in pattern.split()})


def unique_description(
    rng: np.random.Generator, things: Sequence[Thing], index: int, patterns: Sequence[str]
) -> Description | None:
    """Return a description that fits only the thing `index`; None if there is none.

    The patterns are tried in random order.
    """
    for pattern in rng.permutation(patterns):
        description = describe(things[index], str(pattern))
        if description.find(things) == [index]:
            return description
    return None


def any_description(rng: np.random.Generator, things: Sequence[Thing]) -> Description:
    """Return a description whose attributes occur among the things, but perhaps not on one thing."""
    pattern = str(rng.choice(PATTERNS))
    parts = {name: getattr(things[int(rng.integers(len(things)))], name) for name in pattern.split()}
    return Description(**parts)


def extreme(things: Sequence[Thing], indices: Sequence[int], direction: str) -> int | None:
    """Return the index of the thing farthest in `direction`; None if the next one is closer than 8 pixels."""
    axis, sign = DIRECTIONS[direction]
    ranked = sorted(indices, key=lambda i: sign * things[i].center[axis])
    if len(ranked) > 1 and abs(things[ranked[0]].center[axis] - things[ranked[1]].center[axis]) < 8:
        return None
    return ranked[0]


_GRAMMAR = """
a all among and are as because both bottommost color contains each either exactly fewer has have how i image images in
is it its kind largest left leftmost like look looks many more most neither next of on one only or other own plain right
rightmost same scene see shape size smallest than that the there thing things to topmost total what which with no two
three four five six . , ? above below 0 1 2 3 4 5 6 yes
"""


def vocabulary() -> list[str]:
    """Return the WordPiece vocabulary: the special tokens of BERT, the words of all texts, and single letters.

    The letters cover any other word, such as "does".
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    plurals = [Description(shape=shape).words(plural=True) for shape in SHAPES]
    words = {*_GRAMMAR.split(), *COLORS, *RADII, *SHAPES, *plurals, *letters}
    return specials + sorted(words) + [f"##{c}" for c in letters]
