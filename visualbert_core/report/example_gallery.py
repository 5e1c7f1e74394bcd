"""The example gallery: a few examples of a cell as figures, with picture, regions, question, answer and right answer.

Owns which examples are shown: a hash of the ids draws them, and about half of them are not right. Each figure also has
the answer of the same model over the wrong image. If both answers are the same, the model did not need the image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import xxhash

from visualbert_core.evaluation.run_folder import Run
from visualbert_core.evaluation.units import read_units
from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.features.label_names import label_name
from visualbert_core.report import ReportCell
from visualbert_core.report.forms import FORMS, Piece, marked, regions_of, sides
from visualbert_core.report.pictures import Picture, picture
from visualbert_core.schema import Prediction, Regions

_NAMED = 12  # names of labels under a picture


@dataclass(frozen=True)
class RunAnswers:
    """The predictions of a run by example id, and the mean score in [0, 1] of the units that judge each."""

    predictions: Mapping[str, Prediction]
    worth: Mapping[str, float]

    @classmethod
    def of(cls, run: Run) -> RunAnswers:
        """Read them from a run folder. Raise StoreError for damaged predictions, InputError for damaged units."""
        predictions, _ = read_predictions(run.folder / "predictions")
        values: defaultdict[str, list[float]] = defaultdict(list)
        for units in read_units(run.folder).values():
            for judged, value in zip(units.judged, units.values.tolist(), strict=True):
                if judged is not None:
                    values[judged.example_id].append(value)
        return cls({p.example_id: p for p in predictions}, {key: fmean(value) for key, value in values.items()})


@dataclass(frozen=True)
class ExampleFigure:
    """An example with all its answers. `other` is the prediction over the wrong image, or None."""

    example: Any
    asked: Sequence[Piece]
    pictures: Sequence[Picture]
    gold: Any
    given: Prediction
    worth: float
    other: Prediction | None
    other_worth: float | None
    references: Sequence[str]
    """What people answered in their own words."""
    marked: Sequence[Piece]
    """The answer with its true and false words; empty where the benchmark does not tell."""
    other_marked: Sequence[Piece]
    """The same of `other`."""
    names: Sequence[Sequence[str]]
    """For each picture the label names of its regions: highest detector score first, every name once."""


@dataclass(frozen=True)
class Gallery:
    """Figures of one form of example, drawn from `total` examples. `faulty` figures are not right."""

    form: str
    total: int
    faulty: int
    regions: bool
    """Whether the model reads regions."""
    figures: Sequence[ExampleFigure]


def gallery(cell: ReportCell, count: int) -> Gallery | None:
    """Return figures of `count` examples, or None for a cell without a score.

    Raise VisualBertCoreError where the run can no longer be read.
    """
    if cell.task is None or cell.run is None or cell.run.scores is None:
        return None
    own = RunAnswers.of(cell.run)
    other = RunAnswers.of(cell.baseline) if cell.baseline and cell.baseline.scores else RunAnswers({}, {})
    chosen = choose(own.worth, count)
    if not chosen:
        return None
    examples = {example.example_id: example for example in cell.task.examples()}
    figures = [_figure(cell, examples[example_id], own, other) for example_id in chosen]
    faulty = sum(figure.worth < 1 for figure in figures)
    return Gallery(FORMS[type(figures[0].example)].name, len(examples), faulty, cell.store is not None, figures)


def choose(worth: Mapping[str, float], count: int) -> list[str]:
    """Return `count` ids in the order of their hashes. Half of them are not fully right, or as many as there are."""
    order = sorted(worth, key=lambda example_id: xxhash.xxh3_128_hexdigest(example_id.encode()))
    right = [example_id for example_id in order if worth[example_id] == 1]
    faulty = [example_id for example_id in order if worth[example_id] < 1]
    faulty = faulty[: max(count // 2, count - len(right))]
    chosen = {*faulty, *right[: count - len(faulty)]}
    return [example_id for example_id in order if example_id in chosen]


def _figure(cell: ReportCell, example: Any, own: RunAnswers, other: RunAnswers) -> ExampleFigure:
    assert cell.task is not None
    name, form = example.example_id, FORMS[type(example)]
    task, other_prediction = cell.task, other.predictions.get(name)
    given, gold, regions = own.predictions[name], cell.task.gold(name), regions_of(cell, example)
    return ExampleFigure(
        example=example,
        asked=form.asked(example, None),
        pictures=[
            picture(side, image_id, cell.images.get(image_id), each, form.answer_boxes(example, each, given, gold))
            for side, image_id, each in zip(sides(example), example.image_ids, regions, strict=True)
        ],
        gold=gold,
        given=given,
        worth=own.worth[name],
        other=other_prediction,
        other_worth=other.worth.get(name),
        references=task.references(name),
        marked=marked(task, name, given.answer),
        other_marked=marked(task, name, other_prediction.answer) if other_prediction else (),
        names=list(_names(cell, regions)),
    )


def _names(cell: ReportCell, regions: Sequence[Regions | None]) -> Iterator[list[str]]:
    """Yield the label names of each picture; nothing where the store has no names."""
    for each in regions:
        if each is not None and cell.store is not None and cell.store.label_names:
            names = list(dict.fromkeys(label_name(label, cell.store.label_names) for label in each.labels.tolist()))
            yield names[:_NAMED] + ["…"] * (len(names) > _NAMED)
