"""Runs a sweep: a training for each point of a grid, one after the other or side by side on Ray.

    OUT/sweep.json                               the grid, a row for each training, mean and deviation of each setting
    OUT/sweep.html                               the same as a page, with curves and links, see `sweep_page`
    OUT/learning_rate=1e-05/seed=0/              a training, as `launch` writes it

A training that fails is a row with its reason, and the others go on. The same call again goes on with the trainings
that are unfinished or failed, and only reads the finished ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from visualbert_core.engine.calls import Lost, on_ray, side_by_side
from visualbert_core.engine.stopping import Stop
from visualbert_core.errors import ConfigError, InputError, UnfinishedError, VisualBertCoreError, first_line
from visualbert_core.io.locations import absolute_paths
from visualbert_core.printable import logger
from visualbert_core.training.folder import SWEEP, alone, write_record
from visualbert_core.training.grid import FAILED, FINISHED, UNFINISHED, Grid, Row, Sweep, check_grid, points
from visualbert_core.training.launch import train
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.sweep_page import SWEEP_PAGE, write_sweep_page
from visualbert_core.training.watch import noted

INGREDIENT = None

_LOG = logger(__name__)


@dataclass(frozen=True)
class _Job:
    """A training to take, in this process or in another."""

    row: Row
    config: TrainConfig
    deadline: float | None
    """The time (`time.time`) at which the sweep stops."""


def sweep(config: TrainConfig, grid: Grid, parallel: int | None = None) -> Sweep:
    """Train once for each combination of the values of `grid`, which replace keys of `config`. Return the table.

    `parallel` trainings run at once, as Ray tasks: each with one GPU where there are GPUs, otherwise with
    `config.threads` CPUs. Without it, the cluster of RAY_ADDRESS takes as many as it has room for; elsewhere trainings
    take turns in this process, and so they do with several `config.workers`. `config.max_hours` is the time of the
    whole sweep. A signal or the end of that time saves the running trainings. They are rows that are unfinished, and
    nothing is raised.

    Raise ConfigError where a key cannot be swept or a combination is wrong. Raise InputError where OUT holds one
    training.
    """
    check_grid(grid)
    if parallel is not None and parallel < 1:
        raise ConfigError(f"parallel is {parallel}: it must be at least 1")
    if parallel not in (None, 1) and config.workers > 1:
        raise ConfigError("parallel: each training has several workers already; leave out --parallel or --workers")
    if not isinstance(config.out, Path):
        raise ConfigError(f"out: {config.out} is an address: a sweep needs a folder")
    out = config.out
    rows = points(grid)
    deadline = None if config.max_hours is None else time.time() + config.max_hours * 3600
    jobs = [_Job(row, _config(config, row), deadline) for row in rows]
    if (out / "run.json").exists():
        raise InputError(f"out: {out} holds one training, and a sweep needs a folder of its own: name another")
    # Several workers start Ray themselves, so these trainings take turns.
    beside = (parallel is not None or bool(os.environ.get("RAY_ADDRESS"))) and parallel != 1 and config.workers == 1
    with alone(out), on_ray() if beside else nullcontext(), Stop(config.max_hours) as stop:
        for index, row in _ended(jobs, parallel, beside, lambda: stop.reason() is not None):
            rows[index] = row
            found = Sweep(out, grid, config.validate_split, tuple(rows))
            write_record(out / SWEEP, found.document())
            with noted(SWEEP_PAGE):
                write_sweep_page(config, found)
            done = sum(each.status == FINISHED for each in rows)
            _LOG.info("%s: %s; %s of %s trainings are finished", row.name, row, f"{done:,}", f"{len(rows):,}")
    return Sweep(out, grid, config.validate_split, tuple(rows))


def _config(config: TrainConfig, row: Row) -> TrainConfig:
    """Return the recipe of a training. Its paths are absolute, because a Ray task has another working folder."""
    try:
        changed = replace(config, **row.values, out=config.out / row.name)
    except ConfigError as error:
        raise ConfigError(f"{row.name}: {error}") from None
    return absolute_paths(changed)


def _ended(
    jobs: Sequence[_Job], parallel: int | None, beside: bool, stopped: Callable[[], bool]
) -> Iterator[tuple[int, Row]]:
    """Yield (index, row) of each training that ended, in the order in which they end."""
    if not beside:
        for index, job in enumerate(jobs):
            if stopped():
                return
            row = _taken(job)
            yield index, row
            if row.status == UNFINISHED:
                return
        return
    threads = max(job.config.threads for job in jobs)
    for index, result in side_by_side(_taken, jobs, parallel, threads, jobs[0].config.device, stopped):
        if isinstance(result, Lost):
            result = replace(jobs[index].row, status=FAILED, code=1, reason=result.reason)
        yield index, result


def _taken(job: _Job) -> Row:
    hours = None if job.deadline is None else max(0.0, job.deadline - time.time()) / 3600
    try:
        done = train(replace(job.config, max_hours=hours))
    except UnfinishedError as error:
        return replace(job.row, status=UNFINISHED, reason=first_line(error), code=error.exit_code)
    except Exception as error:  # noqa: BLE001  (the failure of one training is a row, so that the others go on)
        known = isinstance(error, VisualBertCoreError)
        reason = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
        _LOG.warning("%s failed", job.row.name, exc_info=not known)
        return replace(job.row, status=FAILED, reason=reason, code=getattr(error, "exit_code", 1))
    record = done.record
    checkpoint, scores = record["best"] or record["last"], record["validation"]
    return replace(job.row, status=FINISHED, steps=record["steps"], checkpoint=checkpoint, validation=scores)
