"""Files of named tensors from anyone: opened without running what they say, and compared with a config before use.

torch files are opened with `weights_only`, and both formats are mapped into memory, so that shapes cost no more than
the head of a file. What the names mean belongs to whoever reads them.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
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
"""What cut or garbled files raise."""


def load(path: Path, read: Callable[[Path], Any] | None = None) -> Any:
    """What a `.safetensors` or torch file holds, or what `read` makes of another kind. Raises CheckpointError."""
    if lfs.is_pointer_file(path):
        raise CheckpointError(f"{path}: {lfs.REASON}")
    read = read or (load_file if path.suffix == ".safetensors" else _torch_load)
    try:
        return read(path)
    except _MALFORMED as error:
        line = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {line}): no weights, or cut short; download it again"
        ) from None


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor → its shape, without reading any. What a torch file holds beside tensors is left out.

    Raises CheckpointError.
    """
    if path.suffix == ".safetensors":
        found: dict[str, tuple[int, ...]] = load(path, _header)
        return found
    held = load(path)
    named = held.items() if isinstance(held, dict) else ()
    return {str(key): tuple(value.shape) for key, value in named if isinstance(value, Tensor)}


def blocks(names: Shapes, *prefixes: str) -> tuple[int, ...]:
    """How many numbered parts, such as layers, each prefix has."""
    return tuple(len({n[len(p) :].partition(".")[0] for n in names if n.startswith(p)}) for p in prefixes)


def without_numbers(state: Mapping[str, Tensor]) -> list[str]:
    """Tensors that hold no floating-point numbers, with what they hold: integers are no weights."""
    wrong = [key for key in sorted(state) if not state[key].is_floating_point()]
    return [f"{key} {str(state[key].dtype).removeprefix('torch.')}" for key in wrong]


@contextmanager
def unbuilt() -> Iterator[None]:
    """Modules made inside get neither memory nor random numbers: their weights are about to be replaced."""
    with torch.device("meta"), _Uninitialized():
        yield


class _Uninitialized(TorchFunctionMode):
    """On the meta device torch initialises by way of its compiler, whose import takes seconds."""

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
    # Files from before torch 1.6, such as the authors', are no zip archives and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
