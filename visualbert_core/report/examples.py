"""A few examples of a cell as figures: picture, regions, what was asked, what was answered, what would have been right.

Owns which examples are shown (by hash of their ids, about half of them not right). Adds the answer that the same model
gave to another image: an answer that stays the same was not read off the picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import xxhash

from visualbert_core.evaluation.predictions import read_predictions
from visualbert_core.evaluation.run import Run
from visualbert_core.evaluation.units import read_units
from visualbert_core.features.names import called
from visualbert_core.report import ReportCell
from visualbert_core.report.forms import (
    TEMPLATES,
    Overlap,
    Piece,
    asked,
    object_boxes,
    region_boxes,
    regions_of,
    sentence,
    sides,
)
from visualbert_core.report.pictures import Box, Picture, colour_class, picture
from visualbert_core.schema import Grounding, MultipleChoice, Prediction, Regions

_NAMED = 12  # names a picture


@dataclass(frozen=True)
class Answers:
    """The predictions of a run, and what each is worth in [0, 1]."""

    predictions: Mapping[str, Prediction]
    worth: Mapping[str, float]

    @classmethod
    def of(cls, run: Run) -> Answers:
        """Raises StoreError for damaged predictions, InputError for damaged units."""
        predictions, _ = read_predictions(run.folder / "predictions")
        values: defaultdict[str, list[float]] = defaultdict(list)
        for units in read_units(run.folder).values():
            for judged, value in zip(units.judged, units.values.tolist(), strict=True):
                if judged is not None:
                    values[judged.example_id].append(value)
        return cls({p.example_id: p for p in predictions}, {key: fmean(value) for key, value in values.items()})


@dataclass(frozen=True)
class PhraseAnswer:
    """A phrase of a grounding, numbered and in the colour of its boxes, with how well each image answers it."""

    name: Piece
    given: Overlap
    other: Overlap | None


@dataclass(frozen=True)
class ExampleFigure:
    """An example with all its answers; `other` is the one to another image, None where there is none."""

    example: Any
    asked: Sequence[Piece]
    pictures: Sequence[Picture]
    gold: Any
    given: Prediction
    worth: float
    other: Prediction | None
    other_worth: float | None
    names: Sequence[Sequence[str]]
    """What the detector calls the regions of each picture, the surest first and every name once."""
    choices: Sequence[Sequence[Piece]] = ()
    phrases: Sequence[PhraseAnswer] = ()


@dataclass(frozen=True)
class Gallery:
    """Examples of one form, `faulty` of them not right, out of `total`."""

    form: type
    total: int
    faulty: int
    regions: bool
    """Whether the model reads regions."""
    figures: Sequence[ExampleFigure]

    @property
    def template(self) -> str:
        return TEMPLATES[self.form]


def gallery(cell: ReportCell, count: int) -> Gallery | None:
    """`count` examples of a cell with a score. Raises VisualBertCoreError where its run can no longer be read."""
    if cell.task is None or cell.run is None or cell.run.scores is None:
        return None
    own = Answers.of(cell.run)
    other = Answers.of(cell.baseline) if cell.baseline and cell.baseline.scores else Answers({}, {})
    chosen = choose(own.worth, count)
    if not chosen:
        return None
    examples = {example.example_id: example for example in cell.task.examples()}
    figures = [_figure(cell, examples[example_id], own, other) for example_id in chosen]
    faulty = sum(figure.worth < 1 for figure in figures)
    return Gallery(type(figures[0].example), len(examples), faulty, cell.store is not None, figures)


def choose(worth: Mapping[str, float], count: int) -> list[str]:
    """`count` ids in the order of their hashes: half of them not fully right, or as near to that as there are such."""
    order = sorted(worth, key=lambda example_id: xxhash.xxh3_128_hexdigest(example_id.encode()))
    right = [example_id for example_id in order if worth[example_id] == 1]
    faulty = [example_id for example_id in order if worth[example_id] < 1]
    faulty = faulty[: max(count // 2, count - len(right))]
    chosen = {*faulty, *right[: count - len(faulty)]}
    return [example_id for example_id in order if example_id in chosen]


def _figure(cell: ReportCell, example: Any, own: Answers, other: Answers) -> ExampleFigure:
    assert cell.task is not None
    name = example.example_id
    given, gold, instead = own.predictions[name], cell.task.gold(name), other.predictions.get(name)
    regions = regions_of(cell, example)
    choices = example.choices if isinstance(example, MultipleChoice) else ()
    pictures = [
        picture(side, image_id, cell.images.get(image_id), each, _boxes(example, each, given, gold))
        for side, image_id, each in zip(sides(example), example.image_ids, regions, strict=True)
    ]
    return ExampleFigure(
        example=example,
        asked=asked(example),
        pictures=pictures,
        gold=gold,
        given=given,
        worth=own.worth[name],
        other=instead,
        other_worth=other.worth.get(name),
        names=list(_names(cell, regions)),
        choices=[sentence(choice, example.objects) for choice in choices],
        phrases=list(_phrases(example, gold, given, instead)) if isinstance(example, Grounding) else (),
    )


def _names(cell: ReportCell, regions: Sequence[Regions | None]) -> Iterator[list[str]]:
    """Nothing where the store has no names."""
    for each in regions:
        if each is not None and cell.store is not None and cell.store.label_names:
            names = list(dict.fromkeys(called(label, cell.store.label_names) for label in each.labels.tolist()))
            yield names[:_NAMED] + ["…"] * (len(names) > _NAMED)


def _boxes(example: Any, regions: Regions | None, given: Prediction, gold: Any) -> list[Box]:
    if isinstance(example, MultipleChoice):
        return object_boxes(example, regions)
    if isinstance(example, Grounding):
        return _phrase_boxes(given, gold)
    return region_boxes(regions)


def _phrase_boxes(given: Prediction, gold: Sequence[Any]) -> list[Box]:
    """Of each phrase the right boxes and the model's first choice."""
    boxes: list[Box] = []
    for index, (answer, right) in enumerate(zip(given.answer, gold, strict=True)):
        number = str(index + 1)
        # Where answer and right box are nearly one, a second number would only hide the first.
        shown = "" if Overlap.of(answer, right).value else number
        boxes += [Box(corners, "gold", index, shown) for corners in right]
        boxes += [Box(corners, "answer", index, number, _drawn_before(corners, boxes)) for corners in answer[:1]]
    return boxes


def _drawn_before(corners: Sequence[float], boxes: Sequence[Box]) -> int:
    """How many phrases have this box for their answer already."""
    return sum(box.kind == "answer" and box.corners == corners for box in boxes)


def _phrases(
    example: Grounding, gold: Sequence[Any], given: Prediction, other: Prediction | None
) -> Iterator[PhraseAnswer]:
    for index, (phrase, right) in enumerate(zip(example.phrases, gold, strict=True)):
        yield PhraseAnswer(
            name=Piece(phrase.text, colour_class(index), index + 1, space=""),
            given=Overlap.of(given.answer[index], right),
            other=Overlap.of(other.answer[index], right) if other else None,
        )
