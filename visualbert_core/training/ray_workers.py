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
from dataclasses import dataclass, field, replace
from typing import Any

from visualbert_core.engine.hardware import set_threads
from visualbert_core.errors import ClusterError, VisualBertCoreError, first_line
from visualbert_core.printable import logger
from visualbert_core.provenance import differences
from visualbert_core.training.log import Progress
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
    config: TrainConfig, record: dict[str, Any], stop: Callable[[], str | None], show: Callable[[Progress], None]
) -> None:
    """Train with `config.workers` workers. `record` is the run.json of the training.

    Ray runs already. Raise the error of a worker that is of this package, such as TrainingError or UnfinishedError.
    Raise ClusterError where there is no room, and where workers ended `config.restarts` + 1 times without a new
    checkpoint.
    """
    # Workers keep the driver's folder, so that relative paths mean the same there (Ray Train's default is its own).
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    import ray

    attempt = _Attempt(config, record, stop, show)
    ended, reached = 0, Checkpoints(config.folder).last()
    while (error := attempt(ray)) is not None:
        if isinstance(error, SmallerPassesError):
            attempt = replace(attempt, tokens=error.tokens)
            last = Checkpoints(config.folder).last()
            _LOG.warning(_SMALLER, error.said, f"{error.tokens:,}", f"{last:,}")
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


@dataclass(frozen=True)
class _Room:
    """How many workers to start now, and whether each gets a GPU."""

    workers: int
    on_gpus: bool


def _room(ray: Any, config: TrainConfig) -> _Room:
    """Look at the nodes that are alive. Raise ClusterError where this machine alone has no room for the workers."""
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
    return _Room(max(fewest, min(config.workers, there)), on_gpus)


@dataclass
class _Attempt:
    """Runs the workers until the training is finished, stops or fails."""

    config: TrainConfig
    record: dict[str, Any]
    stop: Callable[[], str | None]
    show: Callable[[Progress], None]
    tokens: int | None = None
    """The size of passes that an earlier attempt came to."""

    def __call__(self, ray: Any) -> Exception | None:
        """Return None where the training is finished, an error of Ray Train where workers ended, and a
        SmallerPassesError where one of them needs smaller passes.

        Raise the error of a worker that is of this package, or an OSError.
        """
        board = ray.remote(num_cpus=0)(_Board).remote()
        failed: list[Exception] = []
        arguments = (board, _room(ray, self.config), failed)
        fitting = threading.Thread(target=self._fit, args=arguments, name="Ray Train", daemon=True)
        fitting.start()  # in a thread: in the main thread, Ray Train would take Ctrl-C for itself
        told: str | None = None
        errors: dict[int, Exception] = {}
        smaller: list[SmallerPassesError] = []
        while True:
            alive = fitting.is_alive()
            fitting.join(_POLL_SECONDS)
            if told is None and (told := self.stop()) is not None:
                board.tell.remote(told)
            news = ray.get(board.news.remote())
            for level, text in news.lines:
                _LOG.log(level, "%s", text)
            for progress in news.progress:
                self.show(progress)
            errors |= news.errors
            smaller += news.smaller
            if not alive:
                break
        if errors:
            raise errors[min(errors)]
        if smaller:
            return min(smaller, key=lambda each: each.tokens)
        return failed[0] if failed else None

    def _fit(self, board: Any, room: _Room, failed: list[Exception]) -> None:
        from ray.train import RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        config, scratch = self.config, self.config.folder / ".ray"
        try:
            TorchTrainer(
                _work,
                train_loop_config={
                    "config": config,
                    "record": self.record,
                    "board": board,
                    "tokens": self.tokens,
                },
                torch_config=TorchConfig(timeout_s=_PATIENCE),
                scaling_config=ScalingConfig(
                    num_workers=room.workers,
                    use_gpu=room.on_gpus,
                    resources_per_worker={"GPU": 1} if room.on_gpus else {"CPU": config.threads},
                ),
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


# The board ----------------------------------------------------------------------------------------------------------


@dataclass
class _News:
    """What workers have told since the driver last asked."""

    progress: list[Progress] = field(default_factory=list)
    lines: list[tuple[int, str]] = field(default_factory=list)
    """Level and text of log lines."""
    errors: dict[int, Exception] = field(default_factory=dict)
    """Rank of a worker → its error."""
    smaller: list[SmallerPassesError] = field(default_factory=list)


class _Board:
    """An actor through which driver and workers tell each other things."""

    def __init__(self) -> None:
        self._news, self._stop = _News(), ""

    def tell(self, reason: str) -> None:
        """Tell the workers to stop."""
        self._stop = reason

    def reason(self) -> str | None:
        """Return why to stop, or None."""
        return self._stop or None

    def progressed(self, progress: Progress) -> None:
        """Take the progress of a step."""
        self._news.progress.append(progress)

    def line(self, level: int, text: str) -> None:
        """Take a log line."""
        self._news.lines.append((level, text))

    def failed(self, rank: int, error: Exception) -> None:
        """Take the error of a worker."""
        self._news.errors[rank] = error

    def needs(self, smaller: SmallerPassesError) -> None:
        """Take the smaller passes that a worker needs."""
        self._news.smaller.append(smaller)

    def news(self) -> _News:
        """Return what is new for the driver."""
        found, self._news = self._news, _News()
        return found


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
        ray.get(board.needs.remote(error))
        raise
    except (VisualBertCoreError, OSError) as error:
        ray.get(board.failed.remote(group.rank, error))
        raise


def _take_steps(settings: dict[str, Any], group: Group) -> None:
    config, record, board = settings["config"], settings["record"], settings["board"]
    set_threads(config.threads)
    lessons = open_tasks(config)
    if other := differences(record["provenance"], lessons.provenance(config)):
        raise ClusterError(f"worker {group.rank + 1} has other code or data than the driver: {'; '.join(other[:3])}")
    run = Run(config, lessons, record, _Asking(board), group, tokens=settings["tokens"])
    if not group.first:
        logging.getLogger("visualbert_core").setLevel(logging.ERROR)  # the first worker warns for all
        run.go(lambda _: None, nullcontext)
        return
    with _lines_to(board):
        run.go(board.progressed.remote, nullcontext)


class _Asking:
    """Asks the board why to stop, at most once a second."""

    def __init__(self, board: Any) -> None:
        self._board, self._asked = board, -math.inf

    def __call__(self) -> str | None:
        """Return why to stop, or None."""
        import ray

        if time.monotonic() - self._asked < _ASK_SECONDS:
            return None
        self._asked = time.monotonic()
        reason: str | None = ray.get(self._board.reason.remote())
        return reason


@contextmanager
def _lines_to(board: Any) -> Iterator[None]:
    """Send the log lines of this package to the driver."""

    class ToBoard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            board.line.remote(record.levelno, record.getMessage())

    handler, root = ToBoard(logging.INFO), logging.getLogger("visualbert_core")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
