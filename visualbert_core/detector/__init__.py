"""Turns images into regions: the contract (`base`), the registry (`registry`), and one or more files for each recipe.

A detector owns everything that changes a feature: colour order, resize, box kind, non-maximum suppression (NMS) and
the number of regions. Its `fingerprint()` states all of it. The fingerprint names the folder of the feature store, so
two recipes never share a store.
"""

from visualbert_core.detector.base import Detection, Detector, HasLabelNames, ObjectEncoder
from visualbert_core.detector.registry import load_detector

__all__ = ["Detection", "Detector", "HasLabelNames", "ObjectEncoder", "load_detector"]

INGREDIENT = "features"
