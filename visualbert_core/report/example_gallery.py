"""The example gallery: a few examples of a cell as figures, with picture, regions, question, answer and right answer.

Owns which examples are shown: a hash of the ids draws them, and about half of them are not right. Each figure also has
the answer of the same model over the wrong image. If both answers are the same, the model did not need the image.
Beside the gallery are a few texts of a model that writes its answers, as they came.
"""

from __future__ import annotations

import heapq
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
from visualbert_core.report.forms import FORMS, marked, regions_of, sides
from visualbert_core.report.pictures import picture
from visualbert_core.schema import Generated, Prediction, Regions
from visualbert_core.tasks import Task

FAULTS = ("unparsed", "cut", "")
"""The kinds of texts, in the order in which they are shown."""
_SAMPLES = 6  # texts
_LONGEST = 300  # characters of one text
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
            for unit in units:
                if unit.judged is not None:
                    values[unit.judged.example_id].append(unit.value)
        return cls({p.example_id: p for p in predictions}, {key: fmean(value) for key, value in values.items()})


def shown_examples(cell: ReportCell, count: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return a few texts of a model that writes its answers, and figures of `count` examples.

    Each is None where there is nothing to show, as for a cell without a score. Raise VisualBertCoreError where the run
    can no longer be read.
    """
    if cell.task is None or cell.run is None or cell.run.scores is None:
        return None, None
    own = RunAnswers.of(cell.run)
    chosen, generated = choose(own.worth, count), cell.run.scores.get("generated")
    if not chosen and not generated:
        return None, None
    examples = {example.example_id: example for example in cell.task.examples()}
    texts = {"total": generated["texts"], "samples": _samples(own.predictions, examples)} if generated else None
    if not chosen:
        return texts, None
    other = RunAnswers.of(cell.baseline) if cell.baseline and cell.baseline.scores else RunAnswers({}, {})
    figures = {
        "form": FORMS[type(examples[chosen[0]])].name,  # a benchmark asks one form
        "total": len(examples),
        "faulty": sum(own.worth[example_id] < 1 for example_id in chosen),  # those that are not right
        "regions": cell.store is not None,
        "figures": [_figure(cell, cell.task, examples[example_id], own, other) for example_id in chosen],
    }
    return texts, figures


def _samples(predictions: Mapping[str, Prediction], examples: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a few texts as the model wrote them: the kinds in their order, and within each by a hash of the id."""

    def order(found: tuple[str, int, Generated]) -> tuple[int, str, int]:
        example_id, number, text = found
        return FAULTS.index(_fault(text)), _hash(example_id), number

    texts = (
        (row.example_id, number, text) for row in predictions.values() for number, text in enumerate(row.generated)
    )
    return [
        {
            "example_id": example_id,
            "asked": FORMS[type(examples[example_id])].asked(examples[example_id], part),
            "text": text.text if len(text.text) <= _LONGEST else text.text[:_LONGEST] + " …",
            "fault": _fault(text),
        }
        for example_id, part, text in heapq.nsmallest(_SAMPLES, texts, key=order)
    ]


def _fault(text: Generated) -> str:
    return "unparsed" if not text.parsed else "cut" if text.cut else ""


def _hash(example_id: str) -> str:
    return xxhash.xxh3_128_hexdigest(example_id.encode())


def choose(worth: Mapping[str, float], count: int) -> list[str]:
    """Return `count` ids in the order of their hashes. Half of them are not fully right, or as many as there are."""
    order = sorted(worth, key=_hash)
    right = [example_id for example_id in order if worth[example_id] == 1]
    faulty = [example_id for example_id in order if worth[example_id] < 1]
    faulty = faulty[: max(count // 2, count - len(right))]
    chosen = {*faulty, *right[: count - len(faulty)]}
    return [example_id for example_id in order if example_id in chosen]


def _figure(cell: ReportCell, task: Task, example: Any, own: RunAnswers, other: RunAnswers) -> dict[str, Any]:
    """Return an example with all its answers. `other` holds the answers over the wrong image."""
    name, form = example.example_id, FORMS[type(example)]
    given, wrong = own.predictions[name], other.predictions.get(name)
    gold, regions = task.gold(name), regions_of(cell, example)
    return {
        "example": example,
        "asked": form.asked(example, None),
        "pictures": [
            picture(side, image_id, cell.images.get(image_id), each, form.answer_boxes(example, each, given, gold))
            for side, image_id, each in zip(sides(example), example.image_ids, regions, strict=True)
        ],
        "gold": gold,
        "given": given,
        "worth": own.worth[name],
        "other": wrong,
        "other_worth": other.worth.get(name),
        "references": task.references(name),  # what people answered in their own words
        "marked": marked(task, name, given.answer),
        "other_marked": marked(task, name, wrong.answer) if wrong else (),
        "names": list(_names(cell, regions)),
    }


def _names(cell: ReportCell, regions: Sequence[Regions | None]) -> Iterator[list[str]]:
    """Yield the label names of each picture's regions: highest detector score first, every name once.

    Yield nothing where the store has no names.
    """
    for each in regions:
        if each is not None and cell.store is not None and cell.store.label_names:
            names = list(dict.fromkeys(label_name(label, cell.store.label_names) for label in each.labels.tolist()))
            yield names[:_NAMED] + ["…"] * (len(names) > _NAMED)
