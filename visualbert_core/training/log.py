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
from typing import Any, Self

import msgspec
import pyarrow as pa
from pyarrow import json as arrow_json
from pyarrow import parquet

from visualbert_core.engine.shards import publish
from visualbert_core.errors import InputError
from visualbert_core.printable import logger, printable, unguarded

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
        # A line that a kill cut short is left out.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        publish(path, "".join(f"{line}\n" for line in lines[:step]).encode())
        self._file = path.open("a", encoding="utf-8")
        self._flushed = time.monotonic()

    def add(self, step: Step) -> None:
        """Append a line. It reaches the file within seconds."""
        self._file.write(json.dumps(msgspec.to_builtins(step), allow_nan=False) + "\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of steps.jsonl. A batch that was left out has no loss, terms, rate and norm."""

    step: int
    epoch: int
    loss: float | None
    terms: dict[str, float] | None
    """The terms that count something in this batch."""
    rate: float | None
    norm: float | None
    examples: int
    tokens: int
    counts: tuple[int, ...]
    """What each term counts."""
    seconds: float
    waiting: float
    """Seconds of waiting for data."""
    left_out: tuple[str, ...] = ()
    """The ids of a batch that was left out."""


class Live:
    """Two lines in a terminal, elsewhere a log line every `seconds`: step, epoch, loss, rate, speed, waiting, time.

    They fit into 80 columns. Inside the context, `paused` gives the terminal to the bar of a validation.
    """

    def __init__(self, label: str, total: int, seconds: float) -> None:
        # Imported here, because only a training that runs draws.
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
        from rich.text import Text

        class TwoLines(Bar):
            line = ""

            def get_renderables(self) -> Iterator[Any]:
                yield from (self.make_tasks_table(self.tasks), Text(self.line))

        self._total, self._seconds = total, seconds
        self._label = printable(label)
        console = Console(file=unguarded(sys.stderr))
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = TwoLines(*columns, console=console) if console.is_terminal else None
        if self._bar is not None:
            self._bar.add_task(self._label, total=total)
        self._logged = time.monotonic()
        self._loss: float | None = None
        self._examples = self._spent = self._waited = 0.0
        self._steps = 0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Draw nothing inside this context: two displays in one terminal overwrite each other."""
        self.__exit__()
        yield
        self.__enter__()

    def show(self, found: Step) -> None:
        """Update the lines after a step."""
        step, loss = found.step, found.loss
        if loss is not None:
            self._loss = loss if self._loss is None else KEPT * self._loss + (1 - KEPT) * loss
        self._examples += found.examples
        self._spent += found.seconds
        self._waited += found.waiting
        self._steps += 1
        if self._bar is not None:
            self._bar.line = self._status(found)
            self._bar.update(self._bar.task_ids[0], completed=step)
        elif time.monotonic() - self._logged >= self._seconds or step == self._total:
            self._logged = time.monotonic()
            left = (self._total - step) * self._spent / self._steps
            done = f"step {step:,} of {self._total:,}, {self._status(found)}, {left:.0f} s left"
            _LOG.info("%s: %s", self._label, done)

    def _status(self, found: Step) -> str:
        spent = max(self._spent, 1e-9)
        loss = "–" if self._loss is None else f"{self._loss:.4g}"
        return (
            f"epoch {found.epoch + 1}, loss {loss}, rate {found.rate or 0:.2g}, gradient {found.norm or 0:.2g}, "
            f"{self._examples / spent:.0f} examples/s, waiting {100 * self._waited / spent:.0f} %"
        )


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
    steps, curves = read_steps(out), Curves([], [], each)
    smooth: dict[str, float] = {}
    while taken := list(islice(steps, each)):
        curves.points.append(_point(taken, smooth))
        curves.left_out.extend(step for step in taken if step.rate is None)
    return curves


def _point(steps: list[Step], smooth: dict[str, float]) -> CurvePoint:
    """Return the point of the next steps. `smooth` holds the smoothed loss, as "", and its terms."""
    norms, rate = [step.norm for step in steps if step.norm is not None], None
    for step in steps:
        if step.loss is None:
            continue
        rate = step.rate
        for name, value in {"": step.loss, **(step.terms or {})}.items():
            smooth[name] = KEPT * smooth.get(name, value) + (1 - KEPT) * value
    seconds = max(sum(step.seconds for step in steps), 1e-9)
    return CurvePoint(
        step=steps[-1].step,
        epoch=steps[-1].epoch,
        loss=smooth.get(""),
        terms={name: value for name, value in smooth.items() if name},
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
