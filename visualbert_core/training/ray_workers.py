"""Several workers of one training, on Ray Train (docs.ray.io, its V2 interface, public names only).

    driver                              board (actor)                      workers
    ──────                              ─────────────                      ───────
    starts the workers ───────────────────────────────────────────────────▶ `Run` of each, from the newest checkpoint
    shows progress and log lines ◀───── progress, log, error ◀──────────── the first worker, and every failing one
    a signal, or --max-hours ─────────▶ why to stop ──────────────────────▶ the first worker saves, all return

Where a worker ends, Ray Train ends the others, for they wait for its gradients. The driver starts all of them again.
They go on from the newest checkpoint in OUT, which all nodes share. Ray Train keeps no checkpoint: `state` does.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from visualbert_core.engine.hardware import set_threads
from visualbert_core.errors import ClusterError, VisualBertCoreError, first_line
from visualbert_core.printable import logger
from visualbert_core.provenance import differences
from visualbert_core.training.board import Board
from visualbert_core.training.log import Step
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.run import Run
from visualbert_core.training.sources import open_tasks
from visualbert_core.training.state import Checkpoints
from visualbert_core.training.step import Group, SmallerPassesError

_LOG = logger(__name__)
_POLL_SECONDS = 0.5
_ASK_SECONDS = 1.0
_SMALLER = "%s; from here on a pass has at most %s: all workers start again from the checkpoint of step %s"
_PATIENCE = 7 * 24 * 3600
"""Seconds that workers wait for the first one, which may evaluate or save. A worker that ends is noticed at once."""


def train_on_ray(
    config: TrainConfig, record: dict[str, Any], stop: Callable[[], str | None], show: Callable[[Step], None]
) -> None:
    """Train with `config.workers` workers. `record` is the run.json of the training.

    Ray runs already. Raise the error of a worker that is of this package, such as TrainingError or UnfinishedError.
    Raise ClusterError where there is no room, and where workers ended `config.restarts` + 1 times without a new
    checkpoint.
    """
    # Workers keep the driver's folder, so that relative paths mean the same there (Ray Train's default is its own).
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    import ray

    ended, reached, tokens = 0, Checkpoints(config.folder).last(), None
    while (error := _attempt(ray, config, record, stop, show, tokens)) is not None:
        if isinstance(error, SmallerPassesError):
            tokens, last = error.tokens, Checkpoints(config.folder).last()
            _LOG.warning(_SMALLER, error.said, f"{tokens:,}", f"{last:,}")
            continue
        ended, reached, before = ended + 1, Checkpoints(config.folder).last(), reached
        if reached > before:
            ended = 1
        reason = _reason(error)
        if ended > config.restarts:
            raise ClusterError(
                f"workers ended {ended} times since the checkpoint of step {reached:,}; the last time: {reason}: "
                "mend that, or raise --restarts, and run the same line again"
            )
        _LOG.warning("workers ended (%s): all start again from the checkpoint of step %s", reason, f"{reached:,}")


def _room(ray: Any, config: TrainConfig) -> tuple[int, bool]:
    """Return how many workers to start now, and whether each gets a GPU, by the nodes that are alive.

    Raise ClusterError where this machine alone has no room for the workers.
    """
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
    on_gpus = gpus > 0 if config.device is None else config.device != "cpu"
    there = gpus if on_gpus else cpus // config.threads
    fewest = config.min_workers or config.workers
    if there < fewest:
        need, found, kind = (fewest, gpus, "GPUs") if on_gpus else (fewest * config.threads, cpus, "CPUs")
        said = f"{fewest} workers need {need} {kind}, and there are {found}"
        if not os.environ.get("RAY_ADDRESS"):
            raise ClusterError(f"{said}: lower --workers, or submit the job to a larger cluster")
        _LOG.warning("%s now: waiting for nodes", said)
    elif there < config.workers:
        _LOG.warning("there is room for %d of %d workers: going on with these", there, config.workers)
    return max(fewest, min(config.workers, there)), on_gpus


def _attempt(
    ray: Any,
    config: TrainConfig,
    record: dict[str, Any],
    stop: Callable[[], str | None],
    show: Callable[[Step], None],
    tokens: int | None,
) -> Exception | None:
    """Run the workers until the training is finished, stops or fails. `tokens` is the size of passes so far.

    Return None where it is finished, an error of Ray Train where workers ended, and a SmallerPassesError where one of
    them needs smaller passes. Raise the error of a worker that is of this package, or an OSError.
    """
    board = ray.remote(num_cpus=0)(Board).remote()
    settings = {"config": config, "record": record, "board": board, "tokens": tokens}
    failed: list[Exception] = []
    fitting = threading.Thread(target=_fit, args=(settings, *_room(ray, config), failed), name="Ray Train", daemon=True)
    fitting.start()  # in a thread: in the main thread, Ray Train would take Ctrl-C for itself
    told: str | None = None
    errors: dict[int, Exception] = {}
    smaller: list[SmallerPassesError] = []
    while True:
        alive = fitting.is_alive()
        fitting.join(_POLL_SECONDS)
        if told is None and (told := stop()) is not None:
            board.stop.remote(told)
        for kind, what in ray.get(board.news.remote()):
            if kind == "step":
                show(what)
            elif kind == "line":
                level, text = what
                _LOG.log(level, "%s", text)
            elif kind == "error":
                rank, error = what
                errors[rank] = error
            else:
                smaller.append(SmallerPassesError(*what))
        if not alive:
            break
    if errors:
        raise errors[min(errors)]
    return min(smaller, key=lambda each: each.tokens) if smaller else failed[0] if failed else None


def _fit(settings: dict[str, Any], workers: int, on_gpus: bool, failed: list[Exception]) -> None:
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    config: TrainConfig = settings["config"]
    scratch, each = config.folder / ".ray", {"GPU": 1} if on_gpus else {"CPU": config.threads}
    try:
        TorchTrainer(
            _work,
            train_loop_config=settings,
            torch_config=TorchConfig(timeout_s=_PATIENCE),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpus, resources_per_worker=each),
            run_config=RunConfig(storage_path=str(scratch)),
        ).fit()
    except TrainingFailedError as error:
        failed.append(error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Return what happened to the first worker of those that failed."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return first_line(error)
    rank = min(failures)
    return f"worker {rank + 1}: {first_line(failures[rank])}"


# In each worker -----------------------------------------------------------------------------------------------------


def _work(settings: dict[str, Any]) -> None:
    """Run one worker. Ray Train calls this in every worker, with the settings of the driver."""
    import ray.train
    import ray.train.torch

    context, board = ray.train.get_context(), settings["board"]
    group = Group(context.get_world_rank(), context.get_world_size(), str(ray.train.torch.get_device()))
    try:
        _take_steps(settings, group)
    except SmallerPassesError as error:
        ray.get(board.tell.remote("smaller", (error.said, error.tokens)))
        raise
    except (VisualBertCoreError, OSError) as error:
        ray.get(board.tell.remote("error", (group.rank, error)))
        raise


def _take_steps(settings: dict[str, Any], group: Group) -> None:
    config, record, board = settings["config"], settings["record"], settings["board"]
    set_threads(config.threads)
    lessons = open_tasks(config)
    if other := differences(record["provenance"], lessons.provenance(config)):
        raise ClusterError(f"worker {group.rank + 1} has other code or data than the driver: {'; '.join(other[:3])}")
    run = Run(config, lessons, record, _asking(board), group, tokens=settings["tokens"])
    if not group.first:
        logging.getLogger("visualbert_core").setLevel(logging.ERROR)  # the first worker warns for all
        run.go(lambda _: None, nullcontext)
        return
    with _lines_to(board):
        run.go(lambda step: board.tell.remote("step", step), nullcontext)


def _asking(board: Any) -> Callable[[], str | None]:
    """Return a function that asks the board why to stop, at most once a second."""
    import ray

    asked = -math.inf

    def reason() -> str | None:
        nonlocal asked
        if time.monotonic() - asked < _ASK_SECONDS:
            return None
        asked = time.monotonic()
        found: str | None = ray.get(board.reason.remote())
        return found

    return reason


@contextmanager
def _lines_to(board: Any) -> Iterator[None]:
    """Send the log lines of this package to the driver."""

    class ToBoard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            board.tell.remote("line", (record.levelno, record.getMessage()))

    handler, root = ToBoard(logging.INFO), logging.getLogger("visualbert_core")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
