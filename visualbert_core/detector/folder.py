"""A detector's folder on disk, `config.json` and `model.safetensors`, and the published files that become one.

Owns reading and writing them for the detectors of the published feature spaces, never what a key means. Downloaded
weights cannot run code: torch files are opened with `weights_only`, Caffe2's pickles may name NumPy's arrays and
numbers and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visualbert_core.config import from_mapping, read_json
from visualbert_core.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_SHOWN = 5

C = TypeVar("C")


def read_folder(folder: Path, config_class: type[C]) -> tuple[C, dict[str, Tensor]]:
    """The config and the weights, float32. Raises CheckpointError naming the file that is missing or malformed."""
    path = folder / CONFIG_FILE
    try:
        config = from_mapping(config_class, read_json(path), where=str(path))
        state = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    except (ConfigError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: not a detector folder: {error}") from error
    return config, state


def write_folder(folder: Path, config: Any, state: dict[str, Tensor]) -> None:
    """Write the new folder that `read_folder` reads. Raises CheckpointError where it exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not empty, name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.float().contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def fill(model: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """Put weights into a network of the meta device. Raises CheckpointError naming the tensors that do not fit."""
    expected = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    wrong = [f"missing {name}" for name in expected.keys() - state.keys()]
    wrong += [f"unknown {name}" for name in state.keys() - expected.keys()]
    wrong += [
        f"{name} is {list(state[name].shape)}, not {list(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CheckpointError(f"{where}: does not fit its network: {'; '.join(sorted(wrong)[:_SHOWN])}{more}")
    counters = {name: torch.zeros((), dtype=torch.long) for name in model.state_dict().keys() - expected.keys()}
    model.load_state_dict(state | counters, assign=True)


def read_torch(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, tensors and plain values only. Raises CheckpointError."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as a torch file: {_first_line(error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: must hold a dictionary, found {type(found).__name__}")
    return found


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dictionary of NumPy arrays, text and numbers, as Caffe2 and Python 2 wrote it. Raises CheckpointError
    where the file names anything else, without running it."""
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="latin1").load()
    except (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read as a pickle: {_first_line(error)}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_first_line(error)}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: must hold a dictionary, found {type(found).__name__}")
    return found


class _ArraysOnly(pickle.Unpickler):
    _ADMITTED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),  # how Python 3 writes bytes in the protocol of Python 2
            ("collections", "OrderedDict"),
        }
    )

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        super().__init__(file, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"names {module}.{name}, only NumPy's arrays and numbers are read")
        # NumPy 2 moved the module that older files name.
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def tensor(value: Any, name: str, where: Path) -> Tensor:
    """An array of a pickle as a tensor of its own memory. Raises CheckpointError where it is none of numbers."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return torch.from_numpy(value.astype(np.float32))
    raise CheckpointError(f"{where}: {name} is not an array of floating-point numbers")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
