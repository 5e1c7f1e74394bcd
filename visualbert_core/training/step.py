"""One step of one or several workers: the losses of a batch over its passes, the gradient, the guard, and the move.

Each term of the loss is divided by what the whole batch counts, over all workers, before the first pass goes backward.
So passes and shares of different sizes give the gradient of one large pass. Dropout draws from a generator that is
seeded for each step and pass. So a resumed run draws what an uninterrupted run draws, and the caller's generator stays
as it was.

Workers have a copy of the network each. torch's DistributedDataParallel (Li et al. 2020, arXiv:2006.15704) adds their
gradients during the backward pass. A training in one process is a group of one, which exchanges nothing.

A pass that does not fit into the memory of a GPU is halved; several workers begin anew from the newest checkpoint for
that. On a CPU an error names the settings.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from visualbert_core.errors import ConfigError, TrainingError
from visualbert_core.float32 import whole_float32
from visualbert_core.models.trainable import Trainable
from visualbert_core.printable import logger
from visualbert_core.training.optimizers import Optimizer, clip
from visualbert_core.training.recipe import TrainConfig

T = TypeVar("T")

_LOG = logger(__name__)
_NAMED = 5  # ids in a message


@dataclass(frozen=True)
class Group:
    """The place of this worker in its group. Every worker must call the same methods in the same order."""

    rank: int = 0
    size: int = 1
    device: str | None = None
    """The device that Ray gave to this worker. None: the recipe decides."""

    @property
    def first(self) -> bool:
        """Return whether this worker writes the files, scores and decides."""
        return self.rank == 0

    def share(self, batch: Sequence[T]) -> list[T]:
        """Return what this worker takes of a batch: every `size`-th, so that long and short examples mix."""
        return list(batch[self.rank :: self.size])

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: int) -> int:
        if self.size == 1:
            return value
        held = torch.tensor(value, device=self.device)
        dist.broadcast(held, 0)
        return int(held)

    def wait(self) -> None:
        """Wait until all workers are here."""
        self.sum(torch.zeros((), device=self.device)).item()

    def losses(self, model: Trainable[Any]) -> nn.Module:
        """Return a module that computes `model.losses`, whose backward pass adds the gradients over all workers."""
        alone = _Losses(model)
        if self.size == 1:
            return alone
        # A head leaves parameters unused, such as the pooler, and a worker must know it to end its backward pass.
        return DistributedDataParallel(alone, broadcast_buffers=False, find_unused_parameters=True)

    def pass_alone(self, losses: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Keep the gradients of a pass in this worker, unless it is the last one of the step."""
        if last or not isinstance(losses, DistributedDataParallel):
            return nullcontext()
        return losses.no_sync()


class _Losses(nn.Module):
    """The losses of a model as a module, which is the form that DistributedDataParallel takes."""

    def __init__(self, model: Trainable[Any]) -> None:
        super().__init__()
        self.network = model.network
        self._losses = model.losses

    def forward(self, prepared: Any) -> Tensor:
        return self._losses(prepared)


ALONE = Group()


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


class SmallerPassesError(Exception):
    """A worker needs passes of at most `tokens` tokens, and the others already wait for its gradients.

    So all begin anew from the newest checkpoint, with smaller passes.
    """

    def __init__(self, said: str, tokens: int) -> None:
        super().__init__(said, tokens)
        self.said, self.tokens = said, tokens


class PassSize:
    """The largest number of tokens in a pass. It halves where a device has too little memory.

    Smaller passes give the same step, except for the draws of dropout. The smaller size stays for the rest of the
    training, and a checkpoint records it.
    """

    def __init__(self, config: TrainConfig, group: Group = ALONE, tokens: int | None = None) -> None:
        """`tokens` is what an earlier attempt of several workers came to. Default: as in the recipe."""
        self.tokens = tokens or config.tokens_per_pass
        self._config, self._group, self._cut_before = config, group, 0

    def take(self, batch: Prepared, step: Callable[[Prepared], Outcome], prepare: Callable[[int], Prepared]) -> Outcome:
        """Take a step with passes that fit. `prepare` makes the batch of a step anew, in passes of `tokens`.

        Raise ConfigError where passes cannot become smaller, or where the memory of the host ends. Raise
        SmallerPassesError in a worker of several.
        """
        if batch.step < self._cut_before:  # a thread made this batch before the size was halved
            batch = prepare(batch.step)
        while (outcome := self._tried(batch, step)) is None:
            batch = prepare(batch.step)
        return outcome

    def _tried(self, batch: Prepared, step: Callable[[Prepared], Outcome]) -> Outcome | None:
        """Return None where the passes were halved. The error, which holds the tensors of the pass, is gone then."""
        try:
            return step(batch)
        except ShortMemoryError as error:
            self._halve(batch, error.of_host)
        return None

    def _halve(self, batch: Prepared, of_host: bool) -> None:
        held = min(self.tokens, batch.tokens)
        where = "host" if of_host else "device"
        said = f"step {batch.step + 1}: {held:,} tokens at once do not fit into the memory of the {where}"
        divisible = len(batch.passes) < len(self._group.share(batch.example_ids))
        if of_host or not divisible:
            raise ConfigError(f"{said}: {self._advice(divisible)}")
        self.tokens = max(1, held // 2)
        if self._group.size > 1:
            raise SmallerPassesError(said, self.tokens)
        self._cut_before = batch.step + 1 + self._config.read_ahead
        _LOG.warning("%s; from here on a pass has at most %s", said, f"{self.tokens:,}")

    def _advice(self, divisible: bool) -> str:
        ways = []
        if not self._config.gradient_checkpointing:
            ways.append("set --gradient-checkpointing, which goes on here with the same results")
        if divisible:
            ways.append("lower --tokens-per-pass for a new --out")
        return ", or ".join(ways) or "a pass has one example, so it needs more memory"
