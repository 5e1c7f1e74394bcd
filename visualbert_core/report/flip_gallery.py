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
from visualbert_core.schema import Grounding, Image, Regions
from visualbert_core.tasks import Task

FLIPS = 200
"""The most flips that a page shows."""
PICTURE_BYTES = 2_500_000
"""Bytes of JPEG that all pictures share."""

_SAID = 5  # complaints shown: where a store is gone, every flip has the same complaint
_WAYS = ("worse", "better")


@dataclass(frozen=True)
class _Listed:
    """A flip, with its cell, metric and direction."""

    number: int  # of the cell on the page, from 1
    cell: ReportCell
    task: Task
    metric: str
    way: str
    flip: Flip


def flip_gallery(cells: Sequence[ReportCell], nights: Sequence[CellNight]) -> dict[str, Any] | None:
    """Return what the section shows, or None where nothing flipped. A complaint stands for a flip without a figure."""
    chosen = _chosen(list(_lists(cells, nights)), FLIPS)
    if not chosen:
        return None
    examples: dict[int, Mapping[str, Any]] = {}
    found, complaints = [], []
    for each in chosen:
        if each.number not in examples:
            examples[each.number] = {example.example_id: example for example in each.task.examples()}
        example = examples[each.number][each.flip.example_id]
        try:
            found.append((each, example, regions_of(each.cell, example)))
        except VisualBertCoreError as error:
            complaints.append(f"{each.flip.unit_id} cannot be shown: {each.cell.places.hide(str(error))}")
    shown: list[tuple[Image | None, Regions | None]] = []
    for each, example, regions in found:
        shown += zip(map(each.cell.images.get, example.image_ids), regions, strict=True)
    sheet = Sheet.of(shown, PICTURE_BYTES)
    figures = [_figure(*each, sheet) for each in found]
    every = [flips for night in nights if night.comparison for flips in night.comparison.flips.values()]
    return {
        "flipped": sum(flips.worse_count + flips.better_count for flips in every),
        "figures": figures,
        "complaints": complaints[:_SAID],
        "sheet": sheet,
        "cells": {number: cells[number - 1].title for number in sorted({each.number for each, *_ in found})},
        "regions": any(shown["outlines"] for figure in figures for shown in figure["pictures"]),
    }


def _lists(cells: Sequence[ReportCell], nights: Sequence[CellNight]) -> Iterator[list[_Listed]]:
    """Yield the flips of each cell, metric and way as a list; "worse" comes first."""
    for way in _WAYS:
        for number, (cell, night) in enumerate(zip(cells, nights, strict=True), start=1):
            if night.comparison and cell.task:
                for metric, found in night.comparison.flips.items():
                    yield [_Listed(number, cell, cell.task, metric, way, flip) for flip in getattr(found, way)]


def _chosen(lists: Sequence[list[_Listed]], count: int) -> list[_Listed]:
    """Take the first flip of every list, then every second flip, and so on. Return worse flips before better ones."""
    turns = chain.from_iterable(zip_longest(*lists))
    taken = [turn for turn in turns if turn is not None][:count]
    return sorted(taken, key=lambda listed: _WAYS.index(listed.way))


def _figure(listed: _Listed, example: Any, regions: tuple[Regions | None, ...], sheet: Sheet) -> dict[str, Any]:
    """Return a flip as the template of its form draws it."""
    cell, task, flip = listed.cell, listed.task, listed.flip
    form, gold = FORMS[type(example)], task.gold(flip.example_id)
    pictures = []
    for side, image_id, each in zip(sides(example), example.image_ids, regions, strict=True):
        boxes, image = form.flip_boxes(example, each, flip, gold), cell.images.get(image_id)
        pictures.append(picture(side, image_id, image, each, boxes, sheet, outlined=form.flip_regions))
    return {
        "number": listed.number,
        "cell": cell.title,
        "metric": label(listed.metric, task) if listed.metric != task.headline else "",
        "way": listed.way,
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
