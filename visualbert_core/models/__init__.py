"""Models: examples and what is read of their images in, predictions out. One file or folder is one family.

`base` is the contract, `registry` finds the family of a checkpoint folder.
"""

from visualbert_core.models.base import METADATA_FILE, NOT_FINITE, GivesLogits, Model, ReadsPixels, ReadsRegions
from visualbert_core.models.registry import load_model

__all__ = ["METADATA_FILE", "NOT_FINITE", "GivesLogits", "Model", "ReadsPixels", "ReadsRegions", "load_model"]
