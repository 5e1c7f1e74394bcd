"""The flip gallery: the examples that got worse or better since the earlier night, each with its picture.

Owns which flips are shown. Every cell, metric and direction takes its turn; within each, the flips whose confidence
changed most come first. Also owns that a page with 200 flips stays small: a picture and its regions are in the page
once, however many flips use them, and all pictures share `PICTURE_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from visualbert_core.comparison.flips import Flip
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.report import ReportCell
from visualbert_core.report.forms import FORMS, Piece, marked, regions_of, right_boxes, sides
from visualbert_core.report.gate_section import CellNight
from visualbert_core.report.pictures import Picture, Sheet
from visualbert_core.report.scores import label
from visualbert_core.schema import Grounding, Regions

FLIPS = 200
"""The most flips that a page shows."""
PICTURE_BYTES = 2_500_000
"""Bytes of JPEG that all pictures share."""

_SAID = 5  # complaints shown: where a store is gone, every flip has the same complaint
_WAYS = ("worse", "better")


@dataclass(frozen=True)
class FlipFigure:
    """A flip as the template of its form draws it."""

    number: int  # of the cell on the page, from 1
    cell: str
    metric: str
    """The metric's name for users; empty for the headline metric."""
    way: str
    form: str
    flip: Flip
    example: Any
    gold: Any
    """The right answer. For a grounding, the right boxes of the phrase that flipped."""
    references: Sequence[str]
    """What people answered in their own words."""
    marked_before: Sequence[Piece]
    """The earlier answer with its true and false words; empty where the benchmark does not tell."""
    marked_after: Sequence[Piece]
    asked: Sequence[Piece]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class FlipGallery:
    """The section. A complaint stands for a flip that can no longer be shown."""

    flipped: int
    figures: Sequence[FlipFigure]
    complaints: Sequence[str]
    sheet: Sheet
    cells: Mapping[int, str]
    """Number → title of the cells with a flip."""

    @property
    def regions(self) -> bool:
        """Return whether any picture has its regions drawn over it."""
        return any(picture.outlines for figure in self.figures for picture in figure.pictures)


@dataclass(frozen=True)
class _Case:
    """A flip, with what its figure needs."""

    number: int
    cell: ReportCell
    metric: str
    way: str
    flip: Flip
    example: Any
    gold: Any
    regions: tuple[Regions | None, ...]


def flip_gallery(cells: Sequence[ReportCell], nights: Sequence[CellNight]) -> FlipGallery | None:
    """Return the section, or None where nothing flipped."""
    chosen = _chosen(list(_lists(cells, nights)), FLIPS)
    if not chosen:
        return None
    cases, complaints = _cases(cells, chosen)
    shown = [
        (case.cell.images.get(image_id), regions)
        for case in cases
        for image_id, regions in zip(case.example.image_ids, case.regions, strict=True)
    ]
    sheet = Sheet.of(shown, PICTURE_BYTES)
    figures = [_figure(case, sheet) for case in cases]
    titles = {number: cells[number - 1].title for number in sorted({case.number for case in cases})}
    return FlipGallery(_all(nights), figures, complaints[:_SAID], sheet, titles)


_Listed = tuple[int, str, str, Flip]


def _lists(cells: Sequence[ReportCell], nights: Sequence[CellNight]) -> Iterator[list[_Listed]]:
    """Yield a list of (index of the cell, metric, way, flip) for each cell, metric and way; "worse" comes first."""
    for way in _WAYS:
        for index, (cell, night) in enumerate(zip(cells, nights, strict=True)):
            if night.comparison and cell.task:
                for metric, found in night.comparison.flips.items():
                    yield [(index, metric, way, flip) for flip in getattr(found, way)]


def _all(nights: Sequence[CellNight]) -> int:
    every = (found for night in nights if night.comparison for found in night.comparison.flips.values())
    return sum(found.worse_count + found.better_count for found in every)


def _chosen(lists: Sequence[list[_Listed]], count: int) -> list[_Listed]:
    """Take the first flip of every list, then every second flip, and so on. Return worse flips before better ones."""
    turns = chain.from_iterable(zip_longest(*lists))
    taken = [turn for turn in turns if turn is not None][:count]
    return sorted(taken, key=lambda listed: _WAYS.index(listed[2]))


def _cases(cells: Sequence[ReportCell], chosen: Sequence[_Listed]) -> tuple[list[_Case], list[str]]:
    """Return the flips with what their figures need, and a line for each flip that can no longer be shown."""
    examples: dict[int, Mapping[str, Any]] = {}
    cases = []
    complaints = []
    for index, metric, way, flip in chosen:
        cell = cells[index]
        assert cell.task is not None
        if index not in examples:
            examples[index] = {example.example_id: example for example in cell.task.examples()}
        example = examples[index][flip.example_id]
        try:
            regions = regions_of(cell, example)
        except VisualBertCoreError as error:
            complaints.append(f"{flip.unit_id} cannot be shown: {cell.places.hide(str(error))}")
            continue
        cases.append(_Case(index + 1, cell, metric, way, flip, example, cell.task.gold(flip.example_id), regions))
    return cases, complaints


def _figure(case: _Case, sheet: Sheet) -> FlipFigure:
    cell, flip, example = case.cell, case.flip, case.example
    assert cell.task is not None
    form = FORMS[type(example)]
    pictures = []
    for side, image_id, regions in zip(sides(example), example.image_ids, case.regions, strict=True):
        boxes = form.flip_boxes(example, regions, flip, case.gold)
        image = cell.images.get(image_id)
        pictures.append(sheet.picture(side, image_id, image, regions, boxes, outlined=form.flip_regions))
    return FlipFigure(
        number=case.number,
        cell=cell.title,
        metric=label(case.metric, cell.task) if case.metric != cell.task.headline else "",
        way=case.way,
        form=form.name,
        flip=flip,
        example=example,
        gold=right_boxes(case.gold, flip.part) if isinstance(example, Grounding) else case.gold,
        references=cell.task.references(flip.example_id),
        marked_before=marked(cell.task, flip.example_id, flip.answer_before),
        marked_after=marked(cell.task, flip.example_id, flip.answer_after),
        asked=form.asked(example, flip.part),
        pictures=pictures,
    )
