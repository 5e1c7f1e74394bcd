"""What a process has to compute with: its threads, its GPU and the memory of the GPU.

A worker computes the same bytes wherever it runs, or it does not begin. What does not fit into the memory of a GPU is
halved. torch is not imported here, because that takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

SIMULATED = "VISUALBERT_CORE_SIMULATED_GPUS"  # set in tests, whose nodes claim GPUs that they do not have

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def halving_on_memory_error(compute: Callable[[Sequence[Item]], list[Answer]], batch: Sequence[Item]) -> list[Answer]:
    """Return `compute(batch)`. If the batch does not fit into the GPU's memory, halve it, down to single items.

    Raise what `compute` raises. For a single item that includes torch's OutOfMemoryError: the pool then ends the
    process, and the shard runs alone in a new process.
    """
    try:
        return compute(batch)
    except RuntimeError as error:
        if not _out_of_memory(error) or len(batch) < 2:
            raise
    half = len(batch) // 2  # outside `except`, where the traceback no longer holds the tensors of the failed batch
    return halving_on_memory_error(compute, batch[:half]) + halving_on_memory_error(compute, batch[half:])


def unusable(error: Exception) -> bool:
    """Return whether an error makes its process unusable.

    After a CUDA error, which cuDNN may report first, every later CUDA call of the process fails. Where a single item
    did not fit into the GPU's memory, a new process has more free memory.
    """
    return "CUDA error" in str(error) or "cuDNN error" in str(error) or _out_of_memory(error)


def _out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def set_threads(threads: int) -> int | None:
    """Set the number of torch's threads and return the earlier number. Do nothing where torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before: int = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before


def check_gpu() -> None:
    """Raise RuntimeError where Ray gave this process a GPU that torch cannot use. Otherwise the CPU would compute, for
    days and without a message."""
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available() and not os.environ.get(SIMULATED):
        raise RuntimeError(
            f"this worker has a GPU, but torch {torch.__version__} cannot use it (torch.cuda.is_available() is False): "
            "give the node, and its container, an NVIDIA driver that fits torch, or compute on CPUs, gpus_per_worker 0"
        )
