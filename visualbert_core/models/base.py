"""The contract that every model keeps: what it reads of an image, which examples it answers, and its answers.

A model reads one of two things: the regions of a feature store, or the pixels of an image corpus. Evaluation opens
whichever the model names, so nothing outside `models/` asks for a model's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from visualbert_core.schema import Example, Failure, Pixels, Prediction, Regions

NOT_FINITE = "the model's scores hold NaN or infinity"
"""Message of the failure of an example behind whose answer there is no finite number."""

METADATA_FILE = "visualbert_core.json"
"""Beside a checkpoint's weights: what its other files cannot say, such as its feature space."""


@dataclass(frozen=True)
class ReadsRegions:
    """A model that reads the rows of a feature store (`schema.Regions`)."""

    size: int
    """D that the store's features must have."""
    space: str | None
    """Name of the feature space that the model was trained in; None where its checkpoint does not say."""
    likely_space: str | None = None
    """The space of the published checkpoint that this one looks like, for a warning where `space` is None."""


@dataclass(frozen=True)
class ReadsPixels:
    """A model that reads images themselves (`schema.Pixels`)."""


Visual_contra = TypeVar("Visual_contra", bound=Regions | Pixels, contravariant=True)


class Model(Protocol[Visual_contra]):
    """What evaluation needs of a model: `Model[Regions]` or `Model[Pixels]`."""

    reads: ReadsRegions | ReadsPixels
    forms: frozenset[type[Example]]
    """The forms of example that it answers, such as `schema.Question`."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what changes a prediction, as JSON values: digest of the weights, class, recipe, precision."""

    def predict(self, batch: Sequence[tuple[Example, tuple[Visual_contra, ...]]]) -> Sequence[Prediction | Failure]:
        """Answer every example, in order; each comes with what is read of its images, in order.

        An example whose scores hold NaN or infinity, because the weights or the input do, has a `Failure` in place of
        a prediction. The other examples of its batch answer as they would without it. Threads may share a model.
        """


@runtime_checkable
class GivesLogits(Protocol[Visual_contra]):
    """A model that can also show the logits behind its answers. The invariance check then compares these."""

    def examine(
        self, batch: Sequence[tuple[Example, tuple[Visual_contra, ...]]]
    ) -> Sequence[tuple[Prediction, np.ndarray] | Failure]:
        """Answer as `predict` does, each answer with its logits; the answer is the largest over the last axis."""
