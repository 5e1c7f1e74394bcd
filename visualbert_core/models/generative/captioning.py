"""Captions by a generative model: it continues a few words, or answers a sentence that asks for a caption.

The text is the caption, so nothing in it can be missed: an empty text is an answer, too. It gets 0, and the task counts
such captions.
"""

from __future__ import annotations

from collections.abc import Sequence

from visualbert_core.models.generative.asked import Asked, Outcome
from visualbert_core.models.generative.protocol import Protocol
from visualbert_core.schema import Captioning, Generated, Pixels


def ask(example: Captioning, pictures: Sequence[Pixels], protocol: Protocol) -> list[Asked]:
    """Return the one prompt, which is the same for every image."""
    return [Asked(protocol.prompt, (pictures[0].rgb,))]


def read(
    example: Captioning, pictures: Sequence[Pixels], outcomes: Sequence[Outcome], protocol: Protocol
) -> tuple[str, tuple[float, ...], tuple[Generated, ...]]:
    """Return the caption, no confidence, and the text. The words of the prompt are not in the caption."""
    (outcome,) = outcomes
    return protocol.answer(outcome.text), (), (Generated(outcome.text, cut=outcome.cut),)
