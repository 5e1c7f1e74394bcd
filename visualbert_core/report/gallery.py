"""The flip gallery: the examples that got worse or better since the earlier night, each with its picture.

Owns which flips are shown (of every cell, metric and direction in turn, those that were surest in both ways), how each
form of example looks before and after, and that a page with 200 of them stays small: a picture and the regions drawn
over it are in the page once, however many flips use them, and all pictures share `PICTURE_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from visualbert_core.comparison.flips import Flip
from visualbert_core.errors import VisualBertCoreError
from visualbert_core.metrics.recall import IOU_THRESHOLD
from visualbert_core.report import ReportCell
from visualbert_core.report.examples import caption, confidence, mark, overlap, sentence, sign
from visualbert_core.report.markup import Html, join, tag
from visualbert_core.report.pictures import Box, Sheet, colour_class
from visualbert_core.report.scores import label
from visualbert_core.report.verdict import CellNight
from visualbert_core.schema import Grounding, MultipleChoice, Regions

FLIPS = 200
"""Flips a page."""
PICTURE_BYTES = 2_500_000
"""Of JPEG, all pictures together."""

_SAID = 5  # complaints: of a store that is gone, every flip has the same
_WAYS = {"worse": "▼ worse", "better": "▲ better"}


@dataclass(frozen=True)
class _Case:
    """A flip with what is needed to show it."""

    number: int
    cell: ReportCell
    metric: str
    way: str
    flip: Flip
    example: Any
    gold: Any
    regions: tuple[Regions, ...]


@dataclass(frozen=True)
class _Look:
    """What was asked, what was answered, the boxes over each picture, and whether the regions are drawn as well."""

    asked: Html
    answered: Html
    boxes: Sequence[Sequence[Box]]
    outlined: bool


def flip_gallery(cells: Sequence[ReportCell], nights: Sequence[CellNight]) -> Html:
    """The section, empty where nothing flipped. What cannot be read any more is said in place of its flips."""
    chosen = _chosen(list(_lists(cells, nights)), FLIPS)
    if not chosen:
        return Html()
    cases, complaints = _cases(cells, chosen)
    sheet = Sheet(PICTURE_BYTES)
    for case in cases:
        for regions in case.regions:
            sheet.add(case.cell.images.get(regions.image_id), regions)
    figures = [_figure(case, sheet) for case in cases]
    counts = f"{len(cases):,} of the {_all(nights):,} units that flipped, those whose confidence changed most first. "
    return tag(
        "section",
        tag("h2", "Flips"),
        tag("p", counts, _NOTE, class_="note"),
        *(tag("p", line, class_="error") for line in complaints[:_SAID]),
        _filter(cells, cases),
        sheet.html(),
        tag("div", *figures, class_="flips"),
        tag("button", "Show more", id="more", type="button", hidden=True),
        id="flips",
    )


_NOTE = (
    "Thin boxes are the regions that the model sees tonight. For a phrase, the dashed box is the annotators', and the "
    "model's first choice of each night is labelled. The percentage is the model's confidence."
)

_Listed = tuple[int, str, str, Flip]


def _lists(cells: Sequence[ReportCell], nights: Sequence[CellNight]) -> Iterator[list[_Listed]]:
    """Lists of (cell's index, metric, way, flip): one a cell, metric and way, what got worse first."""
    for way in _WAYS:
        for index, (cell, night) in enumerate(zip(cells, nights, strict=True)):
            if night.comparison and cell.task and cell.store:
                for metric, found in night.comparison.flips.items():
                    yield [(index, metric, way, flip) for flip in getattr(found, way)]


def _all(nights: Sequence[CellNight]) -> int:
    every = (found for night in nights if night.comparison for found in night.comparison.flips.values())
    return sum(found.worse_count + found.better_count for found in every)


def _chosen(lists: Sequence[list[_Listed]], count: int) -> list[_Listed]:
    """The first of every list, then the second of each, and so on; of these what got worse before what got better."""
    turns = chain.from_iterable(zip_longest(*lists))
    taken = [turn for turn in turns if turn is not None][:count]
    ways = list(_WAYS)
    return sorted(taken, key=lambda listed: ways.index(listed[2]))


def _cases(cells: Sequence[ReportCell], chosen: Sequence[_Listed]) -> tuple[list[_Case], list[str]]:
    """And a line for each that can no longer be shown."""
    examples: dict[int, Mapping[str, Any]] = {}
    cases = []
    complaints = []
    for index, metric, way, flip in chosen:
        cell = cells[index]
        assert cell.task is not None
        assert cell.store is not None
        if index not in examples:
            examples[index] = {example.example_id: example for example in cell.task.examples()}
        example = examples[index][flip.example_id]
        try:
            regions = tuple(cell.store.fetch_many(example.image_ids))
        except VisualBertCoreError as error:
            complaints.append(f"{flip.unit_id} cannot be shown: {cell.places.hide(str(error))}")
            continue
        cases.append(_Case(index + 1, cell, metric, way, flip, example, cell.task.gold(flip.example_id), regions))
    return cases, complaints


def _filter(cells: Sequence[ReportCell], cases: Sequence[_Case]) -> Html:
    """Hidden until the script shows it: without the script all flips are there."""
    present = sorted({case.number for case in cases})
    names = [tag("option", cells[number - 1].title, value=number) for number in present]
    ways = [tag("option", text, value=way) for way, text in _WAYS.items()]
    return tag(
        "form",
        tag("label", "evaluation ", tag("select", tag("option", "all", value=""), *names, name="cell")),
        tag("label", "got ", tag("select", tag("option", "worse or better", value=""), *ways, name="way")),
        tag("label", "text ", tag("input", type="search", name="text", autocomplete="off")),
        tag("output", aria_live="polite"),
        id="filter",
        hidden=True,
        aria_label="choose flips",
    )


def _figure(case: _Case, sheet: Sheet) -> Html:
    look, flip = _look(case), case.flip
    sides = ("left picture", "right picture") if len(case.regions) > 1 else ("picture",)
    pictures = [
        sheet.picture(case.cell.images.get(r.image_id), r, boxes, look.outlined, f"{side} {r.image_id}")
        for side, r, boxes in zip(sides, case.regions, look.boxes, strict=True)
    ]
    way = tag("strong", _WAYS[case.way], class_="wrong" if case.way == "worse" else "right")
    assert case.cell.task is not None
    metric = f" · {label(case.metric)}" if case.metric != case.cell.task.headline else ""
    return tag(
        "figure",
        tag("div", *pictures, class_="pictures"),
        tag(
            "figcaption",
            tag("p", way, " ", tag("span", flip.unit_id, class_="id"), class_="verdict"),
            tag("p", f"{case.cell.title}{metric}", class_="about"),
            tag("p", look.asked, class_="asked"),
            look.answered,
        ),
        class_=type(case.example).__name__,
        data_cell=case.number,
        data_way=case.way,
        tabindex="-1",
    )


# ---------------------------------------------------------------------------------------------------------------------
# the forms


def _look(case: _Case) -> _Look:
    if isinstance(case.example, Grounding):
        return _phrase(case)
    if isinstance(case.example, MultipleChoice):
        return _choices(case)
    rows = [*_two(case, str), ("right answer", str(case.gold))]
    return _Look(join([case.example.text]), _answers(rows), [[] for _ in case.regions], True)


def _two(case: _Case, said: Any) -> Iterator[tuple[str, Html]]:
    flip = case.flip
    for name, answer, value, sure in (
        ("before", flip.answer_before, flip.value_before, flip.confidence_before),
        ("now", flip.answer_after, flip.value_after, flip.confidence_after),
    ):
        yield name, join([tag("b", said(answer)), " ", sign(value), " ", confidence(sure)])


def _answers(rows: Sequence[tuple[str, str]]) -> Html:
    return tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in rows), class_="answers")


def _choices(case: _Case) -> _Look:
    """Only the choices that matter: those that were made, and the right one."""
    example, flip = case.example, case.flip
    rows = []
    for index in sorted({flip.answer_before, flip.answer_after, case.gold}):
        marks = []
        if index == flip.answer_before:
            marks.append(mark(["before ", sign(flip.value_before), _sure(flip.confidence_before)], "model"))
        if index == flip.answer_after:
            marks.append(mark(["now ", sign(flip.value_after), _sure(flip.confidence_after)], "model"))
        if index == case.gold:
            marks.append(mark(["right answer"], "gold"))
        rows.append(tag("li", tag("span", sentence(example.choices[index], example.objects)), tag("div", *marks)))
    (regions,) = case.regions
    # Only what the model may see; region 0 is the whole image.
    seen = (i for i in example.mentioned if i + 1 < regions.num_regions)
    boxes = [Box(regions.boxes[i + 1].tolist(), "object", i, f"[{i}]") for i in seen]
    asked = join([tag("span", example.part, class_="part"), " ", sentence(example.context, example.objects)])
    return _Look(asked, tag("ul", *rows, class_="choices"), [boxes], False)


def _sure(confidence: float | None) -> str:
    return "" if confidence is None else f" {100 * confidence:.0f} %"


def _phrase(case: _Case) -> _Look:
    flip = case.flip
    gold = [box for index, boxes in enumerate(case.gold) if flip.part in (None, index) for box in boxes]
    boxes = [Box(corners, "gold", _GOLD) for corners in gold]
    rows: list[tuple[str, str]] = []
    for name, colour, answer, sure in (
        ("before", _BEFORE, flip.answer_before, flip.confidence_before),
        ("now", _NOW, flip.answer_after, flip.confidence_after),
    ):
        if answer is not None:
            boxes.append(Box(answer, "answer", colour, name, below=name == "now"))
        shared = overlap([answer] if answer is not None else [], gold)
        said = "no box" if answer is None else f"IoU {shared:.2f}"
        where = tag("b", said, class_=colour_class(colour))
        rows.append((name, join([where, " ", sign(float(shared >= IOU_THRESHOLD)), " ", confidence(sure)])))
    asked = caption(case.example, {} if flip.part is None else {flip.part: _GOLD})
    return _Look(asked, _answers(rows), [boxes], False)


_BEFORE, _NOW, _GOLD = 0, 1, 2  # colours of boxes
