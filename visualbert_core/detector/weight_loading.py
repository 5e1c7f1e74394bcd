"""Weights as their authors published them, read without running what a file says.

What every file must keep to stands in `weights.py`. The pickles of Caffe2's Detectron and of detectron2 hold NumPy
arrays, and anything else in one is refused by name (`pickles.py`). What the keys mean belongs to each detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visualbert_core.errors import CheckpointError
from visualbert_core.io.safe_pickle import load_arrays
from visualbert_core.io.weights import load


def find(source: Path, names: Sequence[str]) -> Path:
    """`source` itself, or the first of `names` in the folder `source`. Raises CheckpointError if there is none."""
    found = next((path for path in [source, *(source / name for name in names)] if path.is_file()), None)
    if found is None:
        raise CheckpointError(f"{source}: neither a file nor a folder with {' or '.join(names)}")
    return found


def read_weights(path: Path, under: str | None = None) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors`, `.pkl` or torch file, floating ones as float32; see `read_entries`."""
    return tensors(read_entries(path, under), path)


def read_entries(path: Path, under: str | None = None, pickled: bool | None = None) -> dict[str, Any]:
    """The named entries of a file, which may lie under the key `under`: some authors put more beside it.

    Whether it is a pickle of arrays is told by its suffix, unless `pickled` says it. Raises CheckpointError for a file
    that cannot be read or holds no names.
    """
    pickled = path.suffix == ".pkl" if pickled is None else pickled
    found = load(path, _unpickle if pickled else None)
    if under is not None and isinstance(found, dict) and isinstance(found.get(under), dict):
        found = found[under]
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: holds no named tensors")
    return found


def tensors(entries: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Entries of `path` as tensors, floating ones as float32. Raises CheckpointError for one of anything else."""
    return {str(key): _tensor(key, value, path) for key, value in entries.items()}


def _tensor(key: Any, value: Any, path: Path) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if not isinstance(key, str) or not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor of numbers")
    return value.float() if value.is_floating_point() else value


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return load_arrays(file, encoding="latin1")  # Python 2 wrote some of them
