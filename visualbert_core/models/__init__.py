"""regions + examples → predictions. The contract every model keeps, and the registry that opens one by folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from visualbert_core.schema import Example, Failure, Prediction, Regions

NOT_FINITE = "the model's scores hold NaN or infinity"
"""Message of the failure of an example behind whose answer there is no finite number."""
SIDECAR_FILE = "visualbert_core.json"
"""Beside a checkpoint's weights: what its other files cannot say, its feature space among it."""


class Model(Protocol):
    """What evaluation needs of a model."""

    feature_size: int
    """D that the store's features must have."""
    feature_space: str | None
    """Name of the space it was trained in, None if its checkpoint does not say."""

    def fingerprint(self) -> dict[str, Any]:
        """What changes a prediction, as JSON values: weights digest, class, recipe, answer list digest, precision."""

    def predict(self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]) -> Sequence[Prediction | Failure]:
        """One prediction per example, in order; each example comes with the regions of its images, in order.

        Never an answer behind which there is no finite number: an example whose scores hold NaN or infinity, because
        features or weights do, has a `Failure` in its place, and its batch mates answer as they would without it.
        Safe to call from several threads.
        """

    def examine(
        self, batch: Sequence[tuple[Example, tuple[Regions, ...]]]
    ) -> Sequence[tuple[Prediction, np.ndarray] | Failure]:
        """The same, each prediction with the logits behind it; the answer is the largest over the last axis."""


def load_model(folder: str | Path, task: str, device: str | None = None, precision: str = "float32") -> Model:
    """Open a VisualBERT checkpoint folder for `task` (vqa, vcr, nlvr2, flickr30k_entities).

    `device` defaults to CUDA where there is one; `precision` is float32 or bfloat16.
    Raises CheckpointError when the folder is incomplete or holds another architecture.
    """
    from visualbert_core.models.visualbert.predictor import VisualBertPredictor

    return VisualBertPredictor.from_pretrained(folder, task=task, device=device, precision=precision)
