"""The optimisers of a training: AdamW as torch computes it, and BertAdam as the authors of VisualBERT computed it.

BertAdam (`pytorch_pretrained_bert/optimization.py`, github.com/uclanlp/visualbert at 2a9e8bd58a20) differs from AdamW
in three points: it does not correct the bias of the moments, ε stands outside the root of the second moment, and every
tensor counts its own steps. A tensor without a gradient stands still, and so does its schedule. Golden traces of the
authors' code compare both optimisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from visualbert_core.training.schedules import Schedule

NO_DECAY = ("bias", "LayerNorm.bias", "LayerNorm.weight")
"""Parts of the names of tensors without weight decay, as in the authors' code."""


class Optimizer(Protocol):
    """An optimiser with a schedule."""

    state: Any
    """Parameter → the moments that it has."""

    def step_at(self, step: int) -> float:
        """Move the parameters along their gradients at step number `step`. Return the learning rate of that step."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""


@dataclass(frozen=True)
class Moments:
    """The numbers of both optimisers."""

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6
    decay: float = 0.01


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], decay: float, no_decay: Sequence[str] = NO_DECAY
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
