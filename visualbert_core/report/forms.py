"""How the galleries draw each form of example: its words, its boxes, and the name of its template.

`FORMS` has an entry for each form. templates/forms/ lays out its examples and its flips. Regions are optional: a model
that reads pixels has none. Then only the boxes of answers and annotators are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from visualbert_core.comparison.flips import Flip
from visualbert_core.metrics.recall import IOU_THRESHOLD, box_iou
from visualbert_core.report import ReportCell
from visualbert_core.report.pictures import Box, colour_class
from visualbert_core.schema import (
    Captioning,
    Example,
    Grounding,
    MultipleChoice,
    Prediction,
    Question,
    Regions,
    Statement,
    Token,
)
from visualbert_core.tasks import Task

_CLOSING = frozenset(".,;:?!)")
_BEFORE, _NOW, _GOLD = 0, 1, 2  # colours of the boxes of a flip
_TRUTH = {True: "true", False: "false", None: ""}


@dataclass(frozen=True)
class Piece:
    """Some words of what was asked. Words that name a box have the colour of the box."""

    text: str
    colour: str = ""
    """CSS class."""
    number: int | None = None
    space: str = " "
    """What is written before the words."""


@dataclass(frozen=True)
class Form:
    """How a form of example is drawn."""

    name: str
    """Name of its template, and its CSS class."""
    asked: Callable[[Any, int | None], tuple[Piece, ...]]
    """(example, phrase) → what was asked. In a flip, `phrase` is the one that flipped, and only it has a colour."""
    answer_boxes: Callable[[Any, Regions | None, Prediction, Any], list[Box]]
    """(example, regions, prediction, right answer) → the boxes over a picture of the example gallery."""
    flip_boxes: Callable[[Any, Regions | None, Flip, Any], list[Box]]
    """(example, regions, flip, right answer) → the boxes over a picture of the flip gallery."""
    flip_regions: bool = False
    """Whether a flip is drawn with all regions: a question or statement may be about any of them."""


def regions_of(cell: ReportCell, example: Example) -> tuple[Regions | None, ...]:
    """Return the regions of each picture, or None for each without a store.

    Raise StoreError where they can no longer be read.
    """
    if cell.store is None:
        return (None,) * len(example.image_ids)
    return tuple(cell.store.fetch_many(example.image_ids))


def sides(example: Example) -> tuple[str, ...]:
    """Return the name of each picture of an example."""
    return ("left picture", "right picture") if len(example.image_ids) > 1 else ("picture",)


def overlap(answer: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> tuple[float, bool]:
    """Return the best IoU of the first of the ranked boxes `answer` with a box of `right`, and whether it is a hit."""
    iou = float(box_iou(np.array(answer[:1]), np.array(right)).max()) if answer else 0.0
    return iou, iou >= IOU_THRESHOLD


def sentence(tokens: Sequence[Token], objects: Sequence[str]) -> tuple[Piece, ...]:
    """Return words and objects. An object tag such as [2] becomes "ball[2]", in the colour of its box."""
    return _spaced([piece for token in tokens for piece in _pieces(token, objects)])


def right_boxes(gold: Sequence[Sequence[Any]], phrase: int | None) -> list[Any]:
    """Return the right boxes of one phrase, or of all phrases if `phrase` is None."""
    return [box for index, boxes in enumerate(gold) if phrase in (None, index) for box in boxes]


def marked(task: Task, example_id: str, answer: Any) -> tuple[Piece, ...]:
    """Return the words of an answer in the colours of true and false; nothing where the benchmark does not tell."""
    words = task.marked(example_id, answer) if isinstance(answer, str) else ()
    return tuple(Piece(each.text, _TRUTH[each.true], space="") for each in words)


# ---------------------------------------------------------------------------------------------------------------------
# questions, statements and captions


def _text(example: Question | Statement, _: int | None) -> tuple[Piece, ...]:
    return (Piece(example.text, space=""),)


def _described(*_: Any) -> tuple[Piece, ...]:
    return (Piece("Describe the picture.", space=""),)


def _region_boxes(_: Any, regions: Regions | None, *__: Any) -> list[Box]:
    return [Box(corners, "region") for corners in regions.boxes.tolist()] if regions else []


# ---------------------------------------------------------------------------------------------------------------------
# multiple choices


def _context(example: MultipleChoice, _: int | None) -> tuple[Piece, ...]:
    return sentence(example.context, example.objects)


def _object_boxes(example: MultipleChoice, regions: Regions | None, *_: Any) -> list[Box]:
    """Return the boxes of the objects that the item mentions: VCR's protocol shows the model no others."""
    boxes = regions.boxes.tolist()[1:] if regions else []  # region 0 is the whole image
    return [Box(boxes[index], "object", index, f"[{index}]") for index in example.mentioned if index < len(boxes)]


def _pieces(token: Token, objects: Sequence[str]) -> Iterator[Piece]:
    if isinstance(token, str):
        yield Piece(token)
        return
    for number, index in enumerate(token):
        if number:
            yield Piece("and")
        yield Piece(f"{objects[index]}[{index}]", colour_class(index))


def _spaced(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Remove the space before the first piece and before closing punctuation."""
    return tuple(
        replace(piece, space="") if at == 0 or piece.text in _CLOSING else piece for at, piece in enumerate(pieces)
    )


# ---------------------------------------------------------------------------------------------------------------------
# groundings


def _caption(example: Grounding, only: int | None) -> tuple[Piece, ...]:
    """Return the caption. Phrases have numbers and the colours of their boxes; in a flip, `only` one has a colour."""
    starts = {phrase.start: (index, phrase.text) for index, phrase in enumerate(example.phrases)}
    inside = {at for phrase in example.phrases for at in range(phrase.start + 1, phrase.stop)}
    pieces = []
    for at, word in enumerate(example.words):
        if at in starts:
            index, text = starts[at]
            whole = Piece(text, colour_class(index), index + 1)
            pieces.append(whole if only is None else Piece(text, colour_class(_GOLD) if only == index else ""))
        elif at not in inside:
            pieces.append(Piece(word))
    return _spaced(pieces)


def _phrase_boxes(_: Any, __: Regions | None, given: Prediction, gold: Sequence[Any]) -> list[Box]:
    """Return the right boxes of each phrase, and the model's first choice for it."""
    boxes: list[Box] = []
    for index, (answer, right) in enumerate(zip(given.answer, gold, strict=True)):
        number, (_, hit) = str(index + 1), overlap(answer, right)
        # On a hit, the right box lies over the answer: a second number would hide the first.
        shown = "" if hit else number
        boxes += [Box(corners, "gold", index, shown) for corners in right]
        for corners in answer[:1]:
            same = sum(box.kind == "answer" and box.corners == corners for box in boxes)  # earlier phrases' answer
            boxes.append(Box(corners, "answer", index, number, same))
    return boxes


def _flipped_boxes(_: Any, __: Regions | None, flip: Flip, gold: Sequence[Any]) -> list[Box]:
    """Return the right boxes of the phrase, and the first choice of each night."""
    boxes = [Box(corners, "gold", _GOLD) for corners in right_boxes(gold, flip.part)]
    if flip.answer_before is not None:
        boxes.append(Box(flip.answer_before, "answer", _BEFORE, "before"))
    if flip.answer_after is not None:
        boxes.append(Box(flip.answer_after, "answer", _NOW, "now", below=True))
    return boxes


FORMS: Mapping[type, Form] = {
    Question: Form("question", _text, _region_boxes, lambda *_: [], flip_regions=True),
    Statement: Form("statement", _text, _region_boxes, lambda *_: [], flip_regions=True),
    MultipleChoice: Form("multiple_choice", _context, _object_boxes, _object_boxes),
    Grounding: Form("grounding", _caption, _phrase_boxes, _flipped_boxes),
    Captioning: Form("captioning", _described, _region_boxes, lambda *_: []),
}
