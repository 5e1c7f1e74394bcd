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
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from visualbert_core.engine.calls import Lost, on_ray, side_by_side
from visualbert_core.engine.stopping import Stop
from visualbert_core.errors import ConfigError, InputError, UnfinishedError, VisualBertCoreError, first_line
from visualbert_core.io.locations import absolute
from visualbert_core.printable import logger
from visualbert_core.training.folder import alone, write_record
from visualbert_core.training.grid import (
    FAILED,
    FINISHED,
    UNFINISHED,
    WAITING,
    Grid,
    Point,
    Row,
    Sweep,
    check_grid,
    points,
)
from visualbert_core.training.recipe import TrainConfig
from visualbert_core.training.sweep_page import SWEEP_PAGE, write_sweep_page
from visualbert_core.training.watch import noted

INGREDIENT = None

_LOG = logger(__name__)
RECORD = "sweep.json"


@dataclass(frozen=True)
class _Job:
    """A training to take, in this process or in another."""

    point: Point
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
    every = points(grid)
    deadline = None if config.max_hours is None else time.time() + config.max_hours * 3600
    jobs = [_Job(point, _config(config, point), deadline) for point in every]
    if (out / "run.json").exists():
        raise InputError(f"out: {out} holds one training, and a sweep needs a folder of its own: name another")
    rows = [Row(point.name, point.setting, point.values, WAITING) for point in every]
    # Several workers start Ray themselves, so these trainings take turns.
    beside = (parallel is not None or bool(os.environ.get("RAY_ADDRESS"))) and parallel != 1 and config.workers == 1
    with alone(out), on_ray() if beside else nullcontext(), Stop(config.max_hours) as stop:
        for index, row in _ended(jobs, parallel, beside, lambda: stop.reason() is not None):
            rows[index] = row
            found = Sweep(out, grid, config.validate_split, tuple(rows))
            write_record(out / RECORD, found.document())
            with noted(SWEEP_PAGE):
                write_sweep_page(config, found)
            done = sum(each.status == FINISHED for each in rows)
            _LOG.info("%s: %s; %s of %s trainings are finished", row.name, row, f"{done:,}", f"{len(rows):,}")
    return Sweep(out, grid, config.validate_split, tuple(rows))


def _config(config: TrainConfig, point: Point) -> TrainConfig:
    """Return the recipe of a training. Its paths are absolute, because a Ray task has another working folder."""
    try:
        changed = replace(config, **point.values, out=config.out / point.name)
    except ConfigError as error:
        raise ConfigError(f"{point.name}: {error}") from None
    held: dict[str, Any] = {each.name: _absolute(getattr(changed, each.name)) for each in fields(changed)}
    return replace(changed, **held)


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return absolute(value) if isinstance(value, Path) else value


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
        point = jobs[index].point
        lost = partial(Row, point.name, point.setting, point.values, FAILED, code=1)
        yield index, lost(reason=result.reason) if isinstance(result, Lost) else result


def _taken(job: _Job) -> Row:
    """Train, and return the row of the training."""
    from visualbert_core.training import train  # here, so that a table is read without torch

    row: Callable[..., Row] = partial(Row, job.point.name, job.point.setting, job.point.values)
    hours = None if job.deadline is None else max(0.0, job.deadline - time.time()) / 3600
    try:
        done = train(replace(job.config, max_hours=hours))
    except UnfinishedError as error:
        return row(UNFINISHED, reason=first_line(error), code=error.exit_code)
    except Exception as error:  # noqa: BLE001  (the failure of one training is a row, so that the others go on)
        known = isinstance(error, VisualBertCoreError)
        reason = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
        _LOG.warning("%s failed", job.point.name, exc_info=not known)
        return row(FAILED, reason=reason, code=getattr(error, "exit_code", 1))
    record: dict[str, Any] = done.record
    return row(
        FINISHED, steps=record["steps"], checkpoint=record["best"] or record["last"], validation=record["validation"]
    )
