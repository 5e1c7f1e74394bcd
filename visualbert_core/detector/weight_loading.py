"""Reads weights in the files that their authors published. No code in a file is ever run.

The rules for all weights files are in `io/weights.py`. The pickles of Detectron (Caffe2) and detectron2 hold NumPy
arrays; `io/safe_pickle.py` refuses anything else by name. Each detector knows the keys of its own files.
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
    """Return `source` where it is a file, or else the first of `names` in the folder `source`.

    Raise CheckpointError where there is no such file.
    """
    found = next((path for path in [source, *(source / name for name in names)] if path.is_file()), None)
    if found is None:
        raise CheckpointError(f"{source}: neither a file nor a folder with {' or '.join(names)}")
    return found


def read_weights(path: Path, under: str | None = None) -> dict[str, Tensor]:
    """Read every tensor of a `.safetensors`, `.pkl` or torch file, floating-point ones as float32.

    Raise CheckpointError where `read_entries` or `tensors` does.
    """
    return tensors(read_entries(path, under), path)


def read_entries(path: Path, under: str | None = None, pickled: bool | None = None) -> dict[str, Any]:
    """Read the named entries of a file.

    Where the file has the key `under`, they are the entries of that key: some authors store other things beside the
    weights. `pickled` says whether the file is a pickle of arrays; by default the suffix `.pkl` does. Raise
    CheckpointError where the file cannot be read or holds no named entries.
    """
    pickled = path.suffix == ".pkl" if pickled is None else pickled
    found = load(path, _unpickle if pickled else None)
    if under is not None and isinstance(found, dict) and isinstance(found.get(under), dict):
        found = found[under]
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: holds no named tensors")
    return found


def tensors(entries: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the entries of `path` as tensors, floating-point ones as float32.

    Raise CheckpointError where an entry is not a tensor or an array of numbers.
    """
    return {str(key): _tensor(key, value, path) for key, value in entries.items()}


def _tensor(key: Any, value: Any, path: Path) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        # torch takes only the byte order of this machine, and a pickle may hold either.
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if not isinstance(key, str) or not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor of numbers")
    return value.float() if value.is_floating_point() else value


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return load_arrays(file, encoding="latin1")  # Python 2 wrote some files, and latin1 is how Python 3 reads them
