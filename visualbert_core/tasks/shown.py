"""What a benchmark tells reports beside its scores: what a person gets, and which words of an answer are true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """Holds what a person gets, as metric → the score as it is shown.

    A person may be judged by fewer annotations than a model, because the person wrote one of them. So `predictions` has
    what the predictions get under the same conditions. Compare these two.
    """

    person: Mapping[str, float]
    predictions: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Words:
    """Holds some words of an answer, with the spaces around them, and whether they are true of the image.

    `true` is None where that is not known, or where the words state nothing.
    """

    text: str
    true: bool | None = None
