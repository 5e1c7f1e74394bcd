"""One step: the losses of a batch over one or several passes, the gradient, the guard, and the move of the optimiser.

Each term of the loss is divided by what the whole batch counts, before the first pass goes backward. So passes of
different sizes give the gradient of one large pass. Dropout draws from a generator that is seeded for each step and
pass. So a resumed run draws what an uninterrupted run draws, and the caller's generator stays as it was.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visualbert_core.errors import TrainingError
from visualbert_core.float32 import whole_float32
from visualbert_core.models.trainable import Trainable
from visualbert_core.training.optimizers import Optimizer, clip
from visualbert_core.training.recipe import TrainConfig

_NAMED = 5  # ids in a message


@dataclass(frozen=True, eq=False)
class Prepared:
    """A batch as the model takes it: the tensors of each pass, and what each term counts over all passes."""

    step: int
    epoch: int
    example_ids: tuple[str, ...]
    passes: tuple[Any, ...]
    counts: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """What a step gave. The loss is the sum of the terms; `rate` is None where the batch was left out."""

    loss: float
    terms: dict[str, float]
    norm: float
    rate: float | None


class Stepper:
    """Takes the steps of a training on one device."""

    def __init__(self, model: Trainable[Any], optimizer: Optimizer, config: TrainConfig) -> None:
        self._model, self._optimizer, self._config = model, optimizer, config
        self._parameters: Sequence[nn.Parameter] = [p for p in model.network.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self.skipped = 0

    def __call__(self, batch: Prepared) -> Outcome:
        """Take a step.

        Where the loss or the gradient is not finite, leave the batch out and count it; or raise TrainingError, which
        names the step and the examples, where the recipe allows no more of these. The weights are unchanged then.
        """
        self._optimizer.zero_grad()
        counts = torch.tensor(batch.counts, device=self._device).clamp(min=1)
        totals = torch.zeros(len(batch.counts), device=self._device)
        self._model.network.train()
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices), whole_float32():
            for number, prepared in enumerate(batch.passes):
                torch.manual_seed(dropout_seed(self._config.seed, batch.step, number))
                with torch.autocast(self._device.type, torch.bfloat16, self._config.precision == "bfloat16"):
                    sums = self._model.losses(prepared)
                (sums / counts).sum().backward()  # type: ignore[no-untyped-call]
                totals += sums.detach()
            norm = clip(self._parameters, self._config.clip_norm, self._config.clip)
            means = (totals / counts).tolist()
            loss = math.fsum(means)
            terms = dict(zip(self._model.terms, means, strict=True))
            if not math.isfinite(loss) or not math.isfinite(norm):
                self._skip(batch, loss, norm)
                return Outcome(loss, terms, norm, None)
            return Outcome(loss, terms, norm, self._optimizer.step_at(batch.step))

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


def dropout_seed(seed: int, step: int, number: int) -> int:
    """Return the seed of torch's generator in pass `number` of a step."""
    digest = hashlib.sha256(f"dropout {seed} {step} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits
