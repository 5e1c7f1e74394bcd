"""The contract of every detector, and the `Detection` that it returns.

The contract is this project's own. Extraction knows a detector only through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from visualbert_core.schema import GivenObjects, LabelNames


@dataclass(frozen=True)
class Detection:
    """The R regions of one image, before they become a row of a store.

    `schema.Regions` states shapes and units. Here the features are still float32.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    features: np.ndarray
    attributes: np.ndarray | None = None
    """int16 [R], the best attribute of each region ("red"); None where the detector knows no attributes."""
    attribute_scores: np.ndarray | None = None
    """float32 [R], the probabilities of those attributes; None where the detector knows no attributes."""


class Detector(Protocol):
    """What extraction needs from a detector."""

    space: str
    """Name of the feature space. Evaluation refuses a checkpoint that was trained in a different space."""
    feature_size: int
    """D, the length of one feature."""

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that changes a feature, as JSON values.

        This is the digest of the weights, the preprocessing, the selection of regions, and the versions of libraries.
        """

    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        """Return the regions of each image; the images are uint8 [H, W, 3] RGB and have **one shape**.

        With `boxes` (float32 [R, 4] xyxy for each image), use these boxes unchanged and in their order. Without them,
        propose boxes and order the regions by descending score. A network whose numbers overflow returns NaN.
        Extraction records such an image as a failure and stores no region of it.
        """


@runtime_checkable
class ObjectEncoder(Protocol):
    """A detector that finds no objects. It encodes the objects that a benchmark marked (VCR).

    Extraction gives it their boxes, classes and outlines, instead of boxes alone.
    """

    classes: Sequence[str]
    """Class names by label. Class 0 is the class of the whole image."""

    def encode(self, images: Sequence[np.ndarray], objects: Sequence[GivenObjects]) -> list[Detection]:
        """Return one region for each given object, in the given order.

        The images are uint8 [H, W, 3] RGB and have one shape.
        """


@runtime_checkable
class HasLabelNames(Protocol):
    """A detector that knows the names of its labels and attributes.

    A name changes no feature, so names are not part of the fingerprint.
    """

    @property
    def names(self) -> LabelNames:
        """Return the names by label number, with the background where the detector has that class."""
