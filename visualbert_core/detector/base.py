"""The contract that every detector keeps, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from visualbert_core.schema import GivenObjects, LabelNames


@dataclass(frozen=True)
class Detection:
    """Regions of one image before it is a row: see `schema.Regions` for shapes and units; features are float32 here."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    features: np.ndarray
    attributes: np.ndarray | None = None
    """int16 [R], of detectors that name attributes ("red")."""
    attribute_scores: np.ndarray | None = None
    """float32 [R]."""


class Detector(Protocol):
    """What extraction needs of a detector."""

    space: str
    """Name of the feature space; a checkpoint trained in another space is refused."""
    feature_size: int
    """D."""

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes a feature, as JSON values: weights digest, preprocessing, selection, versions."""

    def detect(self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray] | None = None) -> list[Detection]:
        """Regions of images of **one shape**: uint8 [H, W, 3] RGB each.

        A network whose numbers overflow gives NaN: extraction makes a failure of such an image, and stores none.
        With `boxes` (float32 [R, 4] xyxy per image) those boxes are used as they are, in their order; without, the
        detector proposes its own, ordered by score.
        """


@runtime_checkable
class ObjectEncoder(Protocol):
    """A detector that finds nothing itself, but encodes objects that somebody marked, with their classes and outlines
    (VCR). Extraction gives it those instead of bare boxes."""

    classes: Sequence[str]
    """Class names by label; class 0 is the whole image's."""

    def encode(self, images: Sequence[np.ndarray], objects: Sequence[GivenObjects]) -> list[Detection]:
        """The given objects of images of one shape, uint8 [H, W, 3] RGB each, in their order."""


@runtime_checkable
class HasLabelNames(Protocol):
    """A detector that can say what its labels and attributes are called. A name changes no feature, so it is no part of
    the fingerprint."""

    @property
    def names(self) -> LabelNames:
        """By number, the background included where it has one."""
