"""The learning rate at each step of a training, as a factor of the highest rate.

The shapes are those of `pytorch_pretrained_bert/optimization.py`, with which the authors of VisualBERT trained
(github.com/uclanlp/visualbert at 2a9e8bd58a20). Golden traces compare them. The first step has the number 0, and a
warm-up starts at a rate of exactly 0, so the first step moves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from visualbert_core.config import nearest
from visualbert_core.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Gives the factor of each step. Raises ConfigError for an unknown shape, and for a warm-up outside [0, 1).

    `warmup` is the share of the `steps` in which the factor rises from 0 to 1. For "cosine-warm-restarts", which warms
    up in each of its cycles, it is the share of a cycle. `cycles` belongs to the two shapes with restarts.
    """

    shape: str
    steps: int
    warmup: float = 0.1
    cycles: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"schedule: unknown shape {self.shape!r}{nearest(self.shape, SHAPES)}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is {self.warmup:g} of the steps: it must be at least 0 and shorter than the run")

    def __call__(self, step: int) -> float:
        """Return the factor of step number `step`, from 0. Steps past the end follow the same formula."""
        return SHAPES[self.shape](step / self.steps, self.warmup, self.cycles)


def planned_steps(examples: int, batch_size: int, epochs: int, round_down: bool) -> int:
    """Return the number of steps that a schedule is made for.

    The last batch of an epoch may be short. With `round_down` it is not counted, as in the authors' code, which then
    takes it nevertheless: the last steps of their runs have a rate of 0.
    """
    return (examples // batch_size if round_down else -(-examples // batch_size)) * epochs


def _none(progress: float, warmup: float, cycles: float) -> float:
    return 1.0


def _constant(progress: float, warmup: float, cycles: float) -> float:
    return progress / warmup if progress < warmup else 1.0


def _linear(progress: float, warmup: float, cycles: float) -> float:
    return progress / warmup if progress < warmup else max((progress - 1) / (warmup - 1), 0.0)


def _cosine(progress: float, warmup: float, cycles: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _hard_restarts(progress: float, warmup: float, cycles: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (cycles * (progress - warmup) / (1 - warmup) % 1)))


def _warm_restarts(progress: float, warmup: float, cycles: float) -> float:
    return _cosine(progress * cycles % 1, warmup, cycles)


SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "none": _none,
    "cosine-hard-restarts": _hard_restarts,
    "cosine-warm-restarts": _warm_restarts,
}
"""Name of a shape → a function of (progress in [0, 1], share of the warm-up, cycles)."""
