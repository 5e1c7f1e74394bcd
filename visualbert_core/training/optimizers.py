"""The optimisers of a training, their schedule, and the moving average of the weights.

The shapes of the schedule are those of the authors, and so is BertAdam. Golden traces of their code compare them. The
first step has the number 0, and a warm-up starts at a rate of exactly 0, so the first step moves nothing.

BertAdam (`pytorch_pretrained_bert/optimization.py`, github.com/uclanlp/visualbert at 2a9e8bd58a20) differs from AdamW
in three points: it does not correct the bias of the moments, ε stands outside the root of the second moment, and every
tensor counts its own steps. A tensor without a gradient stands still, and so does its schedule. AdamW is torch's.

The average is torch.optim.swa_utils.AveragedModel's. It is kept as state of the optimiser, beside the moments, so it is
saved and restored with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from visualbert_core.training.recipe import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Gives the factor of each step, by one of the shapes that `TrainConfig.schedule` names.

    `warmup` is the share of the `steps` in which the factor rises from 0 to 1. For "cosine-warm-restarts", which warms
    up in each of its cycles, it is the share of a cycle. `cycles` belongs to the two shapes with restarts.
    """

    shape: str
    steps: int
    warmup: float = 0.1
    cycles: float = 1.0

    def __call__(self, step: int) -> float:
        """Return the factor of step number `step`, from 0. Steps past the end follow the same formula."""
        progress, warmup = step / self.steps, self.warmup
        if self.shape == "none":
            return 1.0
        if self.shape == "cosine-warm-restarts":
            progress = progress * self.cycles % 1
        if progress < warmup:
            return progress / warmup
        if self.shape == "constant":
            return 1.0
        if self.shape == "linear":
            return max((progress - 1) / (warmup - 1), 0.0)
        if self.shape == "cosine-hard-restarts":
            return 0.5 * (1 + math.cos(math.pi * (self.cycles * (progress - warmup) / (1 - warmup) % 1)))
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@dataclass(frozen=True)
class Moments:
    """The numbers of both optimisers."""

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6
    decay: float = 0.01


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], decay: float, no_decay: Sequence[str] = TrainConfig.no_decay
) -> list[dict[str, Any]]:
    """Return the two parameter groups, with and without weight decay. Frozen parameters are in neither group.

    A parameter has no decay if its name contains one of the `no_decay`.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            (plain if any(part in name for part in no_decay) else decayed).append(parameter)
    groups = ({"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


class AdamW(torch.optim.AdamW):
    """torch's AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with a schedule."""

    def __init__(self, groups: list[dict[str, Any]], moments: Moments, schedule: Schedule) -> None:
        # On a CPU one pass over each tensor takes a seventh of the time of torch's default. On a GPU the fused kernels
        # need the counted steps on the GPU, which `state.restore` keeps on the CPU.
        fused = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
        super().__init__(
            groups,
            lr=moments.rate,
            betas=moments.betas,
            eps=moments.epsilon,
            weight_decay=moments.decay,
            fused=fused or None,
        )
        self._rate, self._schedule = moments.rate, schedule

    def step_at(self, step: int) -> float:
        """Move the parameters at the rate of step number `step`, and return that rate."""
        rate = self._rate * self._schedule(step)
        for group in self.param_groups:
            group["lr"] = rate
        self.step()
        return rate


class BertAdam(torch.optim.Optimizer):
    """The authors' optimiser, operation by operation."""

    def __init__(self, groups: list[dict[str, Any]], moments: Moments, schedule: Schedule) -> None:
        super().__init__(groups, {"lr": moments.rate, "weight_decay": moments.decay})
        self._moments, self._schedule = moments, schedule

    def step_at(self, step: int) -> float:
        """Move the parameters. Return the rate of a tensor that had a gradient at every step so far."""
        self.step()
        return self._moments.rate * self._schedule(step)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient, at the rate of its own number of steps. `closure` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["weight_decay"])

    def _move(self, parameter: nn.Parameter, gradient: Tensor, decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        (beta, beta_square), first, second = self._moments.betas, state["exp_avg"], state["exp_avg_sq"]
        first.mul_(beta).add_(gradient, alpha=1 - beta)
        second.mul_(beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
        update = first / (second.sqrt() + self._moments.epsilon)
        if decay > 0:
            update += decay * parameter
        rate = self._moments.rate * self._schedule(int(state["step"]))
        parameter.add_(-rate * update)
        state["step"] += 1


Optimizer: TypeAlias = AdamW | BertAdam
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Moments, Schedule], Optimizer]] = {
    "adamw": AdamW,
    "bertadam": BertAdam,
}


def clip(parameters: Iterable[nn.Parameter], most: float, how: Literal["all", "each", "none"]) -> float:
    """Shorten gradients that are longer than `most`, in place. Return the norm of all gradients before that.

    "all" shortens all tensors by one factor, "each" shortens each tensor alone, as the authors' BertAdam does. The norm
    is NaN or infinite where a gradient is. Such gradients are left as they are.
    """
    held = [parameter for parameter in parameters if parameter.grad is not None]
    total = nn.utils.get_total_norm([parameter.grad for parameter in held if parameter.grad is not None])
    if how == "none" or not torch.isfinite(total):
        return float(total)
    if how == "all":
        nn.utils.clip_grads_with_norm_(held, most, total)
    else:
        for parameter in held:
            nn.utils.clip_grad_norm_(parameter, most)
    return float(total)


_AVERAGE = "average"


class Averages:
    """The averages of all tensors that have moved. With `decay` None there are none, and nothing happens.

    While a checkpoint is written, weights and averages change places: `model.safetensors` then holds the averages,
    which are evaluated, and `optimizer.safetensors` holds the weights, from which a training goes on.
    """

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
