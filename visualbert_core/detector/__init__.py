"""image → regions. The contract every detector keeps, and the registry that finds one by folder.

A detector owns everything that changes a feature: colour order, resize, box kind, NMS, number of regions. It says so
in `fingerprint()`, which names the feature store's folder, so that two recipes can never be mixed by accident.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from visualbert_core.documents import read_json
from visualbert_core.errors import CheckpointError, ConfigError
from visualbert_core.schema import GivenObjects, Names

INGREDIENT = "features"


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
class Naming(Protocol):
    """A detector that can say what its labels and attributes are called. A name changes no feature, so it is no part of
    the fingerprint."""

    @property
    def names(self) -> Names:
        """By number, the background included where it has one."""


_BUILDERS = {
    "vg_c4": ("vg_c4", "VgC4"),
    "pythia_fpn": ("fpn", "FPNDetector"),
    "detectron_fpn": ("fpn", "FPNDetector"),
    "r2c_resnet50": ("r2c_resnet50", "R2CDetector"),
}
"""`builder` of a folder's config.json → module, class; any other is a builder of torchvision's."""


def load_detector(folder: str | Path, device: str | None = None, precision: str = "float32") -> Detector:
    """Open a detector folder (`config.json` + `model.safetensors`) on `device` (default: CUDA where there is one).

    Its `builder` says which detector it is; `precision` (float32 or bfloat16) is what its network computes in. Raises
    CheckpointError naming the file that is missing or does not fit, ConfigError for another precision.
    """
    try:
        config = read_json(Path(folder) / "config.json")
    except ConfigError as error:
        raise CheckpointError(f"{folder}: not a detector folder: {error}") from error
    builder = config.get("builder") if isinstance(config, dict) else None
    module, name = _BUILDERS.get(str(builder), ("torchvision_rcnn", "TorchvisionRCNN"))
    kind = getattr(import_module(f"{__name__}.{module}"), name)
    detector: Detector = kind.from_pretrained(folder, device, precision)
    return detector
