"""VQA by a generative model: it writes the answer.

The official scorer normalises answers in its own way, so nothing here does. An empty text is an answer, and it is
wrong. It counts as unparsed, because it holds no word.
"""

from __future__ import annotations

from collections.abc import Sequence

from visualbert_core.models.generative.asked import Asked, Outcome
from visualbert_core.models.generative.protocol import Protocol
from visualbert_core.schema import Generated, Pixels, Question


def ask(example: Question, pictures: Sequence[Pixels], protocol: Protocol) -> list[Asked]:
    """Return one prompt."""
    return [Asked(protocol.ask(example.text), (pictures[0].rgb,))]


def read(
    example: Question, pictures: Sequence[Pixels], outcomes: Sequence[Outcome], protocol: Protocol
) -> tuple[str, tuple[float, ...], tuple[Generated, ...]]:
    """Return the answer, no confidence, and the text."""
    (outcome,) = outcomes
    answer = protocol.answer(outcome.text)
    return answer, (), (Generated(outcome.text, parsed=bool(answer), cut=outcome.cut),)
