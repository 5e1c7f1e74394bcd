"""The workers that take the steps of one training together, each with a copy of the network.

Owns what they exchange: shares of a batch, sums of counts, losses and gradients, and what the first worker decides. A
training in one process is a group of one, which exchanges nothing. The gradients are added by torch's
DistributedDataParallel (Li et al. 2020, arXiv:2006.15704), during the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from visualbert_core.models.trainable import Trainable

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The place of this worker in its group. Every worker must call the same methods in the same order."""

    rank: int = 0
    size: int = 1
    device: str | None = None
    """The device that Ray gave to this worker. None: the recipe decides."""

    @property
    def first(self) -> bool:
        """Return whether this worker writes the files, evaluates and decides."""
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
        """Return the first worker's value."""
        if self.size == 1:
            return value
        held = torch.tensor(value, device=self.device)
        dist.broadcast(held, 0)
        return int(held)

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
        """Compute the sums of the losses of one pass."""
        return self._losses(prepared)


ALONE = Group()
