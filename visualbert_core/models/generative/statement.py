"""NLVR2 by a generative model: the likelier of the two words True and False counts.

A likelihood always answers, and gives both confidences. A model that was trained on one image at a time sees one
picture with the left image, a gap and the right image; this is the protocol "stitched", which has its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visualbert_core.models.generative.asked import Asked, Outcome
from visualbert_core.models.generative.protocol import Protocol
from visualbert_core.schema import Generated, Pixels, Statement

ANSWERS = ("False", "True")
GAP = 16  # columns between the two images of a stitched picture
WHITE = 255


@dataclass(frozen=True)
class Settings:
    """How a statement is asked for."""

    asking: Protocol
    pair: Literal["two", "stitched"] = "two"

    @property
    def protocol(self) -> str:
        """Return the settings as reports print them."""
        return str(self.asking) + (", images stitched" if self.pair == "stitched" else "")


def ask(example: Statement, pictures: Sequence[Pixels], settings: Settings) -> list[Asked]:
    """Return one prompt with both answers as its continuations."""
    images = tuple(picture.rgb for picture in pictures)
    shown = (stitched(*images),) if settings.pair == "stitched" else images
    return [Asked(settings.asking.ask(example.text), shown, ANSWERS)]


def read(
    example: Statement, pictures: Sequence[Pixels], outcomes: Sequence[Outcome], settings: Settings
) -> tuple[str, tuple[float, ...], tuple[Generated, ...]]:
    """Return the likelier answer, the probabilities of False and True, and no text. A tie is False."""
    scores = outcomes[0].probabilities(settings.asking.normalise)
    return ANSWERS[int(scores[1] > scores[0])], scores, ()


def stitched(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return one picture: left, a white gap, right. The lower image is filled up with white below."""
    height = max(len(left), len(right))
    picture = np.full((height, left.shape[1] + GAP + right.shape[1], 3), WHITE, np.uint8)
    picture[: len(left), : left.shape[1]] = left
    picture[: len(right), -right.shape[1] :] = right
    return picture
