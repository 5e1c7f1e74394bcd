"""Which examples each step takes: a seeded order for each epoch, cut into batches.

The batches are composed over the whole split before anything else is decided. So the examples of a step depend neither
on the number of workers nor on how often the run was interrupted, and the position in the data is the number of the
step alone. The order of an epoch is drawn from the raw bits of Philox (Salmon et al. 2011), which NumPy never changes.
Several tasks take turns by their weights alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Order:
    """The order of `examples` examples. The last batch of an epoch is short where the numbers do not divide.

    Without `groups` an epoch is a permutation of all examples. With them it follows the row groups of the store.
    """

    examples: int
    batch_size: int
    seed: int
    groups: RowGroups | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.planned(1)

    def planned(self, epochs: int, round_down: bool = False) -> int:
        return planned_steps(self.examples, self.batch_size, epochs, round_down)

    def batch(self, step: int) -> tuple[int, list[int]]:
        """Return the epoch of step number `step`, from 0, and the indices of its examples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        every = _epoch(self.seed, epoch, self.examples, self.groups)
        return epoch, every[place * self.batch_size : (place + 1) * self.batch_size].tolist()


@dataclass(frozen=True, eq=False)
class RowGroups:
    """The row group of each example, and how many row groups are mixed."""

    of_example: np.ndarray
    """int64 [examples]: the number of the row group, from 0 without a gap."""
    buffer: int

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return the indices of all examples in the order of an epoch: int64.

        The row groups are shuffled. An example then moves back by a uniform share of `buffer` row groups, so that all
        examples of a group come before those of the group that is `buffer` places behind it.
        """
        count = int(self.of_example.max()) + 1
        bits = _bits(seed, epoch, count + len(self.of_example))
        place = np.argsort(np.argsort(bits[:count], kind="stable")).astype(np.uint64)
        # In units of 2 ** -32 row groups. Integers give the same order on every CPU.
        return np.argsort((place[self.of_example] << 32) + (bits[count:] >> 32) * np.uint64(self.buffer), kind="stable")


@dataclass(frozen=True)
class Mixture:
    """The order of the examples of several tasks. Each has an order of its own, and a share of the steps.

    The examples of all tasks have one numbering, those of the first task first.
    """

    orders: tuple[Order, ...]
    weights: tuple[float, ...]
    """Steps of each task for one step of the first."""

    @property
    def seed(self) -> int:
        return self.orders[0].seed

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of steps in which the first task has an epoch."""
        return self.planned(1)

    def planned(self, epochs: int, round_down: bool = False) -> int:
        """Return the number of steps in which the first task has some epochs."""
        return round(self.orders[0].planned(epochs, round_down) * sum(self.weights) / self.weights[0])

    def batch(self, step: int) -> tuple[int, list[int]]:
        """Return the epoch of the task whose turn step number `step` is, and the numbers of its examples."""
        tasks, places = _turns(self.weights, 1 << max(step, 1023).bit_length())
        task = int(tasks[step])
        epoch, indices = self.orders[task].batch(int(places[step]))
        before = sum(order.examples for order in self.orders[:task])
        return epoch, [before + index for index in indices]


def planned_steps(examples: int, batch_size: int, epochs: int, round_down: bool = False) -> int:
    """Return the number of steps of some epochs, whose last batches may be short.

    With `round_down` short batches are not counted, as in the schedules of the authors' code, which then takes them
    nevertheless: the last steps of their runs have a rate of 0.
    """
    return (examples // batch_size if round_down else -(-examples // batch_size)) * epochs


@lru_cache(maxsize=2)
def _turns(weights: tuple[float, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of `count` steps the task whose turn it is, and how many steps it had before: int64.

    The n-th step of a task lies in the middle of the n-th of equal spans, so the tasks alternate as evenly as they can.
    """
    own = np.arange(count)
    times = np.concatenate([(own + 0.5) / weight for weight in weights])
    chosen = np.argsort(times, kind="stable")[:count]
    return chosen // count, chosen % count


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, examples: int, groups: RowGroups | None) -> np.ndarray:
    """Return all indices below `examples` in the order of an epoch: int64."""
    if groups is not None:
        return groups.order(seed, epoch)
    return np.argsort(_bits(seed, epoch, examples), kind="stable")


def _bits(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return `count` random numbers of an epoch: uint64."""
    return np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)


def draws(seed: int, epoch: int, example_id: str) -> random.Random:
    """Return the generator of one visit of an example: its masks and its second caption."""
    return random.Random(f"{seed} {epoch} {example_id}")
