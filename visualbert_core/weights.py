"""Weights files, read without running what they say.

Owns how the bytes of a file become named entries. torch files are opened with `weights_only`. The pickles of Caffe2's
Detectron and of detectron2 hold NumPy arrays, and anything else in one is refused by name (`pickles.py`). What the keys
mean, and which error a person reads, belongs to whoever asks: the detectors and the models.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from visualbert_core.pickles import load_arrays

INGREDIENT = "features"

UNREADABLE = (
    *(SafetensorError, pickle.UnpicklingError),
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, MemoryError),
)
"""What a missing, cut or garbled file may raise while it is read."""


def load(path: Path, pickled: bool = False) -> Any:
    """Return what a `.safetensors` or torch file holds, or with `pickled` a pickle of arrays. Raises UNREADABLE."""
    if pickled:
        with path.open("rb") as file:
            return load_arrays(file, encoding="latin1")  # Python 2 wrote some of them
    if path.suffix == ".safetensors":
        return load_file(path)
    # Files from before torch 1.6, such as VisualBERT's authors', are no zip archives and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
