"""The texts of a model that writes its answers: a few of them, as they came."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import xxhash

from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.report import ReportCell
from visualbert_core.report.forms import FORMS, Piece
from visualbert_core.schema import Generated, Prediction

FAULTS = ("unparsed", "cut", "")
_SHOWN = 6  # texts; those without an answer come first
_LONGEST = 300  # characters of one text


@dataclass(frozen=True)
class Sample:
    """A text as the model wrote it, and what it was asked."""

    example_id: str
    asked: Sequence[Piece]
    text: str
    fault: str
    """One of `FAULTS`."""


@dataclass(frozen=True)
class Written:
    """The texts of a cell: `total` of them, and a few samples."""

    total: int
    samples: Sequence[Sample]


def written(cell: ReportCell) -> Written | None:
    """Return what the page says about the texts of a cell; None for a cell without a score or without texts.

    Raise StoreError where the predictions can no longer be read.
    """
    if cell.task is None or cell.run is None or cell.run.scores is None or "generated" not in cell.run.scores:
        return None
    predictions, _ = read_predictions(cell.run.folder / "predictions")
    chosen = heapq.nsmallest(_SHOWN, _texts(predictions), key=_order)
    wanted = {example_id for example_id, *_ in chosen}
    examples = {each.example_id: each for each in cell.task.examples() if each.example_id in wanted}
    samples = []
    for example_id, part, text in chosen:
        example = examples[example_id]
        asked = FORMS[type(example)].asked(example, part)
        samples.append(Sample(example_id, asked, _short(text.text), _fault(text)))
    return Written(cell.run.scores["generated"]["texts"], samples)


Numbered = tuple[str, int, Generated]
"""Example id, number of the text in its prediction, and the text."""


def _texts(predictions: Iterable[Prediction]) -> Iterator[Numbered]:
    for row in predictions:
        for number, text in enumerate(row.generated):
            yield row.example_id, number, text


def _order(found: Numbered) -> tuple[int, str, int]:
    """Return the key by which texts are drawn: those without an answer, then those that were cut, then the others."""
    example_id, number, text = found
    return FAULTS.index(_fault(text)), xxhash.xxh3_128_hexdigest(example_id.encode()), number


def _fault(text: Generated) -> str:
    return "cut" if text.cut and text.parsed else "" if text.parsed else "unparsed"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
