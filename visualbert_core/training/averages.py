"""The exponential moving average of the weights, as torch.optim.swa_utils.AveragedModel computes it.

An average is kept as state of the optimiser, beside the moments, so it is saved and restored with them. While a
checkpoint is written, weights and averages change places: `model.safetensors` then holds the averages, which are
evaluated, and `optimizer.safetensors` holds the weights, from which a training goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from visualbert_core.training.optimizers import Optimizer

_AVERAGE = "average"


class Averages:
    """The averages of all tensors that have moved. With `decay` None there are none, and nothing happens."""

    def __init__(self, optimizer: Optimizer, decay: float | None) -> None:
        self._optimizer, self._decay = optimizer, decay

    @torch.no_grad()
    def update(self) -> None:
        """Count the weights after a step. The average of a tensor begins with its first move."""
        if self._decay is None:
            return
        for parameter, state in self._optimizer.state.items():
            if _AVERAGE in state:
                state[_AVERAGE].lerp_(parameter, 1 - self._decay)
            else:
                state[_AVERAGE] = parameter.detach().clone()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the network hold the averages inside the context, and its weights again afterwards, bit for bit."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Let weights and averages change places."""
        for parameter, state in self._optimizer.state.items():
            if _AVERAGE in state:
                weights = parameter.detach().clone()
                parameter.copy_(state[_AVERAGE])
                state[_AVERAGE].copy_(weights)
