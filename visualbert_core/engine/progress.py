"""The progress of a running stage: a bar in a terminal, elsewhere a log line every minute, and figures for Prometheus.

This file counts nothing itself. The numbers of items come from the committed markers. The numbers of shards and workers
come from the scheduler.

Ray exports the figures at the metrics port of every node, with `ray_` before each name. All figures are gauges
(prometheus.io/docs/concepts/metric_types), which the driver sets, so that they outlive the workers. The stage
("features of coco") is a tag.

    visualbert_items{stage, state=done|failed|left}     visualbert_items_per_second{stage}
    visualbert_shards{stage, state=waiting|running|suspect|given_up|done}     visualbert_seconds_left{stage}
    visualbert_workers{stage, state=ready|starting|unplaced}     visualbert_worker_gpus{stage}: GPUs of one worker

A worker is unplaced while no node has room for it. Then it is starting until its model is loaded. Ray allows only ASCII
in tags, so the stage is written as in a URL where a character is the percent sign or not printable ASCII ("features of
caf%C3%A9").

Ray itself measures how busy each GPU is: `ray_node_gpus_utilization`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from visualbert_core.engine.shards import Marker
from visualbert_core.printable import logger, printable, unguarded

INGREDIENT = None

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_LOG = logger(__name__)
LOG_SECONDS = 60.0
METRIC_SECONDS = 5.0

Figures = dict[tuple[str, str], float]
"""(metric, state) → value. The state is "" for a metric without states."""


@dataclass(frozen=True)
class Shards:
    """How many shards are in each state. A suspect was running when its worker died, or is a trial of such a shard."""

    waiting: int
    running: int
    suspect: int
    given_up: int
    done: int


@dataclass(frozen=True)
class Workers:
    """How many workers are in each state, and how many GPUs one worker reserves."""

    ready: int
    starting: int
    unplaced: int
    gpus: float


class Progress:
    """Shows a stage on stderr inside its context, and passes the figures to `publish` every few seconds."""

    def __init__(self, label: str, total: int, publish: Callable[[str, Figures], None] = lambda *_: None) -> None:
        self.label, self.total, self.publish = label, total, publish
        self.done = self.failed = 0
        self.began = self.logged = time.monotonic()
        self.published = 0.0
        self.shards, self.workers = Shards(0, 0, 0, 0, 0), Workers(0, 0, 0, 0)
        self.bar = make_bar()
        self.task = self.bar.add_task(printable(label), total=total, status="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self._log()
        self._publish()

    def ready(self) -> None:
        """Restart the clock when a worker is ready, until the first item is done. So rates exclude the start of
        workers."""
        if not self.done:
            self.began = time.monotonic()

    def add(self, marker: Marker) -> None:
        """Count the items of a committed shard."""
        self.failed += marker.failed
        self.done += marker.rows + marker.failed

    def show(self, shards: Shards, workers: Workers) -> None:
        """Update the bar, and write a log line and the figures where they are due. Call it often."""
        self.shards, self.workers = shards, workers
        if not self.bar.disable:
            self.bar.update(self.task, completed=self.done, status=self._status(""))
        if time.monotonic() - self.logged > LOG_SECONDS:
            self._log()
        if time.monotonic() - self.published > METRIC_SECONDS:
            self._publish()

    def note(self, line: str) -> None:
        """Log a warning, on which the user may have to act."""
        _LOG.warning("%s: %s", self.label, line)

    def _rate(self) -> float:
        return self.done / max(time.monotonic() - self.began, 1e-9)

    def _seconds_left(self) -> float:
        return (self.total - self.done) / self._rate() if self.done else 0.0

    def _status(self, left: str) -> str:
        shards, workers = self.shards, self.workers
        given_up = f", {shards.given_up} given up" if shards.given_up else ""
        each = f" of {workers.gpus:g} GPU" if workers.gpus else ""
        absent = {"starting": workers.starting, "without room": workers.unplaced}
        others = ", ".join(f"{count} {state}" for state, count in absent.items() if count)
        return (
            f"{self._rate():.1f}/s, {self.failed} failed{left}; shards {shards.done} done, {shards.running} running, "
            f"{shards.waiting + shards.suspect} waiting{given_up}; {workers.ready} workers{each}"
            + (f" ({others})" if others else "")
        )

    def _log(self) -> None:
        self.logged = time.monotonic()
        left = f", {self._seconds_left():.0f} s left" if 0 < self.done < self.total else ""
        if self.bar.disable:
            _LOG.info("%s: %d of %d, %s", self.label, self.done, self.total, self._status(left))

    def _publish(self) -> None:
        self.published = time.monotonic()
        figures: Figures = {("shards", state): count for state, count in asdict(self.shards).items()}
        figures |= {("workers", state): getattr(self.workers, state) for state in ("ready", "starting", "unplaced")}
        figures |= {("items", "done"): self.done - self.failed, ("items", "failed"): self.failed}
        figures |= {("items", "left"): self.total - self.done, ("worker_gpus", ""): self.workers.gpus}
        figures |= {("items_per_second", ""): self._rate(), ("seconds_left", ""): self._seconds_left()}
        self.publish(self.label, figures)


def make_bar() -> Bar:
    """Return the bar, which draws in a terminal only."""
    # Imported here, because workers import this file too and draw nothing.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

    text, status = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[status]}")
    columns: list[ProgressColumn] = [text, BarColumn(), MofNCompleteColumn(), status, TimeRemainingColumn()]
    console = Console(file=unguarded(sys.stderr))
    return Progress(*columns, console=console, disable=not console.is_terminal)
