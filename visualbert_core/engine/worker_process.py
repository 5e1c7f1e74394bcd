"""The process around a worker: its threads, its GPU, its memory, and the calls that a pool makes.

Owns what must be the same wherever a worker runs, so that it computes the same bytes everywhere, or does not begin. It
knows nothing of Ray: `pool.py` makes a Ray actor of a `WorkerProcess`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from visualbert_core.engine.shards import Marker, Shard

SIMULATED = "VISUALBERT_CORE_SIMULATED_GPUS"  # set in tests, whose nodes claim GPUs that they do not have

AnyShard = TypeVar("AnyShard", bound=Shard)
Work = TypeVar("Work", bound=Shard, contravariant=True)
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Worker(Protocol[Work]):
    """The contract between a pool and a worker.

    `run` is called from two threads at once. It computes the items of `shard.touched`, takes the failure rows of
    `shard.lost()` for the other items, commits the part, and returns its marker.
    """

    def run(self, shard: Work) -> Marker: ...


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


class WorkerProcess(Generic[AnyShard]):
    """The class that becomes a Ray actor.

    `boot` makes the worker, and not the constructor: an exception in an actor's constructor reaches the driver as text
    only.
    """

    worker: Worker[AnyShard] | None = None

    def boot(self, make_worker: Callable[[], Worker[AnyShard]], threads: int, gpus: float) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if not gpus:  # Ray shows all GPUs of a node to an actor that asked for none (ray-project/ray#62492)
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.worker = None  # frees the model of the last stage before the model of this stage is loaded
        self.worker = make_worker()
        if gpus:
            _check_gpu()
        set_threads(threads)

    def run(self, shard: AnyShard) -> Marker:
        assert self.worker is not None
        return self.worker.run(shard)


def unusable(error: Exception) -> bool:
    """Return whether an error makes its process unusable.

    After a CUDA error, which cuDNN may report first, every later CUDA call of the process fails. Where a single item
    did not fit into the GPU's memory, a new process has more free memory.
    """
    return "CUDA error" in str(error) or "cuDNN error" in str(error) or _out_of_memory(error)


def _out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # by name, because importing torch takes seconds


def set_threads(threads: int) -> int | None:
    """Set the number of torch's threads and return the earlier number. Do nothing where torch is not imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before: int = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before


def _check_gpu() -> None:
    """Raise RuntimeError where Ray gave this process a GPU that torch cannot use. Otherwise the CPU would compute, for
    days and without a message."""
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available() and not os.environ.get(SIMULATED):
        raise RuntimeError(
            f"this worker has a GPU, but torch {torch.__version__} cannot use it (torch.cuda.is_available() is False): "
            "give the node, and its container, an NVIDIA driver that fits torch, or compute on CPUs, gpus_per_worker 0"
        )
