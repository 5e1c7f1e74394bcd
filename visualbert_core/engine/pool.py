"""A pool of workers that compute shards on this machine or on a Ray cluster (docs.ray.io).

Owns where workers run, how many there are, what each worker reserves, and what stops a job before its end.
A worker is a plain Ray actor. It computes two shards at a time, so that one shard decodes or writes while the other
uses the GPU; the worker locks its model. Ray's restarts are off: a system error ends the actor, and `scheduler.py`
decides what follows. Correctness does not depend on either file but on `shards.py`: a shard that runs twice writes the
same bytes under the same name. In the engine, only this file and `ray_session.py` import Ray.
"""

from __future__ import annotations

import math
import os
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any, Generic, Protocol, Self, TypeVar

from visualbert_core.config import PoolConfig
from visualbert_core.engine.backend import Backend, LostError
from visualbert_core.engine.hardware import check_gpu, set_threads, unusable
from visualbert_core.engine.progress import Figures, Progress
from visualbert_core.engine.ray_session import start_ray
from visualbert_core.engine.scheduler import IN_FLIGHT, Scheduler
from visualbert_core.engine.shards import Marker, Shard
from visualbert_core.engine.stopping import Stop
from visualbert_core.errors import UnfinishedError, first_line
from visualbert_core.printable import logger

_LOG = logger(__name__)

NODES_SECONDS = 5.0  # between two queries for the nodes of the cluster
UNPLACED_SECONDS = 1.0  # between two queries for the actors that wait for a node
TAG_SAFE = "".join(chr(code) for code in range(32, 127) if chr(code) != "%")  # characters that a tag may hold as is

AnyShard = TypeVar("AnyShard", bound=Shard)
Work = TypeVar("Work", bound=Shard, contravariant=True)


class Worker(Protocol[Work]):
    """The contract between a pool and a worker.

    `run` is called from two threads at once. It computes the items of `shard.touched`, takes the failure rows of
    `shard.lost()` for the other items, commits the part, and returns its marker.
    """

    def run(self, shard: Work) -> Marker: ...


class Pool:
    """Runs shards on workers. One pool serves all stages of a job.

        with Pool(PoolConfig(workers=4)) as pool:
            pool.run(make_worker, shards, "features of coco")

    Ray starts at the first stage that has shards to run. A Ray that the pool started is shut down at the end. The
    actors stay for the next stage, because an actor needs seconds to import torch. Inside the context stdout goes to
    stderr, because Ray prints the deaths of workers to stdout: print results afterwards.

    SIGTERM, SIGINT and the end of `max_hours` let the running shards be committed, and then end the job with
    UnfinishedError. Between two stages they end it at once. A second signal acts as it would without a pool.
    """

    def __init__(self, config: PoolConfig | None = None) -> None:
        self.config = config or PoolConfig()
        self._exit = ExitStack()
        self._actors: _Actors | None = None
        self._stop = Stop(self.config.max_hours, self._heard)
        self._idle = True  # no stage is running

    def __enter__(self) -> Self:
        if not self.config.inline:
            self._exit.enter_context(redirect_stdout(sys.stderr))
        self._exit.enter_context(self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._idle = False
        self._exit.close()

    @property
    def gpus(self) -> float:
        """Return how many GPUs the workers reserve: 0 before they start, and 0 in this process."""
        return self._actors.gpus * self._actors.size if self._actors else 0.0

    def run(self, make_worker: Callable[[], Worker[AnyShard]], shards: Sequence[AnyShard], label: str) -> list[Marker]:
        """Run every shard, and return their markers, in no particular order, when each shard is committed.

        `make_worker` is called once in each worker process and must be picklable. Progress is logged under `label`.

        Raise InputError at once where a worker raises it. Raise ShardError where a shard failed on every attempt: after
        all others are committed, or as soon as no shard is finished any more. Raise UnfinishedError after a signal or
        `max_hours`.
        """
        if not shards:
            return []
        if reason := self._stop.reason():
            raise UnfinishedError(f"stopped ({reason}): {label} is left; run the same line again to compute it")
        self._idle = False
        try:
            if self._actors is None:
                self._actors = self._start()
                self._stop.listen()  # again, because ray.init replaces the handlers
            actors = self._actors.serving(make_worker)
            total = sum(len(shard.items) for shard in shards)
            with Progress(label, total, actors.publish) as progress:
                return Scheduler(actors, shards, progress, self.config, self._stop.reason).run()
        finally:
            self._idle = True

    def _start(self) -> _Actors:
        actors = _Inline(self.config) if self.config.inline else _RayActors(self.config, self._exit)
        self._exit.callback(actors.close)
        return actors

    def _heard(self, name: str) -> None:
        if self._idle:
            raise UnfinishedError(f"stopped ({name}); run the same line again to go on from here")


class _Actors(Backend, Protocol):
    """A backend that serves the stages of a job in turn."""

    gpus: float
    """GPUs that one actor reserves."""

    def serving(self, make_worker: Callable[[], Worker[Any]]) -> Self:
        """Use `make_worker` for all later actors, and return self."""

    def publish(self, stage: str, figures: Figures) -> None:
        """Export the figures of a stage. See `progress.py`."""

    def close(self) -> None:
        """End the actors that are left."""


class _Inline:
    """One worker in this process. A call runs when its result is asked for."""

    size = 1
    gpus = 0.0
    make_worker: Callable[[], Worker[Any]]
    worker: Worker[Any]

    def __init__(self, config: PoolConfig) -> None:
        self.threads = config.threads_per_worker
        self.before: int | None = None

    def serving(self, make_worker: Callable[[], Worker[Any]]) -> Self:
        self.make_worker = make_worker
        return self

    def publish(self, stage: str, figures: Figures) -> None:
        pass

    def close(self) -> None:
        if self.before is not None:
            set_threads(self.before)

    def room(self) -> str:
        return "there is this process"

    def unplaced(self, booting: int) -> int:
        return 0

    def boot(self) -> tuple[Any, Any]:
        return self, self._make

    def _make(self) -> None:
        self.worker = self.make_worker()
        self.before = self.before or set_threads(self.threads)

    def submit(self, actor: Any, shard: Shard) -> Any:
        return lambda: self.worker.run(shard)

    def wait(self, calls: list[Any]) -> Any | None:
        return calls[0]

    def result(self, call: Any) -> Marker | None:
        try:
            answer: Marker | None = call()
        except RuntimeError as error:
            if unusable(error):
                raise LostError(first_line(error)) from error
            raise
        return answer

    def release(self, actor: Any) -> None:
        pass

    def discard(self, actor: Any) -> None:
        pass


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
            check_gpu()
        set_threads(threads)

    def run(self, shard: AnyShard) -> Marker:
        assert self.worker is not None
        return self.worker.run(shard)


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
        gpus, cpus = total.get("GPU", 0), int(total.get("CPU", 0))
        # A cluster with neither GPUs nor CPUs is a head that waits for its nodes. Those are expected to have GPUs.
        self.gpus = float(gpus > 0 or not cpus) if config.gpus_per_worker is None else config.gpus_per_worker
        if not self.gpus and config.gpus_per_worker is None and os.environ.get("RAY_ADDRESS"):
            _LOG.warning("the cluster has no GPU now, so CPUs compute; set gpus_per_worker 1 to wait for GPUs")
        self.workers, self.looked, self.places = config.workers, -NODES_SECONDS, 0
        self.asked, self.demanded = -NODES_SECONDS, 0
        self.threads = config.threads_per_worker
        self.cpus = 0.0 if self.gpus else _cpu_share(cpus / self.size, self.threads) or float(self.threads)
        options = {
            "num_gpus": self.gpus,
            "num_cpus": self.cpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": IN_FLIGHT,
            "scheduling_strategy": "SPREAD",
        }
        self.host = self.ray.remote(**options)(WorkerProcess)
        self.idle: list[Any] = []
        self.gauges: dict[str, Any] = {}

    @property
    def size(self) -> int:
        return self.workers or max(1, self._places())

    def _places(self) -> int:
        """Return how many workers fit on the nodes, without counting what other jobs use."""
        if time.monotonic() - self.looked > NODES_SECONDS:
            self.looked = time.monotonic()
            nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            self.places = sum(_workers_of(node, self.gpus, self.threads) for node in nodes)
        return self.places

    def room(self) -> str:
        places = self._places()
        others = ", which other jobs use" if places else ""
        need = f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus:g} CPU"
        return f"each needs {need}, and the cluster's nodes have room for {places} such workers{others}"

    def unplaced(self, booting: int) -> int:
        if not self._places():
            return booting
        if booting and time.monotonic() - self.asked > UNPLACED_SECONDS:
            self.asked, self.demanded = time.monotonic(), self._demanded()
        return min(booting, self.demanded)

    def _demanded(self) -> int:
        """Return how many workers of this size wait for a node. Workers whose process has been started do not count.
        Workers of another job count where they have the same size."""
        # ray.util.state would need the dashboard, and its states do not tell a waiting actor from a starting one.
        from ray.autoscaler.v2.sdk import get_cluster_status

        try:
            status = get_cluster_status(self.ray.get_runtime_context().gcs_address)
        except self.ray.exceptions.RayError:
            return self.demanded
        size = {"GPU": self.gpus, "CPU": self.cpus}
        demands = [one for demand in status.resource_demands.ray_task_actor_demand for one in demand.bundles_by_count]
        return sum(one.count for one in demands if _alike(one.bundle, size))

    def publish(self, stage: str, figures: Figures) -> None:
        from ray.util.metrics import Gauge

        for (name, state), value in figures.items():
            keys = ("stage", "state") if state else ("stage",)
            if name not in self.gauges:
                self.gauges[name] = Gauge(f"visualbert_{name}", f"{name} of a stage, see progress.py", keys)
            self.gauges[name].set(value, dict(zip(keys, (tag(stage), state), strict=False)))

    def serving(self, make_worker: Callable[[], Worker[Any]]) -> Self:
        self.make_worker = make_worker
        return self

    def boot(self) -> tuple[Any, Any]:
        actor = self.idle.pop() if self.idle else self.host.remote()
        return actor, actor.boot.remote(self.make_worker, self.threads, self.gpus)

    def submit(self, actor: Any, shard: Shard) -> Any:
        return actor.run.remote(shard)

    def wait(self, calls: list[Any]) -> Any | None:
        ended, _ = self.ray.wait(calls, num_returns=1, timeout=0.5)
        return ended[0] if ended else None

    def result(self, call: Any) -> Marker | None:
        try:
            answer: Marker | None = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            if unusable(error.cause):
                raise LostError(first_line(error.cause)) from error
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            raise LostError(_death_message(error), self._node_lost(error)) from error
        return answer

    def _node_lost(self, error: Exception) -> bool:
        """Return whether an actor ended with its node. Until Ray knows that the node is lost, it calls the actor
        "unavailable"."""
        gone = (self.ray.exceptions.ActorUnavailableError, self.ray.exceptions.NodeDiedError)
        return isinstance(error, gone) or "node has died" in str(error)

    def release(self, actor: Any) -> None:
        self.idle.append(actor)

    def discard(self, actor: Any) -> None:
        self.ray.kill(actor)

    def close(self) -> None:
        while self.idle:
            self.discard(self.idle.pop())


def tag(text: str) -> str:
    """Return `text` as a metric's tag. Ray allows ASCII only, so é becomes %C3%A9, as in a URL."""
    return urllib.parse.quote(text, safe=TAG_SAFE, errors="surrogatepass")


def _alike(bundle: dict[str, float], size: dict[str, float]) -> bool:
    return all(abs(bundle.get(name, 0.0) - amount) < 1e-3 for name, amount in size.items())


def _workers_of(node: dict[str, float], gpus: float, cpus: int) -> int:
    """Return how many workers fit on a node, each with `gpus` GPUs, or with `cpus` CPUs where `gpus` is 0.

    A worker's fraction of a GPU lies on one GPU: two GPUs have room for four workers of 0.4 GPU, not for five.
    """
    if not gpus:
        return int(node.get("CPU", 0) // cpus)
    return int(node.get("GPU", 0) / gpus) if gpus >= 1 else int(node.get("GPU", 0)) * int(1 / gpus)


def _death_message(error: Exception) -> str:
    """Return the cause of an actor's death: Ray puts it into the last of many lines, before general advice."""
    last = str(error).strip().splitlines()[-1]
    return f"{type(error).__name__}: {last.split(' Some common causes')[0]}"


def _cpu_share(cpus: float, threads: int) -> float:
    """Return the CPUs that a CPU worker reserves: its threads, or its share where there are more workers than fit.

    The share is rounded down to thousandths. Ray would round it up, and three thirds of two CPUs would exceed two CPUs.
    """
    return min(float(threads), math.floor(cpus * 1000) / 1000)
