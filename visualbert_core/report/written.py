"""The texts of a model that writes its answers: a few of them, as they came."""

from __future__ import annotations

import heapq
from typing import Any

import xxhash

from visualbert_core.evaluation.worker import read_predictions
from visualbert_core.report import ReportCell
from visualbert_core.report.forms import FORMS
from visualbert_core.report.scores import scores_of
from visualbert_core.schema import Generated

FAULTS = ("unparsed", "cut", "")
"""The kinds of texts, in the order in which they are shown."""
_SHOWN = 6  # texts
_LONGEST = 300  # characters of one text

Numbered = tuple[str, int, Generated]
"""Example id, number of the text in its prediction, and the text."""


def written(cell: ReportCell) -> dict[str, Any] | None:
    """Return the number of a cell's texts and a few samples; None for a cell without a score or without texts.

    Raise StoreError where the predictions can no longer be read.
    """
    if cell.task is None or cell.run is None or "generated" not in (scores := scores_of(cell.run) or {}):
        return None
    predictions, _ = read_predictions(cell.run.folder / "predictions")
    texts = ((row.example_id, number, text) for row in predictions for number, text in enumerate(row.generated))
    chosen = heapq.nsmallest(_SHOWN, texts, key=_order)
    wanted = {example_id for example_id, *_ in chosen}
    examples = {each.example_id: each for each in cell.task.examples() if each.example_id in wanted}
    samples = [
        {
            "example_id": example_id,
            "asked": FORMS[type(examples[example_id])].asked(examples[example_id], part),
            "text": text.text if len(text.text) <= _LONGEST else text.text[:_LONGEST] + " …",
            "fault": _fault(text),
        }
        for example_id, part, text in chosen
    ]
    return {"total": scores["generated"]["texts"], "samples": samples}


def _order(found: Numbered) -> tuple[int, str, int]:
    """Return the key by which texts are drawn: the kinds in their order, and within each a hash of the id."""
    example_id, number, text = found
    return FAULTS.index(_fault(text)), xxhash.xxh3_128_hexdigest(example_id.encode()), number


def _fault(text: Generated) -> str:
    return "unparsed" if not text.parsed else "cut" if text.cut else ""
