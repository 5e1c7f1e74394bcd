"""Files of named tensors from untrusted sources: safetensors files and torch files, read without running their code.

torch files are opened with `weights_only`. Both formats are mapped into memory, so that reading shapes reads only the
head of a file. The formats: github.com/huggingface/safetensors, and torch.save. The callers know what the names mean.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visualbert_core.errors import CheckpointError
from visualbert_core.io import lfs

INGREDIENT = "features"

Shapes = Mapping[str, tuple[int, ...]]

_MALFORMED = (
    *(SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, TypeError),
    *(AttributeError, LookupError, MemoryError),
)
"""The errors that truncated or damaged files raise."""


def load(path: Path, read: Callable[[Path], Any] | None = None) -> Any:
    """Return the content of a `.safetensors` or torch file, or `read(path)`. Raise CheckpointError where that fails."""
    if lfs.is_pointer_file(path):
        raise CheckpointError(f"{path}: {lfs.REASON}")
    read = read or (load_file if path.suffix == ".safetensors" else _torch_load)
    try:
        return read(path)
    except _MALFORMED as error:
        line = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {line}): not weights, or truncated: download it again"
        ) from None


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor name → shape, without reading the tensors. Ignore other values of a torch file.

    Raise CheckpointError where the file cannot be read.
    """
    if path.suffix == ".safetensors":
        found: dict[str, tuple[int, ...]] = load(path, _header)
        return found
    held = load(path)
    named = held.items() if isinstance(held, dict) else ()
    return {str(key): tuple(value.shape) for key, value in named if isinstance(value, Tensor)}


def blocks(names: Collection[str], *prefixes: str) -> tuple[int, ...]:
    """Return for each prefix how many numbered parts, such as layers, the names have below it."""
    return tuple(len({n[len(p) :].partition(".")[0] for n in names if n.startswith(p)}) for p in prefixes)


def without_numbers(state: Mapping[str, Tensor]) -> list[str]:
    """Return name and dtype of each tensor that is not floating-point, because integers are not weights."""
    wrong = [key for key in sorted(state) if not state[key].is_floating_point()]
    return [f"{key} {str(state[key].dtype).removeprefix('torch.')}" for key in wrong]


@contextmanager
def unbuilt() -> Iterator[None]:
    """Make modules without memory and without random initialisation inside the context, for loaded weights."""
    with torch.device("meta"), _Uninitialized():
        yield


class _Uninitialized(TorchFunctionMode):
    """Skips the functions of torch.nn.init. On the meta device they import torch's compiler, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None
        return func(*args, **(kwargs or {}))


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (no mapping)


def _torch_load(path: Path) -> Any:
    # Files from before torch 1.6, such as the ones of VisualBERT's authors, are not zip archives and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
