"""The log of a training: a line of JSON for each step on disk, a live line for people, and the curves of both.

    steps.jsonl       a line for each step
    curves.parquet    a row for each step, with the columns of steps.jsonl

The lines up to a checkpoint are on the disk before the checkpoint is. So a resumed run cuts the file at its checkpoint
and writes the same lines again, except for the times. A plot has at most 200 points, however long the training was.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import pyarrow as pa
from pyarrow import json as arrow_json
from pyarrow import parquet

from visualbert_core.engine.shards import publish
from visualbert_core.errors import InputError
from visualbert_core.printable import logger, printable, unguarded

if TYPE_CHECKING:
    from rich.console import Group

INGREDIENT = None

_LOG = logger(__name__)
_FLUSH_SECONDS = 2.0
KEPT = 0.95
"""Share of the earlier smoothed loss that a step keeps."""
POINTS = 200
STEPS, CURVES = "steps.jsonl", "curves.parquet"


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


class Step(msgspec.Struct, frozen=True):
    """A line of steps.jsonl. A batch that was left out has neither loss nor rate, and `left_out` names its examples."""

    step: int
    epoch: int
    loss: float | None
    terms: dict[str, float] | None
    rate: float | None
    norm: float | None
    examples: int
    seconds: float
    waiting: float
    left_out: list[str] = []


@dataclass(frozen=True)
class CurvePoint:
    """The steps since the point before: smoothed losses and the rate at their end, the others over all of them."""

    step: int
    epoch: int
    loss: float | None
    terms: dict[str, float]
    rate: float | None
    norm: float | None
    speed: float
    """Examples a second."""
    waiting: float
    """Percent of the time in which the network waited for data."""


@dataclass(frozen=True)
class Curves:
    """The points of a training, and the steps whose batches were left out."""

    points: list[CurvePoint]
    left_out: list[Step]
    each: int
    """The number of steps of a point."""

    @property
    def steps(self) -> int:
        """Return the number of steps that were taken."""
        return self.points[-1].step if self.points else 0


def read_steps(out: Path) -> Iterator[Step]:
    """Yield the steps of a training. A line that is not whole yet is left out.

    Raise InputError naming the line where the file is damaged.
    """
    path, decoder = out / STEPS, msgspec.json.Decoder(Step)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise InputError(f"{path} line {number} is not as a training writes it: {error}") from None


def read_curves(out: Path) -> Curves:
    """Read the curves of a training."""
    with (out / STEPS).open("rb") as file:
        each = max(1, -(-sum(1 for _ in file) // POINTS))
    steps, smooth = read_steps(out), _Smoothed()
    curves = Curves([], [], each)
    while taken := list(islice(steps, each)):
        curves.points.append(smooth.point(taken))
        curves.left_out.extend(step for step in taken if step.rate is None)
    return curves


class _Smoothed:
    """The smoothed loss and its terms, from step to step."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def point(self, steps: list[Step]) -> CurvePoint:
        """Return the point of the next steps."""
        norms, rate = [step.norm for step in steps if step.norm is not None], None
        for step in steps:
            if step.loss is None:
                continue
            rate = step.rate
            for name, value in {"": step.loss, **(step.terms or {})}.items():
                self._values[name] = KEPT * self._values.get(name, value) + (1 - KEPT) * value
        seconds = max(sum(step.seconds for step in steps), 1e-9)
        return CurvePoint(
            step=steps[-1].step,
            epoch=steps[-1].epoch,
            loss=self._values.get(""),
            terms={name: value for name, value in self._values.items() if name},
            rate=rate,
            norm=sum(norms) / len(norms) if norms else None,
            speed=sum(step.examples for step in steps) / seconds,
            waiting=100 * sum(step.waiting for step in steps) / seconds,
        )


def write_parquet(out: Path) -> None:
    """Write curves.parquet, whole or not at all. Raise InputError where steps.jsonl is damaged."""
    sink = pa.BufferOutputStream()
    try:
        parquet.write_table(arrow_json.read_json(out / STEPS), sink)
    except pa.ArrowInvalid as error:
        raise InputError(f"{out / STEPS} is not as a training writes it: {error}") from None
    publish(out / CURVES, sink.getvalue().to_pybytes())
