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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any, Generic, Protocol, Self, TypeVar

from visualbert_core.config import PoolConfig
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


class Pool:
    """Runs shards on workers; one pool serves all stages of a job.

        with Pool(PoolConfig(workers=4)) as pool:
            pool.run(make_worker, shards, "features of coco")

    Ray starts when there is something to run, at most once, and is shut down at the end where it was started here. The
    actors stay for the next stage, because importing torch takes them seconds. Inside, stdout is stderr, as Ray prints
    the deaths of workers there: print results afterwards.
    """

    def __init__(self, config: PoolConfig | None = None) -> None:
        self.config = config or PoolConfig()
        self._exit = ExitStack()
        self._actors: _Actors | None = None

    def __enter__(self) -> Self:
        if not self.config.inline:
            self._exit.enter_context(redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def gpus(self) -> float:
        """GPUs that the workers hold; none before they start, nor in this process."""
        return self._actors.gpus if self._actors else 0.0

    def run(self, make_worker: Callable[[], Worker[AnyShard]], shards: Sequence[AnyShard], label: str) -> None:
        """Run every shard; returns when each is committed.

        `make_worker` is called once in each worker process and must be picklable. Progress goes to stderr.

        Raises InputError at once, as it is, where a worker raises one; ShardError naming a shard that failed on every
        attempt, after all others are committed, or as soon as five workers in a row finish nothing.
        """
        if not shards:
            return
        self._actors = self._actors or self._start()
        with Progress(label, sum(len(shard.items) for shard in shards)) as progress:
            Supervisor(self._actors.serving(make_worker), shards, progress).run()

    def _start(self) -> _Actors:
        if self.config.inline:
            return _Inline()
        actors = _RayActors(self.config, self._exit)
        self._exit.callback(actors.close)
        return actors


def start_ray() -> bool:
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


def read_parquet(paths: Sequence[str], decode: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A `ray.data.Dataset` over Parquet files, each batch (column → array) through `decode`; Ray starts if need be."""
    start_ray()
    import ray.data

    return ray.data.read_parquet(list(paths)).map_batches(decode, batch_format="numpy")


class _Actors(Actors, Protocol):
    """Where workers live, for one stage after the other."""

    gpus: float
    """Held by all of them together."""

    def serving(self, make_worker: Callable[[], Worker[Any]]) -> Self:
        """Itself, from now on with these workers."""


class _Inline:
    """One worker in this process; a call runs when its result is asked for."""

    size = 1
    gpus = 0.0
    make_worker: Callable[[], Worker[Any]]
    worker: Worker[Any]

    def serving(self, make_worker: Callable[[], Worker[Any]]) -> Self:
        self.make_worker = make_worker
        return self

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

    def release(self, actor: Any) -> None:
        pass

    def discard(self, actor: Any) -> None:
        pass


class _RayActors:
    """Workers as actors of the current Ray session."""

    make_worker: Callable[[], Worker[Any]]

    def __init__(self, config: PoolConfig, exit_stack: ExitStack) -> None:
        ours = start_ray()
        import ray

        self.ray: Any = ray
        if ours:
            exit_stack.callback(ray.shutdown)
        total = self.ray.cluster_resources()
        gpus, cpus = total.get("GPU", 0), int(total.get("CPU", 1))
        share = float(gpus > 0) if config.gpus_per_worker is None else config.gpus_per_worker
        self.size = max(1, config.workers or (int(gpus / share) if share else cpus))
        self.gpus = share * self.size
        # Not by how many shards there are: a resumed run must compute as the first one did.
        self.threads = max(1, cpus // self.size)
        options = {
            "num_gpus": share,
            "num_cpus": 0 if share else _cpu_share(cpus / self.size),
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": IN_FLIGHT,
            "scheduling_strategy": "SPREAD",
        }
        self.host = self.ray.remote(**options)(_Host)
        self.idle: list[Any] = []

    def serving(self, make_worker: Callable[[], Worker[Any]]) -> Self:
        self.make_worker = make_worker
        return self

    def boot(self) -> tuple[Any, Any]:
        actor = self.idle.pop() if self.idle else self.host.remote()
        return actor, actor.boot.remote(self.make_worker, self.threads)

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

    def release(self, actor: Any) -> None:
        self.idle.append(actor)

    def discard(self, actor: Any) -> None:
        self.ray.kill(actor)

    def close(self) -> None:
        while self.idle:
            self.discard(self.idle.pop())


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

    worker: Worker[AnyShard] | None = None

    def boot(self, make_worker: Callable[[], Worker[AnyShard]], threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.worker = None  # frees the last stage's model before this one's is loaded
        self.worker = make_worker()
        if torch := sys.modules.get("torch"):  # only where the worker uses it
            torch.set_num_threads(threads)

    def run(self, shard: AnyShard) -> Marker:
        assert self.worker is not None
        return self.worker.run(shard)
