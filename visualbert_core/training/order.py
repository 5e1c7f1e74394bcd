"""Which examples each step takes: a seeded permutation for each epoch, cut into batches.

The batches are composed over the whole split before anything else is decided. So the examples of a step depend neither
on the number of workers nor on how often the run was interrupted, and the position in the data is the number of the
step alone. The order of an epoch is drawn from the raw bits of Philox (Salmon et al. 2011), which NumPy never changes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Order:
    """The order of `examples` examples. The last batch of an epoch is short where the numbers do not divide."""

    examples: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-self.examples // self.batch_size)

    def total(self, steps: int) -> int:
        """Return `steps`: a training on one task has no others."""
        return steps

    def batch(self, step: int) -> tuple[int, list[int]]:
        """Return the epoch of step number `step`, from 0, and the indices of its examples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        every = _permutation(self.seed, epoch, self.examples)
        return epoch, every[place * self.batch_size : (place + 1) * self.batch_size].tolist()


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """Return all indices below `examples` in the order of an epoch: int64."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(examples)
    return np.argsort(bits, kind="stable")


def draws(seed: int, epoch: int, example_id: str) -> random.Random:
    """Return the generator of one visit of an example: its masks and its second caption."""
    return random.Random(f"{seed} {epoch} {example_id}")
