"""The log of a training: a line of JSON for each step on disk, and a live line for people.

The file `steps.jsonl` holds the curves. Its lines up to a checkpoint are on the disk before the checkpoint is, so a
resumed run cuts the file at its checkpoint and writes the same lines again, except for the times.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from visualbert_core.engine.shards import publish
from visualbert_core.printable import logger, printable, unguarded
from visualbert_core.training.curves import KEPT

if TYPE_CHECKING:
    from rich.console import Group

_LOG = logger(__name__)
_FLUSH_SECONDS = 2.0


class StepLog:
    """The file steps.jsonl. Lines after step `step` are cut off when it is opened."""

    def __init__(self, path: Path, step: int) -> None:
        publish(path, "".join(f"{line}\n" for line in _lines(path, step)).encode())
        self._file = path.open("a", encoding="utf-8")
        self._flushed = time.monotonic()

    def add(self, line: dict[str, Any]) -> None:
        """Append a line. It reaches the file within seconds."""
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def sync(self) -> None:
        """Write all lines to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines(path: Path, step: int) -> list[str]:
    """Return the lines of the first `step` steps. A line that a kill cut short is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text.split("\n")[:-1]
    return whole[:step]


@dataclass(frozen=True)
class Pace:
    """What a step took: examples, seconds in all, and seconds of waiting for data."""

    examples: int
    seconds: float
    waiting: float


@dataclass(frozen=True)
class Progress:
    """What one step gave, for the line of progress. `loss` and `rate` are None for a batch that was left out."""

    step: int
    epoch: int
    loss: float | None
    rate: float | None
    norm: float
    pace: Pace


class Live:
    """Two lines in a terminal, elsewhere a log line every `seconds`: step, epoch, loss, rate, speed, waiting, time.

    They fit into 80 columns. Inside the context, `paused` gives the terminal to the bar of a validation.
    """

    def __init__(self, label: str, total: int, seconds: float) -> None:
        # Imported here, because only a training that runs draws.
        from rich.console import Console
        from rich.live import Live as Display
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._total, self._seconds = total, seconds
        self._label = printable(label)
        console = Console(file=unguarded(sys.stderr))
        text = TextColumn("{task.description}", markup=False)
        self._bar = Bar(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task(self._label, total=total)
        self._line = ""
        self._display = Display(console=console, get_renderable=self._drawn) if console.is_terminal else None
        self._logged = time.monotonic()
        self._loss: float | None = None
        self._examples = self._spent = self._waited = 0.0
        self._steps = 0

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Draw nothing inside this context: two displays in one terminal overwrite each other."""
        self.__exit__()
        yield
        self.__enter__()

    def show(self, found: Progress) -> None:
        """Update the lines after a step."""
        step, loss, pace = found.step, found.loss, found.pace
        if loss is not None:
            self._loss = loss if self._loss is None else KEPT * self._loss + (1 - KEPT) * loss
        self._examples += pace.examples
        self._spent += pace.seconds
        self._waited += pace.waiting
        self._steps += 1
        if self._display is not None:
            self._line = self._status(found)
            self._bar.update(self._task, completed=step)
        elif time.monotonic() - self._logged >= self._seconds or step == self._total:
            self._logged = time.monotonic()
            left = (self._total - step) * self._spent / self._steps
            _LOG.info(
                "%s: step %s of %s, %s, %.0f s left",
                self._label,
                f"{step:,}",
                f"{self._total:,}",
                self._status(found),
                left,
            )

    def _drawn(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(self._bar, Text(self._line))

    def _status(self, found: Progress) -> str:
        spent = max(self._spent, 1e-9)
        loss = "–" if self._loss is None else f"{self._loss:.4g}"
        return (
            f"epoch {found.epoch + 1}, loss {loss}, rate {found.rate or 0:.2g}, gradient {found.norm:.2g}, "
            f"{self._examples / spent:.0f} examples/s, waiting {100 * self._waited / spent:.0f} %"
        )
