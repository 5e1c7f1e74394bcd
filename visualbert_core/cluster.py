"""A pool of workers over shards, on this machine or a Ray cluster; the only file of the library that imports Ray.

Owns where workers run: how many, what each reserves, which cluster. Workers are plain Ray actors that pull shards, two
in flight each, so that decoding and writing hide behind the GPU (a worker locks its model). Ray's own restarts are
off: any system error ends that actor, and `supervision.py` decides what follows. Safety does not come from either
but from `shards.py`: a shard that runs twice writes the same bytes under the same name.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from visualbert_core.shards import Marker, Shard
from visualbert_core.supervision import IN_FLIGHT, Actors, LostError, Progress, Supervisor

OBJECT_STORE = 256 << 20  # bytes; nothing but shards and markers passes through it
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # or Ray writes one into the home folder
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # read when ray is imported; Ray's only way to bind to loopback alone
}

AnyShard = TypeVar("AnyShard", bound=Shard)
Work = TypeVar("Work", bound=Shard, contravariant=True)


class Worker(Protocol[Work]):
    """What a pool needs of a worker. `run` commits the shard's part itself, and is called from two threads at once."""

    def run(self, shard: Work) -> Marker: ...


@dataclass(frozen=True)
class Pool:
    """How many workers, and how much of a GPU each gets.

    Default: one GPU each, as many as the cluster has; without GPUs one per CPU. `inline` runs in this process.
    """

    workers: int | None = None
    gpus_per_worker: float | None = None
    inline: bool = False


def run_shards(make_worker: Callable[[], Worker[AnyShard]], shards: Sequence[AnyShard], pool: Pool, label: str) -> None:
    """Run every shard on a pool of workers; returns when each is committed.

    `make_worker` is called once in each worker process and must be picklable. Progress goes to stderr.

    Raises InputError at once, as it is, where a worker raises one; ShardError naming a shard that failed on every
    attempt, after all others are committed, or as soon as five workers in a row finish nothing.
    """
    if not shards:
        return
    with session(pool), Progress(label, sum(len(shard.items) for shard in shards)) as progress:
        actors: Actors = _Inline(make_worker) if pool.inline else _RayActors(make_worker, pool, len(shards))
        Supervisor(actors, shards, progress).run()


@contextmanager
def session(pool: Pool) -> Iterator[None]:
    """Ray for several stages: started at most once, and shut down only where it was started here.

    Inside, stdout is stderr, because Ray prints the deaths of workers there: print results after it.
    """
    if pool.inline:
        yield
        return
    with redirect_stdout(sys.stderr):
        ours = _start()
        try:
            yield
        finally:
            if ours:
                import ray

                ray.shutdown()


def _start() -> bool:
    """Attach to the cluster of RAY_ADDRESS (`ray job submit` sets it) or start Ray on this machine, for it alone.
    False where Ray already runs in this process."""
    attach = bool(os.environ.get("RAY_ADDRESS"))
    if not attach:
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    # Errors only: a local Ray warns that it uses a token, and setting RAY_AUTH_MODE here would be too late where ray is
    # imported already. "local", because a bare ray.init() joins whatever cluster of this user it finds.
    local: dict[str, Any] = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    ray.init(**({} if attach else local), log_to_driver=False, logging_level=logging.ERROR)
    return True


class _Inline:
    """One worker in this process; a call runs when its result is asked for."""

    size = 1

    def __init__(self, make_worker: Callable[[], Worker[Any]]) -> None:
        self.make_worker = make_worker
        self.worker: Worker[Any]

    def boot(self) -> tuple[Any, Any]:
        return self, self._make

    def _make(self) -> None:
        self.worker = self.make_worker()

    def submit(self, actor: Any, shard: Shard) -> Any:
        return lambda: self.worker.run(shard)

    def wait(self, calls: list[Any]) -> Any | None:
        return calls[0]

    def result(self, call: Any) -> Marker | None:
        answer: Marker | None = call()
        return answer

    def discard(self, actor: Any) -> None:
        pass


class _RayActors:
    """Workers as actors of the current Ray session."""

    def __init__(self, make_worker: Callable[[], Worker[Any]], pool: Pool, shards: int) -> None:
        import ray

        self.ray: Any = ray
        total = self.ray.cluster_resources()
        gpus, cpus = total.get("GPU", 0), int(total.get("CPU", 1))
        share = float(gpus > 0) if pool.gpus_per_worker is None else pool.gpus_per_worker
        wanted = pool.workers or (int(gpus / share) if share else cpus)
        self.size = max(1, min(wanted, shards))
        options = {
            "num_gpus": share,
            "num_cpus": 0 if share else _cpu_share(cpus / self.size),
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": IN_FLIGHT,
            "scheduling_strategy": "SPREAD",
        }
        self.host = self.ray.remote(**options)(_Host)
        self.args = (make_worker, max(1, cpus // self.size))

    def boot(self) -> tuple[Any, Any]:
        actor = self.host.remote()
        return actor, actor.boot.remote(*self.args)

    def submit(self, actor: Any, shard: Shard) -> Any:
        return actor.run.remote(shard)

    def wait(self, calls: list[Any]) -> Any | None:
        ended, _ = self.ray.wait(calls, num_returns=1, timeout=0.5)
        return ended[0] if ended else None

    def result(self, call: Any) -> Marker | None:
        try:
            answer: Marker | None = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            # After a CUDA error every later call in that process fails too.
            if "CUDA error" in str(error.cause):
                raise LostError(str(error.cause)) from error
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            raise LostError(_obituary(error)) from error
        return answer

    def discard(self, actor: Any) -> None:
        self.ray.kill(actor)


def _obituary(error: Exception) -> str:
    """The cause stands in the last of many lines, before general advice."""
    last = str(error).strip().splitlines()[-1]
    return f"{type(error).__name__}: {last.split(' Some common causes')[0]}"


def _cpu_share(cpus: float) -> float:
    """What a CPU worker reserves. At most one, though it uses more threads: a larger piece might fit on no node.
    Rounded down, as Ray would round three thirds of two CPUs up to more than two."""
    return min(1.0, math.floor(cpus * 1000) / 1000)


class _Host(Generic[AnyShard]):
    """The Ray actor around a worker. The worker is made in a call of its own: an exception in an actor's constructor
    would reach the driver as text only."""

    def boot(self, make_worker: Callable[[], Worker[AnyShard]], threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.worker = make_worker()
        if torch := sys.modules.get("torch"):  # only where the worker uses it
            torch.set_num_threads(threads)

    def run(self, shard: AnyShard) -> Marker:
        return self.worker.run(shard)
