"""Weights as they are published → detector folders: the command line, and reading without running what a file says.

torch files are opened with `weights_only`. detectron2's `.pkl` files are pickles of NumPy arrays: an unpickler that
knows arrays, dictionaries, strings and numbers reads them, and anything else in one is refused by name. What the keys
mean belongs to each detector: `CONVERTERS` names the module that knows.
"""

from __future__ import annotations

import argparse
import codecs
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from visualbert_core.errors import CheckpointError

CONVERTERS = {
    "vg_c4": "visualbert_core.detector.vg_c4_weights",
}
"""Detector → the module whose `convert(source: Path) -> (detector, notes for the reader)` loads its published files."""


class Convertible(Protocol):
    """What a converter returns: a detector that can be saved."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write its folder."""


def convert(name: str, source: str | Path, target: str | Path) -> str:
    """Convert `source`, a weights file or a folder with one, into the new folder `target`; returns a report.

    Raises CheckpointError where `target` is not empty, or naming what in `source` cannot be read or does not fit.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists and is not empty")
    load: Callable[[Path], tuple[Convertible, list[str]]] = import_module(CONVERTERS[name]).convert
    detector, notes = load(source)
    detector.save_pretrained(target)
    return "\n".join([f"{source} → {target} ({name})", *notes])


def find(source: Path, names: Sequence[str]) -> Path:
    """`source` itself, or the first of `names` in the folder `source`. Raises CheckpointError if there is none."""
    found = next((path for path in [source, *(source / name for name in names)] if path.is_file()), None)
    if found is None:
        raise CheckpointError(f"{source}: neither a file nor a folder with {' or '.join(names)}")
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors`, `.pkl` (detectron2) or torch file, floating ones as float32.

    Raises CheckpointError for a file that cannot be read or holds anything else.
    """
    try:
        found: Any = _READERS.get(path.suffix, _torch_load)(path)
    except (SafetensorError, pickle.UnpicklingError, *_MALFORMED) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read ({why})") from None
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]  # detectron2 puts its author's name beside it
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: holds no named tensors")
    return {str(key): _tensor(key, value, path) for key, value in found.items()}


def _tensor(key: Any, value: Any, path: Path) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if not isinstance(key, str) or not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor of numbers")
    return value.float() if value.is_floating_point() else value


def _torch_load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _Arrays(file, encoding="latin1").load()  # Python 2 wrote some of them


class _Arrays(pickle.Unpickler):
    """Unpickles what NumPy arrays, dictionaries, strings and numbers are made of."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy.core.", "numpy._core."), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays of numbers are read")
        return known


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles below protocol 3 spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return codecs.latin_1_encode(text)[0]


# NumPy's own functions, had from what it would write: their modules are private and have moved.
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy._core.multiarray", "scalar"): np.float32(1).__reduce__()[0],
    ("numpy._core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
}
_READERS: dict[str, Callable[[Path], Any]] = {".safetensors": load_file, ".pkl": _unpickle}
# What cut or garbled files raise, besides the readers' own errors.
_MALFORMED = (OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, MemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m visualbert_core.detector")
    command = parser.add_subparsers(required=True).add_parser("convert", help="published weights → a detector folder")
    command.add_argument("name", choices=CONVERTERS, help="the detector")
    command.add_argument("source", metavar="IN", type=Path, help="the published file, or the folder that holds it")
    command.add_argument("target", metavar="OUT", type=Path, help="new folder: config.json, model.safetensors")
    given = parser.parse_args(arguments)
    sys.stdout.write(convert(given.name, given.source, given.target) + "\n")
    return 0
