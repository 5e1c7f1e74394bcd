"""A few examples of a cell as figures: picture, regions, what was asked, what was answered, what would have been right.

Owns which examples are shown (by hash of their ids, about half of them not right) and how each of the four forms of
example looks. Adds the answer that the same model gave with another image's regions: an answer that stays the same was
not read off the picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import xxhash

from visualbert_core.evaluation.predictions import read_predictions
from visualbert_core.evaluation.run_folder import Run
from visualbert_core.evaluation.units import read_units
from visualbert_core.features.names import called
from visualbert_core.metrics.recall import IOU_THRESHOLD, box_iou
from visualbert_core.report import ReportCell
from visualbert_core.report.markup import Html, join, tag
from visualbert_core.report.pictures import Box, colour_class, picture
from visualbert_core.schema import Example, Grounding, MultipleChoice, Prediction, Question, Regions, Statement, Token

_CLOSING = frozenset(".,;:?!)")
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
class _Case:
    """One example with all its answers; `other` is the one to another image, None where there is none."""

    example: Any
    regions: tuple[Regions, ...]
    label_names: tuple[str, ...]
    gold: Any
    given: Prediction
    worth: float
    other: Prediction | None
    other_worth: float | None


@dataclass(frozen=True)
class _Look:
    """How a case is shown: what was asked, what was answered, and the boxes over each of its pictures."""

    asked: Html
    answered: Html
    boxes: Sequence[Sequence[Box]]


def gallery(cell: ReportCell, count: int) -> Html:
    """`count` examples of a cell with a score. Raises VisualBertCoreError where its run can no longer be read."""
    if cell.task is None or cell.store is None or cell.run is None or cell.run.scores is None:
        return Html()
    own = Answers.of(cell.run)
    other = Answers.of(cell.baseline) if cell.baseline and cell.baseline.scores else Answers({}, {})
    examples = {example.example_id: example for example in cell.task.examples()}
    cases = [
        _Case(
            example=examples[example_id],
            regions=tuple(cell.store.fetch_many(examples[example_id].image_ids)),
            label_names=cell.store.label_names,
            gold=cell.task.gold(example_id),
            given=own.predictions[example_id],
            worth=own.worth[example_id],
            other=other.predictions.get(example_id),
            other_worth=other.worth.get(example_id),
        )
        for example_id in choose(own.worth, count)
    ]
    if not cases:
        return Html()
    form = type(cases[0].example)
    faulty = sum(case.worth < 1 for case in cases)
    selection = (
        f"{len(cases)} of {len(examples):,}, drawn by a hash of their ids: {faulty} not right, {len(cases) - faulty} "
        "right. Faults are favoured, up to half: this shows how the model fails, not how often. "
    )
    note = tag("p", selection, _NOTES[form], class_="note")
    return join([note, tag("div", *(_figure(cell, case) for case in cases), class_=f"examples {form.__name__}")])


def choose(worth: Mapping[str, float], count: int) -> list[str]:
    """`count` ids in the order of their hashes: half of them not fully right, or as near to that as there are such."""
    order = sorted(worth, key=lambda example_id: xxhash.xxh3_128_hexdigest(example_id.encode()))
    right = [example_id for example_id in order if worth[example_id] == 1]
    faulty = [example_id for example_id in order if worth[example_id] < 1]
    faulty = faulty[: max(count // 2, count - len(right))]
    chosen = {*faulty, *right[: count - len(faulty)]}
    return [example_id for example_id in order if example_id in chosen]


def _figure(cell: ReportCell, case: _Case) -> Html:
    look = _LOOKS[type(case.example)](case)
    example: Example = case.example
    sides = ("left picture", "right picture") if len(example.image_ids) > 1 else ("picture",)
    pictures = [
        picture(cell.images.get(r.image_id), r, boxes, f"{side} {r.image_id} with {len(boxes)} boxes drawn over it")
        for side, r, boxes in zip(sides, case.regions, look.boxes, strict=True)
    ]
    return tag(
        "figure",
        tag("div", *pictures, class_="pictures"),
        tag(
            "figcaption",
            tag("p", _verdict(case.worth), " ", tag("span", example.example_id, class_="id"), class_="verdict"),
            tag("p", look.asked, class_="asked"),
            look.answered,
        ),
    )


# ---------------------------------------------------------------------------------------------------------------------
# the four forms


def _question(case: _Case) -> _Look:
    answered = join([_three_answers(case, case.given.scores[0]), *_called(case)])
    return _Look(join([case.example.text]), answered, _region_boxes(case))


def _statement(case: _Case) -> _Look:
    shown = case.given.scores[case.given.answer.capitalize() == "True"]
    answered = join([_three_answers(case, shown), *_called(case)])
    return _Look(join([case.example.text]), answered, _region_boxes(case))


def _multiple_choice(case: _Case) -> _Look:
    example: MultipleChoice = case.example
    rows = []
    for index, choice in enumerate(example.choices):
        marks = []
        if index == case.given.answer:
            marks.append(mark(["model ", sign(case.worth)], "model"))
        if index == case.gold:
            marks.append(mark(["right answer"], "gold"))
        if case.other and index == case.other.answer:
            marks.append(mark(["wrong image ", sign(case.other_worth)], "other"))
        sure = confidence(case.given.scores[index])
        rows.append(tag("li", tag("span", sentence(choice, example.objects)), sure, tag("div", *marks)))
    (regions,) = case.regions
    # Only what the model may see; region 0 is the whole image.
    seen = (i for i in example.mentioned if i + 1 < regions.num_regions)
    boxes = [Box(regions.boxes[i + 1].tolist(), "object", i, f"[{i}]") for i in seen]
    asked = join([tag("span", example.part, class_="part"), " ", sentence(example.context, example.objects)])
    return _Look(asked, join([tag("ol", *rows, class_="choices", start=0), _no_other(case)]), [boxes])


def _grounding(case: _Case) -> _Look:
    example: Grounding = case.example
    rows = []
    boxes: list[Box] = []
    for index, (phrase, gold) in enumerate(zip(example.phrases, case.gold, strict=True)):
        number, answer = str(index + 1), case.given.answer[index][:1]
        shared = overlap(answer, gold)
        # Where answer and right box are nearly one, a second number would only hide the first.
        boxes += [Box(corners, "gold", index, "" if shared >= IOU_THRESHOLD else number) for corners in gold]
        boxes += [Box(corners, "answer", index, number, depth=_drawn_before(corners, boxes)) for corners in answer]
        marks = [mark(["model ", _hit(shared)], "model")]
        if case.other:
            other = overlap(case.other.answer[index][:1], gold)
            marks.append(mark(["wrong image ", _hit(other)], "other"))
        name = tag("span", tag("sup", number), phrase.text, class_=f"phrase {colour_class(index)}")
        sure = confidence(case.given.scores[index])
        rows.append(tag("li", name, sure, tag("div", *marks)))
    return _Look(caption(example), join([tag("ul", *rows, class_="choices"), _no_other(case)]), [boxes])


def _drawn_before(corners: Sequence[float], boxes: Sequence[Box]) -> int:
    """How many phrases have this box for their answer already."""
    return sum(box.kind == "answer" and box.corners == corners for box in boxes)


def caption(example: Grounding, colours: Mapping[int, int] | None = None) -> Html:
    """The caption with its phrases numbered, in the colours of their boxes; with `colours` only these phrases."""
    painted = {index: index for index in range(len(example.phrases))} if colours is None else colours
    starts = {phrase.start: (index, phrase) for index, phrase in enumerate(example.phrases)}
    inside = {at for phrase in example.phrases for at in range(phrase.start + 1, phrase.stop)}
    words: list[str] = []
    for at, word in enumerate(example.words):
        if at in starts:
            index, phrase = starts[at]
            words.append(_painted(index, phrase.text, painted, numbered=colours is None))
        elif at not in inside:
            words.append(word)
    return join(_spaced(words))


def _painted(index: int, text: str, colours: Mapping[int, int], numbered: bool) -> str:
    if index not in colours:
        return text
    number = tag("sup", str(index + 1)) if numbered else ""
    return tag("span", number, text, class_=f"phrase {colour_class(colours[index])}")


_LOOKS: dict[type, Callable[[_Case], _Look]] = {
    Question: _question,
    Statement: _statement,
    MultipleChoice: _multiple_choice,
    Grounding: _grounding,
}

_CONFIDENCE = " The percentage at the right is the model's confidence."
_REGIONS = "Thin boxes are the regions that the model sees." + _CONFIDENCE

_NOTES: dict[type, str] = {
    Question: _REGIONS,
    Statement: _REGIONS,
    MultipleChoice: "Boxes are the objects that the item mentions: the model sees these and the whole picture."
    + _CONFIDENCE,
    Grounding: "Solid boxes are the model's first choice, dashed ones the annotators'; colour and number name the "
    "phrase. An overlap (IoU) of 0.5 with any of the dashed boxes is a hit." + _CONFIDENCE,
}

# ---------------------------------------------------------------------------------------------------------------------
# pieces of them


def _three_answers(case: _Case, sure: float) -> Html:
    model = [tag("b", case.given.answer), " ", sign(case.worth), " ", confidence(sure)]
    other = [case.other.answer, " ", sign(case.other_worth)] if case.other else ["no answer"]
    rows: list[tuple[str, list[str]]] = [("model", model), ("right answer", [case.gold]), ("wrong image", other)]
    return tag("dl", *(join([tag("dt", name), tag("dd", *value)]) for name, value in rows), class_="answers")


def _no_other(case: _Case) -> Html:
    return Html() if case.other else tag("p", "wrong image: no answer", class_="note")


def _called(case: _Case) -> Iterator[Html]:
    """Of each picture what the detector calls its regions, the surest first and every name once, if it has names."""
    sides = ("left regions: ", "right regions: ") if len(case.regions) > 1 else ("regions: ",)
    for side, regions in zip(sides, case.regions, strict=True):
        names = list(dict.fromkeys(called(label, case.label_names) for label in regions.labels.tolist()))
        if case.label_names:
            more = ", …" if len(names) > _NAMED else ""
            yield tag("p", side, ", ".join(names[:_NAMED]), more, class_="note")


def _region_boxes(case: _Case) -> list[list[Box]]:
    return [[Box(corners, "region") for corners in regions.boxes.tolist()] for regions in case.regions]


def overlap(answer: Sequence[Sequence[float]], gold: Sequence[Sequence[float]]) -> float:
    """IoU of the first choice with the nearest of the right boxes; 0 where there is no choice."""
    return float(box_iou(np.array(answer), np.array(gold)).max()) if answer else 0.0


def _hit(shared: float) -> Html:
    return join([f"IoU {shared:.2f} ", sign(float(shared >= IOU_THRESHOLD))])


def sentence(tokens: Sequence[Token], objects: Sequence[str]) -> Html:
    """Words with spaces between; a tag such as [2] as "ball[2]" in the colour of its box."""
    return join(_spaced([token if isinstance(token, str) else _tagged(token, objects) for token in tokens]))


def _tagged(indices: tuple[int, ...], objects: Sequence[str]) -> Html:
    names = [tag("span", f"{objects[index]}[{index}]", class_=f"phrase {colour_class(index)}") for index in indices]
    return join([piece for name in names for piece in (" and ", name)][1:])


def _spaced(words: Sequence[str]) -> list[str]:
    """The words with a space before each but the first and closing punctuation."""
    return [piece for i, word in enumerate(words) for piece in (() if i == 0 or word in _CLOSING else (" ",)) + (word,)]


def _verdict(worth: float) -> Html:
    if worth == 1:
        return tag("strong", "✓ right", class_="right")
    if worth == 0:
        return tag("strong", "✗ wrong", class_="wrong")
    return tag("strong", f"◐ partly right, {_percent(worth)}", class_="partly")


def sign(worth: float | None) -> Html:
    """A verdict as one character, with its word for those who do not see it."""
    character, word = {1.0: ("✓", "right"), 0.0: ("✗", "wrong")}.get(worth or 0.0, ("◐", "partly"))
    return tag("span", character, class_=word, role="img", aria_label=word, title=word)


def confidence(share: float | None) -> Html:
    """The confidence in percent, at the right of its line; nothing where there is none."""
    return Html() if share is None else tag("span", _percent(share), class_="confidence")


def mark(pieces: Sequence[str], kind: str) -> Html:
    """What is said of a choice: of kind model, gold or other."""
    return tag("span", *pieces, class_=f"mark {kind}")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
