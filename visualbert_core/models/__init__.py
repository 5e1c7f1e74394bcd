"""Models turn examples and the regions or pixels of their images into predictions.

`base` holds the contract that every model keeps. `registry` finds the family of a checkpoint folder. Each family is one
file or one folder.
"""

from visualbert_core.models.base import (
    METADATA_FILE,
    NOT_FINITE,
    GivesAttentions,
    GivesLogits,
    Model,
    RanksAnswers,
    ReadsPixels,
    ReadsRegions,
)
from visualbert_core.models.registry import load_model, load_trainable, reads_without_weights, visual_source

__all__ = [
    "METADATA_FILE",
    "NOT_FINITE",
    "GivesAttentions",
    "GivesLogits",
    "Model",
    "RanksAnswers",
    "ReadsPixels",
    "ReadsRegions",
    "load_model",
    "load_trainable",
    "reads_without_weights",
    "visual_source",
]
