"""image → regions: the contract (`base`), the registry (`registry`), and one file or more for each recipe.

A detector owns everything that changes a feature: colour order, resize, box kind, NMS, number of regions. It says so
in `fingerprint()`, which names the feature store's folder, so that two recipes can never be mixed by accident.
"""

from visualbert_core.detector.base import Detection, Detector, HasLabelNames, ObjectEncoder
from visualbert_core.detector.registry import load_detector

__all__ = ["Detection", "Detector", "HasLabelNames", "ObjectEncoder", "load_detector"]

INGREDIENT = "features"
