"""The process around a worker: its threads, its GPU, its memory, and the calls that a pool makes into it.

Owns what must be the same wherever a worker runs, so that it computes the same bytes there, or does not begin. Knows
nothing of Ray, which makes an actor of a `WorkerProcess` (`cluster.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from visualbert_core.engine.shards import Marker, Shard

SIMULATED = "VISUALBERT_CORE_SIMULATED_GPUS"  # is set where nodes only say that they have GPUs, as in tests

AnyShard = TypeVar("AnyShard", bound=Shard)
Work = TypeVar("Work", bound=Shard, contravariant=True)
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Worker(Protocol[Work]):
    """What a pool needs of a worker. `run` is called from two threads at once.

    It computes `shard.touched`, takes the rows of `shard.lost()` for the other items, and commits the part itself.
    """

    def run(self, shard: Work) -> Marker: ...


def halving_on_memory_error(compute: Callable[[Sequence[Item]], list[Answer]], batch: Sequence[Item]) -> list[Answer]:
    """`compute(batch)`; where it does not fit into the GPU's memory its halves, and so on down to single items.

    Raises what `compute` does, torch's OutOfMemoryError for a single item too: the pool then ends that process, and
    gives the shard a fresh one to itself.
    """
    try:
        return compute(batch)
    except RuntimeError as error:
        if not _out_of_memory(error) or len(batch) < 2:
            raise
    half = len(batch) // 2  # out here, where the traceback no longer holds the failed batch's tensors
    return halving_on_memory_error(compute, batch[:half]) + halving_on_memory_error(compute, batch[half:])


class WorkerProcess(Generic[AnyShard]):
    """The Ray actor around a worker. The worker is made in a call of its own: an exception in an actor's constructor
    would reach the driver as text only."""

    worker: Worker[AnyShard] | None = None

    def boot(self, make_worker: Callable[[], Worker[AnyShard]], threads: int, gpus: float) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if not gpus:  # Ray shows all of a node's GPUs to those who asked for none (ray-project/ray#62492)
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self.worker = None  # frees the last stage's model before this one's is loaded
        self.worker = make_worker()
        if gpus:
            _check_gpu()
        set_threads(threads)

    def run(self, shard: AnyShard) -> Marker:
        assert self.worker is not None
        return self.worker.run(shard)


def unusable(error: Exception) -> bool:
    """After a CUDA error, which cuDNN may be the first to see, every later call in that process fails, too; and where a
    single item did not fit into the GPU's memory, a fresh process has more of it."""
    return "CUDA error" in str(error) or "cuDNN error" in str(error) or _out_of_memory(error)


def _out_of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch's, without importing torch


def set_threads(threads: int) -> int | None:
    """Have torch compute with so many from now on, in a process that uses it; returns with how many it did before."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    before: int = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before


def _check_gpu() -> None:
    """Raises RuntimeError where Ray gave this process a GPU that torch cannot use: it would compute on the CPU, and
    nobody would know why it takes days."""
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available() and not os.environ.get(SIMULATED):
        raise RuntimeError(
            f"this worker has a GPU, but torch {torch.__version__} cannot use it (torch.cuda.is_available() is False): "
            "give the node, and its container, an NVIDIA driver that fits torch, or compute on CPUs, gpus_per_worker 0"
        )
