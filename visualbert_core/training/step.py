"""One step: the losses of a batch over one or several passes, the gradient, the guard, and the move of the optimiser.

Each term of the loss is divided by what the whole batch counts, over all workers, before the first pass goes backward.
So passes and shares of different sizes give the gradient of one large pass. Dropout draws from a generator that is
seeded for each step and pass. So a resumed run draws what an uninterrupted run draws, and the caller's generator stays
as it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visualbert_core.errors import TrainingError
from visualbert_core.float32 import whole_float32
from visualbert_core.models.trainable import Trainable
from visualbert_core.training.group import ALONE, Group
from visualbert_core.training.optimizers import Optimizer, clip
from visualbert_core.training.recipe import TrainConfig

_NAMED = 5  # ids in a message


@dataclass(frozen=True, eq=False)
class Prepared:
    """A worker's share of a batch, as the model takes it."""

    step: int
    epoch: int
    example_ids: tuple[str, ...]
    """The examples of the whole batch."""
    passes: tuple[Any, ...]
    """The tensors of each pass."""
    counts: tuple[int, ...]
    """What each term counts over all passes."""
    tokens: int
    stand_in: bool = False
    """Whether the share is empty. Its one pass repeats an example of another worker, and must count nothing."""


@dataclass(frozen=True)
class Outcome:
    """What a step gave, over all workers. The loss is the sum of the terms."""

    loss: float
    terms: dict[str, float]
    norm: float
    rate: float | None
    """The rate of the optimiser. None: the batch was left out."""
    counts: tuple[int, ...]
    """What each term counts."""
    tokens: int


class Stepper:
    """Takes the steps of a training on one device."""

    def __init__(self, model: Trainable[Any], optimizer: Optimizer, config: TrainConfig, group: Group = ALONE) -> None:
        self._model, self._optimizer, self._config, self._group = model, optimizer, config, group
        self._parameters: Sequence[nn.Parameter] = [p for p in model.network.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._losses = group.losses(model)
        self.skipped = 0

    def __call__(self, batch: Prepared) -> Outcome:
        """Take a step.

        Where the loss or the gradient is not finite, leave the batch out and count it; or raise TrainingError, which
        names the step and the examples, where the recipe allows no more of these. The weights are unchanged then.
        """
        group = self._group
        self._optimizer.zero_grad()
        *counts, tokens = group.sum(torch.tensor([*batch.counts, batch.tokens], device=self._device)).tolist()
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []), whole_float32():
            means = (group.sum(self._backward(batch, counts)) / _divisors(counts, self._device)).tolist()
            norm = clip(self._parameters, self._config.clip_norm, self._config.clip)
            loss, rate = math.fsum(means), None
            if math.isfinite(loss) and math.isfinite(norm):
                rate = self._optimizer.step_at(batch.step)
            else:
                self._skip(batch, loss, norm)
        terms = dict(zip(self._model.terms, means, strict=True))
        return Outcome(loss, terms, norm, rate, tuple(counts), tokens)

    def _backward(self, batch: Prepared, counts: Sequence[int]) -> Tensor:
        """Add the gradients of all passes. Return the sums of the losses of this worker's share: float32 [terms]."""
        # DistributedDataParallel divides the gradient by the number of workers.
        weight = 0 if batch.stand_in else self._group.size
        divisors = _divisors(counts, self._device)
        totals = torch.zeros(len(counts), device=self._device)
        self._model.network.train()
        for number, prepared in enumerate(batch.passes):
            torch.manual_seed(dropout_seed(self._config.seed, batch.step, number * self._group.size + self._group.rank))
            with _memory(), self._group.pass_alone(self._losses, last=number == len(batch.passes) - 1):
                with torch.autocast(self._device.type, torch.bfloat16, self._config.precision == "bfloat16"):
                    sums: Tensor = self._losses(prepared)
                (sums / divisors).sum().mul(weight).backward()  # type: ignore[no-untyped-call]
            if not batch.stand_in:
                totals += sums.detach()
        return totals

    def _skip(self, batch: Prepared, loss: float, norm: float) -> None:
        self._optimizer.zero_grad()
        self.skipped += 1
        if self.skipped > self._config.skip_bad_batches:
            ids = ", ".join(batch.example_ids[:_NAMED]) + (", …" if len(batch.example_ids) > _NAMED else "")
            raise TrainingError(
                f"step {batch.step + 1}: the loss is {loss:g} and the length of the gradient {norm:g}; the batch has "
                f"{len(batch.example_ids)} examples ({ids}): look for features or weights that are not finite, lower "
                "the learning rate, or leave such batches out with --skip-bad-batches N"
            )


def _divisors(counts: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(counts, device=device).clamp(min=1)


def dropout_seed(seed: int, step: int, number: int) -> int:
    """Return the seed of torch's generator in pass `number` of a step, counted over all workers."""
    digest = hashlib.sha256(f"dropout {seed} {step} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits


class ShortMemoryError(Exception):
    """A pass does not fit into memory. No weight has moved, so the step can be taken again."""

    def __init__(self, of_host: bool) -> None:
        super().__init__("a pass does not fit into memory")
        self.of_host = of_host


@contextmanager
def _memory() -> Iterator[None]:
    """Raise ShortMemoryError where the body runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ShortMemoryError(of_host=False) from None
    except RuntimeError as error:  # torch has no class of its own for the memory of the host
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise ShortMemoryError(of_host=True) from None
