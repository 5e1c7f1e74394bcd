"""What the galleries need of the four forms of example: their words, their boxes, and which template draws them.

A form has one template (templates/forms/), which says how its examples and its flips are laid out. Regions are
optional: a model that reads pixels has none, and then only the boxes of answers and annotators are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visualbert_core.metrics.recall import IOU_THRESHOLD, box_iou
from visualbert_core.report import ReportCell
from visualbert_core.report.pictures import Box, colour_class
from visualbert_core.schema import Example, Grounding, MultipleChoice, Question, Regions, Statement, Token

TEMPLATES: Mapping[type, str] = {
    Question: "question",
    MultipleChoice: "multiple_choice",
    Statement: "statement",
    Grounding: "grounding",
}
_CLOSING = frozenset(".,;:?!)")


@dataclass(frozen=True)
class Piece:
    """Words of what was asked; those that name a box have its colour."""

    text: str
    colour: str = ""
    """CSS class."""
    number: int | None = None
    space: str = " "
    """What stands before it."""


@dataclass(frozen=True)
class Overlap:
    """How well a box answers a phrase: IoU with the nearest of the right boxes, 0 without a box."""

    iou: float

    @classmethod
    def of(cls, answer: Sequence[Sequence[float]], gold: Sequence[Sequence[float]]) -> Overlap:
        """That of the first of the ranked boxes `answer`."""
        return cls(float(box_iou(np.array(answer[:1]), np.array(gold)).max()) if answer else 0.0)

    @property
    def value(self) -> float:
        """1 for a hit."""
        return float(self.iou >= IOU_THRESHOLD)


def regions_of(cell: ReportCell, example: Example) -> tuple[Regions | None, ...]:
    """The regions of each picture, None without a store. Raises StoreError where they can no longer be read."""
    if cell.store is None:
        return (None,) * len(example.image_ids)
    return tuple(cell.store.fetch_many(example.image_ids))


def sides(example: Example) -> tuple[str, ...]:
    """What each picture of an example is called."""
    return ("left picture", "right picture") if len(example.image_ids) > 1 else ("picture",)


def region_boxes(regions: Regions | None) -> list[Box]:
    """Every region."""
    return [Box(corners, "region") for corners in regions.boxes.tolist()] if regions else []


def object_boxes(example: MultipleChoice, regions: Regions | None) -> list[Box]:
    """The objects that the model may see; region 0 is the whole image."""
    seen = [index for index in example.mentioned if regions and index + 1 < regions.num_regions]
    return [Box(regions.boxes[index + 1].tolist(), "object", index, f"[{index}]") for index in seen if regions]


def asked(example: Any, colours: Mapping[int, int] | None = None) -> tuple[Piece, ...]:
    """What was asked: a text, a context with its objects, or a caption with its phrases (see `caption`)."""
    if isinstance(example, MultipleChoice):
        return sentence(example.context, example.objects)
    if isinstance(example, Grounding):
        return caption(example, colours)
    return (Piece(example.text, space=""),)


def sentence(tokens: Sequence[Token], objects: Sequence[str]) -> tuple[Piece, ...]:
    """Words and objects; a tag such as [2] as "ball[2]" in the colour of its box."""
    return _spaced([piece for token in tokens for piece in _pieces(token, objects)])


def caption(example: Grounding, colours: Mapping[int, int] | None = None) -> tuple[Piece, ...]:
    """The caption with its phrases numbered, in the colours of their boxes; with `colours` only these phrases."""
    starts = {phrase.start: (index, phrase) for index, phrase in enumerate(example.phrases)}
    inside = {at for phrase in example.phrases for at in range(phrase.start + 1, phrase.stop)}
    pieces = []
    for at, word in enumerate(example.words):
        if at in starts:
            index, phrase = starts[at]
            if colours is None:
                pieces.append(Piece(phrase.text, colour_class(index), index + 1))
            else:
                pieces.append(Piece(phrase.text, colour_class(colours[index]) if index in colours else ""))
        elif at not in inside:
            pieces.append(Piece(word))
    return _spaced(pieces)


def _pieces(token: Token, objects: Sequence[str]) -> Iterator[Piece]:
    if isinstance(token, str):
        yield Piece(token)
        return
    for number, index in enumerate(token):
        if number:
            yield Piece("and")
        yield Piece(f"{objects[index]}[{index}]", colour_class(index))


def _spaced(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Without a space before the first piece and before closing punctuation."""
    return tuple(
        replace(piece, space="") if at == 0 or piece.text in _CLOSING else piece for at, piece in enumerate(pieces)
    )
