"""VCR by likelihood: the likeliest of the four choices counts.

A choice follows the context as its continuation. Likelihoods give a score for each choice, as the leaderboard's file
needs; a written letter would not. Long choices have low likelihoods, so the mean over the tokens is the default
("choice-mean"); "choice-sum" is the plain likelihood. No published zero-shot protocol for VCR exists.

Text must say who is meant. The people are shown in one of two ways:

named   People have neutral names, as in R2C (github.com/rowanz/r2c). The image does not say who is who.
drawn   The image also shows the box of each object that the item mentions, in a colour, and the prompt tells the
        colours. Line and fill follow `draw_bbox.py` of github.com/rowanz/merlot at c83dcc1b. MERLOT is fine-tuned, so
        its text tells no colours. Its `draw_segms.py` draws outlines in place of boxes.

Nothing is drawn on a wrong image. The boxes of its own objects would mark other people, and the boxes of the example
would tell where people were. The text stays the same, so that the score shows what the text alone answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visualbert_core.config import AnsweringConfig
from visualbert_core.errors import ConfigError, InputError
from visualbert_core.models.generative.asked import Asked, Outcome, sentence
from visualbert_core.schema import Generated, MultipleChoice, Pixels, Token

PERSON = "person"
NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry"),
    *("Jody", "Kendall", "Skyler", "Frankie", "Pat", "Quinn"),
)
"""The neutral names of R2C, each once. A further person is "person 15"."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 170, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "orange": (255, 127, 0),
    "purple": (127, 0, 170),
    "brown": (127, 64, 0),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (145, 145, 145),
}
"""The colours of boxes, people first. Where an item mentions more objects, the others have no box."""
OPACITY = 0.15  # of the fill, as in MERLOT
LINE = 7 / 800  # MERLOT's line of 7 pixels as a part of the shorter side, which is about 800 in VCR


@dataclass(frozen=True)
class Settings:
    """How a choice is asked for. `prompt` holds {} once, in the place of the context."""

    prompt: str = "{}"
    normalise: Literal["sum", "mean"] = "mean"
    people: Literal["named", "drawn"] = "named"

    @property
    def protocol(self) -> str:
        """Return the settings as reports print them."""
        return f'"{self.prompt}", choice-{self.normalise}, people {self.people}'


def settings_of(answering: AnsweringConfig) -> Settings:
    """Return the settings that the user has chosen. Raise ConfigError where the answers shall be written."""
    if answering.answer_by == "generate":
        raise ConfigError(
            "answer_by generate: a written answer gives no score for each of the four choices, which VCR's leaderboard "
            "needs; leave it out"
        )
    return Settings(answering.prompt or "{}", answering.normalise or "mean", answering.people or "named")


def ask(example: MultipleChoice, pictures: Sequence[Pixels], settings: Settings) -> list[Asked]:
    """Return one question with the choices as its continuations.

    People are drawn where the picture comes with boxes: row 0 is the whole image, and object i is row i + 1. Raise
    InputError where an object has no row, or where the boxes belong to an image of another size.
    """
    drawn, picture = settings.people == "drawn", pictures[0]
    names = _names(example, drawn)
    colours = dict(zip(_people_first(names, example.objects), COLOURS, strict=False)) if drawn else {}
    context = " ".join((*_legend(names, colours), _sentence(example.context, names)))
    image = _draw(picture, colours, example) if drawn and picture.boxes is not None else picture.rgb
    choices = tuple(_sentence(choice, names) for choice in example.choices)
    return [Asked(settings.prompt.replace("{}", context), (image,), choices)]


def read(
    example: MultipleChoice, pictures: Sequence[Pixels], outcomes: Sequence[Outcome], settings: Settings
) -> tuple[int, tuple[float, ...], tuple[Generated, ...]]:
    """Return the index of the likeliest choice, a probability for each choice, and no text.

    The lowest index wins a tie.
    """
    scores = outcomes[0].probabilities(settings.normalise)
    return max(range(len(scores)), key=scores.__getitem__), scores, ()


# ---------------------------------------------------------------------------------------------------------------------
# text


def _names(example: MultipleChoice, drawn: bool) -> dict[int, str]:
    """Return the name of each object that the item mentions.

    People have neutral names in the order of the objects, so that the four choices agree. Other objects have the name
    of their class. Where objects are drawn, several of one class have numbers.
    """
    tags = (token for text in (example.context, *example.choices) for token in text if isinstance(token, tuple))
    mentioned = sorted({*example.mentioned, *(index for tag in tags for index in tag)})
    kinds, seen = Counter(example.objects[index] for index in mentioned), Counter[str]()
    names = {}
    for index in mentioned:
        kind = example.objects[index]
        seen[kind] += 1
        if kind == PERSON and seen[kind] <= len(NAMES):
            names[index] = NAMES[seen[kind] - 1]
        else:
            names[index] = f"{kind} {seen[kind]}" if kind == PERSON or (drawn and kinds[kind] > 1) else kind
    return names


def _people_first(names: Iterable[int], objects: Sequence[str]) -> list[int]:
    return sorted(names, key=lambda index: (objects[index] != PERSON, index))


def _legend(names: Mapping[int, str], colours: Mapping[int, str]) -> Iterator[str]:
    if colours:
        yield f"{_listed(f'{names[index]} is in the {colour} box' for index, colour in colours.items())}."


def _sentence(tokens: Iterable[Token], names: Mapping[int, str]) -> str:
    """Return a text with names in place of object tags."""
    words = (token if isinstance(token, str) else _listed(names[index] for index in token) for token in tokens)
    return sentence(words)


def _listed(words: Iterable[str]) -> str:
    """Return "A", "A and B" or "A, B and C"."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


# ---------------------------------------------------------------------------------------------------------------------
# boxes on the image


def _draw(picture: Pixels, colours: Mapping[int, str], example: MultipleChoice) -> np.ndarray:
    """Return the image, uint8 [H, W, 3], with the boxes of the objects in their colours."""
    assert picture.boxes is not None
    _check(picture, picture.boxes, colours, example)
    image = picture.rgb.copy()
    corners = {index: _pixels(picture.boxes[index + 1], picture) for index in colours}
    # A small box inside a large one must stay visible, so it comes later.
    for index in sorted(colours, key=lambda index: -_area(corners[index])):
        _mark(image, corners[index], COLOURS[colours[index]])
    return image


def _check(picture: Pixels, boxes: np.ndarray, wanted: Iterable[int], example: MultipleChoice) -> None:
    width, height = boxes[0, 2:].tolist()
    lost = [index for index in wanted if index + 1 >= len(boxes)]
    if (width, height) != (picture.width, picture.height):
        fault = f"are of {width:g} × {height:g} pixels, and the image has {picture.width} × {picture.height}"
    elif lost:
        fault = f"are {len(boxes) - 1}, and object {lost[0]} has none"
    else:
        return
    raise InputError(
        f"{example.example_id}: the boxes in the JSON file beside image {picture.image_id!r} {fault}: take image, JSON "
        "file and annotations from one release"
    )


def _pixels(box: np.ndarray, picture: Pixels) -> tuple[int, int, int, int]:
    """Return the first and the last column and row of a box, cut to the image: left, top, right, bottom (exclusive)."""
    limits = np.array([picture.width, picture.height] * 2)
    left, top, right, bottom = np.clip(np.round(box), 0, limits).astype(int).tolist()
    return left, top, right, bottom


def _area(corners: tuple[int, int, int, int]) -> int:
    left, top, right, bottom = corners
    return (right - left) * (bottom - top)


def _mark(image: np.ndarray, corners: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = corners
    line = max(2, math.floor(LINE * min(image.shape[:2])))
    inside = image[top:bottom, left:right]
    inside[:] = np.round((1 - OPACITY) * inside + OPACITY * np.array(colour)).astype(np.uint8)
    for edge in (inside[:line], inside[-line:], inside[:, :line], inside[:, -line:]):
        edge[:] = colour
