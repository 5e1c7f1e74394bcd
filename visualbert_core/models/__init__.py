"""regions + examples → predictions. The contract every model keeps, and the registry that opens one by folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from visualbert_core.schema import Example, Prediction, Regions


class Model(Protocol):
    """What evaluation needs of a model."""

    feature_size: int
    """D that the store's features must have."""
    feature_space: str | None
    """Name of the space it was trained in, None if its checkpoint does not say."""

    def fingerprint(self) -> dict[str, Any]:
        """What changes a prediction, as JSON values: weights digest, class, recipe, answer list digest, precision."""

    def predict(self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]) -> list[Prediction]:
        """One prediction per example, in order; each example comes with the regions of its images, in order.

        Safe to call from several threads.
        """

    def examine(self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]) -> list[tuple[Prediction, np.ndarray]]:
        """The same, each with the logits behind it; the answer is the largest over the last axis."""


def load_model(folder: str | Path, task: str, device: str | None = None, precision: str = "float32") -> Model:
    """Open a VisualBERT checkpoint folder for `task` (vqa, vcr, nlvr2, flickr30k_entities).

    `device` defaults to CUDA where there is one; `precision` is float32 or bfloat16.
    Raises CheckpointError when the folder is incomplete or holds another architecture.
    """
    from visualbert_core.models.visualbert.predictor import VisualBertPredictor

    return VisualBertPredictor.from_pretrained(folder, task=task, device=device, precision=precision)
