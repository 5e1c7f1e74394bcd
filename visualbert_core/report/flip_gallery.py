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
from visualbert_core.report.forms import FORMS, marked, regions_of, right_boxes, sides
from visualbert_core.report.gate_section import CellNight
from visualbert_core.report.pictures import Sheet, picture
from visualbert_core.report.scores import label
from visualbert_core.schema import Grounding, Regions
from visualbert_core.tasks import Task

FLIPS = 200
"""The most flips that a page shows."""
PICTURE_BYTES = 2_500_000
"""Bytes of JPEG that all pictures share."""

_SAID = 5  # complaints shown: where a store is gone, every flip has the same complaint
_WAYS = ("worse", "better")


@dataclass(frozen=True)
class _Case:
    """A flip, with what its figure needs."""

    number: int  # of the cell on the page, from 1
    cell: ReportCell
    task: Task
    metric: str
    way: str
    flip: Flip
    example: Any
    regions: tuple[Regions | None, ...]


def flip_gallery(cells: Sequence[ReportCell], nights: Sequence[CellNight]) -> dict[str, Any] | None:
    """Return what the section shows, or None where nothing flipped."""
    chosen = _chosen(list(_lists(cells, nights)), FLIPS)
    if not chosen:
        return None
    cases, complaints = _cases(cells, chosen)
    pictures = [
        (case.cell.images.get(image_id), regions)
        for case in cases
        for image_id, regions in zip(case.example.image_ids, case.regions, strict=True)
    ]
    sheet = Sheet.of(pictures, PICTURE_BYTES)
    figures = [_figure(case, sheet) for case in cases]
    every = [found for night in nights if night.comparison for found in night.comparison.flips.values()]
    return {
        "flipped": sum(found.worse_count + found.better_count for found in every),
        "figures": figures,
        "complaints": complaints[:_SAID],
        "sheet": sheet,
        "cells": {number: cells[number - 1].title for number in sorted({case.number for case in cases})},
        "regions": any(shown["outlines"] for figure in figures for shown in figure["pictures"]),
    }


_Listed = tuple[int, Task, str, str, Flip]


def _lists(cells: Sequence[ReportCell], nights: Sequence[CellNight]) -> Iterator[list[_Listed]]:
    """Yield a list of (index of the cell, its task, metric, way, flip) for each cell, metric and way; "worse" first."""
    for way in _WAYS:
        for index, (cell, night) in enumerate(zip(cells, nights, strict=True)):
            if night.comparison and cell.task:
                for metric, found in night.comparison.flips.items():
                    yield [(index, cell.task, metric, way, flip) for flip in getattr(found, way)]


def _chosen(lists: Sequence[list[_Listed]], count: int) -> list[_Listed]:
    """Take the first flip of every list, then every second flip, and so on. Return worse flips before better ones."""
    turns = chain.from_iterable(zip_longest(*lists))
    taken = [turn for turn in turns if turn is not None][:count]
    return sorted(taken, key=lambda listed: _WAYS.index(listed[3]))


def _cases(cells: Sequence[ReportCell], chosen: Sequence[_Listed]) -> tuple[list[_Case], list[str]]:
    """Return the flips with what their figures need, and a line for each flip that can no longer be shown."""
    examples: dict[int, Mapping[str, Any]] = {}
    cases = []
    complaints = []
    for index, task, metric, way, flip in chosen:
        cell = cells[index]
        if index not in examples:
            examples[index] = {example.example_id: example for example in task.examples()}
        example = examples[index][flip.example_id]
        try:
            cases.append(_Case(index + 1, cell, task, metric, way, flip, example, regions_of(cell, example)))
        except VisualBertCoreError as error:
            complaints.append(f"{flip.unit_id} cannot be shown: {cell.places.hide(str(error))}")
    return cases, complaints


def _figure(case: _Case, sheet: Sheet) -> dict[str, Any]:
    """Return a flip as the template of its form draws it."""
    cell, task, flip, example = case.cell, case.task, case.flip, case.example
    form, gold = FORMS[type(example)], task.gold(flip.example_id)
    pictures = []
    for side, image_id, regions in zip(sides(example), example.image_ids, case.regions, strict=True):
        boxes = form.flip_boxes(example, regions, flip, gold)
        image = cell.images.get(image_id)
        pictures.append(picture(side, image_id, image, regions, boxes, sheet, outlined=form.flip_regions))
    return {
        "number": case.number,
        "cell": cell.title,
        "metric": label(case.metric, task) if case.metric != task.headline else "",
        "way": case.way,
        "form": form.name,
        "flip": flip,
        "example": example,
        "gold": right_boxes(gold, flip.part) if isinstance(example, Grounding) else gold,
        "references": task.references(flip.example_id),  # what people answered in their own words
        "marked_before": marked(task, flip.example_id, flip.answer_before),
        "marked_after": marked(task, flip.example_id, flip.answer_after),
        "asked": form.asked(example, flip.part),
        "pictures": pictures,
    }
