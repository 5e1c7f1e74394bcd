"""The curves of a training: what steps.jsonl says, for plots and for other programs.

    curves.parquet    a row for each step, with the columns of steps.jsonl

A plot has at most 200 points, however long the training was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import pyarrow as pa
from pyarrow import json as arrow_json
from pyarrow import parquet

from visualbert_core.engine.shards import publish
from visualbert_core.errors import InputError

INGREDIENT = None

KEPT = 0.95
"""Share of the earlier smoothed loss that a step keeps."""
POINTS = 200
STEPS, CURVES = "steps.jsonl", "curves.parquet"


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
