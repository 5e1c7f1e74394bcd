"""Calls a function beside itself on Ray, each call in a process of its own with its own CPUs or its own GPU.

A call is no shard: it may take hours, it writes its own files, and it can be stopped in the middle. So it is a Ray task
(docs.ray.io) and not an actor of the pool. Ray Tune would add libraries, a folder and states of its own, where a
training already resumes itself. A call whose process ends is made again, so it must go on from its files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from visualbert_core.engine.ray_session import start_ray
from visualbert_core.errors import ClusterError
from visualbert_core.printable import logger

INGREDIENT = None

T = TypeVar("T")

_LOG = logger(__name__)
_POLL_SECONDS = 0.5
_AGAIN = 3  # times that a call whose process ended is made again


@dataclass(frozen=True)
class Lost:
    """A call without a result: its process ended too often."""

    reason: str


@contextmanager
def on_ray() -> Iterator[None]:
    """Start Ray, or join the cluster of RAY_ADDRESS, unless Ray already runs in this process. End what was started.

    Ray replaces the handlers of signals, so handle signals inside this context.
    """
    ours = start_ray()
    try:
        yield
    finally:
        if ours:
            import ray

            ray.shutdown()


def side_by_side(
    function: Callable[[Any], T],
    arguments: Sequence[Any],
    at_once: int | None,
    cpus: int,
    device: str | None,
    stopped: Callable[[], bool],
) -> Iterator[tuple[int, T | Lost]]:
    """Call `function` with each argument, and yield (index, result) in the order in which the calls end.

    At most `at_once` calls run (None: as many as there is room for). Each has one GPU where `device` is a GPU, or where
    it is None and the cluster has GPUs; otherwise `cpus` CPUs. Once `stopped` returns True, no call starts, running
    calls get a SIGINT and are waited for, and calls that wait for room are not yielded.

    `function` must not raise. Call this inside `on_ray`. Raise ClusterError where the Ray of this machine has no room
    for one call.
    """
    import ray

    kind, amount = _resource(ray, cpus, device)
    _check_room(ray, kind, amount)
    options: dict[str, Any] = {"num_gpus": amount, "num_cpus": 0} if kind == "GPU" else {"num_cpus": amount}
    call = ray.remote(max_retries=_AGAIN, scheduling_strategy="SPREAD", **options)(function)
    waiting, running = list(enumerate(arguments)), dict[Any, int]()
    told = False
    while running or (waiting and not told):
        if stopped() and not told:
            told = True
            for reference in running:
                ray.cancel(reference)  # a SIGINT for a call that runs; a call that has not begun never does
        while waiting and not told and (at_once is None or len(running) < at_once):
            index, argument = waiting.pop(0)
            running[call.remote(argument)] = index
        ended, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
        for reference in ended:
            index, result = running.pop(reference), _result(ray, reference)
            if result is not None:
                yield index, result


def _resource(ray: Any, cpus: int, device: str | None) -> tuple[str, int]:
    """Return what a call needs: the name of a resource of Ray, and how much of it."""
    gpus = ray.cluster_resources().get("GPU", 0) > 0 if device is None else device.startswith("cuda")
    return ("GPU", 1) if gpus else ("CPU", cpus)


def _check_room(ray: Any, kind: str, amount: int) -> None:
    """Raise ClusterError where a call would wait for ever. A cluster may get nodes, so there a warning is logged."""
    largest = max((node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0)
    if largest >= amount:
        return
    said = f"a training needs {amount} {kind}, and the largest node has {largest:g}"
    if not os.environ.get("RAY_ADDRESS"):
        raise ClusterError(f"{said}: lower --threads, or leave out --parallel")
    _LOG.warning("%s: waiting for a larger node", said)


def _result(ray: Any, reference: Any) -> Any:
    """Return the result of a call that has ended, or None where it was cancelled before it began."""
    try:
        return ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return None
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1:]  # Ray puts the cause there, after general advice
        return Lost(f"its process ended: {type(error).__name__}: {''.join(last)}")
